//! One argument at a time, by its kind.

use super::{BAD_POINTER, Call, Content, GuestMemory, Place, Slot, USER_END, wire_rule};
use crate::frame::{CALL_BUFFER_MAX_BYTES, out_rule};
use crate::table::errno::{EFAULT, EINVAL, ENOTTY, Errno};
use crate::table::{Arg, Size, When, ioctl, prctl};

const NS_PER_S: u64 = 1_000_000_000;
/// Descriptor bits of a `select` that are looked at; kernels stop at the table's size.
const SELECT_BITS_MAX: u64 = 1 << 20;
/// No process has lower mappings (`mmap_min_addr`), so a pointer there is bad for sure.
const LOWEST_POINTER: u64 = 4096;

/// Bytes of a buffer, and what its length argument becomes.
struct Extent {
    len: usize,
    argument: Option<(usize, u64)>,
}

impl Extent {
    fn fixed(len: usize) -> Extent {
        Extent { len, argument: None }
    }
}

/// How many bytes `size` means here; clamped to what a frame can carry.
fn extent(size: Size, args: &[u64; 6]) -> Extent {
    let max = CALL_BUFFER_MAX_BYTES as u64;
    match size {
        Size::Bytes(n) => Extent::fixed(n as usize),
        // Longer than an address space: home's own check refuses it, no byte is looked at.
        Size::Arg(i) if args[i as usize] >= USER_END => Extent::fixed(0),
        Size::Arg(i) => {
            let len = args[i as usize].min(max);
            Extent { len: len as usize, argument: Some((i as usize, len)) }
        }
        Size::Plus(i, _) if args[i as usize] >= USER_END => Extent::fixed(0),
        Size::Plus(i, more) => {
            let len = args[i as usize].min(max - u64::from(more));
            Extent { len: (len + u64::from(more)) as usize, argument: Some((i as usize, len)) }
        }
        Size::Int(i) => match u64::try_from(args[i as usize] as i32) {
            Ok(n) => Extent { len: n.min(max) as usize, argument: Some((i as usize, n.min(max))) },
            Err(_) => Extent::fixed(0),
        },
        Size::Items(i, unit) => match u64::try_from(args[i as usize] as i32) {
            Ok(n) => {
                let n = n.min(max / u64::from(unit));
                Extent { len: (n * u64::from(unit)) as usize, argument: Some((i as usize, n)) }
            }
            Err(_) => Extent::fixed(0),
        },
        Size::Bits(i) => {
            let bits = u64::try_from(args[i as usize] as i32).unwrap_or(0).min(SELECT_BITS_MAX);
            Extent::fixed((bits.div_ceil(64) * 8) as usize)
        }
    }
}

/// Pointers that mean the same on every machine: none, and surely bad ones.
pub(super) fn universal(pointer: u64) -> Option<u64> {
    (!(LOWEST_POINTER..USER_END).contains(&pointer)).then_some(pointer)
}

