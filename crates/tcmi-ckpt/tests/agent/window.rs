//! Each instruction of the window by itself: the thread is single-stepped to it.

use crate::peer::Call;
use crate::shadow::Shadow;
use std::mem::{offset_of, zeroed};
use std::sync::atomic::Ordering;
use tcmi_call::abi::ThreadArea;
use tcmi_call::frame::reply_flags;

/// A shadow thread stopped before an instruction of the window, this thread its tracer.
struct Stepped {
    shadow: Shadow,
    pid: i32,
}

const STEPS_MAX: u32 = 200_000;

impl Stepped {
    /// Stopped at the window's start, in a call that only a signal ends.
    fn at_window() -> Self {
        let mut shadow = Shadow::spawn();
        let pid = shadow.child.pid;
        // SAFETY: our own child.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0), 0);
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0), 0);
        }
        shadow.calls.send(&Call::new(libc::SYS_pause, &[]));
        let stepped = Self { shadow, pid };
        stepped.wait_stop();
        let start = stepped.shadow.address(|header| header.window_start);
        for _ in 0..STEPS_MAX {
            if stepped.regs().rip == start {
                return stepped;
            }
            stepped.step();
        }
        panic!("the thread does not come to the window");
    }

    fn wait_stop(&self) {
        let mut status = 0;
        // SAFETY: our own tracee.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, libc::__WALL) }, self.pid);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
    }

    fn step(&self) {
        // SAFETY: the tracee is stopped.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) }, 0);
        self.wait_stop();
    }

    fn regs(&self) -> libc::user_regs_struct {
        // SAFETY: the tracee is stopped; the kernel fills the structure.
        unsafe {
            let mut regs = zeroed();
            assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, self.pid, 0, &mut regs), 0);
            regs
        }
    }

    /// Lets it run, untraced, with `signo` (0: none) delivered first.
    fn release(self, signo: i32) -> Shadow {
        // SAFETY: the tracee is stopped.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, 0, signo) }, 0);
        self.shadow
    }
}

#[test]
fn a_signal_before_the_call_is_made_prevents_it() {
    // The test, the branch, the call itself.
    for steps in 0..3 {
        let stepped = Stepped::at_window();
        (0..steps).for_each(|_| stepped.step());
        assert!(stepped.regs().rip <= stepped.shadow.address(|h| h.window_end) - 2);
        let mut shadow = stepped.release(libc::SIGUSR1);
        let reply = shadow.calls.receive();
        let refused = reply_flags::INTERRUPTED | reply_flags::NOT_STARTED;
        assert_eq!((reply.header.ret, reply.header.flags), (-i64::from(libc::EINTR), refused));
        assert_eq!(reply.header.signals, 1);
        assert_eq!(shadow.events.receive_signal().signo, libc::SIGUSR1 as u32);
    }
}

#[test]
fn the_keeper_can_leave_the_call_unmade() {
    for steps in 0..3 {
        let stepped = Stepped::at_window();
        (0..steps).for_each(|_| stepped.step());
        let mut regs = stepped.regs();
        regs.rip = stepped.shadow.address(|header| header.window_abort);
        // SAFETY: the tracee is stopped.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SETREGS, stepped.pid, 0, &regs) }, 0);
        let cancelled = stepped.shadow.thread_word(offset_of!(ThreadArea, cancelled));
        cancelled.store(1, Ordering::SeqCst);
        let mut shadow = stepped.release(0);
        let reply = shadow.calls.receive();
        let taken_back = reply_flags::CANCELLED | reply_flags::NOT_STARTED;
        assert_eq!((reply.header.ret, reply.header.flags), (-i64::from(libc::EINTR), taken_back));
    }
}
