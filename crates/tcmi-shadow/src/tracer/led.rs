//! Threads that are led through a call which they do not make themselves.

use tcmi_call::abi::UserRegs;
use tcmi_call::table::Restart;
use tcmi_sys::errno::Result;
use tcmi_sys::ptrace::{Stop, Stopped};
use tcmi_sys::signal;

use super::Tracer;
use crate::clone3::Clone;

const SYSCALL_INSN_BYTES: u64 = 2;
const ERESTARTNOINTR: i64 = -(Restart::Always.code() as i64);
const ERESTARTNOHAND: i64 = -(Restart::NoHandler.code() as i64);

/// What a thread is led through.
#[derive(Debug)]
pub(super) enum By {
    /// An `rt_sigsuspend`, in call `nr`, with the mask at that address.
    Suspension {
        nr: u32,
        mask: u64,
    },
    Clone(Clone),
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Led {
    /// To stop; its own call is answered.
    Told(By),
    Suspends {
        back: UserRegs,
        is_inside: bool,
    },
    Clones {
        behind: UserRegs,
        mask: u64,
        is_inside: bool,
        began: bool,
    },
}

impl Tracer {
    /// `thread` has stopped on its way.
    pub(super) fn lead(&mut self, thread: Stopped, stop: Stop, led: Led) -> Result<()> {
        let tid = thread.tid();
        let led = match (led, stop) {
            (Led::Told(by), Stop::Interrupt) => enter(&thread, by)?,
            (Led::Told(by), Stop::Syscall | Stop::Event(_)) => {
                self.led.insert(tid, Led::Told(by));
                return thread.cont_to_stop().map(drop);
            }
            (Led::Suspends { back, is_inside: false }, Stop::Syscall) => {
                Led::Suspends { back, is_inside: true }
            }
            (Led::Clones { behind, mask, is_inside: false, began }, Stop::Syscall) => {
                Led::Clones { behind, mask, is_inside: true, began }
            }
            (Led::Clones { behind, mask, is_inside, .. }, Stop::Event(_)) => {
                self.bore(&thread)?;
                Led::Clones { behind, mask, is_inside, began: true }
            }
            (led @ Led::Clones { .. }, Stop::Interrupt) => led,
            (Led::Clones { behind, mask, is_inside: true, began }, Stop::Syscall) => {
                self.led_no_more(tid);
                let returned = thread.regs()?.rax;
                thread.set_regs(&match returned as i64 {
                    ERESTARTNOINTR => before(&behind),
                    _ => UserRegs { rax: returned, ..behind },
                })?;
                thread.set_sigmask(mask)?;
                if !began {
                    self.orders.bore(None);
                    return thread.cont(0).map(drop);
                }
                self.held.push(thread);
                if let Some(newborn) = &mut self.newborn {
                    newborn.like = Some((behind, mask));
                }
                return self.dress();
            }
            (led, stop) => {
                self.led_no_more(tid);
                return self.turn_back(thread, stop, led);
            }
        };
        self.led.insert(tid, led);
        thread.to_syscall(0).map(drop)
    }

    /// What it is led through is done, or is not to be: its own call ends or is made again.
    fn turn_back(&self, thread: Stopped, stop: Stop, led: Led) -> Result<()> {
        match led {
            // A signal got through on the thread's own mask: that ends its call, too.
            Led::Told(By::Suspension { .. }) if matches!(stop, Stop::Signal(_)) => {}
            Led::Told(By::Suspension { nr, .. }) => thread.set_regs(&ended(&thread.regs()?, nr))?,
            Led::Suspends { back, .. } => thread.set_regs(&back)?,
            Led::Told(By::Clone(_)) => self.orders.bore(None),
            Led::Clones { behind, mask, .. } => {
                thread.set_regs(&before(&behind))?;
                thread.set_sigmask(mask)?;
                self.orders.bore(None);
            }
        }
        match stop {
            Stop::Signal(signal) => thread.cont(signal),
            Stop::Group(_) => thread.listen(),
            _ => thread.cont(0),
        }
        .map(drop)
    }

    pub(super) fn led_no_more(&mut self, tid: i32) {
        self.orders.led_no_more(tid);
        if let Some(Led::Told(By::Clone(_)) | Led::Clones { .. }) = self.led.remove(&tid) {
            self.orders.bore(None);
        }
    }
}

/// Lays out the call that `thread`, which is behind its own, makes next.
fn enter(thread: &Stopped, by: By) -> Result<Led> {
    let regs = thread.regs()?;
    Ok(match by {
        By::Suspension { nr, mask } => {
            let rax = libc::SYS_rt_sigsuspend as u64;
            let entry = UserRegs { orig_rax: rax, rdi: mask, rsi: 8, ..regs };
            thread.set_regs(&before(&entry))?;
            Led::Suspends { back: ended(&regs, nr), is_inside: false }
        }
        By::Clone(call) => {
            // Signals may come faster than home gives ids, and one that waits ends the call.
            let mask = thread.sigmask()?;
            thread.set_sigmask(signal::ALL)?;
            thread.set_regs(&call.laid_out(before(&regs)))?;
            Led::Clones { behind: regs, mask, is_inside: false, began: false }
        }
    })
}

/// To make the call that `regs` are behind.
fn before(regs: &UserRegs) -> UserRegs {
    // No longer inside a call, as far as restarts are concerned.
    let orig_rax = u64::MAX;
    UserRegs { rax: regs.orig_rax, rip: regs.rip - SYSCALL_INSN_BYTES, orig_rax, ..*regs }
}

/// Behind call `nr` as a signal that is handled ends it; without one it is made again.
fn ended(regs: &UserRegs, nr: u32) -> UserRegs {
    UserRegs { orig_rax: u64::from(nr), rax: ERESTARTNOHAND as u64, ..*regs }
}
