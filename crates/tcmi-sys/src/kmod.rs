//! The kernel module: sessions of /dev/tcmi. The other side is `kmod/uapi/tcmi.h`.

use crate::errno::{Errno, Result, check};
use crate::ptrace::{SigInfo, UserRegs};
use crate::signal::KernelAction;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

pub mod abi;
mod peer;

use abi::*;
pub use peer::{Peer, PeerState};

pub const DEVICE: &str = "/dev/tcmi";

/// An open session: what it froze, watches and serves ends with it.
#[derive(Debug)]
pub struct Session {
    file: File,
}

/// A session with something frozen.
#[derive(Debug)]
pub struct Frozen {
    session: Session,
    pub processes: u32,
    pub threads: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Process,
    /// With its descendants.
    Tree,
}

/// A frozen thread as it was found. `regs` hold restart codes as the kernel left them.
#[derive(Clone, Debug)]
pub struct CapturedThread {
    pub pid: i32,
    pub tid: i32,
    /// By job control, before we froze it.
    pub is_stopped: bool,
    pub regs: UserRegs,
    pub mask: u64,
    /// Oldest first.
    pub pending: Vec<SigInfo>,
    /// (sp, flags, size)
    pub altstack: (u64, u32, u64),
    pub robust_list: u64,
    pub clear_tid: u64,
    /// (address, size, signature); address 0: none.
    pub rseq: (u64, u32, u32),
    pub xstate: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct CapturedProcess {
    pub pid: i32,
    /// Signal of a job-control stop that it is in.
    pub group_stop: Option<i32>,
    pub pending: Vec<SigInfo>,
    /// Of signals 1 to 64.
    pub actions: Vec<KernelAction>,
}

#[derive(Clone, Debug, Default)]
pub struct Captured {
    pub processes: Vec<CapturedProcess>,
    pub threads: Vec<CapturedThread>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub pid: i32,
    /// Bits of `TCMI_EVENT_*`.
    pub what: u32,
    pub stop_signal: i32,
    /// As wait tells it, with `TCMI_EVENT_EXIT`.
    pub status: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: u64,
    pub key: u64,
    /// Index in the control filesystem's table.
    pub entry: u32,
    pub op: u32,
    pub waits: bool,
    pub uid: u32,
    pub gid: u32,
    pub tid: i32,
    /// The process that the command names, in the server's pid namespace; 0: none.
    pub target: i32,
    pub data: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Event(Event),
    Request(Request),
}

impl Session {
    pub fn open() -> Result<Self> {
        Self::open_with(0)
    }

    /// `flags`: O_NONBLOCK makes [`Session::read`] say EAGAIN where it would wait.
    pub fn open_with(flags: i32) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(flags).open(DEVICE);
        Ok(Self { file: file.map_err(|e| Errno::from_io("open /dev/tcmi", &e))? })
    }

