//! What a guest may use of its node, as far as the daemon's groups do not see to it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use tcmi_migr::{Error, Result};
use tcmi_sys::Errno;

use crate::ipc;

/// Above everything else on the node, when that has no memory left.
const FIRST_TO_GO: &str = "1000";
const MIB: u64 = 1 << 20;

pub struct Limits {
    given: ipc::Limits,
    events: Option<File>,
    group: Option<File>,
}

impl Limits {
    /// None: a descriptor is missing that was named.
    pub fn take(given: ipc::Limits, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let mut next = |named: bool| match named {
            true => fds.next().map(|fd| Some(File::from(fd))),
            false => Some(None),
        };
        Some(Self { given, events: next(given.memory.is_some())?, group: next(given.has_group)? })
    }

    /// Sets them for a guest's leader, before it runs anything of the guest's.
    pub fn set(&mut self, leader: i32) -> Result<()> {
        if let Err(error) = fs::write(format!("/proc/{leader}/oom_score_adj"), FIRST_TO_GO) {
            tracing::warn!(%error, "the guest is not the first to go when memory is short");
        }
        lift_locked_memory(leader);
        match self.group.take() {
            Some(mut group) => group
                .write_all(leader.to_string().as_bytes())
                .map_err(Error::io("put the guest into its group")),
            None => limit_threads(leader, u64::from(self.given.threads)),
        }
    }

    /// Of a guest that was killed: whether the kernel did it, for what it had.
    pub fn broken(&self) -> Option<String> {
        let mut text = [0; 1024];
        let n = self.events.as_ref()?.read_at(&mut text, 0).ok()?;
        let killed = kills(&String::from_utf8_lossy(&text[..n]));
        let mib = self.given.memory? / MIB;
        (killed > 0).then(|| format!("it used more than the {mib} MiB of memory of a guest there"))
    }
}

/// memory.events, or memory.oom_control of the older kind.
fn kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The kernel counts them by user and user namespace, and the guest has one of its own. What home
/// allows is set later, and cannot be more.
fn limit_threads(leader: i32, threads: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: threads, rlim_max: threads };
    // SAFETY: a live limit, and nothing asked for.
    match unsafe { libc::prlimit(leader, libc::RLIMIT_NPROC, &limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Errno::last("limit the guest's threads").into()),
    }
}

/// It is the guest's memory as any other, of which its group may have only so much. What home allows
/// is set later.
fn lift_locked_memory(leader: i32) {
    let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a live limit, and nothing asked for.
    if unsafe { libc::prlimit(leader, libc::RLIMIT_MEMLOCK, &none, std::ptr::null_mut()) } < 0 {
        tracing::debug!("the guest may lock as much memory as its node's daemon");
    }
}

#[cfg(test)]
mod tests {
    use super::kills;

    #[test]
    fn kills_are_counted_in_both_kinds_of_file() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills(""), 0);
    }
}
