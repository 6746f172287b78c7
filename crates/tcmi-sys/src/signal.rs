//! Signal sets and the kernel's sigaction.

/// `struct sigaction` as rt_sigaction(2) takes it on x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

pub const fn bit(sig: i32) -> u64 {
    1 << (sig - 1)
}
pub const ALL: u64 = !0;

/// Whether the default action of `sig` is to do nothing.
pub fn ignored_by_default(sig: i32) -> bool {
    matches!(sig, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT)
}

/// Those that a batch may end with.
const DONE: [i32; 4] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCONT, libc::SIGCHLD];

/// A signal that a thread under trace, which ends with its tracer, can send itself to stop for it:
/// none of `but`.
pub fn stopping(but: u64) -> Option<i32> {
    DONE.into_iter().find(|&s| but & bit(s) == 0)
}

/// A signal that a thread under trace can send itself to stop for the tracer, and that
/// does nothing if the tracer is gone: default disposition, ignored by default. Rather one that no
/// thread blocks: what is pending of it would be taken for ours.
pub fn harmless(caught: u64, ignored: u64, blocked: u64) -> Option<i32> {
    stopping(caught | ignored | blocked).or_else(|| stopping(caught | ignored)).or_else(|| {
        [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD].into_iter().find(|&s| ignored & bit(s) != 0)
    })
}
