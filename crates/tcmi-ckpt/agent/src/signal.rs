//! Entry `on_signal`: what reaches the shadow is the guest's.

use crate::settle::futex;
use crate::stream::seal;
use crate::sys;
use crate::window::{Interrupted, interrupted_at};
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general::{
    __NR_kill, FUTEX_WAIT, FUTEX_WAKE, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGTRAP,
    SIGXFSZ,
};
use tcmi_call::abi::{POKE_CODE, POKE_SIGNAL, ProcArea, ThreadArea};
use tcmi_call::frame::{SignalFrame, kind};
use tcmi_call::record::{HEADER_BYTES, OVERHEAD_BYTES};

/// siginfo_t as far as the agent looks into it.
#[repr(C)]
pub struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    /// Sender of a signal that a process sent.
    pid: i32,
    uid: u32,
    /// Payload of a queued signal.
    value: u64,
    rest: [u8; 96],
}
const _: () = assert!(size_of::<SigInfo>() == 128);

impl SigInfo {
    pub fn poke(value: u64) -> Self {
        let (signo, code) = (POKE_SIGNAL, POKE_CODE);
        Self { signo, errno: 0, code, pad: 0, pid: 0, uid: 0, value, rest: [0; 96] }
    }
}

const SI_USER: i32 = 0;
const SI_TIMER: i32 = -2;
const SI_TKILL: i32 = -6;
const SI_KERNEL: i32 = 0x80;

/// The start of the x86-64 `ucontext_t`: flags, link, stack, then the general registers.
#[repr(C)]
pub struct UContext {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    r8_to_rbx: [u64; 12],
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
}
const _: () = assert!(offset_of!(UContext, rip) == 168);

/// Runs with every signal blocked, so it never nests and its thread never holds the lock
/// when it starts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blob_on_signal(signo: i32, info: *const SigInfo, context: *mut UContext) {
    let area: *mut ThreadArea;
    // SAFETY: gs base is the area of every thread that has signals unblocked; its first word
    // is its own address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) area, options(nostack, readonly, preserves_flags)) };
    // SAFETY: the kernel made both for this delivery.
    let (info, context) = unsafe { (&*info, &mut *context) };
    if is_fault(info) {
        crate::lifecycle::default_and_return(signo);
        return;
    }
    let mut stale = false;
    if info.code == POKE_CODE {
        // SAFETY: this thread's own words.
        let (poked, seq) =
            unsafe { (&raw mut (*area).poked, (&raw const (*area).seq).read_volatile()) };
        // SAFETY: as above.
        unsafe { poked.write_volatile(info.value) };
        stale = seq != info.value;
    } else if !is_of_own_timer(info) {
        // SAFETY: the areas outlive the threads.
        unsafe { forward((*area).proc_area as *mut ProcArea, target(area, info), info) };
    }
    // SAFETY: this thread's own word.
    let interrupted = unsafe { AtomicU32::from_ptr(&raw mut (*area).interrupted) };
    match interrupted_at(context.rip, context.rax) {
        Interrupted::Idle => {}
        // Also by a poke that was for another call: it has ended this one, which is made again.
        Interrupted::Busy => interrupted.store(1, Ordering::Relaxed),
        Interrupted::BeforeCall { .. } if stale => {}
        Interrupted::BeforeCall { abort } => {
            interrupted.store(1, Ordering::Relaxed);
            context.rip = abort;
        }
    }
}

/// True for a fault of the agent's own code: to return from it would repeat it for ever.
fn is_fault(info: &SigInfo) -> bool {
    let by_instruction = matches!(info.signo as u32, SIGSEGV | SIGBUS | SIGILL | SIGFPE | SIGTRAP);
    by_instruction && info.code > 0 && (info.code != SI_KERNEL || info.signo as u32 == SIGSEGV)
}

/// Of a timer that expired after the process was captured and before it was disarmed here: the
/// guest has it, and it expires there. A call that it interrupts here is made again.
fn is_of_own_timer(info: &SigInfo) -> bool {
    info.code == SI_TIMER || (info.signo as u32 == SIGALRM && info.code == SI_KERNEL)
}

