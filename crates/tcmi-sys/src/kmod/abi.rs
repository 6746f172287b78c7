//! `kmod/uapi/tcmi.h`, field by field; `tests/kmod_abi.rs` compares.

use crate::ptrace::UserRegs;

pub const TCMI_ABI: u32 = 3;
pub const TCMI_FREEZE_TREE: u32 = 1;
pub const TCMI_EVENT_STOP: u32 = 1;
pub const TCMI_EVENT_CONTINUE: u32 = 2;
pub const TCMI_EVENT_KILL: u32 = 4;
pub const TCMI_EVENT_EXIT: u32 = 8;
pub const TCMI_CTL_READ: u32 = 1;
pub const TCMI_CTL_WRITE: u32 = 2;
pub const TCMI_CTL_READLINK: u32 = 3;
pub const TCMI_CTL_NONBLOCK: u32 = 1;
pub const TCMI_PEER_SERVED: u32 = 1;
pub const TCMI_PEER_ABANDONED: u32 = 2;
pub const TCMI_PEERS_ABANDONED_MAX: u32 = 64;

pub(super) const THREAD_STOPPED: u32 = 1;
pub(super) const RECORD_PROCESS: u32 = 1;
pub(super) const RECORD_THREAD: u32 = 2;
pub(super) const MESSAGE_EVENT: u32 = 1;
pub(super) const MESSAGE_REQUEST: u32 = 2;
pub(super) const MESSAGE_BYTES_MAX: usize = 8192;

/// `_IOC(direction, 0xB7, number, sizeof(T))`
const fn request<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | 0xb7 << 8 | number
}
const NONE: u64 = 0;
const IN: u64 = 1;
const OUT: u64 = 2;

pub const TCMI_VERSION: u64 = request::<Version>(OUT, 0);
pub const TCMI_FREEZE: u64 = request::<FreezeArgs>(IN | OUT, 1);
pub const TCMI_CAPTURE: u64 = request::<CaptureArgs>(IN | OUT, 2);
pub const TCMI_THAW: u64 = request::<Nothing>(NONE, 3);
pub const TCMI_WATCH: u64 = request::<WatchArgs>(IN, 4);
pub const TCMI_UNWATCH: u64 = request::<WatchArgs>(IN, 5);
pub const TCMI_CTL_SERVE: u64 = request::<ServeArgs>(IN, 6);
pub const TCMI_CTL_ADD: u64 = request::<AddArgs>(IN, 7);
pub const TCMI_CTL_REMOVE: u64 = request::<RemoveArgs>(IN, 8);
pub const TCMI_SEND: u64 = request::<SendArgs>(IN | OUT, 9);
pub const TCMI_PEER_SET: u64 = request::<PeerSetArgs>(IN, 10);
pub const TCMI_PEER_ASK: u64 = request::<PeerAskArgs>(IN | OUT, 11);
pub const TCMI_PEER_FORGET: u64 = request::<Nothing>(NONE, 12);
pub const TCMI_CHARGE: u64 = request::<ChargeArgs>(IN, 13);

/// # Safety
/// Any bytes are a value of the type: integers, without padding.
pub(super) unsafe trait Argument {}

// SAFETY: an integer.
unsafe impl Argument for u32 {}
// SAFETY: integers.
unsafe impl Argument for [u32; 2] {}

macro_rules! argument {
    ($($name:ident)*) => {$(
        // SAFETY: repr(C) of integers and arrays of them; the ABI test finds padding.
        unsafe impl Argument for $name {}
    )*};
}
argument!(Version FreezeArgs CaptureArgs Nothing WatchArgs ServeArgs AddArgs RemoveArgs SendArgs);
argument!(PeerSetArgs PeerAskArgs ChargeArgs);
argument!(RawEvent RawRequest RawProcess RawThread);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub abi: u32,
    pub ctl_entries: u32,
    pub ctl_hash: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FreezeArgs {
    pub pid: i32,
    pub flags: u32,
    pub timeout_ms: u32,
    pub processes: u32,
    pub threads: u32,
    pub reserved: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CaptureArgs {
    pub buffer: u64,
    pub length: u64,
    pub reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SendArgs {
    pub pid: i32,
    pub socket: i32,
    pub address: u64,
    pub length: u64,
    pub sent: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WatchArgs {
    pub pid: i32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ChargeArgs {
    pub pid: i32,
    pub reserved: u32,
    pub utime: u64,
    pub stime: u64,
    pub min_flt: u64,
    pub maj_flt: u64,
    pub maxrss: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ServeArgs {
    pub reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AddArgs {
    pub entry: u32,
    pub uid: u32,
    pub gid: u32,
    pub reserved: u32,
    pub key: u64,
    pub name: [u8; 80],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RemoveArgs {
    pub entry: u32,
    pub reserved: u32,
    pub key: u64,
}

/// No Debug: keys are in no log.
#[repr(C)]
pub struct PeerSetArgs {
    pub sent_key: [u8; 32],
    pub received_key: [u8; 32],
    pub local: [u8; 28],
    pub remote: [u8; 28],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PeerAskArgs {
    pub timeout_ms: u32,
    pub state: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawEvent {
    pub kind: u32,
    pub length: u32,
    pub pid: i32,
    pub what: u32,
    pub stop_signal: u32,
    pub status: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawRequest {
    pub kind: u32,
    pub length: u32,
    pub id: u64,
    pub key: u64,
    pub entry: u32,
    pub op: u32,
    pub flags: u32,
    pub uid: u32,
    pub gid: u32,
    pub tid: i32,
    pub target: i32,
    pub data_length: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawProcess {
    pub kind: u32,
    pub length: u32,
    pub pid: i32,
    pub stopped_by: u32,
    pub pending: u64,
    pub pending_count: u32,
    pub reserved: u32,
    /// (handler, flags, restorer, mask)
    pub actions: [[u64; 4]; 64],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawThread {
    pub kind: u32,
    pub length: u32,
    pub pid: i32,
    pub tid: i32,
    pub regs: UserRegs,
    pub blocked: u64,
    pub pending: u64,
    pub altstack_sp: u64,
    pub altstack_size: u64,
    pub altstack_flags: u32,
    pub rseq_signature: u32,
    pub rseq: u64,
    pub rseq_length: u32,
    pub pending_count: u32,
    pub robust_list: u64,
    pub clear_child_tid: u64,
    pub xstate_length: u32,
    pub flags: u32,
}
