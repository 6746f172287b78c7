//! The agent blob's interface: what whoever injects it writes into its memory,
//! and what its entry points expect in registers.
//!
//! The blob is position-independent. Its image begins with a [`BlobHeader`] that
//! names the entry points by offset. One private region in the target process:
//! the image (code made read-execute, the rest read-write), one [`ProcArea`], then
//! one [`ThreadArea`] for each thread. Registers at entry: rsp as said below,
//! everything else free; the direction flag clear.

use crate::frame::{CALL_BUFFER_INLINE_BYTES, FIXUPS_MAX, OUTS_MAX, OutRange};
use crate::record::DirectionKeys;

pub const BLOB_MAGIC: u64 = u64::from_le_bytes(*b"TCMIAGT1");

/// First bytes of the image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlobHeader {
    pub magic: u64,
    /// [`BatchOp`]s one after the other; see [`Batch`]. rdi = &Batch, rsp = a stack.
    /// Written without touching the FPU. A new thread that a `clone` among them begins serves:
    /// its ThreadArea's address stands at the top of its stack.
    pub batch: u64,
    /// The shadow thread's loop. rdi = &ThreadArea, gs base = the same, rsp = top of its stack,
    /// all signals blocked. The leader says on the event stream that it serves; the others
    /// wait for that, because its handlers must be in place. Then it unblocks its signals.
    /// Never returns. May be entered anew while no request is under way.
    pub serve: u64,
    /// Where a held thread goes on, also if whoever holds it dies. rdi = &ThreadArea, rsp = a
    /// stack. Runs [`ThreadArea::away`] if the word at [`ProcArea::decision_at`] is AWAY, else
    /// [`ThreadArea::home`]. Written without touching the FPU.
    pub gate: u64,
    /// Signal handler (SA_SIGINFO) of the shadow. Finds its ThreadArea by gs base.
    pub on_signal: u64,
    /// SA_RESTORER: mov eax, 15; syscall.
    pub restorer: u64,
    /// The helper thread in a guest: rdi = &StewardArea. Never returns. Uses no stack.
    pub steward: u64,
    /// Address of the `syscall` instruction's *next* byte in the steward: what seccomp shows as
    /// instruction_pointer for the steward's calls.
    pub steward_syscall_end: u64,
    /// In `serve`: first byte of the forwarded call's window (the test for signals) and
    /// the byte after its `syscall` instruction. A thread stopped with
    /// `window_start <= rip <= window_end` and a restart code in rax is in a forwarded call.
    pub window_start: u64,
    pub window_end: u64,
    /// Where a thread found in the window before its `syscall` instruction was executed
    /// (`window_start <= rip <= window_end - 2`) goes on to leave the call unmade.
    pub window_abort: u64,
    /// One `syscall; int3` pair for single remote calls.
    pub syscall_insn: u64,
    pub image_bytes: u64,
}

/// One system call of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchOp {
    pub nr: u64,
    pub args: [u64; 6],
    /// Filled in: the kernel's return value.
    pub ret: i64,
    /// Bits of [`batch_flags`].
    pub flags: u64,
}

pub mod batch_flags {
    /// Stop the batch when this call returns an error.
    pub const STOP_ON_ERROR: u64 = 1;
}

/// A batch and the way out of it.
///
/// After the last call (or the first failed one with STOP_ON_ERROR) the agent
/// writes `done`, then sends itself `done_signal` (tgkill), which stops it for
/// its tracer; the tracer sets registers and goes on. If tgkill *returns*, the
/// tracer is dead: the agent restores `mask` and the registers in `regs` and
/// jumps back to the program, using 8 bytes below the program's red zone. With `tgid` 0 nobody
/// is told, and it always goes on so.
///
/// `done_signal` must be unblocked while the batch runs and have no handler, and without a
/// tracer do nothing: one that is ignored, if only by default (SIGURG).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    pub ops: u64,
    pub count: u64,
    /// Filled in: calls made.
    pub done: u64,
    pub tgid: u64,
    pub tid: u64,
    pub done_signal: u64,
    /// Signal mask to go back with when the tracer is dead.
    pub mask: u64,
    /// As the program goes on, the restart of an interrupted call already applied. Segment
    /// registers and bases are not touched, nor is the vector state at any time.
    pub regs: UserRegs,
}

/// `struct user_regs_struct` of x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// One stream as the agent sees it: ChaCha20-Poly1305 in both directions.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AgentStream {
    /// Descriptor in the shadow, or -1.
    pub fd: i32,
    pub pad: u32,
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
}

/// Which of its two lives a process has that is being moved: one word, written once every
/// thread stands at its gate, so that they never differ.
pub mod decision {
    /// Every thread gets back its own registers.
    pub const HOME: u32 = 0;
    /// Every thread serves its guest.
    pub const AWAY: u32 = 1;
}

