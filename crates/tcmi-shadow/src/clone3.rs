//! `clone3`, whose arguments lie in memory that another thread may change behind a look at them.
//!
//! A thread's are read once, and its caller is led through the `clone` that means the same and has
//! them in registers, with seccomp's filter off for that one call. All else is made at home.

use std::io;

use libc::user_regs_struct as Registers;
use tcmi_call::engine::GuestMemory;
use tcmi_call::table::Restart;
use tcmi_call::table::errno::{E2BIG, EFAULT, EINVAL, ENOSYS, Errno};
use tcmi_sys::seccomp::{Answer, Notification};

use crate::births;
use crate::calls::Shared;
use crate::interrupt::{
    SYSCALL_INSN_BYTES, Traced, detach, exchange_mask, ptrace, registers, set_registers, stop,
};
use crate::memory::{ProcessMemory, word};
use crate::stream::StreamError;
use crate::visit;
use crate::worker::{Outcome, failed};

/// PTRACE_O_SUSPEND_SECCOMP.
const SUSPEND_SECCOMP: i32 = 1 << 21;
const OPTIONS: i32 = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACESYSGOOD | SUSPEND_SECCOMP;
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
const CLONE_STOP: i32 = libc::SIGTRAP | libc::PTRACE_EVENT_CLONE << 8;
/// What the kernel takes, from its first version on.
const SIZES: std::ops::RangeInclusive<u64> = 64..=4096;
/// Of a signal to the parent, which is another argument here, and CLONE_DETACHED, which is none.
const NOT_HERE: u64 = 0xff | libc::CLONE_DETACHED as u64;
const ADDRESS_MAX: u64 = 1 << 47;
/// ERESTARTNOINTR.
const RESTARTS: i32 = Restart::Always.code();

pub(crate) fn begin(shared: &Shared, notif: &Notification) -> Result<Outcome, StreamError> {
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let bytes = match read(&mut mem, notif.args[0], notif.args[1]) {
        Ok(bytes) => bytes,
        Err(errno) => return Ok(failed(errno)),
    };
    match Clone::of_thread(&bytes) {
        Some(call) => births::begin(shared, notif, |caller| lead(shared, notif, caller, &call)),
        // Home's kernel says also what is wrong with it.
        None => Ok(visit::visit(shared, notif)),
    }
}

fn read(mem: &mut ProcessMemory<'_>, addr: u64, size: u64) -> Result<Vec<u8>, Errno> {
    if !SIZES.contains(&size) {
        return Err(if size > *SIZES.end() { E2BIG } else { EINVAL });
    }
    let mut bytes = vec![0; size as usize];
    mem.read(addr, &mut bytes).map_err(|_| EFAULT)?;
    Ok(bytes)
}

/// Arguments of `clone`.
#[derive(Debug, PartialEq, Eq)]
struct Clone {
    flags: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

impl Clone {
    /// That begins the thread which a `struct clone_args` asks for. None: it is no thread, or has
    /// more to it.
    fn of_thread(args: &[u8]) -> Option<Self> {
        let (known, rest) = args.split_at(64);
        let [flags, _, child_tid, parent_tid, exit_signal, stack, size, tls] =
            std::array::from_fn(|i| word(known, i * 8));
        let top = stack.checked_add(size).filter(|top| *top <= ADDRESS_MAX)?;
        let is_plain = births::is_thread(flags)
            && flags & NOT_HERE == 0
            && exit_signal == 0
            && (stack == 0) == (size == 0)
            && rest.iter().all(|byte| *byte == 0);
        is_plain.then_some(Self { flags, stack: top, parent_tid, child_tid, tls })
    }

