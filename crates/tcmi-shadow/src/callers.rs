//! A signal ends no call that is still on its way to a worker.
//!
//! Until a worker has taken a call, the kernel ends it for any signal, with ERESTARTSYS whatever
//! call it is: behind a handler without SA_RESTART the program would see EINTR of a call that
//! never gives it. So who brings a signal stops the threads that may take it, and sets those that
//! such a call holds back to its beginning.

use std::collections::HashMap;
use std::fs;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tcmi_call::abi::UserRegs;
use tcmi_call::table::{self, Class};
use tcmi_ckpt::birth;
use tcmi_ckpt::freeze::{self, Thread};
use tcmi_sys::proc;
use tcmi_sys::ptrace::{Running, Stop, Stopped, Waited};
use tcmi_sys::seccomp::Notification;
use tcmi_sys::signal;

use crate::interrupt::{self, Pending};

/// Longest that a thread is waited for, as one on a busy machine may take a while to stop, and one
/// whose page comes from a disk takes long.
const STOP_MAX: Duration = Duration::from_millis(200);
const LOOK_INTERVAL: Duration = Duration::from_micros(20);

const ERESTARTSYS: i64 = -512;

/// What became of the last call of a thread that a worker took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// It waits for its answer, which no signal ends.
    Taken(u64),
    Answered,
    /// With a restart code, for a signal that waits for the thread.
    Interrupted,
}

/// The threads of a guest, as callers.
#[derive(Debug)]
pub struct Callers {
    /// As it is called here.
    pid: i32,
    last: Mutex<HashMap<i32, Last>>,
    /// By job control.
    stopped: AtomicBool,
    /// Shared by whoever answers; alone has it who must find the same calls taken for a while.
    answers: RwLock<()>,
}

impl Callers {
    /// Of guest `pid`, as it is called here.
    pub fn new(pid: i32) -> Self {
        let (last, answers) = (Mutex::default(), RwLock::default());
        Callers { pid, last, stopped: AtomicBool::new(false), answers }
    }

