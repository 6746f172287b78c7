//! When to look for signals that home did not send: a timer's, another thread's. Nothing tells of
//! those, and a thread whose call has been taken wakes for SIGKILL alone. Where none can come, nobody
//! looks, so that idle guests cost nothing.

use std::mem::size_of;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tcmi_call::abi::BatchOp;
use tcmi_shadow::{Steward, UnderWay};
use tcmi_sys::proc;

/// Between two looks, while calls come and go.
const INTERVAL: Duration = Duration::from_millis(10);
/// What each waiting call adds to it, so that looking costs little.
const INTERVAL_A_CALL: Duration = Duration::from_millis(2);
/// It grows by half to this while the same calls wait.
const INTERVAL_MAX: Duration = Duration::from_millis(80);
/// And on to this while no thread runs, of which one that sleeps here may wake, and signal another.
const REST_MAX: Duration = Duration::from_secs(1);
/// While there are calls that keep threads from their signals.
const AGAIN: Duration = Duration::from_millis(50);
/// From a signal's arrival until calls that it left waiting are looked for: the usual one has
/// ended by then.
const SIGNAL_LATER: Duration = Duration::from_millis(1);
/// `struct itimerval` and `struct itimerspec`: an interval, and what is left.
const TIMER_BYTES: usize = 32;
const OPS_MAX: usize = 16;

/// What is known of a guest's timers: they change only while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timers {
    Unknown,
    Asked,
    /// The first to expire. A failure to learn it is one that is due. The steward has run for it.
    Answered(Option<Instant>),
    Next(Option<Instant>),
}

/// What a look has seen.
pub(super) struct Seen {
    pub(super) held_up: bool,
    pub(super) under_way: UnderWay,
    /// Somebody else needs looks, too.
    pub(super) needed: bool,
}

pub(super) struct Looks {
    /// None: when a call begins or ends.
    at: Option<Instant>,
    pause: Duration,
    calls: u64,
    ran: Duration,
    timers: Arc<Mutex<Timers>>,
    steward: Arc<Steward>,
    /// The guest, here.
    pid: i32,
}

impl Looks {
    pub(super) fn begin(pid: i32, steward: Arc<Steward>) -> Self {
        let timers = Arc::new(Mutex::new(Timers::Unknown));
        let (at, ran) = (Some(Instant::now() + INTERVAL), Duration::ZERO);
        Self { at, pause: INTERVAL, calls: 0, ran, timers, steward, pid }
    }

    /// For poll(2), rounded up: 0 would spin until it is due.
    pub(super) fn timeout_ms(&self) -> i32 {
        let left = |at: Instant| at.saturating_duration_since(Instant::now()).as_micros();
        self.at.map_or(-1, |at| left(at).div_ceil(1000).min(i32::MAX as u128) as i32)
    }

    /// The guest got a signal.
    pub(super) fn signalled(&mut self) {
        let soon = Instant::now() + SIGNAL_LATER;
        self.at = Some(self.at.map_or(soon, |at| at.min(soon)));
    }

    /// A call began or ended while the guest was at rest.
    pub(super) fn stirred(&mut self) {
        *self.timers.lock() = Timers::Unknown;
        (self.pause, self.at) = (INTERVAL, Some(Instant::now() + INTERVAL));
    }

    /// Behind a look. True: at rest, and to be told when a call begins or ends.
    pub(super) fn done(&mut self, seen: &Seen) -> bool {
        let UnderWay { in_flight, threads, calls } = seen.under_way;
        let usual = INTERVAL + INTERVAL_A_CALL * in_flight as u32;
        let same = calls == std::mem::replace(&mut self.calls, calls);
        let now = Instant::now();
        self.pause = match same {
            _ if seen.held_up => AGAIN,
            true => usual.max((self.pause * 3 / 2).min(INTERVAL_MAX.max(self.pause))),
            false => usual,
        };
        self.at = Some(now + self.pause);
        if seen.held_up || seen.needed || !same || self.pause < INTERVAL_MAX {
            return false;
        }
        if in_flight == 0 {
            self.at = None;
            return true;
        }
        // Whoever waits for home alone stirs when it runs.
        let all_wait = in_flight >= threads;
        let ran = proc::cpu_time(self.pid).unwrap_or_default();
        let has_run = ran != std::mem::replace(&mut self.ran, ran) && !all_wait;
        let timers = *self.timers.lock();
        match timers {
            Timers::Asked => {}
            Timers::Answered(at) => *self.timers.lock() = Timers::Next(at),
            _ if has_run => *self.timers.lock() = Timers::Unknown,
            Timers::Unknown => self.ask(),
            Timers::Next(Some(at)) if at <= now => *self.timers.lock() = Timers::Unknown,
            Timers::Next(at) => {
                let limit = (!all_wait).then(|| {
                    self.pause = (self.pause * 3 / 2).min(REST_MAX);
                    now + self.pause
                });
                self.at = [at.map(|at| at + SIGNAL_LATER), limit].into_iter().flatten().min();
                return true;
            }
        }
        self.pause = INTERVAL_MAX.max(usual);
        self.at = Some(now + self.pause);
        false
    }

