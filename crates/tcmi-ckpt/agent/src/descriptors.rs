//! tcmi's own descriptors in the process, which no forwarded call may name: not as an argument,
//! and not in what its arguments point to.

use crate::call::Buffer;
use crate::serve::Shadow;
use core::ops::RangeInclusive;
use linux_raw_sys::general::{__NR_poll, __NR_ppoll, __NR_sendmmsg, __NR_sendmsg};
use tcmi_call::frame::CallHeader;

const POLLFD_BYTES: usize = 8;
/// With this bit a descriptor is beyond every table: POLLNVAL.
const ABSENT: i32 = 1 << 30;
const MMSGHDR_BYTES: usize = 64;
/// Of `struct msghdr`.
const CONTROL: usize = 32;
const CONTROL_LEN: usize = 40;
const CMSGHDR_BYTES: usize = 16;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;

pub fn reserved(shadow: &Shadow) -> RangeInclusive<i32> {
    // SAFETY: written before the first shadow thread runs and never after.
    unsafe { (*shadow.proc).reserved_first..=(*shadow.proc).reserved_last }
}

pub fn names_reserved(
    shadow: &Shadow,
    header: &CallHeader,
    args: &[u64; 6],
    buffer: &mut Buffer,
) -> bool {
    let reserved = reserved(shadow);
    let is_argument =
        |i: usize| header.fd_args & (1 << i) != 0 && reserved.contains(&(args[i] as i32));
    (0..6).any(is_argument)
        || match u32::from(header.nr) {
            __NR_sendmsg => sends_reserved(&reserved, args[1], buffer),
            __NR_sendmmsg => (0..buffer.bytes().len().div_ceil(MMSGHDR_BYTES))
                .take_while(|&k| (k as u64) < args[2])
                .any(|k| {
                    sends_reserved(
                        &reserved,
                        args[1].wrapping_add((k * MMSGHDR_BYTES) as u64),
                        buffer,
                    )
                }),
            _ => false,
        }
}

/// Whether SCM_RIGHTS of the message at `msghdr` hold one of them. What is not in the buffer,
/// the kernel finds bad.
fn sends_reserved(reserved: &RangeInclusive<i32>, msghdr: u64, buffer: &mut Buffer) -> bool {
    let Some(b) = buffer.at(msghdr) else { return false };
    let (Some(control), Some(len)) = (u64_at(b, CONTROL), u64_at(b, CONTROL_LEN)) else {
        return false;
    };
    let Some(b) = buffer.at(control) else { return false };
    let mut rest = &b[..b.len().min(len as usize)];
    while let (Some(len), Some(level), Some(kind)) =
        (u64_at(rest, 0), u32_at(rest, 8), u32_at(rest, 12))
    {
        let len = len as usize;
        if len < CMSGHDR_BYTES {
            return false;
        }
        let data = &rest[CMSGHDR_BYTES..rest.len().min(len)];
        let mut fds = data.chunks_exact(4).filter_map(|fd| u32_at(fd, 0));
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) && fds.any(|f| reserved.contains(&(f as i32)))
        {
            return true;
        }
        // Behind the last one there is nothing more to look at.
        let next = len.checked_next_multiple_of(8).and_then(|next| rest.get(next..));
        let Some(next) = next else { return false };
        rest = next;
    }
    false
}

/// Before a `poll`: they are open to the kernel and are to be seen as closed.
pub fn hide_polled(shadow: &Shadow, nr: u32, args: &[u64; 6], buffer: &mut Buffer) {
    let reserved = reserved(shadow);
    each_polled(nr, args, buffer, |fd| if reserved.contains(&fd) { fd ^ ABSENT } else { fd });
}

/// After it: the array that goes back names what it named.
pub fn show_polled(shadow: &Shadow, nr: u32, args: &[u64; 6], buffer: &mut Buffer) {
    let reserved = reserved(shadow);
    each_polled(
        nr,
        args,
        buffer,
        |fd| {
            if reserved.contains(&(fd ^ ABSENT)) { fd ^ ABSENT } else { fd }
        },
    );
}

fn each_polled(nr: u32, args: &[u64; 6], buffer: &mut Buffer, change: impl Fn(i32) -> i32) {
    if nr != __NR_poll && nr != __NR_ppoll {
        return;
    }
    let Some(b) = buffer.at(args[0]) else { return };
    for entry in b.chunks_exact_mut(POLLFD_BYTES).take(args[1] as usize) {
        if let Some(fd) = u32_at(entry, 0) {
            entry[..4].copy_from_slice(&change(fd as i32).to_le_bytes());
        }
    }
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..)?.first_chunk().map(|w| u32::from_le_bytes(*w))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    b.get(at..)?.first_chunk().map(|w| u64::from_le_bytes(*w))
}