    fn ioctl<T: Argument>(&self, what: &'static str, request: u64, arg: &mut T) -> Result<()> {
        // SAFETY: the module reads and writes size_of::<T>() bytes, which is in `request`, and
        // `Argument` is for types that any bytes are a value of.
        let ret = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, arg as *mut T) };
        check(what, ret.into()).map(drop)
    }

    pub fn version(&self) -> Result<Version> {
        let mut version = Version::default();
        self.ioctl("kmod version", TCMI_VERSION, &mut version)?;
        Ok(version)
    }

    /// Ok: no thread of it runs. Err: all run on.
    pub fn freeze(
        self,
        pid: i32,
        extent: Extent,
        timeout_ms: u32,
    ) -> std::result::Result<Frozen, (Self, Errno)> {
        let flags = if extent == Extent::Tree { TCMI_FREEZE_TREE } else { 0 };
        let mut args = FreezeArgs { pid, flags, timeout_ms, ..Default::default() };
        match self.ioctl("kmod freeze", TCMI_FREEZE, &mut args) {
            Ok(()) => {
                Ok(Frozen { session: self, processes: args.processes, threads: args.threads })
            }
            Err(e) => Err((self, e)),
        }
    }

    pub fn watch(&self, pid: i32) -> Result<()> {
        self.ioctl("kmod watch", TCMI_WATCH, &mut WatchArgs { pid, reserved: 0 })
    }

    pub fn unwatch(&self, pid: i32) -> Result<()> {
        self.ioctl("kmod unwatch", TCMI_UNWATCH, &mut WatchArgs { pid, reserved: 0 })
    }

    /// Adds `args` to what the kernel has counted for a process that is not reaped yet.
    pub fn charge(&self, mut args: ChargeArgs) -> Result<()> {
        self.ioctl("kmod charge", TCMI_CHARGE, &mut args)
    }

    /// From now on this session gets the control filesystem's requests.
    pub fn serve(&self) -> Result<()> {
        self.ioctl("kmod serve", TCMI_CTL_SERVE, &mut ServeArgs { reserved: 0 })
    }

    /// Makes the place that stands for the wildcard `entry`, with what the table has in it.
    pub fn add(&self, entry: u32, key: u64, name: &str, uid: u32, gid: u32) -> Result<()> {
        let mut args = AddArgs { entry, uid, gid, reserved: 0, key, name: [0; 80] };
        let Some(room) = args.name.get_mut(..name.len()) else {
            return Err(Errno::new("kmod add", libc::ENAMETOOLONG));
        };
        room.copy_from_slice(name.as_bytes());
        self.ioctl("kmod add", TCMI_CTL_ADD, &mut args)
    }

    pub fn remove(&self, entry: u32, key: u64) -> Result<()> {
        self.ioctl("kmod remove", TCMI_CTL_REMOVE, &mut RemoveArgs { entry, reserved: 0, key })
    }

    /// Waits for an event or a request.
    pub fn read(&self) -> Result<Message> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let length =
            (&self.file).read(&mut bytes).map_err(|e| Errno::from_io("read /dev/tcmi", &e))?;
        message(&bytes[..length]).ok_or(Errno::new("kmod message", libc::EPROTO))
    }

    /// ENOENT: nobody waits for it any more.
    pub fn answer(&self, id: u64, answer: std::result::Result<&[u8], i32>) -> Result<()> {
        let (error, data) = match answer {
            Ok(data) => (0, data),
            Err(errno) => (errno, &[][..]),
        };
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend(id.to_le_bytes());
        bytes.extend(error.to_le_bytes());
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        let written = (&self.file).write(&bytes);
        written.map(drop).map_err(|e| Errno::from_io("write /dev/tcmi", &e))
    }
}

