//! Processes that share memory, and came home for a call of one of them, go out again: together,
//! with what they began meanwhile that shares it, too.

use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcmi_ckpt::capture;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::SharedFile;
use tcmi_ckpt::mapped::id_of;
use tcmi_ckpt::watched::{Child, Memory};
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_kkc::Link;
use tcmi_migr::fault::{self, Point};
use tcmi_migr::module::freezer;
use tcmi_migr::source::{Original, has_ended};
use tcmi_sys::maps::Mapping;
use tcmi_sys::proc::{self, Status};
use tcmi_sys::{Errno, maps, namespace};

use super::{Along, Inner, Member, Party};
use crate::explain::{Sharers, examine};
use crate::keeper::explain_error;
use crate::task::{Order, Task};
use crate::tasks::visits::{may_go_again, quietly, stay, wait};
use crate::tasks::{Shared, WayOut};

/// Shortest time at home: those who begin one process often begin more.
const REST_MIN: Duration = Duration::from_millis(50);
/// Longest one, unless the moves themselves take longer.
const REST_MAX: Duration = Duration::from_secs(10);
/// They were away long enough if it was so many times what it took to get there.
const WORTH: u32 = 4;

/// When those go out again who come home time and again. They run meanwhile, which they do not
/// while they move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// At home, before this way out.
    rest: Duration,
    /// When they are taken hold of.
    pub begins: Instant,
}

impl Pace {
    pub fn first() -> Self {
        Self { rest: Duration::ZERO, begins: Instant::now() }
    }

    /// Of one that has come home and was in no party.
    fn of_one() -> Self {
        Self { rest: REST_MIN, begins: Instant::now() + REST_MIN }
    }

    /// Of those that were away since `left`, were called home, and are there `now`. At home they
    /// are as long as the moves took, and twice as long as before if they were called soon.
    pub fn next(&self, left: Instant, called: Instant, now: Instant) -> Self {
        let moves = (left - self.begins) + (now - called);
        let least = moves.max(REST_MIN);
        let rest = match called - left >= WORTH * (self.rest + moves) {
            true => least,
            false => (self.rest * 2).clamp(least, REST_MAX.max(least)),
        };
        Self { rest, begins: now + rest }
    }
}

/// A process that is home for a call, with its party, as it came.
pub struct Rest {
    party: Arc<Party>,
    status: Box<Status>,
    memory: Vec<maps::Object>,
}

impl Rest {
    /// Of one that is held, and had these files with others.
    pub fn of(pid: Pid, files: &[SharedFile], party: Arc<Party>) -> Result<Self, Errno> {
        let status = Box::new(proc::status(pid.raw())?);
        let is_known = |m: &Mapping| files.iter().any(|f| (f.dev, f.inode) == id_of(m));
        let memory = objects_of(pid.raw(), |m| may_be_common(m) || is_known(m));
        Ok(Self { party, status, memory })
    }

    /// Whether it has memory of its party yet: an execve takes it away.
    fn shares(&self, pid: Pid) -> bool {
        has_one_of(pid.raw(), &self.memory)
    }
}

/// Memory of a process that is shared. Of one that has ended: none.
fn objects_of(pid: i32, which: impl Fn(&Mapping) -> bool) -> Vec<maps::Object> {
    let maps = maps::read_short(pid).unwrap_or_else(|_| Vec::new());
    maps.iter().filter(|m| m.shared && which(m)).map(Mapping::object).collect()
}

/// What a process stores there others may have, too.
fn may_be_common(m: &Mapping) -> bool {
    capture::is_shared_at_home(m) || capture::is_live(m)
}

fn has_one_of(pid: i32, memory: &[maps::Object]) -> bool {
    !objects_of(pid, |m| memory.contains(&m.object())).is_empty()
}

