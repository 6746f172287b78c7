//! The two places where a shadow thread waits in the kernel, in assembler, because the
//! signal handler tells by the interrupted address whether a call had begun.

use core::arch::naked_asm;
use core::mem::offset_of;
use tcmi_call::abi::ThreadArea;

/// What became of a forwarded call.
#[repr(C)]
pub struct CallEnd {
    pub ret: i64,
    /// 1 if the `syscall` instruction was not executed; `ret` is then -EINTR.
    pub aborted: u64,
}

/// Executes a forwarded call unless a signal has come since the request.
///
/// The test and the call are one window: a handler that interrupts before the `syscall`
/// instruction is executed (or after the kernel went back to it for a restart) moves rip
/// to the abort label, so no signal is left waiting behind a call that blocks.
///
/// # Safety
/// gs base is this thread's area; the call is one that the guest may make.
#[unsafe(naked)]
pub unsafe extern "C" fn forwarded_call(_nr: u64, _args: *const [u64; 6]) -> CallEnd {
    naked_asm!(
        "mov rax, rdi",
        "mov r11, rsi",
        "mov rdi, [r11]",
        "mov rsi, [r11 + 8]",
        "mov rdx, [r11 + 16]",
        "mov r10, [r11 + 24]",
        "mov r8, [r11 + 32]",
        "mov r9, [r11 + 40]",
        ".globl blob_window_start",
        "blob_window_start:",
        "cmp dword ptr gs:[{interrupted}], 0",
        "jne blob_window_abort",
        "syscall",
        ".globl blob_window_end",
        "blob_window_end:",
        "xor edx, edx",
        "ret",
        ".globl blob_window_abort",
        "blob_window_abort:",
        "mov rax, -4",
        "mov edx, 1",
        "ret",
        interrupted = const offset_of!(ThreadArea, interrupted),
    )
}

/// A call that waits for the next request. Clears `interrupted`: a signal that comes up to
/// its return with -EINTR belongs to no call.
///
/// # Safety
/// gs base is this thread's area; the arguments are right for `nr`.
#[unsafe(naked)]
pub unsafe extern "C" fn idle_call(_nr: u64, _args: *const [u64; 3]) -> i64 {
    naked_asm!(
        "mov rax, rdi",
        "mov r11, rsi",
        "mov rdi, [r11]",
        "mov rsi, [r11 + 8]",
        "mov rdx, [r11 + 16]",
        "mov dword ptr gs:[{interrupted}], 0",
        ".globl blob_idle_start",
        "blob_idle_start:",
        "syscall",
        ".globl blob_idle_end",
        "blob_idle_end:",
        "ret",
        interrupted = const offset_of!(ThreadArea, interrupted),
    )
}

unsafe extern "C" {
    static blob_window_start: u8;
    static blob_window_end: u8;
    static blob_window_abort: u8;
    static blob_idle_start: u8;
    static blob_idle_end: u8;
}

/// Where a signal found the thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// In the window, the call not executed: go on at this address instead.
    BeforeCall { abort: u64 },
    /// Waiting for a request.
    Idle,
    /// Anywhere else: a request is under way.
    Busy,
}

const SYSCALL_INSN_BYTES: u64 = 2;

/// Classifies by the interrupted rip and rax.
pub fn interrupted_at(rip: u64, rax: u64) -> Interrupted {
    let eintr = -i64::from(linux_raw_sys::errno::EINTR as i32);
    let window = (&raw const blob_window_start) as u64
        ..=(&raw const blob_window_end) as u64 - SYSCALL_INSN_BYTES;
    if window.contains(&rip) {
        let abort = (&raw const blob_window_abort) as u64;
        return Interrupted::BeforeCall { abort };
    }
    let idle_start = (&raw const blob_idle_start) as u64;
    let idle_end = (&raw const blob_idle_end) as u64;
    if rip == idle_start || (rip == idle_end && rax as i64 == eintr) {
        return Interrupted::Idle;
    }
    Interrupted::Busy
}
