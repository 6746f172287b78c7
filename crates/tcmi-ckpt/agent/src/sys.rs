//! Raw system calls.

use core::arch::asm;
use linux_raw_sys::errno::EINTR;
use linux_raw_sys::general as nr;

/// -EINTR, as a call returns it.
pub const INTERRUPTED: i64 = -(EINTR as i64);

/// # Safety
/// The caller answers for what the kernel does with the arguments.
#[inline(always)]
pub unsafe fn syscall(nr: u32, args: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the instruction clobbers rcx and r11 only; what the call itself does to memory
    // is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") u64::from(nr) => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

const POLLIN: i16 = 1;
const POLLOUT: i16 = 4;
const MSG_NOSIGNAL: u64 = 0x4000;
const EAGAIN: i64 = -(linux_raw_sys::errno::EAGAIN as i64);

#[repr(C)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

impl PollFd {
    pub fn readable(fd: i32) -> Self {
        Self { fd, events: POLLIN, revents: 0 }
    }
}

/// A wait that ends in EINTR is no error: the transfer is tried again.
fn wait_ready(fd: i32, events: i16) {
    let mut poll = PollFd { fd, events, revents: 0 };
    // SAFETY: one pollfd, alive over the call.
    unsafe { syscall(nr::__NR_poll, [(&raw mut poll) as u64, 1, u64::MAX, 0, 0, 0]) };
}

pub fn would_block(ret: i64) -> bool {
    ret == EAGAIN
}

/// Reads what is there, waiting for the first byte; 0 at the end, negative errno.
pub fn read(fd: i32, room: &mut [u8]) -> i64 {
    loop {
        let args = [fd as u64, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0];
        // SAFETY: the kernel writes into `room` only.
        match unsafe { syscall(nr::__NR_read, args) } {
            INTERRUPTED => {}
            EAGAIN => wait_ready(fd, POLLIN),
            ret => return ret,
        }
    }
}

/// Sends all of it on a socket, without SIGPIPE. Err: negative errno.
pub fn send_all(fd: i32, mut bytes: &[u8]) -> Result<(), i64> {
    while !bytes.is_empty() {
        let args = [fd as u64, bytes.as_ptr() as u64, bytes.len() as u64, MSG_NOSIGNAL, 0, 0];
        // SAFETY: the kernel reads from `bytes` only.
        match unsafe { syscall(nr::__NR_sendto, args) } {
            INTERRUPTED => {}
            EAGAIN => wait_ready(fd, POLLOUT),
            sent if sent > 0 => bytes = &bytes[sent as usize..],
            error => return Err(error),
        }
    }
    Ok(())
}
