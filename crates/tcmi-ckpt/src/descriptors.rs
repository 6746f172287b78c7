//! Descriptors of ours become a held process's.

use crate::birth::take_descriptor;
use crate::error::{Error, Result};
use crate::rebuild::Batcher;
use crate::remote::{Results, bytes_of};
use std::os::fd::{AsRawFd, OwnedFd};
use tcmi_sys::Errno;

/// In one SCM_RIGHTS message; the kernel takes 253.
pub const PASSED_AT_ONCE: usize = 250;
const HEADER_BYTES: usize = 16;

/// A process's limit of open files, and one beyond it for the time of one batch: numbers there are
/// never given to the process itself.
#[derive(Clone, Copy, Debug)]
pub struct Beyond {
    pub soft: u64,
    pub hard: u64,
    /// Numbers below this can be given. At most `hard`.
    pub end: u64,
}

impl Beyond {
    /// Has the process make the calls that `push` adds, all of which may fail.
    pub fn calls(
        self,
        b: &mut Batcher,
        push: impl FnOnce(&mut Batcher) -> Result<()>,
    ) -> Result<Results> {
        b.flush()?;
        self.set(b, self.end)?;
        push(b)?;
        self.set(b, self.soft)?;
        b.flush()
    }
    fn set(self, b: &mut Batcher, soft: u64) -> Result<()> {
        let limit = b.data(bytes_of(&[soft, self.hard]))?;
        let args = [0, libc::RLIMIT_NOFILE as u64, limit, 0, 0, 0];
        b.attempt("prlimit", libc::SYS_prlimit64, args).map(drop)
    }
}

/// `struct msghdr` and the `iovec` it needs.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_len: u64,
    control: u64,
    control_len: u64,
    flags: u64,
}

/// A socket pair of a held process; we have its first end, too.
#[derive(Debug)]
pub struct Way {
    socket: OwnedFd,
    ends: [i32; 2],
}

impl Way {
    /// Makes `pass` use of one, and closes it.
    pub fn with<T, E: From<Error>>(
        b: &mut Batcher,
        pass: impl FnOnce(&mut Batcher, &Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let way = Self::open(b)?;
        let passed = pass(b, &way);
        close(b, &way.ends)?;
        b.flush()?;
        passed
    }
    fn open(b: &mut Batcher) -> Result<Self> {
        let pair = b.calls.room(8);
        let pair_at = b.agent.address(pair);
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        b.push("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, pair_at, 0, 0])?;
        let word = b.flush()?.u64_at(pair, 0);
        let ends = [word as u32 as i32, (word >> 32) as i32];
        match take_descriptor(b.pid, ends[0]) {
            Ok(socket) => Ok(Self { socket, ends }),
            Err(e) => {
                close(b, &ends)?;
                b.flush()?;
                Err(e)
            }
        }
    }
    /// At most [`PASSED_AT_ONCE`]; the numbers that they get in the process.
    pub fn pass(&self, b: &mut Batcher, fds: &[impl AsRawFd]) -> Result<Vec<i32>> {
        send(&self.socket, fds)?;
        receive(b, self.ends[1], fds.len())
    }
    /// Its number in the process, while it is open.
    pub fn end(&self) -> i32 {
        self.ends[0]
    }
}

fn close(b: &mut Batcher, fds: &[i32]) -> Result<()> {
    for &fd in fds {
        b.push("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

pub fn send(socket: &impl AsRawFd, fds: &[impl AsRawFd]) -> Result<()> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let bytes = std::mem::size_of_val(raw.as_slice());
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, len) =
        unsafe { (libc::CMSG_SPACE(bytes as u32) as usize, libc::CMSG_LEN(bytes as u32) as usize) };
    let mut control = vec![0u64; space.div_ceil(8)];
    // SAFETY: all-zero is a valid msghdr.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = space;
    // SAFETY: the control buffer has room for one header and `bytes` of data.
    unsafe {
        let c = libc::CMSG_FIRSTHDR(&m);
        (*c).cmsg_level = libc::SOL_SOCKET;
        (*c).cmsg_type = libc::SCM_RIGHTS;
        (*c).cmsg_len = len;
        std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(c), bytes);
        if libc::sendmsg(socket.as_raw_fd(), &m, 0) < 0 {
            return Err(Errno::last("sendmsg descriptors").into());
        }
    }
    Ok(())
}

/// recvmsg made in the process; the numbers that its `n` descriptors got.
pub fn receive(b: &mut Batcher, theirs: i32, n: usize) -> Result<Vec<i32>> {
    let control_len = HEADER_BYTES + (n * 4).next_multiple_of(8);
    let byte = b.data(&[0; 8])?;
    let iov = b.data(bytes_of(&[byte, 1u64]))?;
    let control = b.calls.room(control_len);
    let control_at = b.agent.address(control);
    let m = Message {
        name: 0,
        name_len: 0,
        iov,
        iov_len: 1,
        control: control_at,
        control_len: control_len as u64,
        flags: 0,
    };
    let at = b.data(bytes_of(&m))?;
    let flags = libc::MSG_CMSG_CLOEXEC as u64;
    b.push("recvmsg", libc::SYS_recvmsg, [theirs as u64, at, flags, 0, 0, 0])?;
    let r = b.flush()?;
    let got = &r.bytes(control)[HEADER_BYTES..];
    let fds: Vec<i32> =
        got.as_chunks::<4>().0.iter().take(n).map(|w| i32::from_le_bytes(*w)).collect();
    match r.u64_at(control, 0) as usize {
        len if len == HEADER_BYTES + n * 4 => Ok(fds),
        _ => Err(Error::unsupported("it has too many open files")),
    }
}
