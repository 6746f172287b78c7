//! `iovec` arrays and `msghdr`s.
//!
//! The segments of a call travel as one: home sees an array of one element, which
//! means the same to every file and socket.

use super::arguments::{LAST_PAGE, universal};
use super::{
    BAD_POINTER, Call, Content, DATA_MAX_BYTES, Extent, Fault, GuestMemory, Place, Slot,
    short_or_fault,
};
use crate::frame::out_rule;
use crate::table::errno::EFAULT;

const IOVEC_BYTES: usize = 16;
const SEGMENTS_MAX: u64 = 1024;
const ADDRESS_MAX_BYTES: u32 = 128;
const CONTROL_MAX_BYTES: u64 = 64 * 1024;

/// `struct msghdr`, and of `struct mmsghdr` the length behind it.
const MSGHDR_BYTES: usize = 56;
const MMSGHDR_BYTES: usize = 64;
const NAME: usize = 0;
const NAME_LEN: usize = 8;
const IOV: usize = 16;
const IOV_LEN: usize = 24;
const CONTROL: usize = 32;
const CONTROL_LEN: usize = 40;
const FLAGS: usize = 48;
const MSG_LEN: usize = 56;

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

const CMSGHDR_BYTES: usize = 16;

/// How home's kernel is to know how much data came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Send,
    Receive,
    /// By the `msg_len` of the `mmsghdr` at this image offset.
    ReceiveInto(usize),
}

/// What the segments of an array amount to.
enum Total {
    /// Clamped to what a frame carries.
    Bytes(usize),
    /// One has this length, which no `ssize_t` holds.
    Negative(u64),
    /// One ends behind user space.
    Beyond,
}

impl Call {
    /// The array in argument `i` with its count in argument `n`.
    pub(super) fn copy_iovec_argument<M: GuestMemory>(
        &mut self,
        i: usize,
        n: usize,
        args: &[u64; 6],
        inward: bool,
        mem: &mut M,
    ) {
        // Kernels take an `unsigned int` of it.
        let count = u64::from(args[n] as u32);
        if count == 0 || count > SEGMENTS_MAX {
            // Home looks at the descriptor and the count, and at no segment.
            self.header.args[i] = 0;
            return;
        }
        let transfer = if inward { Transfer::Send } else { Transfer::Receive };
        self.header.args[n] = 1;
        self.copy_segments(Slot::Arg(i), args[i], count, transfer, mem);
    }

    /// Fills `segments`. Err: the array cannot be read.
    fn read_segments<M: GuestMemory>(
        &mut self,
        addr: u64,
        count: u64,
        mem: &mut M,
    ) -> Result<Total, Fault> {
        let start = self.image.len();
        let at = self
            .append(addr, IOVEC_BYTES * count as usize, mem)
            .inspect_err(|_| self.image.truncate(start))?;
        let mut total = 0;
        let max = DATA_MAX_BYTES as u64;
        self.segments.clear();
        let mut negative = None;
        let mut beyond = false;
        for k in 0..count as usize {
            let base = u64_at(&self.image, at + IOVEC_BYTES * k);
            let len = u64_at(&self.image, at + IOVEC_BYTES * k + 8);
            if i64::try_from(len).is_err() {
                negative = Some(len);
            }
            beyond |= base.checked_add(len).is_none_or(|end| end > LAST_PAGE);
            let len = len.min(max - total);
            total += len;
            if len > 0 {
                self.segments.push((base, len));
            }
        }
        self.image.truncate(start);
        Ok(match negative {
            Some(len) => Total::Negative(len),
            None if beyond => Total::Beyond,
            None => Total::Bytes(total as usize),
        })
    }

