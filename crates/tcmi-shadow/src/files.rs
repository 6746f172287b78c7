//! Files that a rule of home's has read (CP) or written (MV) here. Their descriptors are home's like
//! all others: it opens, copies and closes them. What is kept here is where a descriptor stands, of
//! one that only this process has, and it is home's again before any call that could ask there.
//!
//! An entry is locked while its descriptor is closed or given back: whoever uses the number
//! meanwhile waits, finds it gone and asks home.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tcmi_call::engine::GuestMemory;
use tcmi_call::table::{Arg, Row};
use tcmi_ckpt::copies::{self, OpenCopy};
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

mod content;
mod copy;
mod scratch;

use content::{Content, Contents};
use scratch::Scratch;

/// More at once is for home, which knows what is too much.
const COUNT_MAX: u64 = 16 << 20;
const USER_BYTES: u64 = 1 << 47;
/// A kernel's codes for calls that are made again are not below.
const ERESTARTSYS: i32 = 512;
/// In `struct msghdr`, and how long that is in `struct mmsghdr`.
const CONTROL_LENGTH: u64 = 40;
const MMSGHDR_BYTES: u64 = 64;

/// What a guest reads and writes here, by home's rules.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Where files lie that are read here, and which of them are open.
    pub copied: Vec<String>,
    pub open: Vec<OpenCopy>,
    /// Where files lie that it makes, and writes here.
    pub moved: Vec<String>,
}

enum Kind {
    /// None: not looked at yet.
    Copy(Option<Arc<Content>>),
    Scratch(Scratch),
}

/// A descriptor.
pub(crate) struct Entry {
    fd: u64,
    position: u64,
    /// The position that it has at home.
    at_home: u64,
    kind: Kind,
    /// It is all home's, or closed.
    gone: bool,
}

type Held = Arc<Mutex<Entry>>;

#[derive(Default)]
struct Table {
    all: HashMap<u64, Held>,
    /// Counts calls that may close one.
    closed: u64,
    /// Threads have tables of their own: a number is no longer one file.
    apart: bool,
}

#[derive(Default)]
pub(crate) struct Opened {
    copied: Vec<String>,
    moved: Vec<String>,
    table: Mutex<Table>,
    contents: Contents,
    /// How many have bytes that home has not.
    unwritten: AtomicUsize,
}

impl Opened {
    pub(crate) fn new(files: Files) -> Self {
        let Files { copied, open, moved } = files;
        let all = open.into_iter().map(|OpenCopy { fd, position }| {
            let fd = u64::from(fd as u32);
            (fd, Entry::new(fd, position, Kind::Copy(None)))
        });
        let table = Mutex::new(Table { all: all.collect(), ..Table::default() });
        Self { copied, moved, table, ..Self::default() }
    }

    /// By no rule there ever is one.
    pub(crate) fn is_off(&self) -> bool {
        self.copied.is_empty() && self.moved.is_empty()
    }

    /// There may be bytes that home has to get in time.
    pub(crate) fn writes(&self) -> bool {
        !self.moved.is_empty()
    }

    fn get(&self, fd: u64) -> Option<Held> {
        self.table.lock().all.get(&u64::from(fd as u32)).map(Arc::clone)
    }

    fn all(&self) -> Vec<Held> {
        self.within(0, u64::MAX)
    }

    /// Of these numbers, lowest first: who locks several does so in this order.
    fn within(&self, first: u64, last: u64) -> Vec<Held> {
        let table = self.table.lock();
        let mut all: Vec<_> =
            table.all.iter().filter(|(number, _)| (first..=last).contains(*number)).collect();
        all.sort_unstable_by_key(|(number, _)| **number);
        all.into_iter().map(|(_, entry)| Arc::clone(entry)).collect()
    }

    fn forget(&self, gone: &Held) {
        let mut table = self.table.lock();
        table.all.retain(|_, entry| !Arc::ptr_eq(entry, gone));
    }
}

