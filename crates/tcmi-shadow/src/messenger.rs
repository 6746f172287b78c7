//! A process that exists to send one signal.
//!
//! `tgkill` names its caller in the signal, and the kernel lets nobody else write that name
//! (SI_TKILL) but the receiving thread itself. So the call is made by a process that has the
//! sender's process id, and user, in the guest's namespaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use tcmi_sys::Errno;
use tcmi_sys::namespace::{self, Parent};

/// One call of `tgkill`.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub sender: i32,
    pub sender_uid: u32,
    /// All as the guest counts them.
    pub tgid: i32,
    pub tid: i32,
    pub signo: i32,
}

impl Message {
    /// On return the signal is in the guest. Err: it is not, as the sender's id is taken there or
    /// out of its range, the user is not the guest's, or the guest ended.
    pub fn send(&self, guest: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: the child makes system calls alone.
        let entered = unsafe { namespace::fork_as(None, Parent::Me) }?;
        if entered == 0 {
            exit(self.enter(guest));
        }
        wait(entered)
    }

    fn enter(&self, guest: BorrowedFd<'_>) -> Result<(), Errno> {
        let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
        // SAFETY: no pointers. Not the C library's setresuid, which asks every thread that it
        // knows of to follow.
        unsafe {
            if libc::setns(guest.as_raw_fd(), namespaces) < 0 {
                return Err(Errno::last("setns"));
            }
            let uid = self.sender_uid;
            if libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0 {
                return Err(Errno::last("setresuid"));
            }
        }
        // SAFETY: this process has one thread.
        let named = unsafe { namespace::fork_as(Some(self.sender), Parent::Me) }?;
        if named == 0 {
            // SAFETY: no pointers.
            let r = unsafe { libc::syscall(libc::SYS_tgkill, self.tgid, self.tid, self.signo) };
            exit(if r < 0 { Err(Errno::last("tgkill")) } else { Ok(()) });
        }
        wait(named)
    }
}

/// Ends a forked child; its parent's [`wait`] returns what it says.
fn exit(with: Result<(), Errno>) -> ! {
    let code = with.map_or_else(|e| e.code, |()| 0);
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(code) }
}

fn wait(child: i32) -> Result<(), Errno> {
    let mut status = 0;
    // SAFETY: a child of this very OS thread, which nobody else waits for.
    while unsafe { libc::waitpid(child, &mut status, libc::__WALL | libc::__WNOTHREAD) } < 0 {
        let e = Errno::last("waitpid");
        if e.code != libc::EINTR {
            return Err(e);
        }
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, code) => Err(Errno::new("send in the guest", code)),
        (false, _) => Err(Errno::new("send in the guest", libc::ESRCH)),
    }
}