    /// By a thread of its own: of a stopped guest the steward is stopped, too.
    fn ask(&self) {
        *self.timers.lock() = Timers::Asked;
        let (timers, steward, pid) = (self.timers.clone(), self.steward.clone(), self.pid);
        let asker = thread::Builder::new().name("guest-timers".into());
        let spawned = asker.spawn(move || {
            let next = next_timer(&steward, pid).unwrap_or_else(|| Some(Instant::now()));
            let mut timers = timers.lock();
            if *timers == Timers::Asked {
                *timers = Timers::Answered(next);
            }
        });
        if let Err(error) = spawned {
            tracing::debug!(%error, "the guest's timers are not asked for");
            *self.timers.lock() = Timers::Unknown;
        }
    }
}

/// When the first of a guest's timers expires; of those on a processor's clock not before that. None:
/// nothing tells.
fn next_timer(steward: &Steward, pid: i32) -> Option<Option<Instant>> {
    let timers = proc::timers(pid).ok()?;
    let calls = std::iter::once((libc::SYS_getitimer, libc::ITIMER_REAL as u64, 1_000))
        .chain(timers.iter().map(|t| (libc::SYS_timer_gettime, t.id as u64, 1)))
        .collect::<Vec<_>>();
    let mut next: Option<Duration> = None;
    for calls in calls.chunks(OPS_MAX) {
        let mut data = [0; OPS_MAX * TIMER_BYTES];
        let mut ops: Vec<BatchOp> = calls
            .iter()
            .enumerate()
            .map(|(i, &(nr, which, _))| {
                let args = [which, steward.data_address(i * TIMER_BYTES), 0, 0, 0, 0];
                BatchOp { nr: nr as u64, args, ret: 0, flags: 0 }
            })
            .collect();
        steward.run_with(&mut ops, &mut data).ok()?;
        for ((&(_, _, unit), timer), op) in calls.iter().zip(data.chunks(TIMER_BYTES)).zip(&ops) {
            let left = left(timer, unit).filter(|_| op.ret >= 0);
            next = next.into_iter().chain(left).min();
        }
    }
    Some(next.and_then(|left| Instant::now().checked_add(left)))
}

/// None: it is not armed. `unit`: nanoseconds of its smaller part.
fn left(timer: &[u8], unit: u64) -> Option<Duration> {
    let word = |at: usize| timer.get(at..)?.first_chunk().map(|w| u64::from_le_bytes(*w));
    let at = TIMER_BYTES / 2;
    let (seconds, parts) = (word(at)?, word(at + size_of::<u64>())?);
    let left =
        Duration::from_secs(seconds).saturating_add(Duration::from_nanos(parts.checked_mul(unit)?));
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_not_armed_has_nothing_left() {
        let timer = |seconds: u64, parts: u64| {
            let words = [9, 9, seconds, parts];
            words.map(u64::to_le_bytes).concat()
        };
        assert_eq!(left(&timer(0, 0), 1), None);
        assert_eq!(left(&timer(2, 5), 1_000), Some(Duration::new(2, 5_000)));
        assert_eq!(left(&timer(0, 7), 1), Some(Duration::from_nanos(7)));
        assert_eq!(left(&timer(0, u64::MAX), 1_000), None);
        assert_eq!(left(&[0; 20], 1), None);
    }
}
