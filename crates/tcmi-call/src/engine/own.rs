//! Calls of the monitor's own: on the shadow's memory, by which live files are reached, and on
//! what a shadow thread blocks. No row has them, as a guest may not make them.

use super::{Call, Content, Extent, Place, Slot};
use crate::frame::{kind, out_rule};
use crate::table::When;

const RT_SIGPROCMASK: u16 = 14;
const RT_SIGPENDING: u16 = 127;
const SIGSET_BYTES: usize = 8;
const PROCESS_VM_READV: u16 = 310;
const PROCESS_VM_WRITEV: u16 = 311;
const IOVEC_BYTES: usize = 16;
/// Most pieces of one [`Call::poke`].
pub const PIECES_MAX: usize = 1024;

impl Call {
    /// A call whose arguments are passed on as they are.
    pub fn plain(&mut self, nr: u16, args: &[u64; 6], seq: u64) {
        self.reset(kind::CALL, nr, seq);
        self.header.args = *args;
        self.finish();
    }

    /// Writes to the memory of the shadow, which is `pid` at home: (address, bytes) after
    /// (address, bytes), at most [`PIECES_MAX`]. It returns how many bytes were written before the
    /// first that could not be.
    pub fn poke<'a>(
        &mut self,
        pid: i32,
        pieces: impl ExactSizeIterator<Item = (u64, &'a [u8])> + Clone,
        seq: u64,
    ) {
        self.reset(kind::CALL, PROCESS_VM_WRITEV, seq);
        let count = pieces.len();
        let data = IOVEC_BYTES * (1 + count);
        let total = pieces.clone().map(|(_, bytes)| bytes.len()).sum();
        self.iovec(0, total);
        for (addr, bytes) in pieces.clone() {
            self.iovec(addr, bytes.len());
        }
        for (_, bytes) in pieces {
            self.image.extend_from_slice(bytes);
        }
        self.point(Slot::Image(0), data);
        self.other(pid, count);
    }

    /// Reads `len` bytes of the shadow's memory at `addr`; they come back as if to guest address
    /// `to`. It returns how many there are before the first that cannot be read.
    pub fn peek(&mut self, pid: i32, addr: u64, len: usize, to: u64, seq: u64) {
        self.reset(kind::CALL, PROCESS_VM_READV, seq);
        self.iovec(0, len);
        self.iovec(addr, len);
        let place = Place { addr: to, content: Content::Buffer(When::Return(1)) };
        let extent = Extent { len, clamped: None };
        self.receives(Slot::Image(0), extent, len, (out_rule::BY_RETURN, 1), place);
        self.other(pid, 1);
    }

    /// `rt_sigprocmask` in the shadow thread itself; `how` is SIG_BLOCK or SIG_UNBLOCK.
    pub fn block(&mut self, how: i32, set: u64, seq: u64) {
        self.reset(kind::CALL, RT_SIGPROCMASK, seq);
        self.image.extend_from_slice(&set.to_le_bytes());
        self.header.args = [how as u64, 0, 0, SIGSET_BYTES as u64, 0, 0];
        self.point(Slot::Arg(1), 0);
        self.finish();
    }

    /// `rt_sigpending` of the shadow thread; the set comes back as if to guest address `to`.
    pub fn pending(&mut self, to: u64, seq: u64) {
        self.reset(kind::CALL, RT_SIGPENDING, seq);
        self.header.args = [0, SIGSET_BYTES as u64, 0, 0, 0, 0];
        let place = Place { addr: to, content: Content::Buffer(When::Success) };
        let extent = Extent { len: SIGSET_BYTES, clamped: None };
        self.receives(Slot::Arg(0), extent, SIGSET_BYTES, (out_rule::ON_SUCCESS, 0), place);
        self.finish();
    }

    fn iovec(&mut self, base: u64, len: usize) {
        self.image.extend_from_slice(&base.to_le_bytes());
        self.image.extend_from_slice(&(len as u64).to_le_bytes());
    }

    /// The arguments that both have: one local range, `count` of the process.
    fn other(&mut self, pid: i32, count: usize) {
        self.header.args = [pid as u64, 0, 1, 0, count as u64, 0];
        self.point(Slot::Arg(1), 0);
        self.point(Slot::Arg(3), IOVEC_BYTES);
        self.finish();
    }
}
