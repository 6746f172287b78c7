//! The processes of a tree move at one instant: each has its keeper, and these meet at the steps
//! of the way. All of them go, or none.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use tcmi_ckpt::capture;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::Segment;
use tcmi_ckpt::sysv;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_core::limits::{TREE_HOLD_TIMEOUT_MS, TREE_PROCESSES_MAX};
use tcmi_ctlfs::Caller;
use tcmi_kkc::{BulkError, BulkReader, Link};
use tcmi_migr::fault::{self, Point};
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::module::freezer;
use tcmi_migr::source::{Original, has_ended};
use tcmi_migr::{Error, Result};
use tcmi_shadow::word::Word;
use tcmi_sys::maps::{self, Mapping};
use tcmi_sys::proc;

use super::Shared;
use crate::control::{Done, not_its_own_writer};
use crate::explain::Sharers;
use crate::keeper::explain_error;
use crate::task::Task;

mod back;

use back::Back;
pub use back::Homeward;

/// What a process has reached; the next is begun when all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Joined,
    /// It is held, and began no process that is not a member.
    Held,
    /// The node has it, and home may make it a shadow.
    Ready,
    /// Its guest runs. Behind this it is decided that all of them are away.
    Runs,
}

pub struct Party {
    shared: Arc<Shared>,
    link: Link,
    head: Pid,
    caller: Caller,
    family: Arc<()>,
    pub word: Word,
    back: Mutex<Back>,
    /// When all of it has to be held.
    hold_until: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    members: BTreeMap<Pid, Member>,
    passed: Step,
    /// Keepers that have not told how their move ended.
    moving: usize,
    /// The first that stopped it.
    failed: Option<MigrateError>,
    reply: Option<Done>,
}

struct Member {
    task: Arc<Task>,
    step: Step,
    /// Memory that it shares with the others.
    segments: Vec<Segment>,
}

fn too_many(head: Pid) -> MigrateError {
    let reasons = vec![format!("its tree has more than {TREE_PROCESSES_MAX} processes")];
    MigrateError::Unsupported { pid: head, reasons }
}

impl Shared {
    /// `reply`: all processes of the tree are away, or all are at home.
    pub(super) fn emigrate_tree(
        self: &Arc<Self>,
        head: Pid,
        link: Link,
        caller: Caller,
        reply: Done,
    ) {
        let word = match Word::new() {
            Ok(word) => word,
            Err(error) => {
                let reasons = vec![error.to_string()];
                return reply(Err(MigrateError::Unsupported { pid: head, reasons }));
            }
        };
        let (members, passed) = (BTreeMap::new(), Step::Joined);
        let inner = Inner { members, passed, moving: 0, failed: None, reply: None };
        let party = Arc::new(Party {
            shared: Arc::clone(self),
            link,
            head,
            caller,
            family: Arc::default(),
            word,
            back: Mutex::default(),
            hold_until: Instant::now() + Duration::from_millis(TREE_HOLD_TIMEOUT_MS),
            inner: Mutex::new(inner),
        });
        match party.gather() {
            Ok(tasks) => {
                let mut inner = party.inner.lock();
                inner.reply = Some(reply);
                party.join(&mut inner, tasks);
            }
            Err(error) => reply(Err(error)),
        }
    }

    fn run_together(self: &Arc<Self>, party: &Arc<Party>, task: &Arc<Task>) {
        let (theirs, pid) = (Arc::clone(party), task.pid);
        let done: Done = Box::new(move |result| theirs.ended(pid, result));
        task.to(State::Preparing);
        match party.hold(task) {
            Ok(frozen) => {
                self.run(task, &party.link, Original::Held(frozen), done, Some(party));
            }
            Err(e) => {
                let error = explain_error(task, party.link.peer_name(), e);
                task.failed(&error.to_string());
                task.release();
                task.to(match error {
                    MigrateError::NoSuchProcess(_) => State::Gone,
                    _ => State::Running,
                });
                done(Err(error));
                self.forget(task);
            }
        }
    }
}

impl Party {
    /// The processes that are there now, entered in the books. Err: none is.
    fn gather(&self) -> std::result::Result<Vec<Arc<Task>>, MigrateError> {
        let mut tasks = vec![self.admit(self.head)?];
        let added = self.new_below(&[self.head.raw()]).and_then(|below| {
            // A vfork lends its child the memory: it joins when it has its own, for until then
            // its parent cannot be held.
            for pid in below.into_iter().filter(|pid| lent_by(pid.raw()).is_none()) {
                tasks.extend(self.admit_if_there(pid)?);
            }
            match tasks.len() > TREE_PROCESSES_MAX {
                true => Err(too_many(self.head)),
                false => Ok(()),
            }
        });
        match added {
            Ok(()) => Ok(tasks),
            Err(error) => {
                tasks.iter().for_each(|task| self.shared.strike_out(task));
                Err(error)
            }
        }
    }