impl Entry {
    fn new(fd: u64, position: u64, kind: Kind) -> Held {
        Arc::new(Mutex::new(Self { fd, position, at_home: position, kind, gone: false }))
    }

    /// Home has all that was written, and the position.
    fn settle(&mut self, shared: &Shared, thread: &mut Thread) -> Result<(), StreamError> {
        self.flush(shared, thread)?;
        if self.position != self.at_home {
            let args = [self.fd, self.position, libc::SEEK_SET as u64, 0, 0, 0];
            let ret = ask(shared, thread, libc::SYS_lseek, args, &mut [])?;
            if ret < 0 {
                tracing::warn!(fd = self.fd, errno = -ret, "a file's position is lost");
            }
            self.at_home = self.position;
        }
        Ok(())
    }
}

/// A call on our own account, which counts as the guest's.
fn ask(
    shared: &Shared,
    thread: &mut Thread,
    nr: i64,
    args: [u64; 6],
    bytes: &mut [u8],
) -> Result<i64, StreamError> {
    let begun = Instant::now();
    let ret = thread.ask_own(nr, &args, bytes)?;
    shared.stats.count(nr as u32, ret < 0, begun.elapsed());
    Ok(ret)
}

fn memory<'a>(shared: &'a Shared, notif: &Notification) -> ProcessMemory<'a> {
    ProcessMemory { pid: notif.tid, writable: &shared.writable }
}

fn is_odd(addr: u64, count: u64) -> bool {
    count > COUNT_MAX || addr.checked_add(count).is_none_or(|end| end >= USER_BYTES)
}

/// Gives a descriptor back to home.
fn release(shared: &Shared, thread: &mut Thread, held: &Held) -> Result<(), StreamError> {
    let mut entry = held.lock();
    if !entry.gone {
        entry.settle(shared, thread)?;
        entry.gone = true;
    }
    drop(entry);
    shared.files.forget(held);
    Ok(())
}

/// Some: the answer of a call that needs nothing of home. To be asked of each call before it is
/// forwarded.
pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Option<Outcome>, StreamError> {
    if shared.files.is_off() {
        return Ok(None);
    }
    let is_served = matches!(
        i64::from(notif.nr),
        libc::SYS_read
            | libc::SYS_pread64
            | libc::SYS_readv
            | libc::SYS_write
            | libc::SYS_lseek
            | libc::SYS_fstat
            | libc::SYS_newfstatat
            | libc::SYS_ioctl
    );
    let Some(held) = is_served.then(|| shared.files.get(notif.args[0])).flatten() else {
        return Ok(None);
    };
    let mut entry = held.lock();
    if entry.gone {
        return Ok(None);
    }
    let served = match entry.kind {
        Kind::Copy(_) => copy::serve(shared, thread, notif, &mut entry)?,
        Kind::Scratch(_) => scratch::serve(shared, thread, notif, &mut entry)?,
    };
    Ok(served.map(Outcome::Here))
}

/// Before a call is forwarded: what it could ask of a descriptor is home's. Returns those that it
/// closes, to be [`hold`]ed until [`done`].
pub(crate) fn before(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
) -> Result<Vec<Held>, StreamError> {
    let files = &shared.files;
    let parts = parts_tables(notif);
    files.table.lock().apart |= parts;
    if files.is_off() || files.table.lock().all.is_empty() {
        count_close(shared, notif);
        return Ok(Vec::new());
    }
    if parts || hands_over(shared, notif) {
        for held in files.all() {
            release(shared, thread, &held)?;
        }
    } else if looks_at_positions(shared, notif) {
        for held in files.all() {
            held.lock().settle(shared, thread)?;
        }
    }
    let (first, last) = closes(notif).unwrap_or((1, 0));
    for (i, arg) in row.args.iter().enumerate() {
        let number = u64::from(notif.args[i] as u32);
        let is_closed = (first..=last).contains(&number) && !(is_copied(notif) && i == 0);
        if *arg != Arg::Fd || is_closed || is_harmless(notif) {
            continue;
        }
        if let Some(held) = files.get(number) {
            release(shared, thread, &held)?;
        }
    }
    count_close(shared, notif);
    Ok(files.within(first, last))
}