impl Shared {
    /// Lets a process run at home until its party goes out again. None: it stays, or has ended.
    pub(in crate::tasks) fn rest(self: &Arc<Self>, task: &Arc<Task>, rest: Rest) -> Option<WayOut> {
        let party = &rest.party;
        let done = party.done_of(task.pid);
        let held = party.until_begin(task).and_then(|()| {
            task.to(State::Preparing);
            party.take_hold_again(task, &rest)
        });
        let frozen = match held {
            Ok(frozen) => frozen,
            Err(error) => {
                party.stays(task, error, done);
                return None;
            }
        };
        if !rest.shares(task.pid) {
            party.leaves(task.pid);
            return self.goes_alone(task, frozen, &rest.status);
        }
        match party.meet_held(task, frozen) {
            Ok(frozen) => {
                let (original, party) = (Original::Held(frozen), Some(Arc::clone(party)));
                Some(WayOut { original, done, party })
            }
            Err(e) => {
                let error = explain_error(task, party.link.peer_name(), e);
                party.stays(task, error, done);
                None
            }
        }
    }

    /// A process that was away alone and has memory that others may share: it, and what it begins
    /// with that, go out again as those who went together.
    pub(in crate::tasks) fn rest_of_one(
        self: &Arc<Self>,
        task: &Arc<Task>,
        link: &Link,
        frozen: Frozen,
    ) -> Option<WayOut> {
        let party = Party::again(self, link, task, iter::empty(), Pace::of_one());
        let rest = party
            .map_err(|e| e.to_string())
            .and_then(|party| Rest::of(task.pid, &[], party).map_err(|e| e.to_string()));
        match rest {
            Err(why) => {
                stay(task, frozen, &why);
                None
            }
            Ok(rest) => {
                stay(task, frozen, "");
                self.rest(task, rest)
            }
        }
    }

    /// It has no memory of its party any more.
    fn goes_alone(&self, task: &Task, frozen: Frozen, before: &Status) -> Option<WayOut> {
        if let Err(why) = may_go_again(task.pid, before) {
            task.to(State::Running);
            stay(task, frozen, &why);
            return None;
        }
        Some(WayOut { original: Original::Held(frozen), done: quietly(task.pid), party: None })
    }
}

/// Processes that were begun while those of a party were at home.
pub(super) struct Newcomers {
    /// They have memory of it.
    pub sharers: Vec<Pid>,
    pub others: Vec<Pid>,
}

impl Party {
    /// The next way out of `head` and the others, all of which are held at home.
    pub(super) fn again(
        shared: &Arc<Shared>,
        link: &Link,
        head: &Arc<Task>,
        others: impl Iterator<Item = Arc<Task>>,
        pace: Pace,
    ) -> Result<Arc<Self>, MigrateError> {
        let along = Along::Sharers { since: ticks() };
        let next = Self::new(Arc::clone(shared), link.clone(), head.pid, along, pace)?;
        let mut inner = next.inner.lock();
        let all = others.chain([Arc::clone(head)]);
        inner.members = all.map(|task| (task.pid, Member::new(task))).collect();
        inner.moving = inner.members.len();
        drop(inner);
        Ok(Arc::new(next))
    }

    /// Until the others are to be held, too.
    fn until_begin(&self, task: &Task) -> Result<(), MigrateError> {
        let pid = task.pid;
        loop {
            task.bell.quiet();
            if has_ended(pid.raw()) {
                return Err(MigrateError::NoSuchProcess(pid));
            }
            let mut inner = self.inner.lock();
            if task.has_orders() {
                inner.called_home(task);
            }
            if let Some(error) = &inner.failed {
                let reason = error.to_string();
                return Err(MigrateError::StaysTogether { pid, reason });
            }
            drop(inner);
            if !wait(&task.bell, self.pace.begins) {
                return Ok(());
            }
        }
    }

    fn take_hold_again(&self, task: &Task, rest: &Rest) -> Result<Frozen, MigrateError> {
        let explain = |e| explain_error(task, self.link.peer_name(), e);
        fault::pass(Point::HomeGoesAgain).map_err(explain)?;
        let pid = task.pid.raw();
        if rest.shares(task.pid) {
            examine(task.pid, 0, false, Sharers::Later)?.refusal()?;
        }
        let held = freezer(self.shared.module).freeze(pid).and_then(|held| held.trace());
        let frozen = held.map_err(|e| explain(e.into()))?;
        // Nobody watched it: another one may have its id.
        if proc::start_time(pid).is_ok_and(|began| began == task.origin.0) {
            return Ok(frozen);
        }
        frozen.thaw().map_err(|e| explain(e.into()))?;
        Err(MigrateError::NoSuchProcess(task.pid))
    }

