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

/// A signal that a thread under trace can send itself to stop for the tracer, and that
/// does nothing if the tracer is gone: default disposition, ignored by default.
pub fn harmless(caught: u64, ignored: u64) -> Option<i32> {
    [libc::SIGURG, libc::SIGWINCH, libc::SIGCONT, libc::SIGCHLD]
        .into_iter()
        .find(|&s| (caught | ignored) & bit(s) == 0)
        .or_else(|| {
            [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD].into_iter().find(|&s| ignored & bit(s) != 0)
        })
}