/// So nobody else uses what a call is about to close. Who was writing has written.
pub(crate) fn hold<'a>(
    shared: &Shared,
    thread: &mut Thread,
    closing: &'a [Held],
) -> Result<Vec<MutexGuard<'a, Entry>>, StreamError> {
    let mut held: Vec<_> = closing.iter().map(|entry| entry.lock()).collect();
    held.iter_mut().try_for_each(|entry| entry.flush(shared, thread))?;
    Ok(held)
}

fn count_close(shared: &Shared, notif: &Notification) {
    if closes(notif).is_some() {
        shared.files.table.lock().closed += 1;
    }
}

/// Numbers that a call closes, or gives to other files.
fn closes(notif: &Notification) -> Option<(u64, u64)> {
    let number = |i: usize| u64::from(notif.args[i] as u32);
    match i64::from(notif.nr) {
        libc::SYS_close => Some((number(0), number(0))),
        libc::SYS_dup2 | libc::SYS_dup3 => Some((number(1), number(1))),
        libc::SYS_close_range if !has(notif.args[2], libc::CLOSE_RANGE_CLOEXEC) => {
            Some((number(0), number(1)))
        }
        _ => None,
    }
}

fn has(flags: u64, flag: u32) -> bool {
    flags as u32 & flag != 0
}

/// Whether a call gives its thread a table of descriptors of its own.
fn parts_tables(notif: &Notification) -> bool {
    i64::from(notif.nr) == libc::SYS_close_range && has(notif.args[2], libc::CLOSE_RANGE_UNSHARE)
}

fn is_copied(notif: &Notification) -> bool {
    [libc::SYS_dup2, libc::SYS_dup3].contains(&i64::from(notif.nr))
}

/// Calls to which the position of what they name means nothing.
fn is_harmless(notif: &Notification) -> bool {
    let is_placed = || notif.args[3] != u64::MAX;
    match i64::from(notif.nr) {
        libc::SYS_fstat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_fstatfs
        | libc::SYS_fadvise64
        | libc::SYS_readahead
        | libc::SYS_flock
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_fchmod
        | libc::SYS_fchown
        | libc::SYS_utimensat
        | libc::SYS_fgetxattr
        | libc::SYS_flistxattr
        | libc::SYS_pread64
        | libc::SYS_pwrite64 => true,
        libc::SYS_preadv | libc::SYS_pwritev | libc::SYS_preadv2 | libc::SYS_pwritev2 => {
            is_placed()
        }
        libc::SYS_fcntl => {
            matches!(notif.args[1] as i32, libc::F_GETFD | libc::F_SETFD | libc::F_GETFL)
        }
        libc::SYS_ioctl => {
            [libc::TCGETS, libc::FIOCLEX, libc::FIONCLEX].contains(&u64::from(notif.args[1] as u32))
        }
        _ => false,
    }
}

/// Whether a call may give descriptors to another process.
fn hands_over(shared: &Shared, notif: &Notification) -> bool {
    let (at, count) = match i64::from(notif.nr) {
        libc::SYS_sendmsg => (notif.args[1], 1),
        libc::SYS_sendmmsg => (notif.args[1], notif.args[2].min(libc::UIO_MAXIOV as u64)),
        _ => return false,
    };
    (0..count).any(|i| {
        let mut length = [0; 8];
        let at = at.wrapping_add(i * MMSGHDR_BYTES + CONTROL_LENGTH);
        memory(shared, notif).read(at, &mut length).is_ok() && length != [0; 8]
    })
}

/// Whether a call opens a file that tells of positions.
fn looks_at_positions(shared: &Shared, notif: &Notification) -> bool {
    name(shared, notif).is_some_and(|(name, _)| name.contains("/fdinfo"))
}