    /// The others go without it.
    fn leaves(self: &Arc<Self>, pid: Pid) {
        let mut inner = self.inner.lock();
        inner.members.remove(&pid);
        inner.moving -= 1;
        self.advance(&mut inner);
        self.answer(&mut inner);
    }

    /// What of `below` has begun at home, `since` those that are `known` are there.
    pub(super) fn newcomers(&self, below: Vec<Pid>, known: &[i32], since: u64) -> Newcomers {
        let theirs: Vec<maps::Object> =
            known.iter().flat_map(|pid| objects_of(*pid, may_be_common)).collect();
        let (sharers, mut others): (Vec<_>, Vec<_>) =
            below.into_iter().partition(|pid| has_one_of(pid.raw(), &theirs));
        // Others are at home because they cannot move, or somebody else began them.
        others.retain(|pid| {
            let is_theirs = proc::status(pid.raw()).is_ok_and(|s| known.contains(&s.ppid));
            is_theirs && proc::start_time(pid.raw()).is_ok_and(|began| began >= since)
        });
        Newcomers { sharers, others }
    }

    pub(super) fn follow(&self, others: &[Pid], family: &Arc<()>) {
        for pid in others {
            let child = Child { pid: pid.raw(), memory: Memory::Own };
            self.shared.follow(child, &Arc::default(), family, &self.link);
        }
    }
}

impl Inner {
    /// Who asked is told when all of them stay.
    fn called_home(&mut self, task: &Task) {
        while let Some(order) = task.next_order() {
            if let Order::Home(done) = order {
                self.waiting.push(done);
            }
        }
        self.fail(MigrateError::CalledHome(task.pid));
    }
}

/// Clock ticks since boot, as those of a process's start.
fn ticks() -> u64 {
    const NANOSECONDS: i64 = 1_000_000_000 / 100;
    (namespace::clock(libc::CLOCK_BOOTTIME) / NANOSECONDS) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVE: Duration = Duration::from_millis(60);

    /// After a stay away of `away`.
    fn next(pace: &Pace, away: Duration) -> Pace {
        let left = pace.begins + MOVE;
        let called = left + away;
        pace.next(left, called, called + MOVE)
    }

    #[test]
    fn they_are_at_home_as_long_as_the_moves_took() {
        let second = next(&Pace::first(), Duration::from_secs(60));
        assert_eq!(second.rest, 2 * MOVE);
        assert_eq!(next(&second, Duration::from_secs(60)).rest, 2 * MOVE);
    }

    #[test]
    fn those_who_come_soon_stay_longer_up_to_a_limit() {
        let mut pace = Pace::first();
        let mut rests = Vec::new();
        for _ in 0..12 {
            pace = next(&pace, Duration::ZERO);
            rests.push(pace.rest);
        }
        assert_eq!(rests[..3], [2 * MOVE, 4 * MOVE, 8 * MOVE]);
        assert_eq!(rests[11], REST_MAX);
        assert_eq!(next(&pace, Duration::from_secs(60)).rest, 2 * MOVE);
    }

    #[test]
    fn moves_that_take_long_make_for_a_long_stay() {
        let first = Pace::first();
        let left = first.begins + 2 * REST_MAX;
        let second = first.next(left, left, left + REST_MAX);
        assert_eq!(second.rest, 3 * REST_MAX);
    }

    #[test]
    fn ticks_are_those_of_a_start() {
        let before = ticks();
        let mut child = std::process::Command::new("true").spawn().expect("true runs");
        let began = proc::start_time(child.id() as i32).expect("it is not reaped");
        assert!(before <= began && began <= ticks(), "{before} {began} {}", ticks());
        child.wait().expect("a child of ours");
    }
}
