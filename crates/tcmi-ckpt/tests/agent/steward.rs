//! The steward: calls made in a process for another that shares a page with it.

use crate::shadow::{Child, Shared, wait_until};
use std::arch::asm;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::Ordering;
use tcmi_call::abi::{BatchOp, StewardArea};

const SI_KERNEL: i32 = 0x80;

struct Steward {
    child: Child,
    shared: Shared,
    at: usize,
}

impl Steward {
    fn spawn() -> Self {
        let (shared, blob) = Shared::with_blob(size_of::<StewardArea>());
        let at = blob.total_bytes();
        let entry = shared.base as u64 + blob.header().steward;
        let area = shared.base as u64 + at as u64;
        let child = Child::fork(|| {
            let set = 1u64 << (libc::SIGUSR1 - 1);
            // SAFETY: raw calls; then the jump to the steward, which needs no stack.
            unsafe {
                libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &set, 0, 8);
                asm!("xor esp, esp", "jmp {}", in(reg) entry, in("rdi") area, options(noreturn));
            }
        });
        Self { child, shared, at }
    }

    fn area(&self) -> *mut StewardArea {
        self.shared.base.wrapping_add(self.at).cast()
    }

    /// Has `ops` made; returns their results.
    fn request(&self, ops: &[BatchOp]) -> Vec<i64> {
        self.request_counted(ops, ops.len() as u32)
    }

    fn request_counted(&self, ops: &[BatchOp], count: u32) -> Vec<i64> {
        let request = self.shared.word(self.at + offset_of!(StewardArea, request));
        let answered = self.shared.word(self.at + offset_of!(StewardArea, answered));
        let number = request.load(Ordering::SeqCst) + 1;
        // SAFETY: the steward waits (the last request is answered), so the area is ours.
        unsafe {
            let area = self.area();
            (*area).count = count;
            (&raw mut (*area).ops)
                .cast::<BatchOp>()
                .copy_from_nonoverlapping(ops.as_ptr(), ops.len());
        }
        request.store(number, Ordering::SeqCst);
        // SAFETY: a live word.
        unsafe { libc::syscall(libc::SYS_futex, request.as_ptr(), libc::FUTEX_WAKE, 1) };
        wait_until(|| answered.load(Ordering::SeqCst) == number);
        // SAFETY: answered, so the steward writes no more.
        unsafe {
            let area = &*self.area();
            area.ops[..area.done as usize].iter().map(|op| op.ret).collect()
        }
    }
}

fn op(nr: i64, args: &[u64]) -> BatchOp {
    let mut op = BatchOp { nr: nr as u64, ..BatchOp::default() };
    op.args[..args.len()].copy_from_slice(args);
    op
}

#[test]
fn signals_its_own_process_as_the_kernel() {
    let steward = Steward::spawn();
    let pid = steward.child.pid;
    assert_eq!(steward.request(&[op(libc::SYS_getppid, &[])]), [std::process::id().into()]);
    let area = steward.area();
    // SAFETY: the steward waits; `data` is room for two siginfos, a set and a timeout of zero.
    let (sent, taken, set, zero) = unsafe {
        let data = (&raw mut (*area).data).cast::<u8>();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (info.si_signo, info.si_code) = (libc::SIGUSR1, SI_KERNEL);
        data.cast::<libc::siginfo_t>().write_unaligned(info);
        data.add(256).cast::<u64>().write_unaligned(1 << (libc::SIGUSR1 - 1));
        (data as u64, data.add(128) as u64, data.add(256) as u64, data.add(264) as u64)
    };
    let signo = libc::SIGUSR1 as u64;
    let rets = steward.request(&[
        op(libc::SYS_rt_sigqueueinfo, &[pid as u64, signo, sent]),
        op(libc::SYS_rt_sigtimedwait, &[set, taken, zero, 8]),
    ]);
    assert_eq!(rets, [0, signo as i64]);
    // SAFETY: written by the kernel in the shared page; the steward waits.
    let info = unsafe { ptr::read_unaligned(taken as *const libc::siginfo_t) };
    assert_eq!((info.si_signo, info.si_code), (libc::SIGUSR1, SI_KERNEL));
}

#[test]
fn makes_no_more_calls_than_there_is_room_for() {
    let steward = Steward::spawn();
    let getpid = op(libc::SYS_getpid, &[]);
    let pid = i64::from(steward.child.pid);
    assert_eq!(steward.request_counted(&[getpid; 16], u32::MAX), [pid; 16]);
}

#[test]
fn survives_interruptions() {
    let steward = Steward::spawn();
    let pid = steward.child.pid;
    for _ in 0..200 {
        // SIGSTOP and SIGCONT make the futex call start again.
        steward.child.kill(libc::SIGSTOP);
        steward.child.kill(libc::SIGCONT);
        assert_eq!(steward.request(&[op(libc::SYS_getpid, &[])]), [i64::from(pid)]);
    }
}
