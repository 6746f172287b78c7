//! Forwarded calls by name, with their time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tcmi_call::table;

#[derive(Debug, Default)]
struct Counter {
    calls: AtomicU64,
    errors: AtomicU64,
    ns: AtomicU64,
    here: AtomicU64,
}

/// Counters of all calls that reached the monitor.
#[derive(Debug)]
pub struct Stats(Box<[Counter]>);

/// One call's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallStats {
    pub nr: u32,
    pub name: &'static str,
    pub calls: u64,
    pub errors: u64,
    /// From taking the call to its answer, all calls together.
    pub time: Duration,
    /// Those that were answered without home, and do not count above.
    pub here: u64,
}

impl Default for Stats {
    fn default() -> Self {
        // One more, for numbers that the table does not know.
        Stats((0..=table::ROWS).map(|_| Counter::default()).collect())
    }
}

impl Stats {
    pub(crate) fn count(&self, nr: u32, failed: bool, time: Duration) {
        let counter = &self.0[(nr as usize).min(table::ROWS)];
        counter.calls.fetch_add(1, Ordering::Relaxed);
        counter.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        counter.ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_here(&self, nr: u32) {
        self.0[(nr as usize).min(table::ROWS)].here.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls that were made at least once, by number.
    pub fn snapshot(&self) -> Vec<CallStats> {
        let line = |(nr, c): (usize, &Counter)| CallStats {
            nr: nr as u32,
            name: table::row(nr as u32).map_or("unknown", |r| r.name),
            calls: c.calls.load(Ordering::Relaxed),
            errors: c.errors.load(Ordering::Relaxed),
            time: Duration::from_nanos(c.ns.load(Ordering::Relaxed)),
            here: c.here.load(Ordering::Relaxed),
        };
        self.0.iter().enumerate().map(line).filter(|s| s.calls + s.here > 0).collect()
    }
}