/// The thread that a signal was sent to, or 0 for the process. A queued one does not tell
/// and counts as sent to the process.
fn target(area: *const ThreadArea, info: &SigInfo) -> u32 {
    // SAFETY: this thread's own area, whose process area outlives it.
    let (tid, nr, tgid) =
        unsafe { ((*area).tid, (*area).nr, (*((*area).proc_area as *const ProcArea)).tgid) };
    // A broken pipe and a file too large are told to the thread whose call met them.
    let by_own_call = matches!(info.signo as u32, SIGPIPE | SIGXFSZ)
        && info.code == SI_USER
        && info.pid == tgid
        && nr != __NR_kill;
    if info.code == SI_TKILL || by_own_call { tid as u32 } else { 0 }
}

/// # Safety
/// `proc` is the live area; all signals are blocked.
unsafe fn forward(proc: *mut ProcArea, tid: u32, info: &SigInfo) {
    // SAFETY: shared words, used as atomics only.
    let (lock, seq) = unsafe {
        (
            AtomicU32::from_ptr(&raw mut (*proc).event_lock),
            AtomicU32::from_ptr(&raw mut (*proc).signal_seq),
        )
    };
    acquire(lock);
    let number = seq.load(Ordering::Relaxed).wrapping_add(1);
    // SAFETY: we hold the lock.
    if unsafe { send(proc, &frame(number, tid, info)) } {
        // Only now: a reply that carries this number must come after the frame.
        seq.store(number, Ordering::Release);
    }
    release(lock);
}

/// Tells the monitor that the shadow serves.
///
/// # Safety
/// As for [`forward`].
pub unsafe fn announce(proc: *mut ProcArea) {
    // SAFETY: shared words, used as atomics only.
    let (lock, seq) = unsafe {
        (
            AtomicU32::from_ptr(&raw mut (*proc).event_lock),
            AtomicU32::from_ptr(&raw mut (*proc).signal_seq),
        )
    };
    acquire(lock);
    let frame = SignalFrame {
        len: (SignalFrame::BYTES - 8) as u32,
        kind: kind::SERVING,
        pad: 0,
        seq: seq.load(Ordering::Relaxed),
        signo: 0,
        tid: 0,
        pad2: 0,
        siginfo: [0; 128],
    };
    // SAFETY: we hold the lock. A stream that is broken has told the monitor as much.
    unsafe { send(proc, &frame) };
    release(lock);
}

/// # Safety
/// The caller holds the event lock of `proc`.
unsafe fn send(proc: *mut ProcArea, frame: &SignalFrame) -> bool {
    // SAFETY: the event stream and its state belong to whoever holds the lock.
    let (events, broken) = unsafe { (&mut (*proc).events, &mut (*proc).events_broken) };
    if *broken != 0 {
        return false;
    }
    let mut record = [0; SignalFrame::BYTES + OVERHEAD_BYTES];
    record[HEADER_BYTES..HEADER_BYTES + SignalFrame::BYTES].copy_from_slice(frame.as_bytes());
    let sent = seal(&mut events.tx, &mut record, SignalFrame::BYTES)
        .is_ok_and(|n| sys::send_all(events.fd, &record[..n]).is_ok());
    *broken = (!sent).into();
    sent
}

fn frame(seq: u32, tid: u32, info: &SigInfo) -> SignalFrame {
    let mut siginfo = [0; 128];
    // SAFETY: 128 bytes of plain integers.
    siginfo.copy_from_slice(unsafe {
        core::slice::from_raw_parts((info as *const SigInfo).cast(), 128)
    });
    SignalFrame {
        len: (SignalFrame::BYTES - 8) as u32,
        kind: kind::SIGNAL,
        pad: 0,
        seq,
        signo: info.signo as u32,
        tid,
        pad2: 0,
        siginfo,
    }
}

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

fn acquire(lock: &AtomicU32) {
    if lock.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    while lock.swap(AWAITED, Ordering::Acquire) != FREE {
        futex(lock, FUTEX_WAIT, AWAITED);
    }
}

fn release(lock: &AtomicU32) {
    if lock.swap(FREE, Ordering::Release) == AWAITED {
        futex(lock, FUTEX_WAKE, 1);
    }
}