    /// Registers to make it with, of a thread that is about to make a call.
    fn laid_out(&self, regs: Registers) -> Registers {
        let Self { flags, stack, parent_tid, child_tid, tls } = *self;
        let rax = libc::SYS_clone as u64;
        Registers { rax, rdi: flags, rsi: stack, rdx: parent_tid, r10: child_tid, r8: tls, ..regs }
    }
}

/// Has the guest's kernel make `call` in the caller. Some: the new thread, stopped and traced.
/// None: it began none; the call has failed, or is made again.
fn lead(
    shared: &Shared,
    notif: &Notification,
    caller: &Traced,
    call: &Clone,
) -> io::Result<Option<i32>> {
    let tid = caller.0;
    ptrace(libc::PTRACE_INTERRUPT, tid, 0)?;
    shared.listener.answer(notif.id, Answer::Error(RESTARTS))?;
    let status = stop(tid)?;
    if is_signal(status) {
        detach(tid, status)?;
        return Ok(None);
    }
    let behind = registers(tid)?;
    if let Err(error) = ptrace(libc::PTRACE_SETOPTIONS, tid, OPTIONS as usize) {
        // This node's daemon has a filter of its own: libraries do without.
        tracing::warn!(%error, "no clone3 for guests");
        set_registers(tid, &Registers { rax: ENOSYS.ret() as u64, ..behind })?;
        return Ok(None);
    }
    let again = before(behind);
    // Signals may come faster than home gives ids, and one that waits ends the call.
    let mask = exchange_mask(tid, !0)?;
    set_registers(tid, &call.laid_out(again))?;
    let (status, born) = through_call(tid)?;
    let returned = registers(tid)?.rax;
    let is_made = status >> 8 == SYSCALL_STOP && returned as i64 != -i64::from(RESTARTS);
    set_registers(tid, &if is_made { Registers { rax: returned, ..behind } } else { again })?;
    exchange_mask(tid, mask)?;
    if let Some(born) = born {
        let Registers { rdi, rsi, rdx, r10, r8, .. } = behind;
        set_registers(born, &Registers { rdi, rsi, rdx, r10, r8, ..registers(born)? })?;
        exchange_mask(born, mask)?;
    }
    if is_signal(status) {
        detach(tid, status)?;
    }
    Ok(born)
}

/// Until a thread is behind a call, or a signal that none can block keeps it from making it.
/// Returns the stop, and the thread that it began, which is stopped, too.
fn through_call(tid: i32) -> io::Result<(i32, Option<i32>)> {
    let (mut born, mut is_inside) = (None, false);
    loop {
        ptrace(libc::PTRACE_SYSCALL, tid, 0)?;
        let status = stop(tid)?;
        match status >> 8 {
            SYSCALL_STOP if !is_inside => is_inside = true,
            CLONE_STOP => {
                let mut child: libc::c_ulong = 0;
                ptrace(libc::PTRACE_GETEVENTMSG, tid, (&raw mut child).addr())?;
                stop(child as i32)?;
                born = Some(child as i32);
            }
            // Job control: it stops when it is let go.
            _ if status >> 16 != 0 => {}
            _ => return Ok((status, born)),
        }
    }
}

fn is_signal(status: i32) -> bool {
    status >> 16 == 0 && status >> 8 != SYSCALL_STOP
}

/// To make the call that `regs` are behind.
fn before(regs: Registers) -> Registers {
    let (rax, rip) = (regs.orig_rax, regs.rip - SYSCALL_INSN_BYTES);
    Registers { rax, rip, orig_rax: u64::MAX, ..regs }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREAD: u64 = 0x3d0f00;

    fn args(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_thread_is_begun_by_clone_with_the_end_of_its_stack() {
        let call = Clone::of_thread(&args(&[THREAD, 0, 3, 4, 0, 0x1000, 0x200, 5, 0, 0, 0]));
        let expected = Clone { flags: THREAD, stack: 0x1200, parent_tid: 4, child_tid: 3, tls: 5 };
        assert_eq!(call, Some(expected));
    }

    #[test]
    fn what_is_more_than_a_thread_is_homes() {
        let thread = [THREAD, 0, 3, 4, 0, 0x1000, 0x200, 5, 0, 0, 0, 0];
        // A signal at its end, a stack without a size or out of reach, chosen ids, a group, and
        // what nobody knows yet.
        let odd =
            [(0, 17), (0, THREAD | 17), (0, THREAD | 1 << 40), (4, 17), (6, 0), (6, u64::MAX)];
        for (i, value) in odd.into_iter().chain([(8, 1), (9, 1), (10, 1), (11, 1)]) {
            let mut words = thread;
            words[i] = value;
            assert_eq!(Clone::of_thread(&args(&words)), None, "word {i} is {value:#x}");
        }
    }
}