/// What a call opens, and how. None: it opens nothing that has a name.
fn name(shared: &Shared, notif: &Notification) -> Option<(String, i32)> {
    let (at, flags) = match i64::from(notif.nr) {
        libc::SYS_open => (notif.args[0], notif.args[1] as i32),
        libc::SYS_openat => (notif.args[1], notif.args[2] as i32),
        libc::SYS_creat => (notif.args[0], libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY),
        _ => return None,
    };
    let mut bytes = Vec::new();
    memory(shared, notif).read_string(at, &mut bytes).ok()?;
    bytes.pop();
    Some((String::from_utf8(bytes).ok()?, flags))
}

/// An open that may give a file of ours, with how many closes there were before it.
pub(crate) struct Opening {
    closed: u64,
    kind: Kind,
}

/// To be asked before a call is forwarded.
pub(crate) fn opening(shared: &Shared, notif: &Notification) -> Option<Opening> {
    let files = &shared.files;
    if files.is_off() {
        return None;
    }
    let (name, flags) = name(shared, notif)?;
    let flags = flags & !libc::O_LARGEFILE;
    let is = |places| copies::is_under(places, &name);
    // Its name is the directory's.
    let is_nameless = flags & libc::O_TMPFILE == libc::O_TMPFILE;
    let is_moved = is(&files.moved) || is_nameless && files.moved.contains(&name);
    let kind = if copies::is_for_reading(flags) && is(&files.copied) {
        Kind::Copy(None)
    } else {
        Scratch::of(flags).filter(|_| is_moved).map(Kind::Scratch)?
    };
    let table = files.table.lock();
    (!table.apart).then_some(Opening { closed: table.closed, kind })
}

/// What was held of the files that a call closes.
pub(crate) type Closing<'a> = Vec<(&'a Held, MutexGuard<'a, Entry>)>;

/// Behind a forwarded call. Returns its outcome as the program is to see it.
pub(crate) fn done(
    shared: &Shared,
    notif: &Notification,
    opening: Option<Opening>,
    closing: Closing,
    mut outcome: Outcome,
) -> Outcome {
    let nr = i64::from(notif.nr);
    let is_closed = match outcome {
        Outcome::Answer(Answer::Value(_)) => true,
        // It closes all the same.
        Outcome::Answer(Answer::Error(errno)) => errno < ERESTARTSYS && nr == libc::SYS_close,
        _ => false,
    };
    let mut failure = None;
    for (held, mut entry) in closing.into_iter().filter(|_| is_closed) {
        entry.gone = true;
        failure = entry.failure().filter(|_| nr == libc::SYS_close);
        drop(entry);
        shared.files.forget(held);
    }
    let Outcome::Answer(Answer::Value(value)) = outcome else { return outcome };
    if [libc::SYS_fsync, libc::SYS_fdatasync].contains(&nr) {
        failure = shared.files.get(notif.args[0]).and_then(|held| held.lock().failure());
    }
    if let Some(errno) = failure {
        outcome = failed(errno);
    }
    if let Some(Opening { closed, kind }) = opening {
        let mut table = shared.files.table.lock();
        // Another thread may have closed it, by its number, which nobody knows yet.
        if table.closed == closed && !table.apart {
            table.all.insert(value as u64, Entry::new(value as u64, 0, kind));
        }
    }
    outcome
}

/// Sends home what was written, before somebody may learn of it.
pub(crate) fn write_back(shared: &Shared, thread: &mut Thread) -> Result<(), StreamError> {
    if shared.files.unwritten.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    for held in shared.files.all() {
        held.lock().flush(shared, thread)?;
    }
    Ok(())
}

/// Of a guest that is held: home has all.
pub(crate) fn settle(shared: &Shared, thread: &mut Thread) -> Result<(), StreamError> {
    for held in shared.files.all() {
        held.lock().settle(shared, thread)?;
    }
    Ok(())
}
