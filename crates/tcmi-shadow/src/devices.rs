//! Reads and writes of devices that are the same here as at home, where a rule of home's says so.
//! Their descriptors are home's: it opens, copies and closes them, and there nothing changes by a
//! read or a write.

use std::collections::HashMap;

use parking_lot::Mutex;
use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::EFAULT;
use tcmi_ckpt::devices::{Device, OpenDevice};
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::worker::{Outcome, Thread};

/// More at once is for home, which knows what is too much.
const COUNT_MAX: u64 = 16 << 20;
const CHUNK_BYTES: usize = 64 * 1024;
const USER_BYTES: u64 = 1 << 47;
const PATHS: [&[u8]; 3] = [b"/dev/null\0", b"/dev/zero\0", b"/dev/urandom\0"];

#[derive(Debug, Default)]
struct Table {
    all: HashMap<i32, OpenDevice>,
    /// Counts calls that may close one.
    closed: u64,
}

/// None: all is forwarded.
#[derive(Debug, Default)]
pub(crate) struct Devices(Option<Mutex<Table>>);

impl Devices {
    pub(crate) fn new(open: Option<Vec<OpenDevice>>) -> Self {
        let table = |open: Vec<OpenDevice>| {
            let all = open.into_iter().map(|device| (device.fd, device)).collect();
            Mutex::new(Table { all, closed: 0 })
        };
        Self(open.map(table))
    }

    /// Before a call is made that closes descriptors, or gives their numbers to others.
    fn close(&self, first: u64, last: u64) {
        if let Some(table) = &self.0 {
            let mut table = table.lock();
            table.closed += 1;
            table.all.retain(|fd, _| !(first..=last).contains(&(*fd as u64)));
        }
    }
}

/// An open that may give a device, with how many closes there were before it.
pub(crate) struct Opening {
    closed: u64,
    flags: i32,
}

/// Some: the answer of a call that is not home's. To be asked of each call before it is forwarded.
pub(crate) fn serve(shared: &Shared, notif: &Notification) -> Option<Outcome> {
    let table = shared.devices.0.as_ref()?;
    let [fd, addr, count, ..] = notif.args;
    let number = u64::from(fd as u32);
    match i64::from(notif.nr) {
        libc::SYS_close => shared.devices.close(number, number),
        libc::SYS_dup2 | libc::SYS_dup3 => {
            let to = u64::from(addr as u32);
            shared.devices.close(to, to);
        }
        // Whatever its flags.
        libc::SYS_close_range => shared.devices.close(number, u64::from(addr as u32)),
        libc::SYS_read | libc::SYS_write => {
            let open = table.lock().all.get(&(fd as i32)).copied()?;
            if count > COUNT_MAX || addr.checked_add(count).is_none_or(|end| end >= USER_BYTES) {
                return None;
            }
            return match i64::from(notif.nr) {
                libc::SYS_read if open.reads => read(shared, notif, open.device, addr, count),
                libc::SYS_write if open.writes => write(open.device, count),
                _ => None,
            };
        }
        _ => {}
    }
    None
}

fn write(device: Device, count: u64) -> Option<Outcome> {
    match device {
        // The kernel does not look at it either.
        Device::Null | Device::Zero => Some(Outcome::Here(Answer::Value(count as i64))),
        Device::Random => None,
    }
}

fn read(
    shared: &Shared,
    notif: &Notification,
    device: Device,
    addr: u64,
    count: u64,
) -> Option<Outcome> {
    if device == Device::Null {
        return Some(Outcome::Here(Answer::Value(0)));
    }
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mut bytes = vec![0; CHUNK_BYTES.min(count as usize)];
    let mut done = 0;
    while done < count {
        let part = CHUNK_BYTES.min((count - done) as usize);
        let part = &mut bytes[..part];
        if device == Device::Random && !fill(part) {
            return None;
        }
        match mem.write(addr + done, part) {
            Ok(()) => done += part.len() as u64,
            Err(fault) => {
                done += fault.copied as u64;
                break;
            }
        }
    }
    Some(match done {
        0 if count > 0 => Outcome::Here(Answer::Error(EFAULT.0)),
        done => Outcome::Here(Answer::Value(done as i64)),
    })
}

fn fill(mut bytes: &mut [u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: a live buffer and its length.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => bytes = &mut bytes[n..],
            Err(_) => return false,
        }
    }
    true
}

/// Some: a call that opens what is a device by its name. To be asked before it is forwarded.
pub(crate) fn opening(shared: &Shared, notif: &Notification) -> Option<Opening> {
    let table = shared.devices.0.as_ref()?;
    let (at, flags) = match i64::from(notif.nr) {
        libc::SYS_open => (notif.args[0], notif.args[1]),
        libc::SYS_openat => (notif.args[1], notif.args[2]),
        _ => return None,
    };
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mut name = [0; 16];
    let read = mem.read(at, &mut name).map_or_else(|fault| fault.copied, |()| name.len());
    PATHS
        .iter()
        .any(|path| name[..read].starts_with(path))
        .then(|| Opening { closed: table.lock().closed, flags: flags as i32 })
}

/// Home has opened `fd`, by whatever the name is there. Another thread may have closed it since: by
/// its number, which nobody knows yet.
pub(crate) fn opened(
    shared: &Shared,
    thread: &mut Thread,
    opening: &Opening,
    fd: i64,
) -> Result<(), StreamError> {
    let Some(stat) = mapping::granted(mapping::stat(thread, fd as u64))? else { return Ok(()) };
    let device = Device::of(stat.mode, stat.rdev);
    let open = device.and_then(|device| OpenDevice::new(fd as i32, device, opening.flags));
    if let (Some(open), Some(table)) = (open, &shared.devices.0) {
        let mut table = table.lock();
        if table.closed == opening.closed {
            table.all.insert(open.fd, open);
        }
    }
    Ok(())
}