    fn new_below(&self, known: &[i32]) -> std::result::Result<Vec<Pid>, MigrateError> {
        let below = proc::descendants(known).map_err(|e| MigrateError::Local {
            doing: "look for the processes of a tree".to_owned(),
            source: std::io::Error::from_raw_os_error(e.code),
        })?;
        Ok(below.into_iter().filter_map(Pid::new).collect())
    }

    fn admit(&self, pid: Pid) -> std::result::Result<Arc<Task>, MigrateError> {
        not_its_own_writer(self.caller, pid)?;
        let family = Arc::clone(&self.family);
        self.shared.admit(pid, self.link.id(), self.caller.uid, family, Sharers::Later)
    }

    /// None: it has ended.
    fn admit_if_there(&self, pid: Pid) -> std::result::Result<Option<Arc<Task>>, MigrateError> {
        match self.admit(pid) {
            Ok(task) => Ok(Some(task)),
            Err(MigrateError::NoSuchProcess(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts their keepers.
    fn join(self: &Arc<Self>, inner: &mut Inner, tasks: Vec<Arc<Task>>) {
        inner.moving += tasks.len();
        for task in &tasks {
            let (task, segments) = (Arc::clone(task), Vec::new());
            let member = Member { task, step: Step::Joined, segments };
            inner.members.insert(member.task.pid, member);
        }
        for task in tasks {
            let (party, ours) = (Arc::clone(self), Arc::clone(&task));
            let started = thread::Builder::new()
                .name(format!("keep-{}", task.pid))
                .spawn(move || party.shared.run_together(&party, &ours));
            if let Err(source) = started {
                self.shared.strike_out(&task);
                inner.members.remove(&task.pid);
                inner.moving -= 1;
                let doing = "start a move".to_owned();
                inner.fail(MigrateError::Local { doing, source });
            }
        }
        self.answer(inner);
    }

    fn hold(self: &Arc<Self>, task: &Arc<Task>) -> Result<Frozen> {
        let frozen = freezer(self.shared.module).freeze(task.pid.raw())?.trace()?;
        match self.meet(task, Step::Held, None) {
            Ok(()) => Ok(frozen),
            Err(e) => {
                if let Err(error) = frozen.thaw() {
                    tracing::debug!(pid = %task.pid, %error, "a process that stays");
                }
                Err(e)
            }
        }
    }

    /// Waits until all have reached `step`. `wire`: says nothing unless its move is over.
    ///
    /// Err: they go on at home, or this one ended.
    pub fn meet(
        self: &Arc<Self>,
        task: &Task,
        step: Step,
        mut wire: Option<&mut BulkReader>,
    ) -> Result<()> {
        let mut arrived = false;
        loop {
            task.bell.quiet();
            {
                let mut inner = self.inner.lock();
                if !arrived && let Some(member) = inner.members.get_mut(&task.pid) {
                    member.step = step;
                    arrived = true;
                    self.advance(&mut inner);
                }
                if inner.passed >= step {
                    return Ok(());
                }
                if step == Step::Held && Instant::now() >= self.hold_until {
                    let late = inner.members.values().find(|m| m.step < step);
                    let late = late.map_or(self.head, |m| m.task.pid);
                    let reason = format!("process {late} of its tree could not be held in time");
                    inner.fail(MigrateError::Unsteady { pid: self.head, reason });
                }
                if let Some(error) = &inner.failed {
                    return Err(Error::Together(error.to_string()));
                }
            }
            self.wait(task, step, wire.as_deref_mut())?;
            if has_ended(task.pid.raw()) {
                return Err(tcmi_ckpt::Error::Ended.into());
            }
        }
    }

    /// Until something may have changed. Err: this one's move is over.
    fn wait(&self, task: &Task, step: Step, wire: Option<&mut BulkReader>) -> Result<()> {
        // A guest that runs may ask for something already.
        let closed = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let news = match step {
            Step::Runs => closed,
            _ => closed | PollFlags::POLLIN,
        };
        let timeout = match step {
            Step::Held => {
                let left = self.hold_until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX)
            }
            _ => PollTimeout::NONE,
        };
        let Some(wire) = wire else {
            // An interruption is a ring for nothing.
            poll(&mut [PollFd::new(task.bell.as_fd(), PollFlags::POLLIN)], timeout).ok();
            return Ok(());
        };
        let mut fds =
            [PollFd::new(task.bell.as_fd(), PollFlags::POLLIN), PollFd::new(wire.as_fd(), news)];
        poll(&mut fds, timeout).ok();
        let news = fds[1].revents();
        if news.is_some_and(|news| news.is_empty()) {
            return Ok(());
        }
        if step == Step::Runs {
            return Err(BulkError::Closed.into());
        }
        match msg::expect::<msg::Running>(wire) {
            Err(e) => Err(e),
            Ok(_) => Err(Error::Protocol { want: "nothing", got: msg::Running::KIND }),
        }
    }

    /// Who comes last, or whoever waits when one that was late has ended, takes the step for all.
    fn advance(self: &Arc<Self>, inner: &mut Inner) {
        let next = match inner.passed {
            Step::Joined => Step::Held,
            Step::Held => Step::Ready,
            Step::Ready => Step::Runs,
            Step::Runs => return,
        };
        if inner.failed.is_some() || inner.members.values().any(|m| m.step < next) {
            return;
        }
        let taken = match next {
            Step::Joined => Ok(true),
            Step::Held => self.complete(inner),
            Step::Ready => self.pass(inner, Point::HomeTreeReady).map(|()| true),
            // The commit point of all of them.
            Step::Runs => self.pass(inner, Point::HomeTreeRuns).and_then(|()| {
                let decided = self.word.decide_away();
                decided.map(|()| true).map_err(|e| self.explain(inner, e.into()))
            }),
        };
        match taken {
            Ok(true) => {
                inner.passed = next;
                if next == Step::Runs && inner.members.values().any(|m| !m.segments.is_empty()) {
                    let mut back = self.back.lock();
                    for m in inner.members.values() {
                        back.went(Arc::clone(&m.task), m.segments.clone());
                    }
                }
            }
            // Others have joined.
            Ok(false) => {}
            Err(error) => inner.fail(error),
        }
        inner.ring();
    }

    /// All that are known are held: those that they began meanwhile join. Ok(true): there is none.
    fn complete(self: &Arc<Self>, inner: &mut Inner) -> std::result::Result<bool, MigrateError> {
        let known: Vec<i32> = inner.members.keys().map(|pid| pid.raw()).collect();
        let mut tasks = Vec::new();
        for pid in self.new_below(&known)? {
            if let Some(parent) = lent_by(pid.raw()) {
                let reasons = vec![format!("it has the memory of process {parent}")];
                tasks.iter().for_each(|task| self.shared.strike_out(task));
                return Err(MigrateError::Unsupported { pid, reasons });
            }
            match self.admit_if_there(pid) {
                Ok(task) => tasks.extend(task),
                Err(error) => {
                    tasks.iter().for_each(|task| self.shared.strike_out(task));
                    return Err(error);
                }
            }
        }
        if inner.members.len() + tasks.len() > TREE_PROCESSES_MAX {
            tasks.iter().for_each(|task| self.shared.strike_out(task));
            return Err(too_many(self.head));
        }
        if tasks.is_empty() {
            self.share_out(inner)?;
            return self.pass(inner, Point::HomeTreeHeld).map(|()| true);
        }
        self.join(inner, tasks);
        Ok(false)
    }

    fn pass(&self, inner: &Inner, point: Point) -> std::result::Result<(), MigrateError> {
        fault::pass(point).map_err(|e| self.explain(inner, e))
    }

    fn explain(&self, inner: &Inner, e: Error) -> MigrateError {
        match inner.members.get(&self.head) {
            Some(head) => explain_error(&head.task, self.link.peer_name(), e),
            None => MigrateError::NoSuchProcess(self.head),
        }
    }

    /// Finds what the held processes share, and shares out who sends what.
    fn share_out(&self, inner: &mut Inner) -> std::result::Result<(), MigrateError> {
        let mut found: Vec<(Pid, Vec<Mapping>)> = Vec::new();
        for pid in inner.members.keys() {
            // Of one that has ended there is nothing.
            let maps = maps::read_short(pid.raw()).unwrap_or_else(|_| Vec::new());
            let shared = maps.into_iter().filter(capture::is_shared_at_home).collect();
            found.push((*pid, shared));
        }
        let outlives = self.lasting(&found).map_err(|e| self.explain(inner, e.into()))?;
        let mut segments: HashMap<maps::Object, (u64, u64)> = HashMap::new();
        for m in found.iter().flat_map(|(_, maps)| maps) {
            let new = || (self.shared.next_migration(), 0);
            let (_, bytes) = segments.entry(m.object()).or_insert_with(new);
            *bytes = (*bytes).max(m.offset + m.len());
        }
        let Some((sharer, _)) = found.iter().find(|(_, maps)| !maps.is_empty()) else {
            return Ok(());
        };
        let objects: Vec<maps::Object> = segments.keys().copied().collect();
        let sharers = maps::sharers(&objects).map_err(|e| self.explain(inner, e.into()))?;
        let is_stranger = |pid: &&i32| inner.members.keys().all(|known| known.raw() != **pid);
        if let Some(stranger) = sharers.iter().find(is_stranger) {
            let reasons =
                vec![format!("it shares memory with process {stranger} outside its tree")];
            return Err(MigrateError::Unsupported { pid: *sharer, reasons });
        }
        let mut sent: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        for (pid, maps) in &found {
            let of = |m: &Mapping| {
                let (id, bytes) = segments[&m.object()];
                let (from, to) = (m.offset, m.offset + m.len());
                let known = sent.entry(id).or_default();
                let is_sent = !known.iter().any(|k| k.0 <= from && to <= k.1);
                if is_sent {
                    known.push((from, to));
                }
                let (start, end, offset) = (m.start, m.end, m.offset);
                let outlives = outlives.contains(&m.object());
                Segment { id, start, end, offset, bytes, is_sent, outlives }
            };
            if let Some(member) = inner.members.get_mut(pid) {
                member.segments = maps.iter().map(of).collect();
            }
        }
        Ok(())
    }

    /// System V memory that is there when all who have it are gone. Err: others have it, too.
    fn lasting(&self, found: &[(Pid, Vec<Mapping>)]) -> tcmi_ckpt::Result<Vec<maps::Object>> {
        let mut attached: HashMap<maps::Object, u64> = HashMap::new();
        let all = || found.iter().flat_map(|(pid, maps)| maps.iter().map(move |m| (pid, m)));
        for (_, m) in all() {
            *attached.entry(m.object()).or_default() += 1;
        }
        let mut lasting = Vec::new();
        for (pid, m) in all().filter(|(_, m)| sysv::is_segment(m)) {
            let object = m.object();
            let listed = sysv::listed(pid.raw(), m)?;
            if attached.get(&object) != Some(&listed.attached) {
                let why = format!("System V memory that others have attached, too ({})", m.name);
                return Err(tcmi_ckpt::Error::Unsupported(why));
            }
            if !listed.is_destroyed {
                lasting.push(object);
            }
        }
        Ok(lasting)
    }

    /// Memory that a member shares with others.
    pub fn segments_of(&self, pid: Pid) -> Vec<Segment> {
        self.inner.lock().members.get(&pid).map_or_else(Vec::new, |m| m.segments.clone())
    }

    /// Whether its members come home together.
    pub fn shares_memory(&self) -> bool {
        self.inner.lock().members.values().any(|m| !m.segments.is_empty())
    }

    /// Why none of them moves, if it is known.
    pub fn failure(&self) -> Option<String> {
        self.inner.lock().failed.as_ref().map(MigrateError::to_string)
    }

    /// A member's keeper has brought its move to an end: it is away, or at home as it was.
    fn ended(self: &Arc<Self>, pid: Pid, result: std::result::Result<(), MigrateError>) {
        let mut inner = self.inner.lock();
        inner.moving -= 1;
        match result {
            Ok(()) => {}
            // One that ends on the way is no member any more.
            Err(MigrateError::NoSuchProcess(_)) if pid != self.head => {
                let gone = inner.members.remove(&pid);
                if gone
                    .is_some_and(|m| m.step < Step::Ready && m.segments.iter().any(|s| s.is_sent))
                {
                    // What it was to send is memory of others.
                    let reason = format!("process {pid}, which shares its memory, has ended");
                    inner.fail(MigrateError::Unsteady { pid: self.head, reason });
                }
                self.advance(&mut inner);
            }
            Err(error) => inner.fail(error),
        }
        self.answer(&mut inner);
    }

    fn answer(&self, inner: &mut Inner) {
        if inner.moving > 0 {
            return;
        }
        if let Some(reply) = inner.reply.take() {
            reply(inner.failed.take().map_or(Ok(()), Err));
        }
    }
}

impl Inner {
    /// Nothing that is decided is undone by it.
    fn fail(&mut self, error: MigrateError) {
        if self.failed.is_none() {
            self.failed = Some(error);
        }
        if self.passed < Step::Runs {
            // What is still sent is sent for nothing.
            self.members.values().for_each(|member| member.task.give_up());
        }
        self.ring();
    }

    fn ring(&self) {
        self.members.values().for_each(|member| member.task.bell.ring());
    }
}

/// The parent whose address space a process has.
fn lent_by(pid: i32) -> Option<i32> {
    let parent = proc::status(pid).ok()?.ppid;
    proc::share_memory(pid, parent).then_some(parent)
}
