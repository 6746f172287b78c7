//! The processes of a tree move at one instant: each has its keeper, and these meet at the steps
//! of the way. All of them go, or none.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::Common;
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
use tcmi_sys::proc;

use super::{Shared, WayOut};
use crate::control::{Done, not_its_own_writer};
use crate::explain::Sharers;
use crate::keeper::explain_error;
use crate::task::Task;

mod again;
mod back;
mod memory;

pub use again::Rest;
use again::{Newcomers, Pace};
use back::Back;
pub use back::{Homeward, Purpose};
pub(super) use memory::{has_live_files, shared_by};

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
    /// The one that errors of all are told of.
    head: Pid,
    along: Along,
    pub word: Word,
    back: Mutex<Back>,
    pace: Pace,
    inner: Mutex<Inner>,
}

/// Who moves along with those that are held.
enum Along {
    /// All processes below the head, for who asked for it.
    Below(Caller),
    /// What has their memory, of those that were begun `since` they are at home, in clock ticks
    /// since boot.
    Sharers { since: u64 },
}

struct Inner {
    members: BTreeMap<Pid, Member>,
    passed: Step,
    /// Keepers that have not told how their move ended.
    moving: usize,
    /// The first that stopped it.
    failed: Option<MigrateError>,
    reply: Option<Done>,
    /// Who called one of them home, to be told when all of them stay.
    waiting: Vec<Done>,
}

struct Member {
    task: Arc<Task>,
    step: Step,
    common: Common,
}

impl Member {
    fn new(task: Arc<Task>) -> Self {
        Self { task, step: Step::Joined, common: Common::default() }
    }
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
        let (shared, along) = (Arc::clone(self), Along::Below(caller));
        let party = match Party::new(shared, link, head, along, Pace::first()) {
            Ok(party) => Arc::new(party),
            Err(error) => return reply(Err(error)),
        };
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
        let done = party.done_of(task.pid);
        task.to(State::Preparing);
        match party.hold(task) {
            Ok(frozen) => {
                let (original, together) = (Original::Held(frozen), Some(Arc::clone(party)));
                self.run(task, &party.link, WayOut { original, done, party: together });
            }
            Err(e) => {
                let error = explain_error(task, party.link.peer_name(), e);
                party.stays(task, error, done);
                self.forget(task);
            }
        }
    }
}

impl Party {
    fn new(
        shared: Arc<Shared>,
        link: Link,
        head: Pid,
        along: Along,
        pace: Pace,
    ) -> std::result::Result<Self, MigrateError> {
        let word = Word::new().map_err(|error| {
            let reasons = vec![error.to_string()];
            MigrateError::Unsupported { pid: head, reasons }
        })?;
        let inner = Inner {
            members: BTreeMap::new(),
            passed: Step::Joined,
            moving: 0,
            failed: None,
            reply: None,
            waiting: Vec::new(),
        };
        let (back, inner) = (Mutex::default(), Mutex::new(inner));
        Ok(Self { shared, link, head, along, word, back, pace, inner })
    }

