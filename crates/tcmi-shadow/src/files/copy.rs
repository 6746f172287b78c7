//! A file that is read here (CP).

use std::sync::Arc;
use std::time::Instant;

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EFAULT, EINVAL, ENOTTY};
use tcmi_ckpt::copies;
use tcmi_sys::seccomp::{Answer, Notification};

use super::content::{Content, STAT_BYTES, identity};
use super::{Entry, Kind, OWN_BASE, ask, is_odd, memory};
use crate::calls::Shared;
use crate::mapping;
use crate::memory::iovecs;
use crate::stream::StreamError;
use crate::worker::Thread;

/// `struct iovec`s that are looked at at once.
const PARTS_MAX: u64 = 64;

type Served = Result<Option<Answer>, StreamError>;

pub(super) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    entry: &mut Entry,
) -> Served {
    let Some(content) = look(shared, thread, entry)? else {
        // Nothing was read of it here, so home has its position.
        entry.settle(shared, thread)?;
        entry.gone = true;
        return Ok(None);
    };
    let [_, addr, count, offset, ..] = notif.args;
    match i64::from(notif.nr) {
        libc::SYS_read if !is_odd(addr, count) => {
            let at = entry.position;
            let file = File { content: &content, fd: entry.fd, at };
            read(shared, thread, notif, file, &[(addr, count)], &mut entry.position)
        }
        libc::SYS_pread64 if !is_odd(addr, count) => match i64::try_from(offset) {
            Ok(_) => {
                let file = File { content: &content, fd: entry.fd, at: offset };
                read(shared, thread, notif, file, &[(addr, count)], &mut 0)
            }
            Err(_) => Ok(Some(Answer::Error(EINVAL.0))),
        },
        libc::SYS_readv if (1..=PARTS_MAX).contains(&count) => {
            let Some(parts) = parts(shared, notif, addr, count) else { return Ok(None) };
            let at = entry.position;
            let file = File { content: &content, fd: entry.fd, at };
            read(shared, thread, notif, file, &parts, &mut entry.position)
        }
        libc::SYS_lseek => Ok(seek(entry, content.size, addr as i64, count as i32)),
        libc::SYS_fstat => Ok(Some(stat(shared, notif, &content, addr))),
        libc::SYS_newfstatat if offset as i32 == libc::AT_EMPTY_PATH => {
            let mut first = [1];
            let is_empty = memory(shared, notif).read(addr, &mut first).is_ok() && first == [0];
            Ok(is_empty.then(|| stat(shared, notif, &content, count)))
        }
        libc::SYS_ioctl if addr as u32 as u64 == libc::TCGETS => Ok(Some(Answer::Error(ENOTTY.0))),
        _ => Ok(None),
    }
}

/// None: it is not to be read here.
fn look(
    shared: &Shared,
    thread: &mut Thread,
    entry: &mut Entry,
) -> Result<Option<Arc<Content>>, StreamError> {
    if let Kind::Copy(Some(content)) = &entry.kind {
        return Ok(Some(Arc::clone(content)));
    }
    let mut bytes = [0; STAT_BYTES];
    let args = [entry.fd, OWN_BASE, 0, 0, 0, 0];
    if ask(shared, thread, libc::SYS_fstat, args, &mut bytes)? < 0 {
        return Ok(None);
    }
    let Some(id) = identity(&bytes).filter(|id| !shared.live.has(id[0], id[1])) else {
        return Ok(None);
    };
    let content = match shared.files.contents.get(&id) {
        Some(content) => content,
        // A link may have led anywhere.
        None if !copies::is_under(&shared.files.copied, &name(shared, thread, entry.fd)?) => {
            return Ok(None);
        }
        None => shared.files.contents.add(id, bytes),
    };
    entry.kind = Kind::Copy(Some(Arc::clone(&content)));
    Ok(Some(content))
}

/// Of what is open, as home's kernel calls it.
fn name(shared: &Shared, thread: &mut Thread, fd: u64) -> Result<String, StreamError> {
    let begun = Instant::now();
    let name = mapping::name(thread, fd)?;
    shared.stats.count(libc::SYS_readlinkat as u32, name.is_empty(), begun.elapsed());
    Ok(name)
}

/// None: for home, as is all that is odd.
fn parts(shared: &Shared, notif: &Notification, at: u64, count: u64) -> Option<Vec<(u64, u64)>> {
    let parts = iovecs(&mut memory(shared, notif), at, count).ok()?;
    let mut total = 0_u64;
    for (addr, len) in &parts {
        total = total.saturating_add(*len);
        if is_odd(*addr, *len) || is_odd(0, total) {
            return None;
        }
    }
    Some(parts)
}

struct File<'a> {
    content: &'a Content,
    fd: u64,
    at: u64,
}

/// Reads into `parts` of the guest, and moves `position` behind what was read.
fn read(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    file: File,
    parts: &[(u64, u64)],
    position: &mut u64,
) -> Served {
    let mut mem = memory(shared, notif);
    let mut done = 0;
    let mut fault = false;
    'parts: for (addr, len) in parts {
        let mut filled = 0;
        while filled < *len && file.at + done < file.content.size {
            let Some(part) = file.content.part(shared, thread, file.fd, file.at + done)? else {
                match done {
                    // Home knows what is wrong with it.
                    0 => return Ok(None),
                    _ => break 'parts,
                }
            };
            let bytes = part.bytes();
            let bytes = &bytes[..bytes.len().min((len - filled) as usize)];
            let copied = match mem.write(addr + filled, bytes) {
                Ok(()) => bytes.len(),
                Err(f) => {
                    fault = true;
                    f.copied
                }
            } as u64;
            (filled, done) = (filled + copied, done + copied);
            if fault {
                break 'parts;
            }
        }
    }
    if fault && done == 0 {
        return Ok(Some(Answer::Error(EFAULT.0)));
    }
    *position = file.at + done;
    Ok(Some(Answer::Value(done as i64)))
}

/// Where the file ends, a file system may have a bound, which home knows.
fn seek(entry: &mut Entry, size: u64, by: i64, whence: i32) -> Option<Answer> {
    let base = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => entry.position as i64,
        libc::SEEK_END => size as i64,
        _ => return None,
    };
    let to = base.checked_add(by).and_then(|to| u64::try_from(to).ok());
    let to = to.filter(|to| *to <= size)?;
    entry.position = to;
    Some(Answer::Value(to as i64))
}

fn stat(shared: &Shared, notif: &Notification, content: &Content, addr: u64) -> Answer {
    match memory(shared, notif).write(addr, &content.stat) {
        Ok(()) => Answer::Value(0),
        Err(_) => Answer::Error(EFAULT.0),
    }
}
