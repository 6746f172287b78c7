//! `/proc/self/mem` and `pagemap`: at home they are of the shadow, whose memory is empty. Their
//! descriptors and positions are home's, but what is read and written there is the guest's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EFAULT, EINVAL, EIO, Errno};
use tcmi_ckpt::birth;
use tcmi_ckpt::own_memory::OwnMemory;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::{ProcessMemory, word};
use crate::selves::Opening;
use crate::stream::StreamError;
use crate::worker::{Outcome, Thread, failed};

const CHUNK_BYTES: usize = 64 * 1024;
/// What one call transfers at most, to the kernel.
const COUNT_MAX: u64 = 0x7fff_f000;
const IOVECS_MAX: u64 = 1024;
const IOVEC_BYTES: usize = 16;
const ENTRY_BYTES: u64 = 8;
/// Of an entry of a page map: which page of the node's it is, or where it is swapped to.
const PLACE: u64 = (1 << 55) - 1;

/// Whether the guest may have such a file open. It is asked of its descriptors one by one then:
/// copies of one, as dup and sockets make them, are not followed.
#[derive(Debug, Default)]
pub(crate) struct IsOpen(AtomicBool);

impl IsOpen {
    pub(crate) fn new(is_open: bool) -> Self {
        Self(AtomicBool::new(is_open))
    }
}

fn pid_at_home(shared: &Shared) -> Option<i32> {
    birth::inner_tid(shared.guest.pid, shared.guest.pid)
}

/// Home has opened `fd`.
pub(crate) fn opened(
    shared: &Shared,
    thread: &mut Thread,
    opening: &Opening,
    fd: i64,
) -> Result<(), StreamError> {
    if OwnMemory::by_leaf(opening.leaf()).is_none() {
        return Ok(());
    }
    let name = mapping::name(thread, fd as u64)?;
    if pid_at_home(shared).is_some_and(|pid| OwnMemory::of(pid, &name).is_some()) {
        shared.own_memory.0.store(true, Ordering::Relaxed);
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

/// Some: the answer of a call that reads or writes the guest's memory by a file. To be asked of
/// each call before it is forwarded.
pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Option<Outcome>, StreamError> {
    if !shared.own_memory.0.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let (Some(transfer), Some(pid)) = (transfer(notif), pid_at_home(shared)) else {
        return Ok(None);
    };
    let name = mapping::name(thread, notif.args[0])?;
    let Some(file) = OwnMemory::of(pid, &name) else { return Ok(None) };
    // Of nothing: whether the descriptor may do that is for home's kernel to say.
    let mut nothing = notif.args;
    nothing[2] = 0;
    let may = thread.ask_own(i64::from(notif.nr), &nothing, &mut [])?;
    if may < 0 {
        return Ok(Some(failed(Errno(-may as i32))));
    }
    let fd = notif.args[0];
    let position = match transfer.position {
        Some(position) => position,
        None => seek(thread, fd, 0, libc::SEEK_CUR)? as u64,
    };
    let done = match ranges(shared, notif, transfer.vectored) {
        Ok(ranges) => {
            let reach = Reach { shared, tid: notif.tid, file, writes: transfer.writes };
            reach.all(&ranges, position)
        }
        Err(errno) => Err(errno),
    };
    if let (Ok(done), None) = (done, transfer.position) {
        seek(thread, fd, position.wrapping_add(done), libc::SEEK_SET)?;
    }
    Ok(Some(match done {
        Ok(done) => Outcome::Answer(Answer::Value(done as i64)),
        Err(errno) => failed(errno),
    }))
}

fn seek(thread: &mut Thread, fd: u64, to: u64, whence: i32) -> Result<i64, StreamError> {
    thread.ask_own(libc::SYS_lseek, &[fd, to, whence as u64, 0, 0, 0], &mut [])
}

/// The buffers of a call: address and length of each.
fn ranges(shared: &Shared, notif: &Notification, vectored: bool) -> Result<Vec<(u64, u64)>, Errno> {
    let [_, at, count, ..] = notif.args;
    if !vectored {
        return Ok(vec![(at, count.min(COUNT_MAX))]);
    }
    if count > IOVECS_MAX {
        return Err(EINVAL);
    }
    let mut iovecs = vec![0; count as usize * IOVEC_BYTES];
    ProcessMemory { pid: notif.tid, writable: &shared.writable }
        .read(at, &mut iovecs)
        .map_err(|_| EFAULT)?;
    let mut left = COUNT_MAX;
    iovecs
        .chunks_exact(IOVEC_BYTES)
        .map(|iovec| {
            let (at, length) = (word(iovec, 0), word(iovec, 8));
            if i64::try_from(length).is_err() {
                return Err(EINVAL);
            }
            let taken = length.min(left);
            left -= taken;
            Ok((at, taken))
        })
        .collect()
}

/// The guest's memory through the file that the node's kernel has for it.
struct Reach<'a> {
    shared: &'a Shared,
    tid: i32,
    file: OwnMemory,
    writes: bool,
}

impl Reach<'_> {
    /// As the kernel makes such a call for each buffer: an error counts only for the first.
    fn all(&self, ranges: &[(u64, u64)], position: u64) -> Result<u64, Errno> {
        let path = format!("/proc/{}/{}", self.shared.guest.pid, self.file.leaf());
        let file = OpenOptions::new().read(true).write(self.writes).open(path).map_err(|_| EIO)?;
        let mut done = 0;
        for &(at, length) in ranges {
            match self.one(&file, at, length, position.wrapping_add(done)) {
                Ok(n) => {
                    done += n;
                    if n < length {
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// A buffer that is not the guest's fails it, whatever was done before.
    fn one(&self, file: &File, at: u64, length: u64, position: u64) -> Result<u64, Errno> {
        if self.file == OwnMemory::Pagemap && !(position | length).is_multiple_of(ENTRY_BYTES) {
            return Err(EINVAL);
        }
        let mut mem = ProcessMemory { pid: self.tid, writable: &self.shared.writable };
        let mut bytes = vec![0; CHUNK_BYTES.min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = CHUNK_BYTES.min((length - done) as usize);
            let part = &mut bytes[..part];
            let (at, from) = (at.wrapping_add(done), position.wrapping_add(done));
            let moved = match self.writes {
                true => {
                    mem.read(at, part).map_err(|_| EFAULT)?;
                    file.write_at(part, from)
                }
                false => file.read_at(part, from),
            };
            let n = match moved {
                Ok(0) => break,
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(error) => return Err(errno(&error)),
            };
            if !self.writes {
                self.hide(&mut part[..n]);
                mem.write(at, &part[..n]).map_err(|_| EFAULT)?;
            }
            done += n as u64;
        }
        Ok(done)
    }

    /// Where its pages are is the node's affair.
    fn hide(&self, bytes: &mut [u8]) {
        if self.file == OwnMemory::Pagemap {
            for entry in bytes.chunks_exact_mut(ENTRY_BYTES as usize) {
                let shown = word(entry, 0) & !PLACE;
                entry.copy_from_slice(&shown.to_le_bytes());
            }
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(EIO, Errno)
}
