//! Copies the arguments of a call by the table: guest memory to a frame, and a
//! reply back to guest memory.
//!
//! Errors of pointers are left to home's kernel wherever it would have an opinion of
//! its own first (`write(-1, bad, 1)` is EBADF): a pointer that cannot be read goes
//! out as [`BAD_POINTER`], which faults there at the same place. What is there in part stands
//! at the end of home's buffer, with nothing behind it: home's kernel meets the same hole, and
//! decides itself whether that makes the call short, or fails it, or does not matter.

mod arguments;
mod message;
pub mod own;

use alloc::vec::Vec;

use crate::frame::{
    CALL_BUFFER_MAX_BYTES, CallHeader, OutRange, ReplyHeader, call_flags, kind, out_rule,
};
use crate::table::errno::{EFAULT, ENAMETOOLONG, ENOSYS, Errno};
use crate::table::{self, Arg, Class, LocalIf, Row, When};

/// Bytes of a path with its NUL.
pub const PATH_MAX_BYTES: usize = 4096;
/// In a page that no process has (`mmap_min_addr`). A user address, so that it fails where it is
/// used, not where addresses are checked.
pub const BAD_POINTER: u64 = 16;
/// Of one buffer: a call's others (names, addresses, ancillary data) find room beside it.
const DATA_MAX_BYTES: usize = CALL_BUFFER_MAX_BYTES - 256 * 1024;
const USER_END: u64 = 1 << 47;
const PAGE_BYTES: u64 = 4096;
/// A call's buffers above this are given back after it.
const KEPT_BYTES: usize = 1024 * 1024;

/// An access stopped at a page that is not there or does not allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Bytes before it that were copied.
    pub copied: usize,
}

pub trait GuestMemory {
    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), Fault>;
    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), Fault>;
    /// Of `len` bytes at `addr`, how many a write would reach, as far as can be known before.
    fn writable(&mut self, addr: u64, len: usize) -> usize;

    /// Appends the string at `addr` with its NUL.
    ///
    /// ENAMETOOLONG if it has none in [`PATH_MAX_BYTES`], EFAULT if a page ends it before.
    /// On error `into` is as it was.
    fn read_string(&mut self, addr: u64, into: &mut Vec<u8>) -> Result<(), Errno> {
        let start = into.len();
        let outcome = append_string(self, addr, into);
        if outcome.is_err() {
            into.truncate(start);
        }
        outcome
    }
}

/// Never asks for a byte of the page after the one that holds the NUL.
fn append_string<M: GuestMemory + ?Sized>(
    mem: &mut M,
    addr: u64,
    into: &mut Vec<u8>,
) -> Result<(), Errno> {
    let start = into.len();
    let mut chunk = 256;
    loop {
        let have = into.len() - start;
        let at = addr.checked_add(have as u64).ok_or(EFAULT)?;
        let page_rest = (PAGE_BYTES - at % PAGE_BYTES) as usize;
        let n = page_rest.min(chunk).min(PATH_MAX_BYTES - have);
        if n == 0 {
            return Err(ENAMETOOLONG);
        }
        into.resize(start + have + n, 0);
        mem.read(at, &mut into[start + have..]).map_err(|_| EFAULT)?;
        if let Some(nul) = into[start + have..].iter().position(|&b| b == 0) {
            into.truncate(start + have + nul + 1);
            return Ok(());
        }
        chunk = PAGE_BYTES as usize;
    }
}

/// A reply that does not fit its call: the stream is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply;

/// Where a returned range goes. Stands beside the [`OutRange`] of the same index.
#[derive(Clone, Copy, Debug)]
struct Place {
    addr: u64,
    content: Content,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Buffer(When),
    /// A `socklen_t`, and whether it was made smaller on its way.
    Length {
        clamped: bool,
    },
    /// Ancillary data: of each message what it says to be long.
    Control,
    /// Over the segments kept in [`Call::segments`].
    Segments,
    /// Of a `struct msghdr` only the lengths and flags: its pointers are home's.
    Msghdr,
    Mmsghdr,
}

/// Where a pointer into the image stands.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Arg(usize),
    /// Eight bytes at this image offset.
    Image(usize),
}

/// Memory that home only writes: after all that is sent, so that it need not be sent.
#[derive(Clone, Copy, Debug)]
struct OutArea {
    slot: Slot,
    len: usize,
    /// Index in `outs`.
    out: usize,
}

/// What the guest has only the beginning of. There is one at most, as there is one end.
#[derive(Clone, Copy, Debug)]
enum Ragged {
    /// Sent, and returned as this of `outs`.
    In(Slot, Option<usize>),
    /// Of `areas`.
    Out(usize),
}

