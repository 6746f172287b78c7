//! The thread that moves one process out, keeps its shadow, and brings it home.
//!
//! All of ptrace for one process happens here: the kernel ties a tracee to the thread that
//! seized it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::Common;
use tcmi_ckpt::usage::Used;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_core::limits::PHASE_TIMEOUT_MS;
use tcmi_kkc::{BulkReader, BulkWriter, Link, Stream, StreamKind};
use tcmi_migr::fault::{self, Point};
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::module::ByModule;
use tcmi_migr::source::{self, Attached, Channel, Emigrated, Installed, Original, Sent};
use tcmi_migr::{Error, Result};
use tcmi_shadow::shadow::{Armed, Broken, Fate, Places, Shadow, StreamAt, arm};

use crate::task::{Order, Task};
use crate::tasks::{Party, Purpose, Rest, Step, WayOut};

mod home;
mod reach;

use reach::Asker;
pub use reach::Reaching;

/// Longest wait for a stream that the node has to dial.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);
/// The same, for a thread that a guest begins: meanwhile its keeper does nothing else.
const THREAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for what a guest used whose shadow has ended.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// A move in the words of the control filesystem.
pub fn explain_error(task: &Task, node: &str, e: Error) -> MigrateError {
    let pid = task.pid;
    let text = e.to_string();
    if matches!(e, Error::Together(_)) {
        return MigrateError::StaysTogether { pid, reason: text };
    }
    match e.errno() {
        libc::ESRCH => MigrateError::NoSuchProcess(pid),
        libc::EOPNOTSUPP => MigrateError::Unsupported { pid, reasons: vec![text] },
        libc::EHOSTUNREACH => MigrateError::PeerGone { node: node.to_owned(), reason: text },
        libc::EBUSY => MigrateError::Unsteady { pid, reason: text },
        libc::ETIMEDOUT => {
            MigrateError::TimedOut { phase: task.state(), limit_ms: PHASE_TIMEOUT_MS }
        }
        _ => match e {
            Error::Protocol { .. } | Error::PageRun { .. } | Error::Stream(_) => {
                MigrateError::Protocol { node: node.to_owned(), reason: text }
            }
            _ => MigrateError::Failed { pid, reason: text },
        },
    }
}

/// What a keeper holds of its guest's node.
struct Wire {
    w: BulkWriter,
    r: BulkReader,
}

/// A process that has come home for a call of one of its threads. It is held.
pub struct Visit {
    pub frozen: Frozen,
    pub by: i32,
}

/// A process that goes out again.
pub enum AtHome {
    Visit(Visit),
    /// It runs, as the others that came with it.
    Rest(Rest),
}

/// Moves `task` out over `bulk`, then keeps it until it is home or gone. Some: it goes out again.
pub fn keep(
    task: &Arc<Task>,
    link: &Link,
    bulk: Stream,
    module: Option<ByModule>,
    way_out: WayOut,
) -> Option<AtHome> {
    let WayOut { original, done, party } = way_out;
    let party = party.as_ref();
    match bulk.as_fd().try_clone_to_owned() {
        Ok(socket) => task.set_way_out(Some(socket)),
        Err(error) => tracing::warn!(pid = %task.pid, %error, "this move cannot be given up"),
    }
    let (w, r) = bulk.into_bulk();
    let mut wire = Wire { w, r };
    let node = link.peer_name().to_owned();
    let moved = go_out(task, link, &mut wire, module, original, party);
    task.set_way_out(None);
    let shadow = match moved {
        Ok(s) => s,
        Err(e) => {
            // Given up for another one, it says why.
            let others = party.and_then(|p| p.failure()).filter(|_| !is_its_end(&e));
            let e = others.map_or(e, Error::Together);
            let error = explain_error(task, &node, e);
            task.failed(&error.to_string());
            let state = match error {
                MigrateError::NoSuchProcess(_) => State::Gone,
                _ => State::Running,
            };
            task.release();
            task.to(state);
            done(Err(error));
            // For the others it may have been away.
            party.iter().for_each(|party| party.gone(task.pid, false));
            return None;
        }
    };
    task.to(State::Emigrated);
    task.visits(false);
    // For orders that came while it was at home for a visit.
    task.bell.ring();
    done(Ok(()));
    let party = party.filter(|p| p.shares_memory()).cloned();
    let (waited, asked, answers) = (Vec::new(), VecDeque::new(), unbounded());
    let mut keeper =
        Keeper { task, link, node, wire, shadow: Some(shadow), party, waited, asked, answers };
    let end = keeper.serve();
    keeper.close(end)
}

