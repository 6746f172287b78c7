//! The threads of a guest, as callers: whether the call that a signal ends is one that home was to
//! end, or one that no worker had.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tcmi_call::abi::UserRegs;
use tcmi_call::table::{self, Class, Restart};
use tcmi_ckpt::freeze::{self, Thread};
use tcmi_sys::proc;
use tcmi_sys::seccomp::Answer;
use tcmi_sys::signal;

use crate::interrupt::{self, Pending};

const ERESTARTSYS: i64 = -(Restart::SaRestart.code() as i64);

/// The threads of a guest, as callers.
///
/// Until a worker has taken a call, the kernel ends it for any signal, with ERESTARTSYS whatever
/// call it is: behind a handler without SA_RESTART the program would see EINTR of a call that
/// never gives it. Such a call is made again behind the handler.
#[derive(Debug)]
pub struct Callers {
    /// As it is called here.
    pid: i32,
    /// Their last call was answered ERESTARTSYS, for a signal that waits for them.
    interrupted: Mutex<HashSet<i32>>,
    /// By job control.
    stopped: AtomicBool,
}

impl Callers {
    /// Of guest `pid`, as it is called here.
    pub fn new(pid: i32) -> Self {
        Callers { pid, interrupted: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    /// Returns what was told before.
    pub(crate) fn stopped(&self, is: bool) -> bool {
        self.stopped.swap(is, Ordering::AcqRel)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// A worker has a call of the thread, or it has ended.
    pub(crate) fn called(&self, tid: i32) {
        self.interrupted.lock().remove(&tid);
    }

    /// Before the thread has the answer.
    pub(crate) fn answered(&self, tid: i32, with: Answer) {
        if matches!(with, Answer::Error(errno) if errno == Restart::SaRestart.code()) {
            self.interrupted.lock().insert(tid);
        }
    }

    /// Registers of a thread that is about to take a signal, if its call is to be made again.
    pub(crate) fn set_back(&self, tid: i32, regs: &UserRegs, signal: i32) -> Option<UserRegs> {
        if !is_ended(regs) {
            return None;
        }
        let mut interrupted = self.interrupted.lock();
        if !interrupted.contains(&tid) {
            return Some(freeze::restartable(regs));
        }
        // What is not handled ends no call, and another may be behind it.
        if self.is_handled(signal) {
            interrupted.remove(&tid);
        }
        None
    }

    /// Of a thread whose registers are to be those of an image.
    pub(crate) fn set_back_held(&self, held: &mut Thread) {
        let is_due = self.interrupted.lock().contains(&held.tid) && is_signalled(held.tid);
        held.regs = match is_ended(&held.regs) && !is_due {
            true => freeze::restartable(&held.regs),
            false => freeze::interrupted(&held.regs),
        };
    }

    fn is_handled(&self, signo: i32) -> bool {
        proc::status(self.pid).is_ok_and(|s| s.sig_caught & signal::bit(signo) != 0)
    }
}

/// In a call that workers take, by a signal.
fn is_ended(regs: &UserRegs) -> bool {
    let is_ours = table::row(regs.orig_rax as u32).is_none_or(|r| r.class != Class::Local);
    regs.orig_rax as i64 >= 0 && regs.rax as i64 == ERESTARTSYS && is_ours
}

/// One that has ended is not.
fn is_signalled(tid: i32) -> bool {
    interrupt::pending(tid, None).is_ok_and(|pending| pending != Pending::Nothing)
}
