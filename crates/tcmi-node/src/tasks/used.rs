//! What processes at home have used on other nodes, where their next guests go on counting, and
//! what those that ended leave to the parents that wait for them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_core::command::Pid;
use tcmi_sys::kmod::Session;
use tcmi_sys::kmod::abi::ChargeArgs;
use tcmi_sys::pages::PAGE_BYTES;
use tcmi_sys::{Errno, proc};

/// Of those that are no more, for whom nobody may ever ask.
const ENDED_MAX: usize = 4096;
/// For the books of one whose end its parent has been told already.
const BOOKS_TIMEOUT: Duration = Duration::from_secs(1);

/// By process, with the time that it began at: ids come again.
#[derive(Default)]
pub struct Elsewhere {
    /// The module is here, which adds it to what home's kernel has counted.
    charges: bool,
    books: Mutex<Books>,
    changed: Condvar,
}

#[derive(Default)]
struct Books {
    all: HashMap<Pid, Kept>,
    /// Those whose keepers will say more.
    away: HashSet<Pid>,
}

struct Kept {
    began: u64,
    parent: i32,
    used: Used,
}

fn charge(pid: Pid, used: &Usage) -> Result<(), Errno> {
    Session::open()?.charge(ChargeArgs {
        pid: pid.raw(),
        reserved: 0,
        utime: used.user,
        stime: used.system,
        min_flt: used.minor_faults,
        maj_flt: used.major_faults,
        maxrss: used.peak / PAGE_BYTES,
    })
}

fn has_ended(pid: Pid) -> bool {
    proc::start_time(pid.raw()).is_err()
}

impl Elsewhere {
    pub fn new(charges: bool) -> Self {
        Self { charges, ..Self::default() }
    }

    pub fn charges(&self) -> bool {
        self.charges
    }

    /// Has home's kernel count what `pid` used elsewhere, if it can. Returns what is left to keep.
    pub fn charge(&self, pid: Pid, used: Used) -> Used {
        if !self.charges || used.process == Usage::default() {
            return used;
        }
        match charge(pid, &used.process) {
            Ok(()) => Used { process: Usage::default(), ..used },
            Err(error) => {
                tracing::debug!(%pid, %error, "not charged");
                used
            }
        }
    }

    pub fn of(&self, pid: Pid) -> Used {
        let books = self.books.lock();
        match (books.all.get(&pid), proc::start_time(pid.raw())) {
            (Some(kept), Ok(now)) if now == kept.began => kept.used.clone(),
            _ => Used::default(),
        }
    }

    /// It has a keeper, from now on until [`Elsewhere::keep`].
    pub fn leaves(&self, pid: Pid) {
        self.books.lock().away.insert(pid);
    }

    /// Of a process that began at `began` as a child of `parent`.
    pub fn keep(&self, pid: Pid, began: u64, parent: i32, used: Used) {
        let mut books = self.books.lock();
        if books.all.len() >= ENDED_MAX {
            books.all.retain(|pid, _| !has_ended(*pid));
        }
        books.away.remove(&pid);
        match used == Used::default() {
            true => books.all.remove(&pid),
            false => books.all.insert(pid, Kept { began, parent, used }),
        };
        self.changed.notify_all();
    }

    /// What a process that has ended leaves to `parent`, which has just waited for it. Once.
    pub fn take(&self, pid: Pid, parent: Pid) -> Usage {
        let until = Instant::now() + BOOKS_TIMEOUT;
        let mut books = self.books.lock();
        while books.away.contains(&pid) && has_ended(pid) {
            if self.changed.wait_until(&mut books, until).timed_out() {
                break;
            }
        }
        let is_its = |kept: &Kept| kept.parent == parent.raw();
        if !has_ended(pid) || !books.all.get(&pid).is_some_and(is_its) {
            return Usage::default();
        }
        let kept = books.all.remove(&pid);
        kept.map_or(Usage::default(), |kept| kept.used.process.and(&kept.used.children))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(user: u64) -> Used {
        let usage = Usage { user, ..Usage::default() };
        Used { process: usage, threads: Vec::new(), children: usage }
    }

    #[test]
    fn what_was_used_is_the_processs_own_and_then_its_parents_once() {
        let elsewhere = Elsewhere::default();
        let me = Pid::new(std::process::id() as i32).unwrap();
        let began = proc::start_time(me.raw()).unwrap();
        elsewhere.keep(me, began, 5, used(7));
        assert_eq!(elsewhere.of(me), used(7));
        let parent = Pid::new(5).unwrap();
        assert_eq!(elsewhere.take(me, parent), Usage::default(), "it lives");
        elsewhere.keep(me, began + 1, 5, used(7));
        assert_eq!(elsewhere.of(me), Used::default(), "another of its number");
        let gone = Pid::new(proc::pid_max().unwrap() - 1).unwrap();
        elsewhere.leaves(gone);
        std::thread::scope(|scope| {
            scope.spawn(|| elsewhere.keep(gone, 1, 5, used(7)));
            assert_eq!(elsewhere.take(gone, parent).user, 14);
        });
        assert_eq!(elsewhere.take(gone, parent), Usage::default());
        elsewhere.keep(gone, 1, 6, used(7));
        assert_eq!(elsewhere.take(gone, parent), Usage::default(), "another's child");
    }
}