fn is_its_end(e: &Error) -> bool {
    e.errno() == libc::ESRCH
}

/// An original that became a shadow, with what it takes to make it whole again.
struct Kept {
    shadow: Shadow,
    attached: Attached,
    installed: Installed,
}

fn go_out(
    task: &Arc<Task>,
    link: &Link,
    wire: &mut Wire,
    module: Option<ByModule>,
    original: Original,
    party: Option<&Arc<Party>>,
) -> Result<Kept> {
    let mut take = || Ok(link.take_stream(StreamKind::Call, STREAM_TIMEOUT)?);
    // The channel owns the stream's halves only for the time of the move.
    let common = party.map_or_else(Common::default, |p| p.common_of(task.pid));
    let mut channel =
        Channel { w: &mut wire.w, r: &mut wire.r, module, common: &common, take_stream: &mut take };
    let watch: &Task = task;
    let mut sent = source::emigrate(original, task.migration(), 1, &mut channel, watch)?;
    let (armed, remote_pid) = match let_run(task, &mut sent, &mut channel, party) {
        Ok(running) => running,
        Err(e) => return Err(sent.give_up(&mut channel, e)),
    };
    let Emigrated { mut frozen, attached, installed, remote_pid, times } = sent.left(remote_pid);
    // From here on nothing fails but by the process's own end. For a party it is decided.
    if party.is_none() {
        armed.decide()?;
    }
    fault::pass_or_die(Point::HomeDecidedAway);
    armed.release_memory(&mut frozen);
    fault::pass_or_die(Point::HomeMemoryReleased);
    let shadow = armed.run(frozen)?;
    fault::pass_or_die(Point::HomeShadowRuns);
    task.moved(remote_pid, times);
    Ok(Kept { shadow, attached, installed })
}

/// Ok: the guest runs, and those of its party. Err: the original is to go on.
fn let_run(
    task: &Task,
    sent: &mut Sent,
    c: &mut Channel,
    party: Option<&Arc<Party>>,
) -> Result<(Armed, i32)> {
    let armed = arm_original(sent, party)?;
    sent.until_ready(c)?;
    if let Some(party) = party {
        party.meet(task, Step::Ready, Some(c.r))?;
    }
    let remote_pid = sent.let_run(c, task)?;
    if let Some(party) = party {
        party.meet(task, Step::Runs, Some(c.r))?;
    }
    Ok((armed, remote_pid))
}

fn arm_original(sent: &mut Sent, party: Option<&Arc<Party>>) -> Result<Armed> {
    let Sent { frozen, attached, image, installed, .. } = sent;
    if let Some(party) = party {
        party.word.map(frozen, &attached.agent, attached.word())?;
    }
    let threads = frozen.threads.len();
    let places = Places {
        agent: attached.agent,
        proc_area: attached.proc_area(),
        thread_areas: (0..attached.room).map(|n| attached.thread_area(n)).collect(),
        spare_fds: installed.spare.clone(),
        word: party.map(|_| attached.word()),
    };
    let at = |s: &source::InstalledStream| StreamAt { fd: s.fd, tx: s.tx, rx: s.rx };
    let calls: Vec<StreamAt> = installed.calls.iter().take(threads).map(at).collect();
    let events = at(&installed.events);
    Ok(arm(frozen, image, places, events, &calls, installed.range())?)
}

/// How keeping a shadow ended.
enum End {
    Home,
    Again(AtHome),
    /// The process ended, here or as guest.
    Gone,
    /// Its node is lost.
    Lost(String),
}