    /// Returns what was told before.
    pub(crate) fn stopped(&self, is: bool) -> bool {
        self.stopped.swap(is, Ordering::AcqRel)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn taken(&self, notif: &Notification) {
        self.last.lock().insert(notif.tid, Last::Taken(notif.id));
    }

    /// `give` answers a call. `interrupted`: with a restart code.
    pub(crate) fn answer<R>(
        &self,
        notif: &Notification,
        interrupted: bool,
        give: impl FnOnce() -> R,
    ) -> R {
        let _others_too = self.answers.read();
        let given = give();
        // Another worker may have the thread's next call already.
        if let Some(last) = self.last.lock().get_mut(&notif.tid)
            && *last == Last::Taken(notif.id)
        {
            *last = if interrupted { Last::Interrupted } else { Last::Answered };
        }
        given
    }

    pub(crate) fn forget(&self, tid: i32) {
        self.last.lock().remove(&tid);
    }

    fn is_taken(&self, tid: i32) -> bool {
        matches!(self.last.lock().get(&tid), Some(Last::Taken(_)))
    }

    /// Registers of a stopped thread with which no call is ended that no worker had. `signalled`:
    /// it is about to take a signal.
    fn set_back(&self, tid: i32, regs: &UserRegs, signalled: bool) -> UserRegs {
        let is_ours = table::row(regs.orig_rax as u32).is_none_or(|r| r.class != Class::Local);
        let interrupted = self.last.lock().get(&tid) == Some(&Last::Interrupted);
        if regs.orig_rax as i64 >= 0
            && regs.rax as i64 == ERESTARTSYS
            && is_ours
            && !(interrupted && signalled)
        {
            return freeze::restartable(regs);
        }
        freeze::interrupted(regs)
    }

    /// Of a thread whose registers are to be those of an image.
    pub fn set_back_held(&self, held: &mut Thread) {
        held.regs = self.set_back(held.tid, &held.regs, is_signalled(held.tid));
    }

    /// Has `queue` bring a signal to thread `to`, as the guest calls it (None: to the process).
    pub(crate) fn signal<R: Send>(
        &self,
        signo: i32,
        to: Option<i32>,
        queue: impl Fn() -> R + Sync,
    ) -> R {
        // Who queues it is one of a stopped guest's threads: that may take long.
        if self.is_stopped() || !self.is_handled(signo) {
            return queue();
        }
        let _alone = self.answers.write();
        let endangered = self.endangered(signo, to);
        if endangered.is_empty() {
            return queue();
        }
        // What it traces is let go with the end of a thread, whatever state it is in: one whose
        // call is taken meanwhile stops only when that is answered.
        thread::scope(|scope| {
            let holder = thread::Builder::new()
                .name("guest-signal".into())
                .spawn_scoped(scope, || self.hold_and(&endangered, &queue));
            match holder {
                Ok(holder) => holder.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
                // Better a call that ends than a signal that is lost.
                Err(_) => queue(),
            }
        })
    }

    fn is_handled(&self, signo: i32) -> bool {
        proc::status(self.pid).is_ok_and(|s| s.sig_caught & signal::bit(signo) != 0)
    }

    /// Threads that may take the signal, and are or soon may be in a call that no worker has.
    fn endangered(&self, signo: i32, to: Option<i32>) -> Vec<i32> {
        let mut tids = proc::tids(self.pid).unwrap_or_default();
        tids.retain(|&tid| {
            !self.is_taken(tid)
                && proc::status(tid).is_ok_and(|s| s.sig_blocked & signal::bit(signo) == 0)
                && to.is_none_or(|to| birth::inner_tid(self.pid, tid) == Some(to))
                && !waits_here(tid)
        });
        tids
    }

    fn hold_and<R>(&self, endangered: &[i32], queue: &impl Fn() -> R) -> R {
        let mut told = Vec::new();
        for &tid in endangered {
            // EPERM: the freezer has it, and looks itself. ESRCH: it has ended.
            if let Ok(thread) = Running::seize(tid, 0)
                && thread.interrupt().is_ok()
            {
                told.push(thread);
            }
        }
        let held = self.until_stopped(told);
        let done = queue();
        for (thread, signal) in held {
            if let Err(error) = thread.detach(signal)
                && !error.is_gone()
            {
                tracing::error!(%error, "a thread stays stopped");
            }
        }
        done
    }

    /// Those that stopped, at no call that a signal would end, each with the signal that it is to
    /// have.
    fn until_stopped(&self, mut told: Vec<Running>) -> Vec<(Stopped, i32)> {
        let until = Instant::now() + STOP_MAX;
        let mut held = Vec::new();
        loop {
            let mut running = Vec::new();
            for thread in told {
                match thread.try_wait() {
                    Ok(Ok(Waited::Stopped(thread, stop))) => {
                        let signal = match stop {
                            Stop::Signal(signal) => signal,
                            _ => 0,
                        };
                        if let Err(error) = self.put_back(&thread, signal) {
                            tracing::debug!(%error, "a call may be ended by a signal");
                        }
                        held.push((thread, signal));
                    }
                    Ok(Err(thread)) if !self.is_taken(thread.tid()) => running.push(thread),
                    _ => {}
                }
            }
            if running.is_empty() || Instant::now() > until {
                return held;
            }
            told = running;
            thread::sleep(LOOK_INTERVAL);
        }
    }

    fn put_back(&self, thread: &Stopped, signal: i32) -> tcmi_sys::Result<()> {
        let regs = thread.regs()?;
        let signalled = signal != 0 || is_signalled(thread.tid());
        thread.set_regs(&self.set_back(thread.tid(), &regs, signalled))
    }
}

/// One that has ended is not.
fn is_signalled(tid: i32) -> bool {
    interrupt::pending(tid, None).is_ok_and(|pending| pending != Pending::Nothing)
}

/// In a call of this kernel's, as a futex.
fn waits_here(tid: i32) -> bool {
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let nr = call.split_ascii_whitespace().next().and_then(|nr| nr.parse().ok());
    nr.and_then(table::row).is_some_and(|row| row.class == Class::Local)
}