/// One that another process opened, and has closed since.
impl From<OwnedFd> for Session {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Frozen {
    pub fn capture(&self) -> Result<Captured> {
        // For one thread with AVX-512 and AMX; the module says if it is more.
        let mut bytes = vec![0; 4096 + 16 * 1024 * self.threads as usize];
        loop {
            let mut args = CaptureArgs {
                buffer: bytes.as_mut_ptr() as u64,
                length: bytes.len() as u64,
                reserved: 0,
            };
            match self.session.ioctl("kmod capture", TCMI_CAPTURE, &mut args) {
                Ok(()) => {
                    let records = bytes.get(..args.length as usize);
                    return records
                        .and_then(captured)
                        .ok_or(Errno::new("kmod capture", libc::EPROTO));
                }
                // Signals may come between two attempts.
                Err(e) if e.code == libc::EMSGSIZE => bytes.resize(args.length as usize + 4096, 0),
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends memory of a process as it is, or less of it. Where the kernel can it sends the
    /// process's own pages: thawed before the peer has them it may change what is on its way.
    pub fn send(&self, pid: i32, memory: Range<u64>, socket: BorrowedFd<'_>) -> Result<u64> {
        let length = memory.end.saturating_sub(memory.start);
        let socket = socket.as_raw_fd();
        let mut args = SendArgs { pid, socket, address: memory.start, length, sent: 0 };
        self.session.ioctl("kmod send", TCMI_SEND, &mut args)?;
        Ok(args.sent)
    }

    /// Ok: all run on. Err: as after [`Frozen`] is dropped, which thaws, too.
    pub fn thaw(self) -> Result<Session> {
        self.session.ioctl("kmod thaw", TCMI_THAW, &mut Nothing)?;
        Ok(self.session)
    }
}

/// The value at the start of `bytes`, and the rest.
fn take<T: Argument>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `head` is as long as T, and `Argument` says that any bytes are a value.
    Some((unsafe { head.as_ptr().cast::<T>().read_unaligned() }, rest))
}

fn message(bytes: &[u8]) -> Option<Message> {
    let (kind, _) = take::<u32>(bytes)?;
    match kind {
        MESSAGE_EVENT => {
            let (e, _) = take::<RawEvent>(bytes)?;
            Some(Message::Event(Event {
                pid: e.pid,
                what: e.what,
                stop_signal: e.stop_signal as i32,
                status: e.status as i32,
            }))
        }
        MESSAGE_REQUEST => {
            let (r, data) = take::<RawRequest>(bytes)?;
            Some(Message::Request(Request {
                id: r.id,
                key: r.key,
                entry: r.entry,
                op: r.op,
                waits: r.flags & TCMI_CTL_NONBLOCK == 0,
                uid: r.uid,
                gid: r.gid,
                tid: r.tid,
                target: r.target,
                data: data.get(..r.data_length as usize)?.to_vec(),
            }))
        }
        _ => None,
    }
}

fn captured(mut bytes: &[u8]) -> Option<Captured> {
    let mut all = Captured::default();
    while !bytes.is_empty() {
        let ((kind, length), _) = take::<[u32; 2]>(bytes).map(|([k, l], rest)| ((k, l), rest))?;
        let (record, rest) = bytes.split_at_checked(length as usize)?;
        match kind {
            RECORD_PROCESS => all.processes.push(process(record)?),
            RECORD_THREAD => all.threads.push(thread(record)?),
            _ => return None,
        }
        bytes = rest;
    }
    Some(all)
}

fn siginfos(bytes: &[u8], count: u32) -> Option<(Vec<SigInfo>, &[u8])> {
    let (all, rest) = bytes.split_at_checked(count as usize * size_of::<SigInfo>())?;
    Some((all.as_chunks::<{ size_of::<SigInfo>() }>().0.to_vec(), rest))
}

fn process(record: &[u8]) -> Option<CapturedProcess> {
    let (p, rest) = take::<RawProcess>(record)?;
    let (pending, _) = siginfos(rest, p.pending_count)?;
    let action = |[handler, flags, restorer, mask]: [u64; 4]| KernelAction {
        handler,
        flags,
        restorer,
        mask,
    };
    Some(CapturedProcess {
        pid: p.pid,
        group_stop: Some(p.stopped_by as i32).filter(|&signal| signal != 0),
        pending,
        actions: p.actions.iter().copied().map(action).collect(),
    })
}

fn thread(record: &[u8]) -> Option<CapturedThread> {
    let (t, rest) = take::<RawThread>(record)?;
    let (pending, rest) = siginfos(rest, t.pending_count)?;
    Some(CapturedThread {
        pid: t.pid,
        tid: t.tid,
        is_stopped: t.flags & THREAD_STOPPED != 0,
        regs: t.regs,
        mask: t.blocked,
        pending,
        altstack: (t.altstack_sp, t.altstack_flags, t.altstack_size),
        robust_list: t.robust_list,
        clear_tid: t.clear_child_tid,
        rseq: (t.rseq, t.rseq_length, t.rseq_signature),
        xstate: rest.get(..t.xstate_length as usize)?.to_vec(),
    })
}
