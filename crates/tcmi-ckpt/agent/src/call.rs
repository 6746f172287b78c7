//! A forwarded system call: from the frame to the kernel and back.

use crate::broken::Broken;
use crate::descriptors::{hide_polled, names_reserved, reserved, show_polled};
use crate::serve::Shadow;
use crate::sys::{self, syscall};
use crate::window::{CallEnd, forwarded_call};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use linux_raw_sys::errno::{EBADF, ENOMEM};
use linux_raw_sys::general::{
    __NR_close_range, __NR_mmap, __NR_mprotect, __NR_munmap, MAP_ANONYMOUS, MAP_PRIVATE, PROT_NONE,
    PROT_READ, PROT_WRITE,
};
use tcmi_call::frame::{
    CALL_BUFFER_INLINE_BYTES, CALL_BUFFER_MAX_BYTES, CallHeader, FIXUPS_MAX, OUTS_MAX, OutRange,
    ReplyHeader, call_flags, kind, out_rule, reply_flags,
};

const PAGE_BYTES: usize = 4096;

/// The call's buffer: the thread's own, or a mapping for as long as the call.
pub struct Buffer {
    start: *mut u8,
    len: usize,
    /// Of a mapping: its address and length.
    mapped: Option<(u64, u64)>,
}

impl Buffer {
    /// Zeroed from `filled` on, with nothing behind it where `hole` says so. None: no memory.
    fn new(shadow: &Shadow, len: usize, filled: usize, hole: bool) -> Option<Self> {
        if len <= CALL_BUFFER_INLINE_BYTES && !hole {
            // SAFETY: the inline buffer is this thread's, used by one call at a time.
            let start = unsafe { (&raw mut (*shadow.area).buffer.0).cast::<u8>() };
            // SAFETY: `filled <= len <=` the buffer's size.
            unsafe { start.add(filled).write_bytes(0, len - filled) };
            return Some(Self { start, len, mapped: None });
        }
        let there = len.next_multiple_of(PAGE_BYTES);
        let whole = (there + if hole { PAGE_BYTES } else { 0 }) as u64;
        let protection = u64::from(PROT_READ | PROT_WRITE);
        let flags = u64::from(MAP_PRIVATE | MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever there is room.
        let at = unsafe { syscall(__NR_mmap, [0, whole, protection, flags, u64::MAX, 0]) };
        if at <= 0 {
            return None;
        }
        let before = if hole { there - len } else { 0 };
        let buffer =
            Self { start: (at as usize + before) as *mut u8, len, mapped: Some((at as u64, whole)) };
        let behind = [at as u64 + there as u64, PAGE_BYTES as u64, PROT_NONE.into(), 0, 0, 0];
        // SAFETY: the last page of the new mapping.
        let made = !hole || unsafe { syscall(__NR_mprotect, behind) } == 0;
        made.then_some(buffer)
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes of our own; the kernel writes only during the call.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// What lies in it from a pointer on.
    pub fn at(&mut self, pointer: u64) -> Option<&mut [u8]> {
        let off = pointer.checked_sub(self.start as u64)?;
        self.bytes().get_mut(usize::try_from(off).ok()?..)
    }

    fn u32_at(&mut self, off: u32) -> u32 {
        let off = off as usize;
        let b = &self.bytes()[off..off + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((at, len)) = self.mapped {
            // SAFETY: the mapping made in `new`, referred to no more.
            unsafe { syscall(__NR_munmap, [at, len, 0, 0, 0, 0]) };
        }
    }
}

pub fn serve(shadow: &mut Shadow, header: &CallHeader) -> Result<(), Broken> {
    check_sizes(header)?;
    let fixups = header.fixups as usize;
    let outs = header.outs as usize;
    take_tables(shadow, fixups, outs)?;
    let in_len = header.in_len as usize;
    let hole = header.flags & call_flags::HOLE != 0;
    let Some(mut buffer) = Buffer::new(shadow, header.buf_len as usize, in_len, hole) else {
        // SAFETY: the stream's state is this thread's.
        shadow.incoming.skip(unsafe { &mut (*shadow.area).calls }, in_len)?;
        shadow.end_of_frame()?;
        return shadow.reply_without_outs(header.seq, -i64::from(ENOMEM as i32));
    };
    shadow.take(&mut buffer.bytes()[..in_len])?;
    shadow.end_of_frame()?;
    // SAFETY: the tables were filled above and nothing else uses them during the call.
    let (fixups, outs) =
        unsafe { (&(&(*shadow.area).fixups)[..fixups], &(&(*shadow.area).outs)[..outs]) };
    check_outs(outs, header.buf_len)?;
    let args = point_into(&mut buffer, header, fixups)?;
    if names_reserved(shadow, header, &args, &mut buffer) {
        return shadow.reply_without_outs(header.seq, -i64::from(EBADF as i32));
    }
    hide_polled(shadow, header.nr.into(), &args, &mut buffer);
    let end = execute(shadow, header.nr.into(), args);
    show_polled(shadow, header.nr.into(), &args, &mut buffer);
    let flags = outcome_flags(shadow, &end);
    reply(shadow, header.seq, end.ret, flags, outs, &mut buffer)
}

fn check_sizes(header: &CallHeader) -> Result<(), Broken> {
    let tables = usize::from(header.fixups) * 4 + usize::from(header.outs) * OutRange::BYTES;
    let sound = usize::from(header.fixups) <= FIXUPS_MAX
        && usize::from(header.outs) <= OUTS_MAX
        && header.buf_len as usize <= CALL_BUFFER_MAX_BYTES
        && header.in_len <= header.buf_len
        && header.len as usize == tables + header.in_len as usize;
    if sound { Ok(()) } else { Err(Broken::Protocol) }
}

fn take_tables(shadow: &mut Shadow, fixups: usize, outs: usize) -> Result<(), Broken> {
    // SAFETY: integers without padding in this thread's own area, so any bytes are valid;
    // `check_sizes` bounded the counts.
    let (fixups, outs) = unsafe {
        let area = shadow.area;
        (
            core::slice::from_raw_parts_mut((&raw mut (*area).fixups).cast(), fixups * 4),
            core::slice::from_raw_parts_mut((&raw mut (*area).outs).cast(), outs * OutRange::BYTES),
        )
    };
    shadow.take(fixups)?;
    shadow.take(outs)
}

fn check_outs(outs: &[OutRange], buf_len: u32) -> Result<(), Broken> {
    let within = |off: u32, len: u32| u64::from(off) + u64::from(len) <= u64::from(buf_len);
    let sound = |out: &OutRange| {
        within(out.off, out.len)
            && match out.rule {
                out_rule::ALWAYS
                | out_rule::ON_SUCCESS
                | out_rule::BY_RETURN
                | out_rule::ON_SUCCESS_OR_EINTR => true,
                out_rule::BY_LENGTH => within(out.arg, 4),
                _ => false,
            }
    };
    if outs.iter().all(sound) { Ok(()) } else { Err(Broken::Protocol) }
}

/// Makes pointers of the offsets in the buffer and in the arguments, which it returns.
fn point_into(
    buffer: &mut Buffer,
    header: &CallHeader,
    fixups: &[u32],
) -> Result<[u64; 6], Broken> {
    let base = buffer.start as u64;
    let len = u64::from(header.buf_len);
    let pointer = |off: u64| if off <= len { Ok(base + off) } else { Err(Broken::Protocol) };
    for &at in fixups {
        let at = at as usize;
        let place = buffer.bytes().get_mut(at..at + 8).ok_or(Broken::Protocol)?;
        let mut off = [0; 8];
        off.copy_from_slice(place);
        place.copy_from_slice(&pointer(u64::from_le_bytes(off))?.to_le_bytes());
    }
    let mut args = header.args;
    for (i, arg) in args.iter_mut().enumerate() {
        if header.ptr_args & (1 << i) != 0 {
            *arg = pointer(*arg)?;
        }
    }
    Ok(args)
}

fn execute(shadow: &Shadow, nr: u32, args: [u64; 6]) -> CallEnd {
    // SAFETY: the process area outlives its threads.
    unsafe { AtomicU64::from_ptr(&raw mut (*shadow.proc).calls_begun) }
        .fetch_add(1, Ordering::Relaxed);
    // SAFETY: this thread's own word, read by the keeper.
    let in_call = unsafe { AtomicU32::from_ptr(&raw mut (*shadow.area).in_call) };
    in_call.store(1, Ordering::SeqCst);
    refuse_if_poked(shadow);
    let end = if nr == __NR_close_range {
        close_range_around(shadow, args)
    } else {
        // SAFETY: gs base is our area; what the call does is the guest's affair, its pointers
        // lead into the buffer.
        unsafe { forwarded_call(nr.into(), &args) }
    };
    in_call.store(0, Ordering::SeqCst);
    end
}

/// A poke that came before its call was known takes effect now. One that comes from here on
/// finds the call's number and is a signal like others.
fn refuse_if_poked(shadow: &Shadow) {
    // SAFETY: this thread's own words, which its signal handler may change meanwhile.
    unsafe {
        let seq = (&raw const (*shadow.area).seq).read_volatile();
        if seq != 0 && (&raw const (*shadow.area).poked).read_volatile() == seq {
            AtomicU32::from_ptr(&raw mut (*shadow.area).interrupted).store(1, Ordering::Relaxed);
        }
    }
}

/// close_range, sparing the reserved descriptors.
fn close_range_around(shadow: &Shadow, args: [u64; 6]) -> CallEnd {
    let (first, last) = (args[0] as u32, args[1] as u32);
    let (kept_first, kept_last) = {
        let kept = reserved(shadow);
        (*kept.start() as u32, *kept.end() as u32)
    };
    let call = |first: u32, last: u32| {
        // SAFETY: as in `execute`; closes the guest's descriptors only.
        unsafe {
            let args = [first.into(), last.into(), args[2], 0, 0, 0];
            forwarded_call(__NR_close_range.into(), &args)
        }
    };
    if first > last || last < kept_first || first > kept_last {
        return call(first, last);
    }
    let mut end = CallEnd { ret: 0, aborted: 0 };
    if first < kept_first {
        end = call(first, kept_first - 1);
    }
    if end.ret == 0 && last > kept_last {
        end = call(kept_last + 1, last);
    }
    end
}

fn outcome_flags(shadow: &Shadow, end: &CallEnd) -> u16 {
    // SAFETY: this thread's own words; the handler and the keeper write them, the keeper only
    // while this thread is stopped.
    let (interrupted, cancelled) = unsafe {
        (
            AtomicU32::from_ptr(&raw mut (*shadow.area).interrupted),
            AtomicU32::from_ptr(&raw mut (*shadow.area).cancelled),
        )
    };
    let mut flags = 0;
    if end.ret == sys::INTERRUPTED && interrupted.load(Ordering::Relaxed) != 0 {
        flags |= reply_flags::INTERRUPTED;
    }
    if end.aborted != 0 {
        flags |= reply_flags::NOT_STARTED;
    }
    if cancelled.swap(0, Ordering::Relaxed) != 0 {
        flags |= reply_flags::CANCELLED;
    }
    flags
}

fn out_len(out: &OutRange, ret: i64, not_started: bool, buffer: &mut Buffer) -> u32 {
    let whole_if = |yes: bool| if yes { out.len } else { 0 };
    match out.rule {
        // A call that was not made changed nothing.
        _ if not_started => 0,
        out_rule::ALWAYS => out.len,
        out_rule::ON_SUCCESS => whole_if(ret >= 0),
        out_rule::ON_SUCCESS_OR_EINTR => whole_if(ret >= 0 || ret == sys::INTERRUPTED),
        out_rule::BY_RETURN if ret > 0 => {
            (ret as u64).saturating_mul(out.arg.into()).min(out.len.into()) as u32
        }
        out_rule::BY_LENGTH if ret >= 0 => buffer.u32_at(out.arg).min(out.len),
        _ => 0,
    }
}

fn reply(
    shadow: &mut Shadow,
    seq: u64,
    ret: i64,
    flags: u16,
    outs: &[OutRange],
    buffer: &mut Buffer,
) -> Result<(), Broken> {
    let not_started = flags & reply_flags::NOT_STARTED != 0;
    let mut lengths = [0u32; OUTS_MAX];
    for (len, out) in lengths.iter_mut().zip(outs) {
        *len = out_len(out, ret, not_started, buffer);
    }
    let lengths = &lengths[..outs.len()];
    let header = ReplyHeader {
        len: lengths.iter().sum::<u32>() + 4 * outs.len() as u32,
        kind: kind::REPLY,
        flags,
        seq,
        ret,
        signals: shadow.signals_sent(),
        outs: outs.len() as u16,
        pad: 0,
    };
    let mut out = shadow.outgoing();
    out.put(header.as_bytes())?;
    for len in lengths {
        out.put(&len.to_le_bytes())?;
    }
    for (range, &len) in outs.iter().zip(lengths) {
        let at = range.off as usize;
        out.put(&buffer.bytes()[at..at + len as usize])?;
    }
    out.finish()
}
