//! A file that the guest made and writes here (MV): what it writes goes home in larger pieces, before
//! any call that others could learn of it by.

use std::sync::atomic::Ordering;

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EFAULT, EIO, Errno};
use tcmi_sys::seccomp::{Answer, Notification};

use super::{Entry, Kind, OWN_BASE, ask, is_odd, memory};
use crate::calls::Shared;
use crate::mapping;
use crate::stream::StreamError;
use crate::worker::Thread;

/// What is kept of one file before home gets it.
const UNWRITTEN_BYTES_MAX: usize = 256 * 1024;
/// Any file system has room for such a position.
const POSITION_MAX: u64 = 1 << 30;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// It is a regular file.
    is_known: bool,
    /// What home has not got: so many bytes, from here on.
    from: u64,
    unwritten: Vec<u8>,
    /// Home did not take all.
    failed: Option<Errno>,
}

impl Scratch {
    /// Some: so opened, a file is made, or emptied, to be written from the beginning.
    pub(super) fn of(flags: i32) -> Option<Self> {
        const OTHERWISE: i32 =
            libc::O_APPEND | libc::O_DSYNC | libc::O_SYNC | libc::O_DIRECT | libc::O_PATH;
        const NEW: i32 = libc::O_CREAT | libc::O_EXCL;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let is_new = flags & NEW == NEW || flags & libc::O_TMPFILE == libc::O_TMPFILE;
        let fits = writes && flags & OTHERWISE == 0;
        let emptied = flags & libc::O_TRUNC != 0;
        (fits && (is_new || emptied)).then(|| Self { is_known: is_new, ..Self::default() })
    }
}

impl Entry {
    /// What home did not take of what was written, to be told once.
    pub(super) fn failure(&mut self) -> Option<Errno> {
        match &mut self.kind {
            Kind::Scratch(scratch) => scratch.failed.take(),
            Kind::Copy(_) => None,
        }
    }

    pub(super) fn flush(
        &mut self,
        shared: &Shared,
        thread: &mut Thread,
    ) -> Result<(), StreamError> {
        let fd = self.fd;
        let Kind::Scratch(scratch) = &mut self.kind else { return Ok(()) };
        if scratch.unwritten.is_empty() {
            return Ok(());
        }
        let mut done = 0;
        while done < scratch.unwritten.len() {
            let rest = &mut scratch.unwritten[done..];
            let args = [fd, OWN_BASE, rest.len() as u64, scratch.from + done as u64, 0, 0];
            match ask(shared, thread, libc::SYS_pwrite64, args, rest)? {
                n @ 1.. => done += n as usize,
                error => {
                    let errno = if error == 0 { EIO } else { Errno(-error as i32) };
                    tracing::warn!(fd, errno = errno.0, "home does not take what was written");
                    scratch.failed = Some(errno);
                    break;
                }
            }
        }
        scratch.unwritten.clear();
        shared.files.unwritten.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }
}

pub(super) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    entry: &mut Entry,
) -> Result<Option<Answer>, StreamError> {
    let [_, addr, count, ..] = notif.args;
    match i64::from(notif.nr) {
        libc::SYS_write if !is_odd(addr, count) && count > 0 => {
            if !is_regular(shared, thread, entry)? {
                entry.gone = true;
                return Ok(None);
            }
            write(shared, thread, notif, entry)
        }
        libc::SYS_lseek => Ok(seek(entry, addr as i64, count as i32)),
        _ => Ok(None),
    }
}

fn is_regular(
    shared: &Shared,
    thread: &mut Thread,
    entry: &mut Entry,
) -> Result<bool, StreamError> {
    let fd = entry.fd;
    let Kind::Scratch(scratch) = &mut entry.kind else { return Ok(false) };
    if !scratch.is_known {
        let stat = mapping::granted(mapping::stat(thread, fd))?;
        // Of one that it has mapped shared, home's calls are looked at.
        scratch.is_known = stat.is_some_and(|stat| {
            stat.mode & libc::S_IFMT == libc::S_IFREG && !shared.live.has(stat.dev, stat.ino)
        });
    }
    Ok(scratch.is_known)
}

fn write(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    entry: &mut Entry,
) -> Result<Option<Answer>, StreamError> {
    let [_, addr, count, ..] = notif.args;
    let position = entry.position;
    if let Kind::Scratch(scratch) = &entry.kind {
        let end = scratch.from + scratch.unwritten.len() as u64;
        let is_full = scratch.unwritten.len() + count as usize > UNWRITTEN_BYTES_MAX;
        if end != position || is_full {
            entry.flush(shared, thread)?;
        }
    }
    if let Some(errno) = entry.failure() {
        return Ok(Some(Answer::Error(errno.0)));
    }
    let mut bytes = vec![0; count as usize];
    let read = memory(shared, notif).read(addr, &mut bytes);
    let read = read.map_or_else(|fault| fault.copied, |()| bytes.len());
    if read == 0 {
        return Ok(Some(Answer::Error(EFAULT.0)));
    }
    let Kind::Scratch(scratch) = &mut entry.kind else { return Ok(None) };
    if scratch.unwritten.is_empty() {
        scratch.from = position;
        shared.files.unwritten.fetch_add(1, Ordering::AcqRel);
    }
    scratch.unwritten.extend_from_slice(&bytes[..read]);
    entry.position += read as u64;
    if read > UNWRITTEN_BYTES_MAX {
        entry.flush(shared, thread)?;
        if let Some(errno) = entry.failure() {
            return Ok(Some(Answer::Error(errno.0)));
        }
    }
    Ok(Some(Answer::Value(read as i64)))
}

/// Where the file ends, only home knows.
fn seek(entry: &mut Entry, by: i64, whence: i32) -> Option<Answer> {
    let base = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => entry.position as i64,
        _ => return None,
    };
    let to = base.checked_add(by).and_then(|to| u64::try_from(to).ok());
    let to = to.filter(|to| *to <= POSITION_MAX)?;
    entry.position = to;
    Some(Answer::Value(to as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_or_emptied_and_no_log_is_written_here() {
        let is = |flags| Scratch::of(flags).map(|s| s.is_known);
        let new = libc::O_CREAT | libc::O_EXCL;
        assert_eq!(is(new | libc::O_RDWR), Some(true));
        assert_eq!(is(libc::O_TMPFILE | libc::O_WRONLY), Some(true));
        assert_eq!(is(libc::O_TRUNC | libc::O_WRONLY), Some(false));
        for flags in [
            new,
            libc::O_CREAT | libc::O_WRONLY,
            libc::O_RDWR,
            new | libc::O_WRONLY | libc::O_APPEND,
            new | libc::O_WRONLY | libc::O_SYNC,
            new | libc::O_WRONLY | libc::O_DSYNC,
            new | libc::O_RDWR | libc::O_DIRECT,
        ] {
            assert_eq!(is(flags), None, "{flags:o}");
        }
    }
}
