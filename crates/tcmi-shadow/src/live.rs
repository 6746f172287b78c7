//! Live files: those that the guest may write to by shared mappings. The guest maps a memfd of
//! ours; the shadow has the file itself mapped. What the guest changes goes home before others
//! can ask for it, and what its own calls change in the file at home comes here.
//!
//! Which files are live is settled when a guest is born: one that maps another such file goes
//! home for that.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use parking_lot::Mutex;
use tcmi_call::abi::BatchOp;
use tcmi_call::engine::GuestMemory;
use tcmi_call::engine::own::PIECES_MAX;
use tcmi_call::table::{Alters, Arg, Row};
use tcmi_ckpt::live::{LiveFile, Window};
use tcmi_sys::maps::Mapping;
use tcmi_sys::seccomp::Notification;
use tcmi_sys::waker::Waker;

use crate::calls::Shared;
use crate::mapping;
use crate::memory::{ProcessMemory, word};
use crate::stream::StreamError;
use crate::worker::{OWN_BASE, Thread};

mod twin;
mod watch;

use twin::{Change, Twin};
use watch::{Sight, Watch, watched_from};

const PAGE_BYTES: u64 = 4096;
/// Written home in one call, and read.
const BATCH_BYTES: usize = 1 << 20;

struct Known {
    /// At home.
    id: (u64, u64),
    /// The memfd's, as mappings of the guest show it.
    here: u64,
    windows: Vec<Window>,
    /// Of each window, whether home's mapping was made writable for us.
    opened: Vec<bool>,
    twin: Twin,
    sight: Sight,
}

/// A part of a change that lies in one window.
struct Piece {
    window: usize,
    home: u64,
    offset: u64,
    bytes: Vec<u8>,
}

/// Guest addresses whose stores home could not take.
type Lost = Vec<u64>;

#[derive(Default)]
struct Files {
    all: Vec<Known>,
    /// What the shadow calls itself.
    pid: Option<i32>,
    /// Device and inode behind descriptors, since the last that was closed.
    descriptors: HashMap<u64, (u64, u64)>,
}

/// All live files of a guest.
#[derive(Default)]
pub(crate) struct Live {
    /// Held while changes are on their way: who finds nothing changed knows it is at home.
    files: Mutex<Files>,
    any: bool,
    any_shared: bool,
    /// If one is large.
    watch: Option<Watch>,
}