    /// The processes that are there now, entered in the books. Err: none is.
    fn gather(&self) -> std::result::Result<Vec<Arc<Task>>, MigrateError> {
        let family = Arc::default();
        let mut tasks = vec![self.admit(self.head, &family)?];
        let added = self.new_below(&[self.head.raw()]).and_then(|below| {
            // A vfork lends its child the memory: it joins when it has its own, for until then
            // its parent cannot be held.
            for pid in below.into_iter().filter(|pid| lent_by(pid.raw()).is_none()) {
                tasks.extend(self.admit_if_there(pid, &family)?);
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

    fn admit(&self, pid: Pid, family: &Arc<()>) -> std::result::Result<Arc<Task>, MigrateError> {
        let uid = match self.along {
            Along::Below(caller) => {
                not_its_own_writer(caller, pid)?;
                caller.uid
            }
            // It is what one that is away began, as which it has the memory.
            Along::Sharers { .. } => 0,
        };
        self.shared.admit(pid, self.link.id(), uid, Arc::clone(family), Sharers::Later)
    }

    /// None: it has ended.
    fn admit_if_there(
        &self,
        pid: Pid,
        family: &Arc<()>,
    ) -> std::result::Result<Option<Arc<Task>>, MigrateError> {
        match self.admit(pid, family) {
            Ok(task) => Ok(Some(task)),
            Err(MigrateError::NoSuchProcess(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts their keepers.
    fn join(self: &Arc<Self>, inner: &mut Inner, tasks: Vec<Arc<Task>>) {
        inner.moving += tasks.len();
        for task in &tasks {
            inner.members.insert(task.pid, Member::new(Arc::clone(task)));
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
        self.meet_held(task, frozen)
    }

    /// Err: the process, which was held, runs on.
    fn meet_held(self: &Arc<Self>, task: &Task, frozen: Frozen) -> Result<Frozen> {
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
                if step == Step::Held && Instant::now() >= self.hold_until() {
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
                let left = self.hold_until().saturating_duration_since(Instant::now());
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
                if next == Step::Runs && inner.members.values().any(|m| !m.common.is_empty()) {
                    let all = inner.members.values();
                    let all = all.map(|m| (Arc::clone(&m.task), m.common.segments.clone()));
                    self.back.lock().went(all);
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
        let Some(family) = inner.members.values().next().map(|m| Arc::clone(&m.task.family)) else {
            return Ok(true);
        };
        let known: Vec<i32> = inner.members.keys().map(|pid| pid.raw()).collect();
        let below = self.new_below(&known)?;
        let new = match self.along {
            Along::Below(_) => Newcomers { sharers: below, others: Vec::new() },
            Along::Sharers { since } => self.newcomers(below, &known, since),
        };
        let mut tasks = Vec::new();
        let admitted = self
            .admit_new(&new.sharers, &family, &mut tasks)
            .and_then(|()| self.may_be_so_many(known.len() + tasks.len(), &family));
        if let Err(error) = admitted {
            tasks.iter().for_each(|task| self.shared.strike_out(task));
            return Err(error);
        }
        if tasks.is_empty() {
            self.share_out(inner)?;
            self.follow(&new.others, &family);
            return self.pass(inner, Point::HomeTreeHeld).map(|()| true);
        }
        self.join(inner, tasks);
        Ok(false)
    }

    /// Err: what is in `tasks` is to be struck out again.
    fn admit_new(
        &self,
        new: &[Pid],
        family: &Arc<()>,
        tasks: &mut Vec<Arc<Task>>,
    ) -> std::result::Result<(), MigrateError> {
        for &pid in new {
            if let Some(parent) = lent_by(pid.raw()) {
                let reasons = vec![format!("it has the memory of process {parent}")];
                return Err(MigrateError::Unsupported { pid, reasons });
            }
            tasks.extend(self.admit_if_there(pid, family)?);
        }
        Ok(())
    }

    /// Of a tree that somebody sends as it is, no family is too large.
    fn may_be_so_many(
        &self,
        members: usize,
        family: &Arc<()>,
    ) -> std::result::Result<(), MigrateError> {
        if members > TREE_PROCESSES_MAX {
            return Err(too_many(self.head));
        }
        let most = self.shared.family_processes;
        // Ours is not one of them.
        if matches!(self.along, Along::Sharers { .. }) && Arc::strong_count(family) - 1 > most {
            let reasons = vec![format!("its family has more than {most} processes")];
            return Err(MigrateError::Unsupported { pid: self.head, reasons });
        }
        Ok(())
    }

    fn pass(&self, inner: &Inner, point: Point) -> std::result::Result<(), MigrateError> {
        fault::pass(point).map_err(|e| self.explain(inner, e))
    }

    fn explain(&self, inner: &Inner, e: Error) -> MigrateError {
        match inner.members.get(&self.head).or_else(|| inner.members.values().next()) {
            Some(member) => explain_error(&member.task, self.link.peer_name(), e),
            None => MigrateError::NoSuchProcess(self.head),
        }
    }

    /// Memory that a member shares with others.
    pub fn common_of(&self, pid: Pid) -> Common {
        self.inner.lock().members.get(&pid).map_or_else(Common::default, |m| m.common.clone())
    }

    /// Whether its members come home together.
    pub fn shares_memory(&self) -> bool {
        self.inner.lock().members.values().any(|m| !m.common.is_empty())
    }

    /// Why none of them moves, if it is known.
    pub fn failure(&self) -> Option<String> {
        self.inner.lock().failed.as_ref().map(MigrateError::to_string)
    }

    /// To be told how a member's move ended.
    fn done_of(self: &Arc<Self>, pid: Pid) -> Done {
        let party = Arc::clone(self);
        Box::new(move |result| party.ended(pid, result))
    }

    /// A member's keeper has brought its move to an end: it is away, or at home as it was.
    fn ended(self: &Arc<Self>, pid: Pid, result: std::result::Result<(), MigrateError>) {
        let mut inner = self.inner.lock();
        inner.moving -= 1;
        match result {
            Ok(()) => {}
            // One that ends on the way is no member any more.
            Err(MigrateError::NoSuchProcess(_)) if !self.needs(pid) => {
                let gone = inner.members.remove(&pid);
                if gone.is_some_and(|m| m.step < Step::Ready && m.common.is_sent()) {
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

    /// Whether all of them stay if this one ends.
    fn needs(&self, pid: Pid) -> bool {
        matches!(self.along, Along::Below(_)) && pid == self.head
    }

    fn answer(&self, inner: &mut Inner) {
        if inner.moving > 0 {
            return;
        }
        inner.waiting.drain(..).for_each(|done| done(Ok(())));
        if let Some(reply) = inner.reply.take() {
            reply(inner.failed.take().map_or(Ok(()), Err));
        }
    }

    /// When all of it has to be held.
    fn hold_until(&self) -> Instant {
        self.pace.begins + Duration::from_millis(TREE_HOLD_TIMEOUT_MS)
    }

    /// A process that was not held with the others stays at home, or has ended.
    fn stays(&self, task: &Task, error: MigrateError, done: Done) {
        let wanted = matches!(self.inner.lock().failed, Some(MigrateError::CalledHome(_)));
        task.failed(&if wanted { String::new() } else { error.to_string() });
        task.release();
        task.to(match error {
            MigrateError::NoSuchProcess(_) => State::Gone,
            _ => State::Running,
        });
        done(Err(error));
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
