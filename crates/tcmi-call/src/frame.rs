//! Frames on a guest thread's call stream and on a guest's event stream.
//!
//! All integers are little-endian; a frame starts with its fixed header. Frames
//! are a byte stream inside TLS records: a small frame is one record, a large
//! one spans several, and a record never holds bytes of two frames.

/// Bytes of a call's buffer that the agent always has ready, without mapping.
pub const CALL_BUFFER_INLINE_BYTES: usize = 64 * 1024;
/// Largest buffer of one forwarded call. A `read` or `write` of more is clamped
/// to this (a short count, which POSIX allows).
pub const CALL_BUFFER_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most pointers inside a buffer image (an `iovec` array has at most 1024).
pub const FIXUPS_MAX: usize = 1100;
/// Most ranges that come back from one call.
pub const OUTS_MAX: usize = 16;

/// Frames from the monitor to the agent. 0 is invalid on purpose.
pub mod kind {
    /// Execute a system call; answered by a reply.
    pub const CALL: u16 = 1;
    /// The guest thread ended: the shadow thread ends too. No answer.
    /// `args[0]` is the exit code.
    pub const EXIT_THREAD: u16 = 2;
    /// The guest process ended by `exit_group`: `args[0]` is the code. No answer.
    pub const EXIT_GROUP: u16 = 3;
    /// The guest died of signal `args[0]`: the shadow dies of the same. No answer.
    pub const EXIT_SIGNAL: u16 = 4;
    /// Mirror a disposition: `args[0]` signal, `args[1]` one of [`super::disposition`],
    /// `args[2]` the guest's sa_flags (SA_NOCLDSTOP and SA_NOCLDWAIT matter).
    /// Answered by a reply.
    pub const DISPOSITION: u16 = 5;
    /// Reply to CALL or DISPOSITION, agent to monitor.
    pub const REPLY: u16 = 16;
    /// A signal for the guest, agent to monitor, on the event stream only.
    pub const SIGNAL: u16 = 17;
    /// The shadow serves, agent to monitor, on the event stream only: a [`super::SignalFrame`]
    /// of which nothing but `seq`, the last signal's, matters. Until it comes the process may
    /// go on at home, and the guest may have no effect.
    pub const SERVING: u16 = 18;
}

/// What a guest does with a signal, as far as home has to know.
pub mod disposition {
    /// SIG_DFL with an action that the guest's kernel carries out (terminate, core).
    /// The agent's handler stays installed: the signal is forwarded and kills the guest.
    /// For signals whose default is to ignore or to stop, home uses SIG_DFL itself.
    pub const DEFAULT: u64 = 0;
    /// SIG_IGN: home ignores it too.
    pub const IGNORE: u64 = 1;
    /// A handler in the guest: the agent's handler forwards it.
    pub const HANDLE: u64 = 2;
}

/// When a returned range carries bytes.
pub mod out_rule {
    /// Whole range, whatever the call returned.
    pub const ALWAYS: u32 = 1;
    /// Whole range if the call did not fail.
    pub const ON_SUCCESS: u32 = 2;
    /// The first `min(len, ret * unit)` bytes if `ret > 0`; `unit` is in [`super::OutRange::arg`].
    pub const BY_RETURN: u32 = 3;
    /// If the call did not fail: the first `min(len, n)` bytes, n being the u32 that
    /// stands at buffer offset `arg` after the call (socket address lengths).
    pub const BY_LENGTH: u32 = 4;
    /// Whole range if the call did not fail or was interrupted (EINTR): a sleep's rest.
    pub const ON_SUCCESS_OR_EINTR: u32 = 5;
}

/// Header of every frame from the monitor to the agent, 88 bytes.
///
/// Followed by `fixups` u32 buffer offsets, then `outs` [`OutRange`]s, then the
/// first `in_len` bytes of the buffer; the rest of the buffer (up to `buf_len`)
/// is zeroed by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallHeader {
    /// Bytes that follow this header.
    pub len: u32,
    pub kind: u16,
    /// System call number (x86-64).
    pub nr: u16,
    /// Chosen by the monitor, echoed in the reply.
    pub seq: u64,
    /// Bit i: `args[i]` is an offset into the buffer, to be made a pointer.
    pub ptr_args: u8,
    /// Bit i: `args[i]` is a descriptor; one that is reserved for tcmi answers EBADF.
    pub fd_args: u8,
    pub fixups: u16,
    pub outs: u16,
    /// Bits of [`call_flags`].
    pub flags: u16,
    pub buf_len: u32,
    pub in_len: u32,
    pub pad2: u64,
    pub args: [u64; 6],
}

pub mod call_flags {
    /// Behind the buffer's last byte there is nothing: what the guest has only a part of ends
    /// there, and the kernel faults where it would have in the guest.
    pub const HOLE: u16 = 1;
}

/// A buffer range that comes back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutRange {
    pub off: u32,
    pub len: u32,
    /// One of [`out_rule`].
    pub rule: u32,
    pub arg: u32,
}

/// Header of a reply, 32 bytes. Followed by `outs` u32 actual lengths, then the
/// bytes of each range in order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyHeader {
    pub len: u32,
    pub kind: u16,
    /// Bits of [`reply_flags`].
    pub flags: u16,
    pub seq: u64,
    /// As the kernel returned it: 0 or more, or -errno.
    pub ret: i64,
    /// Every signal up to this number was sent on the event stream before this reply:
    /// the monitor hands them to the guest before it lets the call return.
    pub signals: u32,
    pub outs: u16,
    pub pad: u16,
}

pub mod reply_flags {
    /// A signal handler of the agent ran while the call was waiting (`ret` is -EINTR),
    /// or before it started (see NOT_STARTED).
    pub const INTERRUPTED: u16 = 1;
    /// The call was not begun.
    pub const NOT_STARTED: u16 = 2;
    /// The keeper took the call back for a move; it had no effect and is made again later.
    pub const CANCELLED: u16 = 4;
}

/// A signal on its way to the guest, 152 bytes in all. Nothing follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalFrame {
    /// Bytes after `len`, `kind`, `pad` (always 144).
    pub len: u32,
    pub kind: u16,
    pub pad: u16,
    /// Counts from 1 per guest, in the order of arrival.
    pub seq: u32,
    pub signo: u32,
    /// Thread it was sent to, or 0 for the process.
    pub tid: u32,
    pub pad2: u32,
    /// siginfo_t as the kernel gave it at home.
    pub siginfo: [u8; 128],
}

macro_rules! plain_bytes {
    ($($t:ty = $n:expr),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$t>() == $n);
        impl $t {
            pub const BYTES: usize = $n;
            pub fn as_bytes(&self) -> &[u8] {
                // SAFETY: repr(C), integers only, no padding (the size equals the sum of the
                // fields, asserted above), so every byte is initialised.
                unsafe { core::slice::from_raw_parts((self as *const Self).cast(), $n) }
            }
            /// None if `b` is shorter than the structure.
            pub fn from_bytes(b: &[u8]) -> Option<Self> {
                if b.len() < $n { return None; }
                // SAFETY: at least the structure's size is readable; any bit pattern is valid.
                Some(unsafe { core::ptr::read_unaligned(b.as_ptr().cast()) })
            }
        }
    )+};
}
plain_bytes!(CallHeader = 88, OutRange = 16, ReplyHeader = 32, SignalFrame = 152);
