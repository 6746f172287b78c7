//! A batch in a frozen process, with its tracer and without.

use crate::shadow::{Child, Shared, wait_until};
use crate::victim::{Watch, watch_registers};
use std::sync::atomic::Ordering;
use tcmi_call::abi::{Batch, BatchOp, UserRegs, batch_flags};
use tcmi_ckpt::blob::Blob;

const STACK_BYTES: usize = 4096;
/// Ignored by default, so nothing happens when nobody traces.
const DONE_SIGNAL: i32 = libc::SIGURG;

/// Lies after the blob in memory that the victim and the test share.
#[repr(C, align(64))]
struct Area {
    watch: Watch,
    batch: Batch,
    ops: [BatchOp; 4],
    /// A futex at which a batch waits until it is 1.
    gate: u32,
    stack: [u8; STACK_BYTES],
}

struct Victim {
    child: Child,
    shared: Shared,
    blob: Blob,
}

impl Victim {
    fn spawn() -> Self {
        let (shared, blob) = Shared::with_blob(size_of::<Area>());
        // SAFETY: the room after the image is an Area's, zeroed, of integers.
        let area = unsafe { &mut *shared.base.add(blob.total_bytes()).cast::<Area>() };
        area.watch.fill();
        let watch = &raw mut area.watch;
        // SAFETY: the child's watch stays mapped; it never returns.
        let child = Child::fork(|| unsafe { watch_registers(watch) });
        let victim = Self { child, shared, blob };
        victim.wait_round();
        victim
    }

    fn area(&self) -> *mut Area {
        self.shared.base.wrapping_add(self.blob.total_bytes()).cast()
    }

    fn word(&self, field: *const u32) -> &std::sync::atomic::AtomicU32 {
        self.shared.word(field as usize - self.shared.base as usize)
    }

    /// Returns when the victim has found its registers in order once more.
    fn wait_round(&self) {
        // SAFETY: addresses only.
        let (rounds, verdict) = unsafe {
            (&raw const (*self.area()).watch.rounds, &raw const (*self.area()).watch.verdict)
        };
        let rounds = self.word(rounds);
        let before = rounds.load(Ordering::SeqCst);
        wait_until(|| {
            assert_eq!(self.word(verdict).load(Ordering::SeqCst), 0, "a register changed");
            rounds.load(Ordering::SeqCst) >= before + 2
        });
    }

    fn end(mut self) {
        self.wait_round();
        // SAFETY: addresses only.
        let stop = unsafe { &raw const (*self.area()).watch.stop };
        self.word(stop).store(1, Ordering::SeqCst);
        let status = self.child.wait();
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
        // SAFETY: the victim is dead.
        let watch = unsafe { &(*self.area()).watch };
        assert_eq!(watch.xmm_at_end, watch.xmm);
    }
}

/// Freezes `pid` and lets it begin the batch. For the thread that becomes its tracer; raw
/// system calls only. False if one failed.
unsafe fn begin_batch(pid: i32, header_batch: u64, area: *mut Area, ops: &[BatchOp]) -> bool {
    // SAFETY: `pid` is a child of the test whose shared area this is; it is stopped while the
    // batch is written.
    unsafe {
        let mut regs: libc::user_regs_struct = std::mem::zeroed();
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) != 0
            || libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) != 0
            || libc::waitpid(pid, &mut 0, libc::__WALL) != pid
            || libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &mut regs) != 0
        {
            return false;
        }
        (&raw mut (*area).ops).cast::<BatchOp>().copy_from_nonoverlapping(ops.as_ptr(), ops.len());
        (*area).batch = Batch {
            ops: (&raw const (*area).ops) as u64,
            count: ops.len() as u64,
            done: 0,
            tgid: pid as u64,
            tid: pid as u64,
            done_signal: DONE_SIGNAL as u64,
            mask: 0,
            regs: std::mem::transmute::<libc::user_regs_struct, UserRegs>(regs),
        };
        regs.rip = header_batch;
        regs.rdi = (&raw const (*area).batch) as u64;
        regs.rsp = (&raw const (*area).stack).add(1) as u64;
        regs.orig_rax = u64::MAX;
        libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &regs) == 0
            && libc::ptrace(libc::PTRACE_CONT, pid, 0, 0) == 0
    }
}

fn op(nr: i64, args: &[u64], flags: u64) -> BatchOp {
    let mut op = BatchOp { nr: nr as u64, flags, ..BatchOp::default() };
    op.args[..args.len()].copy_from_slice(args);
    op
}

#[test]
fn makes_its_calls_and_stops_for_the_tracer() {
    let victim = Victim::spawn();
    let pid = victim.child.pid;
    let entry = victim.shared.base as u64 + victim.blob.header().batch;
    let ops = [
        op(libc::SYS_getpid, &[], batch_flags::STOP_ON_ERROR),
        op(libc::SYS_close, &[777], 0),
        op(libc::SYS_close, &[778], batch_flags::STOP_ON_ERROR),
        op(libc::SYS_getpid, &[], 0),
    ];
    // SAFETY: this thread is the tracer; the area is read while the victim is stopped.
    unsafe {
        assert!(begin_batch(pid, entry, victim.area(), &ops));
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, libc::__WALL), pid);
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == DONE_SIGNAL, "{status:#x}");
        let area = &*victim.area();
        assert_eq!(area.batch.done, 3);
        let rets = area.ops.map(|op| op.ret);
        assert_eq!(rets, [pid.into(), -i64::from(libc::EBADF), -i64::from(libc::EBADF), 0]);
        let regs = area.batch.regs;
        assert_eq!(libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &regs), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0), 0);
    }
    victim.end();
}

#[test]
fn goes_back_to_the_program_when_the_tracer_dies() {
    for _ in 0..20 {
        let victim = Victim::spawn();
        let pid = victim.child.pid;
        let entry = victim.shared.base as u64 + victim.blob.header().batch;
        let area = victim.area();
        // SAFETY: an address only.
        let gate = unsafe { &raw const (*area).gate };
        let ops = [
            op(libc::SYS_futex, &[gate as u64, libc::FUTEX_WAIT as u64], 0),
            op(libc::SYS_getpid, &[], batch_flags::STOP_ON_ERROR),
        ];
        let mut tracer = Child::fork(|| {
            // SAFETY: raw system calls; the area is shared and the victim the test's.
            unsafe {
                if begin_batch(pid, entry, area, &ops) {
                    libc::pause();
                }
            }
        });
        wait_until(|| in_call(pid, libc::SYS_futex));
        tracer.kill(libc::SIGKILL);
        tracer.wait();
        let gate = victim.word(gate);
        gate.store(1, Ordering::SeqCst);
        // SAFETY: a live word.
        unsafe { libc::syscall(libc::SYS_futex, gate.as_ptr(), libc::FUTEX_WAKE, 1) };
        victim.wait_round();
        // SAFETY: the batch is over: the victim goes its rounds.
        unsafe {
            assert_eq!(((*area).batch.done, (*area).ops[1].ret), (2, pid.into()));
        }
        victim.end();
    }
}

fn in_call(pid: i32, nr: i64) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    call.split(' ').next() == Some(&nr.to_string())
}
