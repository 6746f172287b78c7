//! `/proc/PID/mem` and `pagemap`: at home they are of a shadow, whose memory is empty. Their
//! descriptors and positions are home's, but what is read and written there is the guest's, or that of
//! another one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EFAULT, EINVAL, EIO, Errno};
use tcmi_ckpt::birth;
use tcmi_ckpt::memory_files::{ENTRY_BYTES, MemoryFile, hide_places};
use tcmi_ckpt::reach::PIECE_BYTES_MAX;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::{MOVED_MAX, ProcessMemory, iovecs};
use crate::others::Other;
use crate::selves::Opening;
use crate::stream::StreamError;
use crate::worker::{Halt, Outcome, Thread};

/// Whether the guest may have such a file open. It is asked of its descriptors one by one then:
/// copies of one, as dup and sockets make them, are not followed.
#[derive(Debug, Default)]
pub(crate) struct IsOpen(AtomicBool);

impl IsOpen {
    pub(crate) fn new(is_open: bool) -> Self {
        Self(AtomicBool::new(is_open))
    }
}

/// Home has opened `fd`.
pub(crate) fn opened(
    shared: &Shared,
    thread: &mut Thread,
    opening: &Opening,
    fd: i64,
) -> Result<(), StreamError> {
    if MemoryFile::by_leaf(opening.leaf()).is_some()
        && MemoryFile::named(&mapping::name(thread, fd as u64)?).is_some()
    {
        shared.memory_files.0.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// A call that reads or writes by a descriptor.
struct Transfer {
    writes: bool,
    vectored: bool,
    /// None: at the descriptor's own position.
    position: Option<u64>,
}

fn transfer(notif: &Notification) -> Option<Transfer> {
    let (position, flags) = (notif.args[3], notif.args[5]);
    let at = |writes, vectored, position| Some(Transfer { writes, vectored, position });
    match i64::from(notif.nr) {
        libc::SYS_read => at(false, false, None),
        libc::SYS_write => at(true, false, None),
        libc::SYS_readv => at(false, true, None),
        libc::SYS_writev => at(true, true, None),
        libc::SYS_pread64 => at(false, false, Some(position)),
        libc::SYS_pwrite64 => at(true, false, Some(position)),
        libc::SYS_preadv => at(false, true, Some(position)),
        libc::SYS_pwritev => at(true, true, Some(position)),
        // Home refuses the flags, of such a file.
        libc::SYS_preadv2 if flags == 0 => at(false, true, Some(position)),
        libc::SYS_pwritev2 if flags == 0 => at(true, true, Some(position)),
        _ => None,
    }
    .map(|t| match t.position {
        Some(u64::MAX) if t.vectored => Transfer { position: None, ..t },
        _ => t,
    })
}

/// Some: the answer of a call that reads or writes memory by a file. To be asked of each call before
/// it is forwarded.
pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Option<Outcome>, StreamError> {
    if !shared.memory_files.0.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let Some(transfer) = transfer(notif) else { return Ok(None) };
    let Some((pid, file)) = MemoryFile::named(&mapping::name(thread, notif.args[0])?) else {
        return Ok(None);
    };
    match moved(shared, thread, notif, (pid, file), &transfer) {
        Ok(done) => Ok(Some(Outcome::Answer(Answer::Value(done as i64)))),
        Err(halt) => halt.outcome().map(Some),
    }
}

fn moved(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    (pid, file): (i32, MemoryFile),
    transfer: &Transfer,
) -> Result<u64, Halt> {
    // Of nothing: whether the descriptor may do that is for home's kernel to say.
    let mut nothing = notif.args;
    nothing[2] = 0;
    let may = thread.ask_own(i64::from(notif.nr), &nothing, &mut [])?;
    if may < 0 {
        return Err(Halt::Errno(Errno(-may as i32)));
    }
    let fd = notif.args[0];
    let position = match transfer.position {
        Some(position) => position,
        None => seek(thread, fd, 0, libc::SEEK_CUR)? as u64,
    };
    let ranges = ranges(shared, notif, transfer.vectored).map_err(Halt::Errno)?;
    let memory = match birth::inner_tid(shared.guest.pid, shared.guest.pid) == Some(pid) {
        true => Memory::Own(own(shared, file, transfer.writes)?),
        false => Memory::Others(Other::find(shared, thread, pid)?, fd),
    };
    let buffers = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mut mover = Mover { memory, file, writes: transfer.writes, buffers };
    let done = mover.all(&ranges, position)?;
    if transfer.position.is_none() {
        seek(thread, fd, position.wrapping_add(done), libc::SEEK_SET)?;
    }
    Ok(done)
}

/// As the node's kernel has it.
fn own(shared: &Shared, file: MemoryFile, writes: bool) -> Result<File, Halt> {
    let path = format!("/proc/{}/{}", shared.guest.pid, file.leaf());
    OpenOptions::new().read(true).write(writes).open(path).map_err(|_| Halt::Errno(EIO))
}

fn seek(thread: &mut Thread, fd: u64, to: u64, whence: i32) -> Result<i64, StreamError> {
    thread.ask_own(libc::SYS_lseek, &[fd, to, whence as u64, 0, 0, 0], &mut [])
}

/// The buffers of a call: address and length of each.
fn ranges(shared: &Shared, notif: &Notification, vectored: bool) -> Result<Vec<(u64, u64)>, Errno> {
    let [_, at, count, ..] = notif.args;
    if !vectored {
        return Ok(vec![(at, count.min(MOVED_MAX))]);
    }
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mut left = MOVED_MAX;
    let mut buffers = iovecs(&mut mem, at, count)?;
    for (_, len) in &mut buffers {
        *len = (*len).min(left);
        left -= *len;
    }
    Ok(buffers)
}

enum Memory<'a> {
    Own(File),
    /// As which the shadow has it open.
    Others(Other<'a>, u64),
}

impl Memory<'_> {
    /// Returns how much there was.
    fn read(&mut self, file: MemoryFile, at: u64, into: &mut [u8]) -> Result<usize, Halt> {
        match self {
            Self::Own(own) => own.read_at(into, at).map_err(|e| Halt::Errno(errno(&e))),
            Self::Others(other, fd) => {
                let bytes = match file {
                    MemoryFile::Mem => other.read(at, into.len() as u64)?,
                    MemoryFile::Pagemap => other.read_map(*fd, at, into.len() as u64)?,
                };
                into[..bytes.len()].copy_from_slice(&bytes);
                match file {
                    MemoryFile::Mem => expect_some(bytes.len()),
                    MemoryFile::Pagemap => Ok(bytes.len()),
                }
            }
        }
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<usize, Halt> {
        match self {
            Self::Own(file) => file.write_at(from, at).map_err(|e| Halt::Errno(errno(&e))),
            Self::Others(other, ..) => expect_some(other.write(at, from.to_vec())? as usize),
        }
    }
}

/// As the file of a memory has it.
fn expect_some(moved: usize) -> Result<usize, Halt> {
    match moved {
        0 => Err(Halt::Errno(EIO)),
        _ => Ok(moved),
    }
}

struct Mover<'a> {
    memory: Memory<'a>,
    file: MemoryFile,
    writes: bool,
    buffers: ProcessMemory<'a>,
}

impl Mover<'_> {
    /// As the kernel makes such a call for each buffer: an error counts only for the first.
    fn all(&mut self, ranges: &[(u64, u64)], position: u64) -> Result<u64, Halt> {
        let mut done = 0;
        for &(at, length) in ranges {
            match self.one(at, length, position.wrapping_add(done)) {
                Ok(n) => {
                    done += n;
                    if n < length {
                        break;
                    }
                }
                Err(Halt::Errno(_)) if done > 0 => break,
                Err(halt) => return Err(halt),
            }
        }
        Ok(done)
    }

    /// A buffer that is not the guest's fails it, whatever was done before.
    fn one(&mut self, at: u64, length: u64, position: u64) -> Result<u64, Halt> {
        if self.file == MemoryFile::Pagemap && !(position | length).is_multiple_of(ENTRY_BYTES) {
            return Err(Halt::Errno(EINVAL));
        }
        let mut bytes = vec![0; PIECE_BYTES_MAX.min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = bytes.len().min((length - done) as usize);
            let part = &mut bytes[..part];
            let (at, from) = (at.wrapping_add(done), position.wrapping_add(done));
            let moved = match self.writes {
                true => {
                    self.buffers.read(at, part).map_err(|_| Halt::Errno(EFAULT))?;
                    self.memory.write(from, part)
                }
                false => self.memory.read(self.file, from, part),
            };
            let n = match moved {
                Ok(0) => break,
                Ok(n) => n,
                Err(Halt::Errno(_)) if done > 0 => break,
                Err(halt) => return Err(halt),
            };
            if !self.writes {
                if self.file == MemoryFile::Pagemap {
                    hide_places(&mut part[..n]);
                }
                self.buffers.write(at, &part[..n]).map_err(|_| Halt::Errno(EFAULT))?;
            }
            done += n as u64;
        }
        Ok(done)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(EIO, Errno)
}