impl Call {
    pub(super) fn copy_argument<M: GuestMemory>(
        &mut self,
        i: usize,
        arg: Arg,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<(), Errno> {
        match arg {
            Arg::Unused => {}
            Arg::Value => self.header.args[i] = args[i],
            Arg::Fd => {
                self.header.args[i] = args[i];
                self.header.fd_args |= 1 << i;
            }
            Arg::TimeoutMs => self.header.args[i] = self.shortened_ms(args[i]),
            // In force in the guest, not at home.
            Arg::Mask | Arg::MaskPair => self.header.args[i] = 0,
            // Done with the buffer it belongs to.
            Arg::Length => {}
            Arg::Ioctl => self.copy_argument(i, ioctl::ioctl(args[1]).ok_or(ENOTTY)?, args, mem)?,
            Arg::Fcntl => self.copy_argument(i, ioctl::fcntl(args[1]), args, mem)?,
            Arg::Semctl => {
                self.copy_argument(i, ioctl::semctl(args[2]).ok_or(EINVAL)?, args, mem)?
            }
            Arg::Prctl => match prctl::option(args[0]) {
                prctl::Side::Home(arg) | prctl::Side::HomeThenLocal(arg) => {
                    self.copy_argument(i, arg, args, mem)?
                }
                prctl::Side::Local => {}
                prctl::Side::Refused(errno) => return Err(errno),
            },
            Arg::Measured(length, max) => {
                self.copy_measured(i, length as usize, max, args, mem);
            }
            _ => match universal(args[i]) {
                Some(pointer) => self.header.args[i] = pointer,
                None => self.copy_pointed(i, arg, args, mem)?,
            },
        }
        Ok(())
    }

    /// `args[i]` points into user space.
    fn copy_pointed<M: GuestMemory>(
        &mut self,
        i: usize,
        arg: Arg,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<(), Errno> {
        let slot = Slot::Arg(i);
        match arg {
            Arg::Path => self.copy_path(slot, args[i], mem)?,
            Arg::In(size) => {
                let len = self.clamped(size, args);
                self.copy_in(slot, args[i], len, None, mem);
            }
            Arg::InOut(size, when) => {
                let len = self.clamped(size, args);
                self.copy_in(slot, args[i], len, Some(when), mem);
            }
            Arg::Out(size, when) => {
                let len = self.clamped(size, args);
                let place = Place { addr: args[i], content: Content::Buffer(when) };
                self.receives(slot, len, wire_rule(when), place, mem);
            }
            Arg::StreamIn(n) => self.copy_stream(i, n, args, mem),
            Arg::StreamOut(n) => {
                let len = self.clamped(Size::Arg(n), args);
                let place = Place { addr: args[i], content: Content::Stream };
                // As far as it can be written, which is a short read.
                let room = mem.writable(args[i], len);
                if room > 0 && room < len {
                    self.header.args[n as usize] = room as u64;
                }
                let len = if room > 0 { room } else { len };
                self.receives(slot, len, (out_rule::BY_RETURN, 1), place, mem);
            }
            Arg::Timeout => self.copy_timeout(slot, args[i], 1, None, mem),
            Arg::TimeoutRest => {
                self.copy_timeout(slot, args[i], 1, Some(When::SuccessOrInterrupted), mem)
            }
            Arg::TimevalRest => {
                self.copy_timeout(slot, args[i], 1000, Some(When::SuccessOrInterrupted), mem)
            }
            Arg::IovecIn(n) => self.copy_iovec_argument(i, n as usize, args, true, mem),
            Arg::IovecOut(n) => self.copy_iovec_argument(i, n as usize, args, false, mem),
            Arg::MsghdrIn => self.copy_msghdr(slot, args[i], true, false, mem),
            Arg::MsghdrOut => self.copy_msghdr(slot, args[i], false, false, mem),
            Arg::MmsghdrIn | Arg::MmsghdrOut => {
                let count = args[2].min(1);
                self.header.args[2] = count;
                match count {
                    0 => self.header.args[i] = 0,
                    _ => self.copy_msghdr(slot, args[i], arg == Arg::MmsghdrIn, true, mem),
                }
            }
            Arg::Unused
            | Arg::Value
            | Arg::Fd
            | Arg::TimeoutMs
            | Arg::Mask
            | Arg::MaskPair
            | Arg::Length
            | Arg::Measured(..)
            | Arg::Ioctl
            | Arg::Fcntl
            | Arg::Semctl
            | Arg::Prctl => unreachable!("resolved by copy_argument"),
        }
        Ok(())
    }

    fn clamped(&mut self, size: Size, args: &[u64; 6]) -> usize {
        let extent = extent(size, args);
        if let Some((i, n)) = extent.argument {
            self.header.args[i] = n;
        }
        extent.len
    }

    fn copy_path<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        mem: &mut M,
    ) -> Result<(), Errno> {
        let at = self.align();
        match mem.read_string(addr, &mut self.image) {
            Ok(()) => self.point(slot, at),
            Err(EFAULT) => self.point_raw(slot, BAD_POINTER),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    pub(super) fn copy_in<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        len: usize,
        back: Option<When>,
        mem: &mut M,
    ) {
        match self.append(addr, len, mem) {
            Ok(at) => {
                self.point(slot, at);
                if let Some(when) = back {
                    let place = Place { addr, content: Content::Buffer(when) };
                    self.returns(at, len, wire_rule(when), place);
                }
            }
            Err(_) => self.point_raw(slot, BAD_POINTER),
        }
    }

    fn copy_stream<M: GuestMemory>(&mut self, i: usize, n: u8, args: &[u64; 6], mem: &mut M) {
        let len = self.clamped(Size::Arg(n), args);
        let at = self.image.len().next_multiple_of(8);
        match self.append(args[i], len, mem) {
            Ok(at) => self.point(Slot::Arg(i), at),
            // As far as it can be read, which is a short write.
            Err(fault) if fault.copied > 0 => {
                self.header.args[n as usize] = fault.copied as u64;
                self.point(Slot::Arg(i), at);
            }
            Err(_) => self.point_raw(Slot::Arg(i), BAD_POINTER),
        }
    }

    fn shortened_ms(&self, timeout: u64) -> u64 {
        match u64::try_from(timeout as i32) {
            Ok(ms) => ms.saturating_sub(self.elapsed_ns / 1_000_000),
            Err(_) => timeout,
        }
    }

    /// A timespec, or a timeval with `ns_per_unit` 1000.
    fn copy_timeout<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        ns_per_unit: u64,
        back: Option<When>,
        mem: &mut M,
    ) {
        let at = self.image.len().next_multiple_of(8);
        self.copy_in(slot, addr, 16, back, mem);
        if self.elapsed_ns == 0 || self.image.len() != at + 16 {
            return;
        }
        let word = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let (seconds, parts) = (word(&self.image[at..]), word(&self.image[at + 8..]));
        // What is not a time goes to home as it is, for its EINVAL.
        let (Ok(seconds), Ok(parts)) = (u64::try_from(seconds), u64::try_from(parts)) else {
            return;
        };
        let total = u128::from(seconds) * u128::from(NS_PER_S) + u128::from(parts * ns_per_unit);
        let left = total.saturating_sub(u128::from(self.elapsed_ns));
        let seconds = (left / u128::from(NS_PER_S)) as u64;
        let parts = (left % u128::from(NS_PER_S)) as u64 / ns_per_unit;
        self.image[at..at + 8].copy_from_slice(&seconds.to_le_bytes());
        self.image[at + 8..at + 16].copy_from_slice(&parts.to_le_bytes());
    }

    /// A result whose room stands in guest memory, at the pointer in argument `length`.
    fn copy_measured<M: GuestMemory>(
        &mut self,
        i: usize,
        length: usize,
        max: u32,
        args: &[u64; 6],
        mem: &mut M,
    ) {
        let result = universal(args[i]);
        if let Some(pointer) = result {
            self.header.args[i] = pointer;
        }
        if let Some(pointer) = universal(args[length]) {
            self.header.args[length] = pointer;
            if result.is_none() {
                self.header.args[i] = BAD_POINTER;
            }
            return;
        }
        let Ok(at) = self.append(args[length], 4, mem) else {
            self.header.args[length] = BAD_POINTER;
            if result.is_none() {
                self.header.args[i] = BAD_POINTER;
            }
            return;
        };
        self.point(Slot::Arg(length), at);
        let place = Place { addr: args[length], content: Content::Buffer(When::Always) };
        self.returns(at, 4, wire_rule(When::Always), place);
        let room = i32::from_le_bytes([
            self.image[at],
            self.image[at + 1],
            self.image[at + 2],
            self.image[at + 3],
        ]);
        if result.is_some() {
            return;
        }
        let len = u32::try_from(room).map_or(0, |n| n.min(max));
        if room > 0 {
            self.image[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        let place = Place { addr: args[i], content: Content::Buffer(When::Success) };
        let rule = (out_rule::BY_LENGTH, at as u32);
        self.receives(Slot::Arg(i), len as usize, rule, place, mem);
    }
}