impl Live {
    /// `watch`: the guest's process here, and a userfaultfd of it.
    pub(crate) fn of(files: Vec<LiveFile>, watch: Option<(i32, OwnedFd)>) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let mut all = Vec::new();
        let any_shared = files.iter().any(|f| f.kept.is_some());
        let bytes = |f: &LiveFile| f.windows.iter().map(|w| w.len).sum::<u64>();
        let large = |f: &LiveFile| bytes(f) > watched_from(f.kept.is_some());
        let watch = watch.filter(|_| files.iter().any(large)).and_then(Watch::open);
        for LiveFile { memfd, kept, dev, ino, windows } in files {
            let first = windows.iter().map(|w| w.offset).min().unwrap_or(0);
            let end = windows.iter().map(|w| w.offset + w.len).max().unwrap_or(first + 4096);
            let here = memfd.metadata()?.ino();
            let large = end - first > watched_from(kept.is_some());
            let watched = watch.as_ref().filter(|_| large);
            let sight = watched.map_or(Sight::Whole, |watch| watch.begin(here));
            let twin = Twin::of(memfd, kept, first..end)?;
            let opened = vec![false; windows.len()];
            all.push(Known { id: (dev, ino), here, windows, opened, twin, sight });
        }
        let any = !all.is_empty();
        let files = Mutex::new(Files { all, ..Files::default() });
        Ok(Live { files, any, any_shared, watch })
    }

    /// Waits until woken, or for mappings of the guest that go or move, at most so long. Only who
    /// calls this takes note of those, and the guest waits for it.
    pub(crate) fn wait(&self, waker: &Waker, timeout: Option<Duration>) {
        let happened =
            self.watch.as_ref().and_then(|watch| Some((watch, watch.wait(waker, timeout)?)));
        let Some((watch, is_event)) = happened else {
            if let Err(e) = waker.wait(timeout) {
                tracing::debug!(%e, "not waited");
            }
            return;
        };
        if !is_event {
            return;
        }
        let mut files = self.files.lock();
        // With the files held: who looks at them next knows.
        if watch.take_events() {
            for f in &mut files.all {
                if let Sight::Parts(_) = f.sight {
                    f.sight = Sight::Lost;
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Whether a file at home is live.
    pub(crate) fn has(&self, dev: u64, ino: u64) -> bool {
        self.any && self.files.lock().all.iter().any(|f| f.id == (dev, ino))
    }

    /// The same of those that other guests have, too.
    fn shares(&self, (dev, ino): (u64, u64)) -> bool {
        self.files.lock().all.iter().any(|f| f.twin.is_shared() && f.id == (dev, ino))
    }

    /// Whether a mapping of the guest is of one.
    pub(crate) fn is_of(&self, m: &Mapping) -> bool {
        m.shared && self.files.lock().all.iter().any(|f| f.here == m.inode)
    }
}

/// Sends home what the guest has written. What home does not take becomes a SIGBUS, as a store
/// there would have, and is undone.
pub(crate) fn write_back(shared: &Shared, thread: &mut Thread) -> Result<(), StreamError> {
    if shared.live.is_empty() {
        return Ok(());
    }
    let lost = shared.live.files.lock().write_back(shared.live.watch.as_ref(), thread)?;
    for addr in lost {
        tracing::warn!(addr = format_args!("{addr:x}"), "home does not take what was written");
        bus_error(shared, addr);
    }
    Ok(())
}

fn bus_error(shared: &Shared, addr: u64) {
    const BUS_ADRERR: i32 = 2;
    let mut info = [0; 128];
    info[..4].copy_from_slice(&libc::SIGBUS.to_le_bytes());
    info[8..12].copy_from_slice(&BUS_ADRERR.to_le_bytes());
    info[16..24].copy_from_slice(&addr.to_le_bytes());
    let steward = &shared.guest.steward;
    // Its own id stands for its process, to which it may give every code.
    let args = [steward.tid() as u64, libc::SIGBUS as u64, steward.data_address(0), 0, 0, 0];
    let mut op = BatchOp { nr: libc::SYS_rt_sigqueueinfo as u64, args, ..BatchOp::default() };
    if let Err(gone) = steward.run(std::slice::from_mut(&mut op), &info) {
        tracing::debug!(%gone, "nobody to tell of it");
    }
}

/// `msync`, whose arguments the guest's own kernel judges. Err: an errno of home's disk.
pub(crate) fn sync(
    shared: &Shared,
    thread: &mut Thread,
    args: &[u64; 6],
) -> Result<Result<(), i32>, StreamError> {
    let [addr, len, flags, ..] = *args;
    if flags & libc::MS_SYNC as u64 == 0 {
        return Ok(Ok(()));
    }
    let mut asked = msync(thread, addr, len, flags)?;
    if asked == -i64::from(libc::ENOMEM) {
        // Home has them elsewhere, or something unmapped lies between.
        asked = 0;
        let windows: Vec<Window> =
            shared.live.files.lock().all.iter().flat_map(|f| f.windows.clone()).collect();
        for w in windows {
            asked = asked.min(msync(thread, w.home, w.len, flags)?);
        }
    }
    let disk = [libc::EIO, libc::ENOSPC, libc::EDQUOT];
    let failed = i32::try_from(-asked).ok().filter(|errno| disk.contains(errno));
    Ok(failed.map_or(Ok(()), Err))
}

fn msync(thread: &mut Thread, addr: u64, len: u64, flags: u64) -> Result<i64, StreamError> {
    thread.plain(libc::SYS_msync, &[addr, len, flags, 0, 0, 0])
}

/// Calls after which a descriptor may be another file's.
pub(crate) fn renumbers(nr: u32) -> bool {
    [libc::SYS_close, libc::SYS_dup2, libc::SYS_dup3, libc::SYS_close_range]
        .contains(&i64::from(nr))
}

pub(crate) fn forget_descriptors(shared: &Shared) {
    shared.live.files.lock().descriptors.clear();
}

/// Whether a call alters a live file that other guests have mapped, too: it is made when all of them
/// are at home.
pub(crate) fn alters_at_home(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
) -> Result<bool, StreamError> {
    if !shared.live.any_shared {
        return Ok(false);
    }
    let args = &notif.args;
    let id = match row.alters {
        Alters::Nothing => None,
        Alters::AtPosition(fd) | Alters::AtOffset(fd) | Alters::Any(fd) => {
            file_of(shared, thread, args[fd as usize])?
        }
        Alters::Opened(flags) if !empties(shared, notif, row, flags) => None,
        // A path is before the flags, and its directory before that.
        Alters::Opened(1) | Alters::Named => {
            named(shared, thread, notif, libc::AT_FDCWD as u64, args[0])?.map(|s| s.id())
        }
        Alters::Opened(_) => named(shared, thread, notif, args[0], args[1])?.map(|s| s.id()),
    };
    Ok(id.is_some_and(|id| shared.live.shares(id)))
}

/// What a name in the guest's memory stands for. None: it cannot be read, or home has nothing there.
fn named(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    directory: u64,
    path: u64,
) -> Result<Option<mapping::Stat>, StreamError> {
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mut name = Vec::new();
    match mem.read_string(path, &mut name) {
        Ok(_) => mapping::granted(mapping::stat_path(thread, directory, &name)),
        Err(_) => Ok(None),
    }
}

/// Whether a file is opened with O_TRUNC, by the flags in argument `i` or where that points to.
fn empties(shared: &Shared, notif: &Notification, row: &Row, i: u8) -> bool {
    let mut flags = notif.args[i as usize];
    if let Arg::In(_) = row.args[i as usize] {
        let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
        let mut bytes = [0; 8];
        if mem.read(flags, &mut bytes).is_err() {
            return false;
        }
        flags = word(&bytes, 0);
    }
    flags & libc::O_TRUNC as u64 != 0
}

/// Brings what a call that succeeded has changed in live files.
pub(crate) fn altered(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
    ret: u64,
) -> Result<(), StreamError> {
    if shared.live.is_empty() {
        return Ok(());
    }
    let args = &notif.args;
    match row.alters {
        Alters::Nothing => Ok(()),
        Alters::AtPosition(fd) => behind_position(shared, thread, args[fd as usize], ret),
        Alters::AtOffset(fd) if args[3] == u64::MAX => {
            behind_position(shared, thread, args[fd as usize], ret)
        }
        Alters::AtOffset(fd) => {
            part(shared, thread, args[fd as usize], |_| args[3]..args[3].saturating_add(ret))
        }
        Alters::Any(fd) => part(shared, thread, args[fd as usize], |size| 0..size),
        Alters::Opened(i) if empties(shared, notif, row, i) => {
            part(shared, thread, ret, |size| 0..size)
        }
        Alters::Opened(_) => Ok(()),
        Alters::Named => {
            let stat = named(shared, thread, notif, libc::AT_FDCWD as u64, args[0])?;
            look(shared, thread, stat, |size| 0..size)
        }
    }
}

/// The `ret` bytes that end where the descriptor stands.
fn behind_position(
    shared: &Shared,
    thread: &mut Thread,
    fd: u64,
    ret: u64,
) -> Result<(), StreamError> {
    if !is_perhaps_live(shared, thread, fd)? {
        return Ok(());
    }
    let at = thread.plain(libc::SYS_lseek, &[fd, 0, libc::SEEK_CUR as u64, 0, 0, 0])?;
    let end = at.max(0) as u64;
    part(shared, thread, fd, |_| end.saturating_sub(ret)..end)
}

fn is_perhaps_live(shared: &Shared, thread: &mut Thread, fd: u64) -> Result<bool, StreamError> {
    let id = file_of(shared, thread, fd)?;
    Ok(id.is_some_and(|(dev, ino)| shared.live.has(dev, ino)))
}

/// Device and inode behind a descriptor.
fn file_of(
    shared: &Shared,
    thread: &mut Thread,
    fd: u64,
) -> Result<Option<(u64, u64)>, StreamError> {
    if let Some(id) = shared.live.files.lock().descriptors.get(&fd) {
        return Ok(Some(*id));
    }
    let id = mapping::granted(mapping::stat(thread, fd))?.map(|s| s.id());
    shared.live.files.lock().descriptors.extend(id.map(|id| (fd, id)));
    Ok(id)
}

fn part(
    shared: &Shared,
    thread: &mut Thread,
    fd: u64,
    range: impl FnOnce(u64) -> Range<u64>,
) -> Result<(), StreamError> {
    match is_perhaps_live(shared, thread, fd)? {
        false => Ok(()),
        true => {
            let stat = mapping::granted(mapping::stat(thread, fd))?;
            look(shared, thread, stat, range)
        }
    }
}

/// Reads a range of a live file anew; of its size at home, `range` makes it.
fn look(
    shared: &Shared,
    thread: &mut Thread,
    stat: Option<mapping::Stat>,
    range: impl FnOnce(u64) -> Range<u64>,
) -> Result<(), StreamError> {
    // Somebody else has closed or removed it.
    let Some(stat) = stat else { return Ok(()) };
    let mut files = shared.live.files.lock();
    // One that is shared was altered when it was none yet, or by others: it is as home had it.
    let is_own = |f: &Known| f.id == stat.id() && !f.twin.is_shared();
    let Some(i) = files.all.iter().position(is_own) else { return Ok(()) };
    if files.all[i].twin.size() != stat.size {
        files.all[i].twin.resize(stat.size)?;
    }
    files.learn(thread, i, range(stat.size))
}

impl Files {
    fn pid(&mut self, thread: &mut Thread) -> Result<i32, StreamError> {
        if let Some(pid) = self.pid {
            return Ok(pid);
        }
        let pid = thread.plain(libc::SYS_getpid, &[0; 6])? as i32;
        self.pid = Some(pid);
        Ok(pid)
    }

    fn write_back(
        &mut self,
        watch: Option<&Watch>,
        thread: &mut Thread,
    ) -> Result<Lost, StreamError> {
        let mut lost = Lost::new();
        for i in 0..self.all.len() {
            if !self.all[i].is_writable() {
                continue;
            }
            // Until home has taken them: what is sent is what is there then.
            let _held = self.all[i].twin.hold()?;
            let changes = self.all[i].changes(watch)?;
            if changes.is_empty() {
                continue;
            }
            let pid = self.pid(thread)?;
            let known = &mut self.all[i];
            let mut pieces = Vec::with_capacity(changes.len());
            for change in changes {
                known.divide(change, &mut pieces)?;
            }
            known.send(thread, pid, pieces, &mut lost)?;
        }
        Ok(lost)
    }

    fn learn(
        &mut self,
        thread: &mut Thread,
        i: usize,
        range: Range<u64>,
    ) -> Result<(), StreamError> {
        let pid = self.pid(thread)?;
        let known = &mut self.all[i];
        let mut buffer = vec![0; BATCH_BYTES.min((range.end - range.start) as usize)];
        for w in 0..known.windows.len() {
            let Window { home, offset, len, .. } = known.windows[w];
            let end = range.end.min(offset + len).min(known.twin.size());
            let mut at = range.start.max(offset);
            while at < end {
                let n = buffer.len().min((end - at) as usize);
                let from = home + (at - offset);
                let got = thread.peek(pid, from, &mut buffer[..n])?;
                if got > 0 {
                    known.twin.learn(at, &buffer[..got as usize])?;
                    at += got as u64;
                } else if !known.open(thread, w)? {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Known {
    /// Whether home can be written to somewhere.
    fn is_writable(&self) -> bool {
        self.windows.iter().any(|w| w.is_writable)
    }

    /// What the guest has changed since it was last written back.
    fn changes(&mut self, watch: Option<&Watch>) -> io::Result<Vec<Change>> {
        let Some(watch) = watch else { return self.twin.changes() };
        if let Sight::Parts(parts) = &self.sight {
            match watch.written(parts) {
                Some(written) => return self.twin.changes_in(&written),
                None => self.sight = Sight::Lost,
            }
        }
        if let Sight::Lost = self.sight {
            // Before the comparison: what is written during it shows again.
            self.sight = watch.begin(self.here);
        }
        self.twin.changes()
    }

    /// Home does not take it, and it is undone; but not what others may have written.
    fn refused(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.twin.is_shared() {
            self.twin.accept(offset, bytes);
            return Ok(());
        }
        self.twin.take_back(offset, bytes.len())
    }

    /// Where home has the bytes of a change.
    fn divide(&mut self, change: Change, pieces: &mut Vec<Piece>) -> io::Result<()> {
        let Change { mut offset, mut bytes } = change;
        while !bytes.is_empty() {
            let holds =
                |w: &Window| w.is_writable && (w.offset..w.offset + w.len).contains(&offset);
            let Some(i) = self.windows.iter().position(holds) else {
                let n = bytes.len().min((PAGE_BYTES - offset % PAGE_BYTES) as usize);
                // What others have mapped is theirs to send.
                if !self.twin.is_shared() {
                    tracing::warn!(offset, "the guest wrote where home has nothing mapped");
                    self.twin.take_back(offset, n)?;
                }
                bytes.drain(..n);
                offset += n as u64;
                continue;
            };
            let w = self.windows[i];
            let n = bytes.len().min((w.offset + w.len - offset) as usize);
            let rest = bytes.split_off(n);
            pieces.push(Piece { window: i, home: w.home + (offset - w.offset), offset, bytes });
            (offset, bytes) = (offset + n as u64, rest);
        }
        Ok(())
    }

    fn send(
        &mut self,
        thread: &mut Thread,
        pid: i32,
        pieces: Vec<Piece>,
        lost: &mut Lost,
    ) -> Result<(), StreamError> {
        let mut rest = &pieces[..];
        // Of the first piece, bytes that are home already.
        let mut skip = 0;
        while !rest.is_empty() {
            let mut total = 0;
            let fits = |p: &&Piece| {
                total += p.bytes.len();
                total <= BATCH_BYTES
            };
            let count = rest.iter().take(PIECES_MAX).take_while(fits).count().max(1);
            let batch = rest[..count].iter().enumerate().map(|(i, p)| {
                let from = if i == 0 { skip } else { 0 };
                (p.home + from as u64, &p.bytes[from..])
            });
            let mut taken = thread.poke(pid, batch)?.max(0) as usize;
            for i in 0..count {
                let piece = &rest[0];
                let n = taken.min(piece.bytes.len() - skip);
                self.twin.accept(piece.offset + skip as u64, &piece.bytes[skip..skip + n]);
                (taken, skip) = (taken - n, skip + n);
                if skip < piece.bytes.len() {
                    // Once more from here, if that can help.
                    if i == 0 && n == 0 && !self.open(thread, piece.window)? {
                        lost.push(piece.home + skip as u64);
                        self.refused(piece.offset + skip as u64, &piece.bytes[skip..])?;
                        (rest, skip) = (&rest[1..], 0);
                    }
                    break;
                }
                (rest, skip) = (&rest[1..], 0);
            }
        }
        Ok(())
    }

    /// The guest's protection of its mapping is not home's: makes home's as wide as it can be.
    /// False: it was before, or cannot be.
    fn open(&mut self, thread: &mut Thread, i: usize) -> Result<bool, StreamError> {
        let w = self.windows[i];
        if std::mem::replace(&mut self.opened[i], true) {
            return Ok(false);
        }
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        Ok(thread.plain(libc::SYS_mprotect, &[w.home, w.len, prot, 0, 0, 0])? == 0)
    }
}

impl Thread {
    pub(crate) fn plain(&mut self, nr: i64, args: &[u64; 6]) -> Result<i64, StreamError> {
        self.own(|call, seq| call.plain(nr as u16, args, seq), &mut [])
    }

    pub(crate) fn poke<'a>(
        &mut self,
        pid: i32,
        pieces: impl ExactSizeIterator<Item = (u64, &'a [u8])> + Clone,
    ) -> Result<i64, StreamError> {
        self.own(|call, seq| call.poke(pid, pieces.clone(), seq), &mut [])
    }

    pub(crate) fn peek(
        &mut self,
        pid: i32,
        addr: u64,
        into: &mut [u8],
    ) -> Result<i64, StreamError> {
        let len = into.len();
        self.own(|call, seq| call.peek(pid, addr, len, OWN_BASE, seq), into)
    }
}
