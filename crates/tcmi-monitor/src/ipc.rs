//! Daemon and monitor, over a SOCK_SEQPACKET pair: one message a packet, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};
use tcmi_call::record::DirectionKeys;
use tcmi_kkc::{Stream, StreamKind, codec};
use tcmi_migr::messages::CallCount;

/// Largest packet; a message has no list but the counters of the calls that there are.
const PACKET_BYTES_MAX: usize = 64 * 1024;
const DESCRIPTORS_MAX: usize = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Keys {
    key: [u8; 32],
    iv: [u8; 12],
    seq: u64,
}

impl From<&DirectionKeys> for Keys {
    fn from(k: &DirectionKeys) -> Self {
        Self { key: k.key, iv: k.iv, seq: k.seq }
    }
}
impl From<Keys> for DirectionKeys {
    fn from(k: Keys) -> Self {
        Self { key: k.key, iv: k.iv, pad: 0, seq: k.seq }
    }
}

/// A stream but for its socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamKeys {
    id: u64,
    kind: StreamKind,
    tx: Keys,
    rx: Keys,
}

impl StreamKeys {
    pub fn of(s: &Stream) -> Self {
        Self { id: s.id, kind: s.kind, tx: (&s.tx).into(), rx: (&s.rx).into() }
    }
    pub fn with(self, fd: OwnedFd) -> Stream {
        Stream { id: self.id, kind: self.kind, fd, tx: self.tx.into(), rx: self.rx.into() }
    }
}

/// What the guest may use. The monitor and the guest are in groups that see to it, but for what
/// is said here.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// In bytes, and a descriptor tells how often the kernel killed for it.
    pub memory: Option<u64>,
    /// The guest and its steward.
    pub threads: u32,
    /// A descriptor that takes the guest's leader into a group that limits its threads.
    pub has_group: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToMonitor {
    /// With the bulk stream's socket, the cache's directory, the descriptors that `limits` names,
    /// and where the module may send pages a session of it.
    Start {
        bulk: StreamKeys,
        root: String,
        limits: Limits,
    },
    /// With the claimed stream's socket.
    Stream {
        keys: StreamKeys,
    },
    NoStream {
        text: String,
    },
    /// With its descriptor.
    Shared {},
    /// The daemon shows the guest as one that runs.
    Listed {},
    /// The node's owner sends the guest home.
    SendHome {},
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    Claim {
        id: u64,
    },
    /// Asks for a segment of home's, the same for all guests that name it.
    Segment {
        id: u64,
        bytes: u64,
    },
    /// The same for the memory of a file.
    SharedFile {
        id: u64,
    },
    Runs {
        remote_pid: i32,
    },
    Returning {},
    /// A return failed; the guest runs on here.
    Stays {
        text: String,
    },
    Stats {
        calls: Vec<CallCount>,
    },
    /// Last message.
    Ended {
        text: String,
    },
}

const KIND: u16 = 1;

pub fn send<T: Serialize>(socket: BorrowedFd<'_>, value: &T, fds: &[RawFd]) -> io::Result<()> {
    let packet = codec::encode(KIND, value).map_err(io::Error::other)?;
    let iov = [IoSlice::new(&packet)];
    let bytes = std::mem::size_of_val(fds) as u32;
    // SAFETY: only computes.
    let (space, len) = unsafe { (libc::CMSG_SPACE(bytes), libc::CMSG_LEN(bytes)) };
    let mut control = vec![0u64; (space as usize).div_ceil(8)];
    // SAFETY: all-zero is a valid msghdr.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = iov.as_ptr() as *mut libc::iovec;
    m.msg_iovlen = 1;
    if !fds.is_empty() {
        m.msg_control = control.as_mut_ptr().cast();
        m.msg_controllen = space as usize;
        // SAFETY: the control buffer has room for the header and `bytes` of descriptors.
        unsafe {
            let c = libc::CMSG_FIRSTHDR(&m);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = len as usize;
            let to = libc::CMSG_DATA(c);
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), to, bytes as usize);
        }
    }
    // SAFETY: `m` points to live buffers of the lengths it says.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &m, libc::MSG_NOSIGNAL) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next message and its descriptors. UnexpectedEof: the other end is gone.
pub fn receive<T: for<'de> Deserialize<'de>>(
    socket: BorrowedFd<'_>,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut iov = [IoSliceMut::new(&mut packet)];
    let mut control = [0u64; 8];
    // SAFETY: all-zero is a valid msghdr.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = iov.as_mut_ptr().cast();
    m.msg_iovlen = 1;
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = std::mem::size_of_val(&control);
    let n = loop {
        // SAFETY: `m` points to live buffers of the lengths it says.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut m, libc::MSG_CMSG_CLOEXEC) };
        if n >= 0 {
            break n as usize;
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    };
    let fds = descriptors(&m);
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let frame = codec::decode_frame(&packet[..n], PACKET_BYTES_MAX).map_err(io::Error::other)?;
    Ok((frame.decode().map_err(io::Error::other)?, fds))
}

fn descriptors(m: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer that `m` describes; each descriptor in it is
    // new and ours.
    unsafe {
        let c = libc::CMSG_FIRSTHDR(m);
        if !c.is_null() && (*c).cmsg_type == libc::SCM_RIGHTS {
            let bytes = (*c).cmsg_len - libc::CMSG_LEN(0) as usize;
            let data = libc::CMSG_DATA(c).cast::<RawFd>();
            for i in 0..(bytes / 4).min(DESCRIPTORS_MAX) {
                fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
            }
        }
    }
    fds
}