/// Shared by the threads of one shadow.
#[repr(C, align(64))]
pub struct ProcArea {
    /// Descriptors `reserved_first..=reserved_last` are tcmi's own.
    pub reserved_first: i32,
    pub reserved_last: i32,
    pub tgid: i32,
    /// Futex lock of `events` and `signal_seq`.
    pub event_lock: u32,
    /// Signals sent so far.
    pub signal_seq: u32,
    /// Forwarded calls begun so far, over all threads. 0 means the guest has had no
    /// effect on the world: the original may still be resumed.
    pub calls_begun: u64,
    pub blob: u64,
    /// 1 once a signal could not be sent: the event stream is of no more use.
    pub events_broken: u32,
    /// One of [`decision`].
    pub decision: u32,
    /// 0: the leader sets it to 1 when it serves; the other threads wait for that (futex).
    pub settled: u32,
    /// Threads that serve.
    pub serving: u32,
    /// Address of the word that decides: `decision`, or one that a party of processes shares.
    pub decision_at: u64,
    pub events: AgentStream,
}

/// `si_code` of a signal that is not the guest's: it ends the thread's forwarded call whose
/// sequence number (not 0) is its `si_value`, as a signal does, and is not sent on. It may come
/// before that call, which is then not begun, or after it, when it does nothing. Sent
/// by `rt_tgsigqueueinfo` with any signal that the agent handles; a process may give any
/// negative code but SI_TKILL. With 0 the thread tells its keeper of [`ThreadArea::broken`].
///
/// For what the shadow cannot know: that a signal taken by one shadow thread goes to
/// another thread in the guest, or came while the call was on its way.
pub const POKE_CODE: i32 = i32::from_le_bytes(*b"POK\xff");
/// SIGSTKFLT, which nothing sends: no shadow thread ever blocks it.
pub const POKE_SIGNAL: i32 = 16;

pub const THREAD_STACK_BYTES: usize = 32 * 1024;

/// One shadow thread.
#[repr(C, align(64))]
pub struct ThreadArea {
    /// Address of this structure (gs:[0]).
    pub me: u64,
    pub proc_area: u64,
    pub tid: i32,
    /// 1 while a forwarded call is being executed or about to be, else 0.
    pub in_call: u32,
    /// Set by the signal handler; `serve` looks at it before the call.
    pub interrupted: u32,
    /// Set to 1 by the keeper, with the thread stopped in the window, after it put -EINTR
    /// into rax or moved rip to `window_abort`: the reply carries CANCELLED.
    pub cancelled: u32,
    /// One of [`broken`]; not 0: the stream is closed and the thread waits for the keeper.
    pub broken: u32,
    /// 1: its guest thread began away. A stream that closes before its first request ends the
    /// thread: there is no such guest thread.
    pub begun: u32,
    /// The system call of the last request, and its sequence number.
    pub nr: u32,
    pub seq: u64,
    /// Sequence number of the call that the last [`POKE_CODE`] signal was for; 0 is none.
    pub poked: u64,
    /// Signals that the thread leaves to others; [`POKE_SIGNAL`] is not among them.
    pub mask: u64,
    /// Makes the thread itself again.
    pub home: Batch,
    /// Makes it a shadow's and leads to `serve`.
    pub away: Batch,
    pub calls: AgentStream,
    pub fixups: [u32; FIXUPS_MAX],
    pub outs: [OutRange; OUTS_MAX],
    pub stack: [u8; THREAD_STACK_BYTES],
    /// A received and a sent record, and the call's buffer.
    pub received: [u8; RECORD_ROOM_BYTES],
    pub sent: [u8; RECORD_ROOM_BYTES],
    pub buffer: CallBuffer,
}
pub const RECORD_ROOM_BYTES: usize = 17 * 1024;

/// Aligned as any structure a call may point to needs it.
#[repr(C, align(64))]
pub struct CallBuffer(pub [u8; CALL_BUFFER_INLINE_BYTES]);

/// Why a shadow thread gave up its stream.
pub mod broken {
    /// The peer closed it.
    pub const CLOSED: u32 = 1;
    /// A record that is forged, damaged or none.
    pub const RECORD: u32 = 2;
    /// A frame that breaks the rules of [`crate::frame`].
    pub const PROTOCOL: u32 = 3;
    /// Reading or writing failed, with the errno above it.
    pub const IO: u32 = 4;
    pub const ERRNO_SHIFT: u32 = 8;
}

pub const STEWARD_OPS_MAX: usize = 16;

/// The steward: executes calls in the guest on behalf of the monitor. Lives in a
/// page shared (memfd) between the guest and the monitor.
#[repr(C, align(64))]
pub struct StewardArea {
    /// Futex (shared). The monitor writes ops and count, then bumps it and wakes; the
    /// steward executes, then sets `answered = request` and wakes that.
    pub request: u32,
    pub answered: u32,
    pub count: u32,
    /// Filled in: calls made of the answered request.
    pub done: u32,
    pub ops: [BatchOp; STEWARD_OPS_MAX],
    /// Room for what the ops point to.
    pub data: [u8; 2048],
}
