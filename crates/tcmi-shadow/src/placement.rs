//! Where a worker runs: with home on this machine, on the core of the guest thread that calls.
//! Left alone the scheduler wakes each partner of a call on the core that idles, and waking an
//! idle core costs more than all the rest of a call.

use tcmi_sys::affinity::Cores;

/// Calls between two looks at where the guest runs: it follows its worker, but may be moved while
/// it computes.
const LOOK_EVERY: u32 = 16;

pub(crate) struct Placement {
    /// What the worker may use; None: it is left alone.
    all: Option<Cores>,
    calls: u32,
}

impl Placement {
    pub(crate) fn new(near: bool) -> Self {
        let all = if near { Cores::of(0).ok() } else { None };
        Placement { all, calls: 0 }
    }

    /// Before the wait for a call, which ends on the guest's core if this worker may run there.
    pub(crate) fn before_call(&mut self) {
        if self.calls.is_multiple_of(LOOK_EVERY)
            && let Some(all) = &self.all
            && let Err(error) = all.bind(0)
        {
            tracing::debug!(%error, "a worker stays on its core");
        }
    }

    /// A call was taken: home's answer is to wake this worker here.
    pub(crate) fn in_call(&mut self) {
        if self.calls.is_multiple_of(LOOK_EVERY)
            && self.all.is_some()
            && let Err(error) = Cores::current().and_then(|here| here.bind(0))
        {
            tracing::debug!(%error, "a worker is not bound to its core");
        }
        self.calls = self.calls.wrapping_add(1);
    }
}