/// Bytes of a buffer, and the length argument that has to become smaller for them.
#[derive(Clone, Copy, Debug)]
struct Extent {
    len: usize,
    clamped: Option<(usize, u64)>,
}

/// One forwarded call from marshalling to its result. Keep it: its buffers are reused.
#[derive(Debug, Default)]
pub struct Call {
    header: CallHeader,
    head: Vec<u8>,
    image: Vec<u8>,
    fixups: Vec<u32>,
    outs: Vec<OutRange>,
    places: Vec<Place>,
    areas: Vec<OutArea>,
    ragged: Option<Ragged>,
    /// The bytes of [`Ragged::In`].
    tail: Vec<u8>,
    segments: Vec<(u64, u64)>,
    /// Nanoseconds by which timeouts are shortened.
    elapsed_ns: u64,
}

impl Call {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the frame of a call.
    ///
    /// `elapsed_ns` shortens relative timeouts: how long the same call has been waiting
    /// already. Err: the guest gets this errno, nothing is to be sent.
    pub fn marshal<M: GuestMemory>(
        &mut self,
        nr: u32,
        args: &[u64; 6],
        seq: u64,
        elapsed_ns: u64,
        mem: &mut M,
    ) -> Result<(), Errno> {
        let row = table::row(nr).ok_or(ENOSYS)?;
        if let Class::Refused(errno) = row.class {
            return Err(errno);
        }
        self.reset(kind::CALL, nr as u16, seq);
        let absolute = row.local_if == LocalIf::AbsoluteTime && args[1] & 1 != 0;
        self.elapsed_ns = if absolute { 0 } else { elapsed_ns };
        self.copy_arguments(row, args, mem)?;
        self.finish();
        Ok(())
    }

    /// Makes a frame without buffers: the exits, a disposition.
    pub fn notice(&mut self, kind: u16, seq: u64, args: &[u64]) {
        self.reset(kind, 0, seq);
        self.header.args[..args.len()].copy_from_slice(args);
        self.finish();
    }

    /// The frame, in two pieces: header with tables, then the image.
    pub fn frame(&self) -> [&[u8]; 2] {
        [&self.head, &self.image]
    }

    pub fn header(&self) -> &CallHeader {
        &self.header
    }

    /// Writes what came back into the guest; returns what the call returns there.
    ///
    /// `payload` is what follows the reply's header.
    pub fn unmarshal<M: GuestMemory>(
        &mut self,
        reply: &ReplyHeader,
        payload: &[u8],
        mem: &mut M,
    ) -> Result<i64, BadReply> {
        let count = self.outs.len();
        if reply.kind != kind::REPLY || reply.seq != self.header.seq || reply.ret < -4095 {
            return Err(BadReply);
        }
        // A call that was not made: it named one of our descriptors, or there was no memory.
        if reply.ret < 0 && reply.outs == 0 && payload.is_empty() {
            return Ok(reply.ret);
        }
        if usize::from(reply.outs) != count {
            return Err(BadReply);
        }
        let (lens, mut bytes) = payload.split_at_checked(4 * count).ok_or(BadReply)?;
        let mut ret = reply.ret;
        for (i, len) in lens.chunks_exact(4).enumerate() {
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
            if len > self.outs[i].len {
                return Err(BadReply);
            }
            let (range, rest) = bytes.split_at_checked(len as usize).ok_or(BadReply)?;
            bytes = rest;
            if let Err(changed) = self.put(i, range, reply.ret, mem) {
                ret = changed;
            }
        }
        if bytes.is_empty() { Ok(ret) } else { Err(BadReply) }
    }

    /// Err: what the call returns instead, since the guest's memory did not take the range.
    fn put<M: GuestMemory>(
        &self,
        i: usize,
        range: &[u8],
        ret: i64,
        mem: &mut M,
    ) -> Result<(), i64> {
        let place = self.places[i];
        let range = match place.content {
            Content::Buffer(When::Changed) => &range[..self.changed(i, range)],
            Content::Buffer(when) => &range[..taken(when, range.len(), ret)],
            // A call that failed may have had a look at it and no more.
            Content::Length { clamped } if ret < 0 || !clamped => &range[..self.changed(i, range)],
            _ => range,
        };
        if range.is_empty() {
            return Ok(());
        }
        let outcome = match place.content {
            // The rest of a timeout may stand in read-only memory; kernels do not mind.
            Content::Buffer(When::SuccessOrInterrupted) => {
                return mem.write(place.addr, range).or(Ok(()));
            }
            Content::Buffer(When::Changed) => {
                return mem.write(place.addr, range).map_err(|_| EFAULT.ret());
            }
            Content::Buffer(_) | Content::Length { .. } => {
                mem.write(place.addr, range).map_err(|_| EFAULT.ret())
            }
            Content::Control => message::put_control(place.addr, range, mem),
            Content::Segments => self.put_segments(range, mem),
            Content::Msghdr => message::put_msghdr(place.addr, range, mem),
            Content::Mmsghdr => message::put_mmsghdr(place.addr, range, ret, mem),
        };
        // A call that failed has its own errno.
        if ret < 0 { Ok(()) } else { outcome }
    }

