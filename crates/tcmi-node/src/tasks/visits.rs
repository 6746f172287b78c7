//! Processes that come home for a call that only home's kernel makes, go out again behind it, and
//! take with them what they began.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::watched::{Child, Happening, Memory, Watched};
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_kkc::Link;
use tcmi_migr::fault::{self, Point};
use tcmi_migr::source::{Original, has_ended};
use tcmi_sys::proc::{self, Status};

use super::party::{has_live_files, shared_by};
use super::{Shared, Sharers, WayOut, examine};
use crate::doorbell::Bell;
use crate::keeper::Visit;
use crate::task::Task;

/// Longest that the call of a visit may take. Then the process stays at home: what it waits for
/// may be for its other threads to do.
const CALL_MAX: Duration = Duration::from_secs(2);
/// From the beginning of a process until it follows its parent: most execute another program
/// before that, and then there is less to send.
const FOLLOW_AFTER: Duration = Duration::from_millis(20);

const HAS_GAINED: &str = "it has executed a set-uid program, or one with capabilities";

/// What became of a visit.
enum Outcome {
    Held(Frozen),
    /// It runs at home, and why.
    Stays(&'static str),
    Ended,
}

impl Shared {
    /// Lets a process that is home for it make its call. Some: it goes out again.
    pub(super) fn visit(
        self: &Arc<Self>,
        task: &Arc<Task>,
        link: &Link,
        visit: Visit,
    ) -> Option<WayOut> {
        let pid = task.pid;
        if let Err(error) = fault::pass(Point::HomeVisits) {
            stay(task, visit.frozen, &error.to_string());
            return None;
        }
        let Visit { frozen, by } = &visit;
        if !shared_by(pid.raw()).is_empty()
            || has_live_files(pid.raw()) && Watched::is_fork(frozen, *by)
        {
            return self.rest_of_one(task, link, visit.frozen);
        }
        let before = proc::status(pid.raw());
        let frozen = match self.call_at_home(task, link, visit) {
            Ok(Outcome::Held(frozen)) => frozen,
            Ok(Outcome::Stays(why)) => {
                task.failed(why);
                return None;
            }
            Ok(Outcome::Ended) => {
                task.to(State::Gone);
                return None;
            }
            Err(error) => {
                task.failed(&error.to_string());
                if has_ended(pid.raw()) {
                    task.to(State::Gone);
                }
                return None;
            }
        };
        // Its call was the one that attached it.
        if !shared_by(pid.raw()).is_empty() {
            return self.rest_of_one(task, link, frozen);
        }
        let ready = fault::pass(Point::HomeVisited)
            .map_err(|error| error.to_string())
            .and_then(|()| before.map_err(|error| error.to_string()))
            .and_then(|before| may_go_again(pid, &before));
        let stays = match ready {
            Err(why) => Some(why),
            Ok(()) if self.ending.load(Ordering::Relaxed) => Some("the daemon ends".to_owned()),
            // Somebody has called it home meanwhile.
            Ok(()) if task.has_orders() => Some(String::new()),
            Ok(()) => None,
        };
        if let Some(why) = stays {
            stay(task, frozen, &why);
            return None;
        }
        Some(WayOut { original: Original::Held(frozen), done: quietly(pid), party: None })
    }

    fn call_at_home(
        self: &Arc<Self>,
        task: &Arc<Task>,
        link: &Link,
        Visit { frozen, by }: Visit,
    ) -> tcmi_ckpt::Result<Outcome> {
        let mut watched = Watched::for_call(frozen, by)?;
        let until = Instant::now() + CALL_MAX;
        let (mut made, mut shares) = (false, false);
        let returned = Arc::new(AtomicBool::new(false));
        loop {
            task.bell.quiet();
            for happening in watched.poll()? {
                match happening {
                    Happening::Began(child) => {
                        shares |= child.memory == Memory::Shared;
                        self.follow(child, &returned, &task.family, link);
                    }
                    Happening::Executed | Happening::Returned => {
                        made = true;
                        returned.store(true, Ordering::Release);
                    }
                    Happening::Ended => return Ok(Outcome::Ended),
                }
            }
            if made && watched.is_settled() {
                break;
            }
            if !wait(&task.bell, until) {
                watched.release()?;
                return Ok(Outcome::Stays("at home its call did not end in time"));
            }
        }
        if shares {
            watched.release()?;
            return Ok(Outcome::Stays("another process has the same memory"));
        }
        let (frozen, meanwhile) = watched.freeze()?;
        self.follow_all(meanwhile, &returned, &task.family, link);
        Ok(Outcome::Held(frozen))
    }

    fn follow_all(
        self: &Arc<Self>,
        happenings: Vec<Happening>,
        returned: &Arc<AtomicBool>,
        family: &Arc<()>,
        link: &Link,
    ) {
        for happening in happenings {
            if let Happening::Began(child) = happening {
                self.follow(child, returned, family, link);
            }
        }
    }

