//! New processes with chosen ids, in new namespaces.

use crate::errno::{Errno, Result, check};
use libc::pid_t;
use std::fs;

/// `struct clone_args` of clone3(2), version 2.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// Whose child a new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    Me,
    /// The caller's own parent.
    Mine,
}

/// Forks; the child has `pid` in its (the caller's children's) pid namespace if one is given.
/// Returns 0 in the child, the child's pid as the caller sees it in the parent.
///
/// # Safety
/// As fork(2): the caller has one thread, or the child calls only async-signal-safe functions.
pub unsafe fn fork_as(pid: Option<pid_t>, parent: Parent) -> Result<pid_t> {
    let set_tid = [pid.unwrap_or(0)];
    let mut args = match parent {
        Parent::Me => CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() },
        Parent::Mine => CloneArgs { flags: libc::CLONE_PARENT as u64, ..CloneArgs::default() },
    };
    if pid.is_some() {
        args.set_tid = set_tid.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: `args` lives across the call; without CLONE_VM the child has its own copy.
    let r = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>())
    };
    check("clone3", r).map(|p| p as pid_t)
}

pub fn unshare(flags: i32) -> Result<()> {
    // SAFETY: unshare takes no pointers.
    check("unshare", i64::from(unsafe { libc::unshare(flags) })).map(drop)
}

fn put(what: &'static str, path: &str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| Errno::from_io(what, &e))
}

/// Maps one user and one group of the user namespace that `pid` is in. The caller is outside of
/// it, and its owner or privileged.
pub fn map_ids(pid: pid_t, inside: (u32, u32), outside: (u32, u32)) -> Result<()> {
    put("write setgroups", &format!("/proc/{pid}/setgroups"), "deny")?;
    put(
        "write uid_map",
        &format!("/proc/{pid}/uid_map"),
        &format!("{} {} 1", inside.0, outside.0),
    )?;
    put("write gid_map", &format!("/proc/{pid}/gid_map"), &format!("{} {} 1", inside.1, outside.1))
}

/// Sets the clocks of the time namespace for children, in nanoseconds added to this
/// node's. Before the first child only.
pub fn set_clock_offsets(monotonic: i64, boottime: i64) -> Result<()> {
    let line = |name: &str, ns: i64| {
        format!("{name} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
    };
    let text = line("monotonic", monotonic) + &line("boottime", boottime);
    put("write timens_offsets", "/proc/self/timens_offsets", &text)
}

/// A clock that may not be there, such as that of a process; in nanoseconds.
pub fn clock_of(id: libc::clockid_t) -> Result<u64> {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec.
    check("clock_gettime", i64::from(unsafe { libc::clock_gettime(id, &mut t) }))?;
    Ok(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// The clock in nanoseconds.
pub fn clock(id: libc::clockid_t) -> i64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec.
    let r = unsafe { libc::clock_gettime(id, &mut t) };
    assert_eq!(r, 0, "clock {id} exists on every Linux");
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}
