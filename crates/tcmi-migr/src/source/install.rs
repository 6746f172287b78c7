//! The guest's streams become descriptors of the shadow.

use crate::error::{Error, Result};
use crate::source::Attached;
use std::os::fd::{AsRawFd, OwnedFd};
use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::birth::take_descriptor;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::rebuild::Batcher;
use tcmi_ckpt::remote::{Agent, Ids, bytes_of};
use tcmi_kkc::Stream;

/// Descriptors in one SCM_RIGHTS message; the kernel takes 253.
const PASSED_AT_ONCE: usize = 250;
/// Where the reserved descriptors are put, below the process's own limit: high enough to be out
/// of the way, low enough to keep its descriptor table small.
const HIGHEST: u64 = 4096;

/// A stream as it stands in the shadow.
pub struct InstalledStream {
    pub id: u64,
    pub fd: i32,
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
}

/// All streams of one guest in its shadow.
pub struct Installed {
    pub events: InstalledStream,
    pub calls: Vec<InstalledStream>,
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

fn batcher<'a>(f: &'a mut Frozen, agent: &'a Agent) -> Batcher<'a> {
    let pid = f.pid;
    Batcher::new(agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid })
}

impl Installed {
    /// Hands the sockets of `streams` (events first) to a held process.
    ///
    /// Err: some may be left open there.
    pub fn install(f: &mut Frozen, a: &Attached, streams: Vec<Stream>) -> Result<Self> {
        let mut sockets: Vec<OwnedFd> = Vec::with_capacity(streams.len());
        let mut keys = Vec::with_capacity(streams.len());
        for s in streams {
            let id = s.id;
            let (fd, tx, rx) = s.into_parts();
            sockets.push(fd);
            keys.push((id, tx, rx));
        }
        let fds = pass(f, &a.agent, &sockets)?;
        let mut all =
            fds.into_iter().zip(keys).map(|(fd, (id, tx, rx))| InstalledStream { id, fd, tx, rx });
        let events = all.next().ok_or(Error::Unsteady("no streams"))?;
        Ok(Self { events, calls: all.collect() })
    }

    pub fn range(&self) -> (i32, i32) {
        let all = || self.calls.iter().map(|c| c.fd).chain([self.events.fd]);
        let (first, last) = (all().min(), all().max());
        (first.unwrap_or(self.events.fd), last.unwrap_or(self.events.fd))
    }

    pub fn close(&self, f: &mut Frozen, agent: &Agent) -> Result<()> {
        let mut b = batcher(f, agent);
        for fd in self.calls.iter().map(|c| c.fd).chain([self.events.fd]) {
            // One that the agent closed itself, on a broken stream, is no loss.
            b.attempt("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
        }
        b.flush()?;
        Ok(())
    }
}

/// Copies descriptors into the process, to a contiguous range; returns their numbers there.
fn pass(f: &mut Frozen, agent: &Agent, sockets: &[OwnedFd]) -> Result<Vec<i32>> {
    let pid = f.pid;
    let mut b = batcher(f, agent);
    let pair = b.calls.room(8);
    let pair_at = agent.address(pair);
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    b.push("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, pair_at, 0, 0])?;
    let word = b.flush()?.u64_at(pair, 0);
    let (ours, theirs) = (word as u32 as i32, (word >> 32) as i32);
    let moved = take_descriptor(pid, ours)
        .map_err(Error::from)
        .and_then(|socket| move_all(f, agent, &socket, theirs, sockets));
    let mut b = batcher(f, agent);
    b.push("close", libc::SYS_close, [ours as u64, 0, 0, 0, 0, 0])?;
    b.push("close", libc::SYS_close, [theirs as u64, 0, 0, 0, 0, 0])?;
    b.flush()?;
    moved
}

fn move_all(
    f: &mut Frozen,
    agent: &Agent,
    socket: &OwnedFd,
    theirs: i32,
    sockets: &[OwnedFd],
) -> Result<Vec<i32>> {
    let mut base = reserved_base(f.pid, sockets.len())?;
    let mut all = Vec::with_capacity(sockets.len());
    for chunk in sockets.chunks(PASSED_AT_ONCE) {
        send_descriptors(socket, chunk)?;
        let low = receive_descriptors(f, agent, theirs, chunk.len(), f.pid)?;
        let mut b = batcher(f, agent);
        let mut dups = Vec::new();
        for &fd in &low {
            let args = [fd as u64, libc::F_DUPFD_CLOEXEC as u64, base, 0, 0, 0];
            dups.push(b.push("fcntl dup", libc::SYS_fcntl, args)?);
            b.push("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
        }
        let r = b.flush()?;
        all.extend(dups.iter().map(|&op| r.ret(op) as i32));
        base = all.last().map_or(base, |&fd| fd as u64 + 1);
    }
    if all.windows(2).any(|w| w[1] != w[0] + 1) {
        return Err(tcmi_ckpt::Error::unsupported("its highest descriptors are in use").into());
    }
    Ok(all)
}

fn reserved_base(pid: i32, n: usize) -> Result<u64> {
    let limits = tcmi_sys::proc::limits(pid)?;
    let soft = limits.get(libc::RLIMIT_NOFILE as usize).map_or(0, |&(soft, _)| soft);
    let top = soft.min(HIGHEST.max(n as u64 * 2));
    top.checked_sub(n as u64 + 1)
        .ok_or_else(|| tcmi_ckpt::Error::unsupported("its limit of open files is too low").into())
}

pub(crate) fn send_descriptors(socket: &impl AsRawFd, fds: &[impl AsRawFd]) -> Result<()> {
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
            return Err(tcmi_sys::Errno::last("sendmsg descriptors").into());
        }
    }
    Ok(())
}

/// recvmsg made in the process, which knows itself as `own_pid`; the numbers that its
/// descriptors got.
pub(crate) fn receive_descriptors(
    f: &mut Frozen,
    agent: &Agent,
    theirs: i32,
    n: usize,
    own_pid: i32,
) -> Result<Vec<i32>> {
    const HEADER: usize = 16;
    let control_len = HEADER + (n * 4).next_multiple_of(8);
    let host = f.pid;
    let ids = Ids { tgid: own_pid, tid: own_pid };
    let mut b = Batcher::new(agent, f.leader_mut(), host, ids);
    let byte = b.data(&[0; 8])?;
    let iov = b.data(bytes_of(&[byte, 1u64]))?;
    let control = b.calls.room(control_len);
    let control_at = agent.address(control);
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
    let got = &r.bytes(control)[HEADER..];
    let fds: Vec<i32> =
        got.as_chunks::<4>().0.iter().take(n).map(|w| i32::from_le_bytes(*w)).collect();
    let len = r.u64_at(control, 0) as usize;
    if len != HEADER + n * 4 {
        return Err(tcmi_ckpt::Error::unsupported("it has too many open files").into());
    }
    Ok(fds)
}
