//! Where a worker runs: with home on this machine, on the core of the guest thread that calls.
//! Left alone the scheduler wakes each partner of a call on the core that idles, and waking an
//! idle core costs more than all the rest of a call.

use std::time::{Duration, Instant};

use tcmi_sys::affinity::Cores;

/// Between two looks at where the guest runs: it follows its worker, but may be moved while it
/// computes. Not by calls: some thousand changes of a mask a second, among tasks that wake each
/// other, kept all others from both cores for a minute (Linux 6.18 with autogroups).
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Calls between two looks at the clock.
const CLOCK_EVERY: u32 = 16;

pub(crate) struct Placement {
    /// What the worker may use; None: it is left alone.
    all: Option<Cores>,
    calls: u32,
    /// When it was bound; None: it is not.
    bound: Option<Instant>,
}

impl Placement {
    pub(crate) fn new(near: bool) -> Self {
        let all = if near { Cores::of(0).ok() } else { None };
        Placement { all, calls: 0, bound: None }
    }

    /// Before the wait for a call, which ends on the guest's core if this worker may run there.
    pub(crate) fn before_call(&mut self) {
        self.calls = self.calls.wrapping_add(1);
        let is_due = |since: Instant| since.elapsed() >= LOOK_INTERVAL;
        if self.calls.is_multiple_of(CLOCK_EVERY)
            && self.bound.is_some_and(is_due)
            && let Some(all) = &self.all
        {
            self.bound = None;
            if let Err(error) = all.bind(0) {
                tracing::debug!(%error, "a worker stays on its core");
            }
        }
    }

    /// A call was taken: home's answer is to wake this worker here.
    pub(crate) fn in_call(&mut self) {
        if self.all.is_some() && self.bound.is_none() {
            self.bound = Some(Instant::now());
            if let Err(error) = Cores::current().and_then(|here| here.bind(0)) {
                tracing::debug!(%error, "a worker is not bound to its core");
            }
        }
    }
}