    /// Puts the one iovec that home sees behind `slot`, for the `count` at `addr`.
    fn copy_segments<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        count: u64,
        transfer: Transfer,
        mem: &mut M,
    ) {
        let Ok(total) = self.read_segments(addr, count, mem) else {
            return self.point_raw(slot, BAD_POINTER);
        };
        let at = self.align();
        self.image.resize(at + IOVEC_BYTES, 0);
        self.point(slot, at);
        let total = match total {
            Total::Bytes(total) => total,
            // For home's EINVAL, after what it looks at before.
            Total::Negative(len) => {
                self.image[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
                return;
            }
            Total::Beyond => {
                self.image.truncate(at);
                self.point_raw(slot, BAD_POINTER);
                return;
            }
        };
        self.image[at + 8..at + 16].copy_from_slice(&(total as u64).to_le_bytes());
        let base = Slot::Image(at);
        let extent = Extent { len: total, clamped: None };
        let place = Place { addr: 0, content: Content::Segments };
        match transfer {
            Transfer::Send => self.send_segments(base, extent, mem),
            Transfer::Receive => {
                let room = self.room_in_segments(mem);
                self.receives(base, extent, room, (out_rule::BY_RETURN, 1), place);
            }
            Transfer::ReceiveInto(header) => {
                let room = self.room_in_segments(mem);
                let rule = (out_rule::BY_LENGTH, (header + MSG_LEN) as u32);
                self.receives(base, extent, room, rule, place);
            }
        }
    }

    fn send_segments<M: GuestMemory>(&mut self, slot: Slot, extent: Extent, mem: &mut M) {
        let total = extent.len;
        let data = self.align();
        self.image.resize(data + total, 0);
        let mut done = 0;
        for k in 0..self.segments.len() {
            let (addr, len) = self.segments[k];
            let into = &mut self.image[data + done..data + done + len as usize];
            match mem.read(addr, into) {
                Ok(()) => done += len as usize,
                Err(fault) => {
                    done += fault.copied;
                    break;
                }
            }
        }
        if done == total {
            return self.point(slot, data);
        }
        let part = self.image[data..data + done].to_vec();
        self.image.truncate(data);
        self.sends_part(slot, extent, part, None);
    }

    /// Bytes of the segments up to the first that cannot be written.
    fn room_in_segments<M: GuestMemory>(&self, mem: &mut M) -> usize {
        let mut room = 0;
        for &(addr, len) in &self.segments {
            let here = mem.writable(addr, len as usize);
            room += here;
            if here < len as usize {
                break;
            }
        }
        room
    }

    pub(super) fn put_segments<M: GuestMemory>(
        &self,
        mut range: &[u8],
        mem: &mut M,
    ) -> Result<(), i64> {
        let mut done = 0;
        for &(addr, len) in &self.segments {
            let (now, rest) = range.split_at(range.len().min(len as usize));
            if now.is_empty() {
                break;
            }
            mem.write(addr, now).map_err(|f| short_or_fault(Fault { copied: done + f.copied }))?;
            done += now.len();
            range = rest;
        }
        Ok(())
    }

    pub(super) fn copy_msghdr<M: GuestMemory>(
        &mut self,
        slot: Slot,
        addr: u64,
        inward: bool,
        multiple: bool,
        mem: &mut M,
    ) {
        let at = self.align();
        if self.append(addr, MSGHDR_BYTES, mem).is_err() {
            self.image.truncate(at);
            return self.point_raw(slot, BAD_POINTER);
        }
        let size = if multiple { MMSGHDR_BYTES } else { MSGHDR_BYTES };
        self.image.resize(at + size, 0);
        self.point(slot, at);
        self.copy_name(at, inward, mem);
        self.copy_message_data(at, inward, multiple, mem);
        self.copy_control(at, inward, mem);
        if multiple || !inward {
            let content = if multiple { Content::Mmsghdr } else { Content::Msghdr };
            self.returns(at, size, (out_rule::ON_SUCCESS, 0), Place { addr, content });
        }
    }

    fn copy_name<M: GuestMemory>(&mut self, at: usize, inward: bool, mem: &mut M) {
        let pointer = u64_at(&self.image, at + NAME);
        let len = u32_at(&self.image, at + NAME_LEN);
        let slot = Slot::Image(at + NAME);
        if let Some(pointer) = universal(pointer) {
            return self.point_raw(slot, pointer);
        }
        // A negative length goes to home for its EINVAL.
        if i32::try_from(len).is_err() {
            return self.point_raw(slot, BAD_POINTER);
        }
        let len = len.min(ADDRESS_MAX_BYTES);
        self.image[at + NAME_LEN..at + NAME_LEN + 4].copy_from_slice(&len.to_le_bytes());
        let extent = Extent { len: len as usize, clamped: None };
        if inward {
            return self.copy_in(slot, pointer, extent, None, mem);
        }
        let there = mem.writable(pointer, extent.len);
        let place = Place { addr: pointer, content: Content::Buffer(crate::table::When::Success) };
        let rule = (out_rule::BY_LENGTH, (at + NAME_LEN) as u32);
        self.receives(slot, extent, there, rule, place);
    }

    fn copy_message_data<M: GuestMemory>(
        &mut self,
        at: usize,
        inward: bool,
        multiple: bool,
        mem: &mut M,
    ) {
        let slot = Slot::Image(at + IOV);
        let segments = u64_at(&self.image, at + IOV_LEN);
        let pointer = u64_at(&self.image, at + IOV);
        if segments == 0 || segments > SEGMENTS_MAX {
            // EMSGSIZE, before home looks at a segment.
            return self.point_raw(slot, 0);
        }
        if let Some(pointer) = universal(pointer) {
            return self.point_raw(slot, pointer);
        }
        self.image[at + IOV_LEN..at + IOV_LEN + 8].copy_from_slice(&1u64.to_le_bytes());
        let transfer = match (inward, multiple) {
            (true, _) => Transfer::Send,
            (false, false) => Transfer::Receive,
            (false, true) => Transfer::ReceiveInto(at),
        };
        self.copy_segments(slot, pointer, segments, transfer, mem);
    }

    fn copy_control<M: GuestMemory>(&mut self, at: usize, inward: bool, mem: &mut M) {
        let slot = Slot::Image(at + CONTROL);
        let pointer = u64_at(&self.image, at + CONTROL);
        if let Some(pointer) = universal(pointer) {
            return self.point_raw(slot, pointer);
        }
        let len = u64_at(&self.image, at + CONTROL_LEN);
        if inward && len > CONTROL_MAX_BYTES {
            // More than any kernel takes at once: ENOBUFS before it looks.
            return self.point_raw(slot, BAD_POINTER);
        }
        let len = len.min(CONTROL_MAX_BYTES);
        self.image[at + CONTROL_LEN..at + CONTROL_LEN + 8].copy_from_slice(&len.to_le_bytes());
        let extent = Extent { len: len as usize, clamped: None };
        if inward {
            return self.copy_in(slot, pointer, extent, None, mem);
        }
        let there = mem.writable(pointer, extent.len);
        let place = Place { addr: pointer, content: Content::Control };
        let rule = (out_rule::BY_LENGTH, (at + CONTROL_LEN) as u32);
        self.receives(slot, extent, there, rule, place);
    }
}