struct Keeper<'a> {
    task: &'a Arc<Task>,
    link: &'a Link,
    node: String,
    wire: Wire,
    shadow: Option<Kept>,
    /// Those with which it shares memory, and comes home.
    party: Option<Arc<Party>>,
    /// Children that it asked of when it was to come home, and had no answer.
    waited: Vec<Pid>,
    /// Those who wait for what its guest's monitor was asked, in that order.
    asked: VecDeque<Asker>,
    /// What its guest is told of others.
    answers: (Sender<msg::Reached>, Receiver<msg::Reached>),
}

impl Keeper<'_> {
    fn kept(&mut self) -> Result<&mut Kept> {
        self.shadow.as_mut().ok_or(tcmi_ckpt::Error::Ended.into())
    }

    fn serve(&mut self) -> End {
        loop {
            let step = self.wait().and_then(|()| self.step());
            match step {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(Error::Process(tcmi_ckpt::Error::Ended)) => return End::Gone,
                // What closes a stream as it dies is dead to its node before it is to us.
                Err(_) if source::has_ended(self.task.pid.raw()) => return End::Gone,
                Err(e) => return End::Lost(e.to_string()),
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        if self.wire.r.has_buffered() {
            return Ok(());
        }
        let mut fds = [
            PollFd::new(self.wire.r.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.task.bell.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::Io { what: "poll", source: e.into() }),
        }
    }

    fn has_message(&self) -> bool {
        let mut fds = [PollFd::new(self.wire.r.as_fd(), PollFlags::POLLIN)];
        self.wire.r.has_buffered() || poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    fn step(&mut self) -> Result<Option<End>> {
        self.task.bell.quiet();
        for fate in self.kept()?.shadow.poll()? {
            let signal = match fate {
                Fate::Stopped(_) => libc::SIGSTOP,
                Fate::Continued => libc::SIGCONT,
                Fate::Ended => {
                    // The guest may have ended first and be the reason.
                    msg::send(&mut self.wire.w, &msg::Signal { signal: libc::SIGKILL })?;
                    if !self.task.is_charged() {
                        self.kept()?.shadow.tell_end()?;
                    }
                    self.last_words();
                    return Ok(Some(End::Gone));
                }
                // What the node says of it is on its way, or its link's end is.
                Fate::Broken(why @ Broken::Closed) => {
                    tracing::debug!(pid = %self.task.pid, %why, "shadow");
                    continue;
                }
                Fate::Broken(why) => {
                    // Its guest waits for ever for what it called last.
                    msg::send(&mut self.wire.w, &msg::Signal { signal: libc::SIGKILL })?;
                    return Ok(Some(End::Lost(why.to_string())));
                }
            };
            msg::send(&mut self.wire.w, &msg::Signal { signal })?;
        }
        if self.has_message()
            && let Some(end) = self.message()?
        {
            return Ok(Some(end));
        }
        self.pass_reaches()?;
        if self.task.takes_calls() {
            msg::send(&mut self.wire.w, &msg::AskStats {})?;
        }
        if let Some(purpose) = self.party.as_ref().and_then(|p| p.returns())
            && let Some(end) = self.bring_home(purpose, None)?
        {
            return Ok(Some(end));
        }
        // All of them: the bell that rang for them is quiet again.
        while let Some(order) = self.task.next_order() {
            let end = match order {
                Order::HomeUnasked => self.bring_home(Purpose::Stay, None)?,
                Order::Home(done) => self.bring_home(Purpose::Stay, Some(done))?,
            };
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    fn message(&mut self) -> Result<Option<End>> {
        let frame = self.wire.r.recv_message()?;
        match frame.kind {
            msg::WantHome::KIND => self.bring_home(Purpose::Stay, None),
            msg::VisitHome::KIND => {
                let msg::VisitHome { by } = msg::decode(&frame)?;
                self.bring_home(Purpose::Call(by), None)
            }
            msg::Stats::KIND => {
                let stats: msg::Stats = msg::decode(&frame)?;
                self.task.set_calls(stats.calls);
                Ok(None)
            }
            msg::BeginThread::KIND => {
                let msg::BeginThread { by } = msg::decode(&frame)?;
                self.begin_thread(by)?;
                Ok(None)
            }
            msg::AskUsed::KIND => {
                let msg::AskUsed { number, pid } = msg::decode(&frame)?;
                let used = Pid::new(pid).map(|pid| self.task.left_by(pid)).unwrap_or_default();
                msg::send(&mut self.wire.w, &msg::ChildUsed { number, used })?;
                Ok(None)
            }
            msg::Reach::KIND => self.reach(msg::decode(&frame)?).map(|()| None),
            msg::Reached::KIND => self.reached(msg::decode(&frame)?).map(|()| None),
            msg::Poke::KIND => {
                let msg::Poke { tid, seq } = msg::decode(&frame)?;
                self.kept()?.shadow.poke(tid, seq).or_else(gone_is_fine)?;
                Ok(None)
            }
            msg::Ended::KIND => {
                let ended: msg::Ended = frame.decode().map_err(Error::from)?;
                // Whose end may be the reason.
                if !source::has_ended(self.task.pid.raw()) {
                    self.task.ended(&self.node, &ended.why);
                }
                self.task.set_used(Used { process: ended.used, ..Used::default() });
                self.task.charge_used();
                self.kept()?.shadow.end_as(ended.status).or_else(gone_is_fine)?;
                Ok(Some(End::Gone))
            }
            other => Err(Error::Protocol { want: "news of the guest", got: other }),
        }
    }

    /// What the node says of a guest whose shadow has ended, which its guest does with it.
    fn last_words(&mut self) {
        self.wire.r.set_idle_timeout(LAST_WORDS_TIMEOUT);
        while let Ok(frame) = self.wire.r.recv_message() {
            match frame.kind {
                msg::Stats::KIND => {
                    if let Ok(msg::Stats { calls }) = frame.decode() {
                        self.task.set_calls(calls);
                    }
                }
                msg::Ended::KIND => {
                    if let Ok(msg::Ended { used, .. }) = frame.decode() {
                        self.task.set_used(Used { process: used, ..Used::default() });
                        self.task.charge_used();
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    /// A thread of the guest begins another, and waits for what we say.
    fn begin_thread(&mut self, by: i32) -> Result<()> {
        let begun = self.shadow_thread(by);
        match begun {
            Ok((tid, stream)) => msg::send(&mut self.wire.w, &msg::ThreadBegun { tid, stream }),
            Err(e) => {
                tracing::debug!(pid = %self.task.pid, by, error = %e, "no shadow for a thread");
                msg::send(&mut self.wire.w, &msg::ThreadRefused {})
            }
        }
    }

    fn shadow_thread(&mut self, by: i32) -> Result<(i32, u64)> {
        // One costs a connection; who asks in vain is not to have it.
        self.kept()?.shadow.has_room()?;
        let stream = self.link.take_stream(StreamKind::Call, THREAD_TIMEOUT)?;
        let id = stream.id;
        let (socket, tx, rx) = stream.into_parts();
        Ok((self.kept()?.shadow.begin_thread(by, socket, (tx, rx))?, id))
    }

    fn close(mut self, end: End) -> Option<AtHome> {
        if let Some(party) = &self.party {
            party.gone(self.task.pid, false);
        }
        match end {
            // Whoever has called it home meanwhile finds it there.
            End::Home => return None,
            End::Again(at_home) => return Some(at_home),
            End::Gone => self.task.to(State::Gone),
            End::Lost(reason) => {
                tracing::error!(pid = %self.task.pid, node = %self.node, reason, "the guest is lost");
                self.task.failed(&format!("its node is lost: {reason}"));
                self.task.to(State::Failed);
                if let Some(k) = &self.shadow {
                    k.shadow.kill();
                }
            }
        }
        if let Some(k) = self.shadow.take()
            && let Err(e) = k.shadow.reap()
        {
            tracing::warn!(pid = %self.task.pid, error = %e, "reaping the shadow");
        }
        let pid = self.task.pid;
        self.task.drop_reachings();
        self.task.answer_orders(|| Err(MigrateError::NotAway(pid)));
        None
    }
}

fn gone_is_fine(e: tcmi_ckpt::Error) -> std::result::Result<(), tcmi_ckpt::Error> {
    match e {
        tcmi_ckpt::Error::Ended => Ok(()),
        tcmi_ckpt::Error::System(e) if e.is_gone() => Ok(()),
        e => Err(e),
    }
}
