//! Limits of memory and processor time are heeded where these are used: by the guest's kernel. Home
//! has them as well, so that they go along with a move, and the guest's next program gets them.

use std::ptr;

use tcmi_call::engine::GuestMemory;
use tcmi_sys::seccomp::Notification;

use crate::calls::Shared;
use crate::memory::{ProcessMemory, word};

const HEEDED: [libc::__rlimit_resource_t; 5] = [
    libc::RLIMIT_CPU,
    libc::RLIMIT_DATA,
    libc::RLIMIT_STACK,
    libc::RLIMIT_MEMLOCK,
    libc::RLIMIT_AS,
];

/// Behind a call that home has made: sets the guest's own limit, if that is what it was.
pub(crate) fn set(shared: &Shared, notif: &Notification) {
    let [first, second, third, ..] = notif.args;
    let (pid, resource, at) = match i64::from(notif.nr) {
        libc::SYS_setrlimit => (0, first, second),
        libc::SYS_prlimit64 => (first as i32, second, third),
        _ => return,
    };
    let resource = resource as libc::__rlimit_resource_t;
    let is_own = pid == 0 || shared.called_at_home(pid) == Some(shared.guest.pid);
    let mut bytes = [0; 16];
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    if at == 0 || !is_own || !HEEDED.contains(&resource) || mem.read(at, &mut bytes).is_err() {
        return;
    }
    let limit = libc::rlimit { rlim_cur: word(&bytes, 0), rlim_max: word(&bytes, 8) };
    let own = shared.guest.pid;
    if resource == libc::RLIMIT_MEMLOCK && locks_without_limit(own) {
        return;
    }
    // SAFETY: a live limit, and nothing asked for.
    if unsafe { libc::prlimit(own, resource, &limit, ptr::null_mut()) } < 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(resource, %error, "the guest's own limit stays");
    }
}

/// Who has the privilege to at home may, whatever the limit.
fn locks_without_limit(pid: i32) -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for the limit, and nothing set.
    let ret = unsafe { libc::prlimit(pid, libc::RLIMIT_MEMLOCK, ptr::null(), &mut limit) };
    ret == 0 && limit.rlim_max == libc::RLIM_INFINITY
}