pub(super) fn put_msghdr<M: GuestMemory>(addr: u64, b: &[u8], mem: &mut M) -> Result<(), i64> {
    if b.len() < MSGHDR_BYTES {
        return Err(EFAULT.ret());
    }
    let mut write = |at: usize, len: usize| {
        mem.write(addr + at as u64, &b[at..at + len]).map_err(|_| EFAULT.ret())
    };
    write(NAME_LEN, 4)?;
    write(CONTROL_LEN, 8)?;
    write(FLAGS, 4)
}

/// A kernel does not write what stands between two of them.
pub(super) fn put_control<M: GuestMemory>(
    mut addr: u64,
    mut b: &[u8],
    mem: &mut M,
) -> Result<(), i64> {
    while b.len() >= CMSGHDR_BYTES {
        let len = usize::try_from(u64_at(b, 0)).unwrap_or(b.len()).clamp(CMSGHDR_BYTES, b.len());
        mem.write(addr, &b[..len]).map_err(|_| EFAULT.ret())?;
        let next = len.next_multiple_of(8).min(b.len());
        addr += next as u64;
        b = &b[next..];
    }
    Ok(())
}

pub(super) fn put_mmsghdr<M: GuestMemory>(
    addr: u64,
    b: &[u8],
    ret: i64,
    mem: &mut M,
) -> Result<(), i64> {
    if ret == 0 {
        return Ok(());
    }
    if b.len() < MMSGHDR_BYTES {
        return Err(EFAULT.ret());
    }
    put_msghdr(addr, b, mem)?;
    mem.write(addr + MSG_LEN as u64, &b[MSG_LEN..MSG_LEN + 4]).map_err(|_| EFAULT.ret())
}
