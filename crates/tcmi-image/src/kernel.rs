//! Calls that no library has.

use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tcmi_sys::Errno;
use tcmi_sys::namespace::{self, Parent};

/// A child of ours with this pid, which only waits, and ends with us. The caller has one thread.
pub fn waiting_child(pid: i32) -> Result<i32> {
    // SAFETY: a plain call.
    let parent = unsafe { libc::getpid() };
    // SAFETY: the child makes plain calls only.
    let child = unsafe { namespace::fork_as(Some(pid), Parent::Me) };
    match child {
        // SAFETY: plain calls.
        Ok(0) => unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // We may have ended before it asked for the signal.
            if libc::getppid() != parent {
                libc::_exit(0);
            }
            loop {
                libc::pause();
            }
        },
        Ok(child) => Ok(child),
        Err(Errno { code: libc::EEXIST, .. }) => Err(Error::Taken(pid)),
        Err(Errno { code: libc::EPERM, .. }) => Err(Error::Changed(
            "to give a process its id takes root, or CAP_CHECKPOINT_RESTORE".to_owned(),
        )),
        Err(e) => Err(e.into()),
    }
}

/// Ends a child of ours that was never let go.
pub fn end_child(pid: i32) {
    // SAFETY: plain calls on our own child, which nobody else waits for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
    }
}

pub fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd> {
    let size = std::mem::size_of::<u64>();
    // SAFETY: a live mask of the size that it says.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size, flags) };
    match fd {
        // SAFETY: a new descriptor that nobody else has.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        _ => Err(Errno::last("signalfd4").into()),
    }
}

/// Expirations of a timerfd that are to be read.
pub fn set_ticks(timer: &OwnedFd, ticks: u64) -> Result<()> {
    /// _IOW('T', 0, u64)
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    // SAFETY: a live u64, as the request takes.
    match unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) } {
        0 => Ok(()),
        _ => Err(Errno::last("ioctl TFD_IOC_SET_TICKS").into()),
    }
}