    /// Sends a process that one which is away began after it. `returned`: the call that began it.
    pub(super) fn follow(
        self: &Arc<Self>,
        child: Child,
        returned: &Arc<AtomicBool>,
        family: &Arc<()>,
        link: &Link,
    ) {
        let Some(pid) = Pid::new(child.pid) else { return };
        // Counted before it is looked whether there are too many: others do so beside us.
        let family = Arc::clone(family);
        if child.memory == Memory::Shared
            || Arc::strong_count(&family) > self.family_processes
            || self.ending.load(Ordering::Relaxed)
        {
            tracing::debug!(%pid, "stays at home");
            return;
        }
        let (shared, link) = (Arc::clone(self), link.clone());
        let returned = Arc::clone(returned);
        let started = thread::Builder::new().name(format!("keep-{pid}")).spawn(move || {
            if let Some(frozen) = shared.until_ready(child, &returned, &family, &link) {
                shared.send_after(pid, frozen, family, &link);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%pid, %error, "stays at home");
        }
    }

    /// Until a new process has executed another program, or runs long enough. None: it ended, or
    /// cannot be followed.
    fn until_ready(
        self: &Arc<Self>,
        child: Child,
        returned: &AtomicBool,
        family: &Arc<()>,
        link: &Link,
    ) -> Option<Frozen> {
        let bell = Arc::new(Bell::new().ok()?);
        self.doorbell.add(&bell);
        let mut until = Instant::now() + FOLLOW_AFTER;
        let mut watched = Watched::seize(child.pid).ok()?;
        let unwatched = Arc::default();
        let mut ready = false;
        while !ready {
            bell.quiet();
            let happened = watched.poll().ok()?;
            if happened.contains(&Happening::Ended) {
                return None;
            }
            ready = happened.contains(&Happening::Executed);
            self.follow_all(happened, &unwatched, family, link);
            if ready || wait(&bell, until) {
                continue;
            }
            // It may have executed before it was watched; its parent waited for that.
            ready = child.memory == Memory::Own || returned.load(Ordering::Acquire);
            until = Instant::now() + FOLLOW_AFTER;
        }
        let (frozen, meanwhile) = watched.freeze().ok()?;
        self.follow_all(meanwhile, &unwatched, family, link);
        Some(frozen)
    }

    /// Who armed it, or moved the one that began it, may not move what has more rights than that.
    fn admit_follower(
        &self,
        pid: Pid,
        link: &Link,
        family: Arc<()>,
    ) -> Result<Arc<Task>, MigrateError> {
        let gained = proc::has_gained_rights(pid.raw());
        if gained.map_err(|_| MigrateError::NoSuchProcess(pid))? {
            let reasons = vec![HAS_GAINED.to_owned()];
            return Err(MigrateError::Unsupported { pid, reasons });
        }
        self.admit(pid, link.id(), 0, family, Sharers::Among(&[]))
    }

    pub(super) fn send_after(
        self: &Arc<Self>,
        pid: Pid,
        frozen: Frozen,
        family: Arc<()>,
        link: &Link,
    ) {
        let task = match self.admit_follower(pid, link, family) {
            Ok(task) => task,
            Err(error) => {
                tracing::info!(%pid, %error, "stays at home");
                if let Err(error) = frozen.thaw() {
                    tracing::debug!(%pid, %error, "a process that was to follow");
                }
                return;
            }
        };
        let (original, done) = (Original::Held(frozen), quietly(pid));
        self.run(&task, link, WayOut { original, done, party: None });
    }
}

/// For a move that nobody waits for.
pub(super) fn quietly(pid: Pid) -> crate::control::Done {
    Box::new(move |result| {
        if let Err(error) = result {
            tracing::info!(%pid, %error, "stays at home");
        }
    })
}

/// Until the bell rings. False: time is up.
pub(super) fn wait(bell: &Bell, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    // Rounded up: 0 would spin until it is due.
    let timeout = PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX);
    // An interruption is a ring for nothing.
    poll(&mut [PollFd::new(bell.as_fd(), PollFlags::POLLIN)], timeout) != Ok(0)
}

/// It runs at home.
pub(super) fn stay(task: &Task, frozen: Frozen, why: &str) {
    task.failed(why);
    if let Err(error) = frozen.thaw() {
        tracing::debug!(pid = %task.pid, %error, "a visit");
    }
}

/// Err: why a process stays at home after its visit.
pub(super) fn may_go_again(pid: Pid, before: &Status) -> Result<(), String> {
    let examined =
        examine(pid, 0, false, Sharers::Among(&[])).and_then(|examined| examined.refusal());
    let now = examined.map_err(|error| error.to_string())?.status;
    let gained = now.permitted_capabilities & !before.permitted_capabilities;
    match now.uid == before.uid && now.gid == before.gid && gained == 0 {
        true => Ok(()),
        false => Err(HAS_GAINED.to_owned()),
    }
}