    /// How many bytes of a range that was sent, up to the last that is another now.
    fn changed(&self, i: usize, range: &[u8]) -> usize {
        let sent = &self.image[self.outs[i].off as usize..];
        let last = range.iter().zip(sent).rposition(|(now, sent)| now != sent);
        last.map_or(0, |at| at + 1)
    }

    fn reset(&mut self, kind: u16, nr: u16, seq: u64) {
        self.header = CallHeader { kind, nr, seq, ..CallHeader::default() };
        self.image.clear();
        self.image.shrink_to(KEPT_BYTES);
        self.fixups.clear();
        self.outs.clear();
        self.places.clear();
        self.areas.clear();
        self.ragged = None;
        self.tail.clear();
        self.tail.shrink_to(KEPT_BYTES);
        self.segments.clear();
        self.elapsed_ns = 0;
    }

    fn copy_arguments<M: GuestMemory>(
        &mut self,
        row: &Row,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<(), Errno> {
        for (i, &arg) in row.args.iter().enumerate() {
            if arg == Arg::Value {
                self.header.args[i] = args[i];
            }
        }
        // Scalars first: a buffer's kind may clamp the length that stands in another argument.
        for (i, &arg) in row.args.iter().enumerate() {
            if !matches!(arg, Arg::Value | Arg::Unused) {
                self.copy_argument(i, arg, args, mem)?;
            }
        }
        Ok(())
    }

    /// Gives the areas that are not sent their offsets and writes the header's bytes.
    fn finish(&mut self) {
        let mut end = self.image.len();
        let ragged = match self.ragged {
            Some(Ragged::Out(k)) => Some(k),
            _ => None,
        };
        let others = (0..self.areas.len()).filter(|k| Some(*k) != ragged);
        for k in others.chain(ragged) {
            let OutArea { slot, len, out } = self.areas[k];
            end = end.next_multiple_of(8);
            self.outs[out].off = end as u32;
            self.point(slot, end);
            end += len;
        }
        if let Some(Ragged::In(slot, out)) = self.ragged {
            let at = end.next_multiple_of(8);
            self.image.resize(at, 0);
            self.image.extend_from_slice(&self.tail);
            self.point(slot, at);
            if let Some(out) = out {
                self.outs[out].off = at as u32;
            }
            end = self.image.len();
        }
        if self.ragged.is_some() {
            self.header.flags |= call_flags::HOLE;
        }
        let in_len = self.image.len();
        let tables = 4 * self.fixups.len() + OutRange::BYTES * self.outs.len();
        self.header.fixups = self.fixups.len() as u16;
        self.header.outs = self.outs.len() as u16;
        self.header.buf_len = end as u32;
        self.header.in_len = in_len as u32;
        self.header.len = (tables + in_len) as u32;
        self.head.clear();
        self.head.extend_from_slice(self.header.as_bytes());
        for fixup in &self.fixups {
            self.head.extend_from_slice(&fixup.to_le_bytes());
        }
        for out in &self.outs {
            self.head.extend_from_slice(out.as_bytes());
        }
    }

    fn point(&mut self, slot: Slot, offset: usize) {
        match slot {
            Slot::Arg(i) => {
                self.header.args[i] = offset as u64;
                self.header.ptr_args |= 1 << i;
            }
            Slot::Image(at) => {
                self.image[at..at + 8].copy_from_slice(&(offset as u64).to_le_bytes());
                self.fixups.push(at as u32);
            }
        }
    }

    /// Puts a pointer that means the same at home: NULL, or a bad one.
    fn point_raw(&mut self, slot: Slot, pointer: u64) {
        match slot {
            Slot::Arg(i) => self.header.args[i] = pointer,
            Slot::Image(at) => self.image[at..at + 8].copy_from_slice(&pointer.to_le_bytes()),
        }
    }

    /// Offset for the next thing in the image.
    fn align(&mut self) -> usize {
        let at = self.image.len().next_multiple_of(8);
        self.image.resize(at, 0);
        at
    }

    /// Appends guest memory to the image, as far as it is there.
    fn append<M: GuestMemory>(
        &mut self,
        addr: u64,
        len: usize,
        mem: &mut M,
    ) -> Result<usize, Fault> {
        let at = self.align();
        self.image.resize(at + len, 0);
        if len > 0
            && let Err(fault) = mem.read(addr, &mut self.image[at..])
        {
            self.image.truncate(at + fault.copied);
            return Err(fault);
        }
        Ok(at)
    }

    /// A range that is also sent, at image offset `at`.
    fn returns(&mut self, at: usize, len: usize, rule: (u32, u32), place: Place) {
        self.outs.push(OutRange { off: at as u32, len: len as u32, rule: rule.0, arg: rule.1 });
        self.places.push(place);
    }

    /// A range that home only writes, of which `there` bytes can be written here: what cannot
    /// must fail there, before what it was to hold is consumed.
    fn receives(
        &mut self,
        slot: Slot,
        extent: Extent,
        there: usize,
        rule: (u32, u32),
        place: Place,
    ) {
        let whole = there >= extent.len;
        if !whole && (there == 0 || self.ragged.is_some()) {
            return self.point_raw(slot, BAD_POINTER);
        }
        self.clamp(extent);
        if !whole {
            self.ragged = Some(Ragged::Out(self.areas.len()));
        }
        let len = there.min(extent.len);
        self.areas.push(OutArea { slot, len, out: self.outs.len() });
        self.returns(0, len, rule, place);
    }

    fn clamp(&mut self, extent: Extent) {
        if let Some((i, len)) = extent.clamped {
            self.header.args[i] = len;
        }
    }

    /// The beginning of what is sent, all that the guest has of it; returned to `back`.
    fn sends_part(
        &mut self,
        slot: Slot,
        extent: Extent,
        part: Vec<u8>,
        back: Option<(When, Place)>,
    ) {
        if part.is_empty() || self.ragged.is_some() {
            return self.point_raw(slot, BAD_POINTER);
        }
        self.clamp(extent);
        let out = back.map(|(when, place)| {
            self.returns(0, part.len(), wire_rule(when), place);
            self.outs.len() - 1
        });
        self.ragged = Some(Ragged::In(slot, out));
        self.tail = part;
    }
}

fn wire_rule(when: When) -> (u32, u32) {
    match when {
        When::Always | When::Changed => (out_rule::ALWAYS, 0),
        When::Success | When::Positive | When::ReturnPlus(_) => (out_rule::ON_SUCCESS, 0),
        When::Return(unit) => (out_rule::BY_RETURN, unit),
        When::Interrupted | When::SuccessOrInterrupted => (out_rule::ON_SUCCESS_OR_EINTR, 0),
    }
}

/// How much of a returned range the guest sees.
fn taken(when: When, len: usize, ret: i64) -> usize {
    let all_if = |seen: bool| if seen { len } else { 0 };
    match when {
        When::Always | When::Changed => len,
        When::Success => all_if(ret >= 0),
        When::Positive => all_if(ret > 0),
        When::Interrupted => all_if(ret == table::errno::EINTR.ret()),
        When::SuccessOrInterrupted => all_if(ret >= 0 || ret == table::errno::EINTR.ret()),
        When::Return(unit) => {
            len.min(usize::try_from(ret).unwrap_or(0).saturating_mul(unit as usize))
        }
        When::ReturnPlus(more) if ret >= 0 => len.min((ret as usize).saturating_add(more as usize)),
        When::ReturnPlus(_) => 0,
    }
}

fn short_or_fault(fault: Fault) -> i64 {
    match fault.copied {
        0 => EFAULT.ret(),
        n => n as i64,
    }
}

/// Memory that is a slice, seen at addresses from `base`: for calls that the monitor
/// makes on its own account, and for tests.
#[derive(Debug)]
pub struct SliceMemory<'a> {
    pub base: u64,
    pub bytes: &'a mut [u8],
}

impl SliceMemory<'_> {
    /// The memory from `addr` on, at most `len` bytes of it.
    fn at(&mut self, addr: u64, len: usize) -> &mut [u8] {
        let size = self.bytes.len();
        let start = addr.checked_sub(self.base).map_or(size, |start| size.min(start as usize));
        &mut self.bytes[start..size.min(start.saturating_add(len))]
    }
}

impl GuestMemory for SliceMemory<'_> {
    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), Fault> {
        let here = self.at(addr, into.len());
        let copied = here.len();
        into[..copied].copy_from_slice(here);
        if copied < into.len() { Err(Fault { copied }) } else { Ok(()) }
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), Fault> {
        let here = self.at(addr, from.len());
        let copied = here.len();
        here.copy_from_slice(&from[..copied]);
        if copied < from.len() { Err(Fault { copied }) } else { Ok(()) }
    }

    fn writable(&mut self, addr: u64, len: usize) -> usize {
        self.at(addr, len).len()
    }
}
