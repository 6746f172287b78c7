//! A live file as the guest has it, beside what home has of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::mapping;

const PAGE: usize = 4096;
/// Bytes in which pages are looked for one by one.
const FEW: usize = 64 * PAGE;
/// Compared at once.
const STRIDE: usize = 16 * PAGE;

/// Bytes that are no longer those that home has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// In the file, in bytes.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// A mapping of ours that is read and written by address: the guest writes to it meanwhile.
struct Map {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory, reached with raw copies only; `Twin` says by whom.
unsafe impl Send for Map {}

impl Map {
    fn new(f: &File, offset: u64, len: usize, prot: i32) -> io::Result<Self> {
        let (fd, null) = (f.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: a new mapping at a place of the kernel's choice.
        let p = unsafe { libc::mmap(null, len, prot, libc::MAP_SHARED, fd, offset as i64) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { at: NonNull::new(p.cast()).expect("mmap does not give null"), len })
    }
    /// To be read.
    fn of_file(f: &File, offset: u64, len: usize) -> io::Result<Self> {
        Self::new(f, offset, len, libc::PROT_READ)
    }
    fn to_write(f: &File, offset: u64, len: usize) -> io::Result<Self> {
        Self::new(f, offset, len, libc::PROT_READ | libc::PROT_WRITE)
    }
    fn at(&self, from: usize, len: usize) -> *mut u8 {
        assert!(from.checked_add(len).is_some_and(|end| end <= self.len), "inside the mapping");
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.at.as_ptr().add(from) }
    }
    fn read(&self, from: usize, into: &mut [u8]) {
        let here = self.at(from, into.len());
        // SAFETY: `here` has as many bytes, and `into` is no part of a mapping.
        unsafe { here.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }
    fn write(&mut self, to: usize, from: &[u8]) {
        let here = self.at(to, from.len());
        // SAFETY: as in `read`; only what home has is written, which no guest maps.
        unsafe { here.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }
    fn is_same(&self, other: &Map, from: usize, len: usize) -> bool {
        // SAFETY: both have `len` bytes there; what the guest writes meanwhile is seen or not.
        unsafe { libc::memcmp(self.at(from, len).cast(), other.at(from, len).cast(), len) == 0 }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, referred to no more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// What is mapped of a live file. Only its owner changes the memfd's size, so that no access here
/// meets the end of it.
pub(super) struct Twin {
    memfd: File,
    /// File offset at which the maps begin, and bytes of the file.
    first: u64,
    size: u64,
    /// What home has. Where it has no pages are zeros.
    kept: Arc<File>,
    is_shared: bool,
    guest: Map,
    home: Map,
}

/// A lock that is its process's: it goes with it.
pub(super) struct Hold(Arc<File>);

impl Hold {
    fn of(kept: &Arc<File>) -> io::Result<Self> {
        lock(kept, libc::F_WRLCK)?;
        // No copy of the descriptor: to close one gives up the lock.
        Ok(Hold(Arc::clone(kept)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.0, libc::F_UNLCK).expect("a lock of ours goes");
    }
}

fn lock(kept: &File, kind: i32) -> io::Result<()> {
    // SAFETY: all zeros is a `flock`, of the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = kind as i16;
    loop {
        // SAFETY: an open file and a live description of the lock.
        match unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_SETLKW, &whole) } {
            0 => return Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

impl Twin {
    /// `range` of the file in `memfd`, which is as long, is what home has, if that is not `kept`
    /// with others.
    pub(super) fn of(memfd: File, kept: Option<File>, range: Range<u64>) -> io::Result<Self> {
        let (first, len) = (range.start, (range.end - range.start) as usize);
        let size = memfd.metadata()?.len();
        let guest = Map::of_file(&memfd, first, len)?;
        let is_shared = kept.is_some();
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let own = mapping::memfd()?;
                own.set_len(size)?;
                own
            }
        };
        let home = Map::to_write(&kept, first, len)?;
        let kept = Arc::new(kept);
        let mut twin = Twin { memfd, first, size, kept, is_shared, guest, home };
        if !is_shared {
            twin.accept_all()?;
        }
        Ok(twin)
    }

    fn accept_all(&mut self) -> io::Result<()> {
        let mut page = [0; PAGE];
        let mut extents = Vec::new();
        self.extents_in(&self.memfd, 0..self.end(), &mut extents)?;
        for data in extents {
            for at in data.step_by(PAGE) {
                let n = PAGE.min(self.end() - at);
                self.guest.read(at, &mut page[..n]);
                self.accept(self.first + at as u64, &page[..n]);
            }
        }
        Ok(())
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Of the maps, how much is in the file.
    fn end(&self) -> usize {
        self.size.saturating_sub(self.first).min(self.home.len as u64) as usize
    }

    /// Where a memfd has pages: those that were never touched, or taken out, read as zeros.
    fn extents_in(
        &self,
        memfd: &File,
        range: Range<usize>,
        all: &mut Vec<Range<usize>>,
    ) -> io::Result<()> {
        let (mut at, end) = (range.start, range.end);
        let seek = |at, whence| self.seek(memfd, at, whence);
        while at < end {
            let Some(start) = seek(at, libc::SEEK_DATA)?.filter(|s| *s < end) else { break };
            let stop = seek(start, libc::SEEK_HOLE)?.map_or(end, |s| s.min(end));
            all.push(start..stop);
            at = stop;
        }
        Ok(())
    }

    /// The same of few pages: to find the end of an extent, the kernel looks at all of its pages.
    fn pages_in(&self, range: Range<usize>, all: &mut Vec<Range<usize>>) -> io::Result<()> {
        for at in range.clone().step_by(PAGE) {
            if self.seek(&self.memfd, at, libc::SEEK_DATA)? == Some(at) {
                all.push(at..range.end.min(at + PAGE));
            }
        }
        Ok(())
    }

    fn seek(&self, memfd: &File, at: usize, whence: i32) -> io::Result<Option<usize>> {
        let at = self.first + at as u64;
        // SAFETY: plain call on an open file.
        match unsafe { libc::lseek(memfd.as_raw_fd(), at as i64, whence) } {
            -1 => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                e => Err(e),
            },
            found => Ok(Some((found as u64).saturating_sub(self.first) as usize)),
        }
    }

    /// What the guest has changed.
    pub(super) fn changes(&self) -> io::Result<Vec<Change>> {
        let mut all = Vec::new();
        self.look(0..self.end(), &mut all)?;
        Ok(all)
    }

    /// The same in parts of the file, page-aligned.
    pub(super) fn changes_in(&self, parts: &[Range<u64>]) -> io::Result<Vec<Change>> {
        let mut all = Vec::new();
        for part in parts {
            let start = part.start.saturating_sub(self.first) as usize;
            let end = (part.end.saturating_sub(self.first) as usize).min(self.end());
            self.look(start..end, &mut all)?;
        }
        Ok(all)
    }

    fn look(&self, range: Range<usize>, all: &mut Vec<Change>) -> io::Result<()> {
        let mut extents = Vec::new();
        let mut done = range.start;
        match range.len() {
            ..=FEW => self.pages_in(range.clone(), &mut extents)?,
            _ => self.extents_in(&self.memfd, range.clone(), &mut extents)?,
        }
        for data in extents {
            self.zeroed(done..data.start, all)?;
            self.compare(data.clone(), all);
            done = data.end;
        }
        self.zeroed(done..range.end, all)
    }

    fn compare(&self, range: Range<usize>, all: &mut Vec<Change>) {
        for stride in range.clone().step_by(STRIDE) {
            let len = STRIDE.min(range.end - stride);
            if self.guest.is_same(&self.home, stride, len) {
                continue;
            }
            for at in (stride..stride + len).step_by(PAGE) {
                let mut now = [0; PAGE];
                let n = PAGE.min(stride + len - at);
                self.guest.read(at, &mut now[..n]);
                self.differences(at, &now[..n], all);
            }
        }
    }

    /// Pages that the guest has taken out of the memfd.
    fn zeroed(&self, hole: Range<usize>, all: &mut Vec<Change>) -> io::Result<()> {
        let mut had = Vec::new();
        self.extents_in(&self.kept, hole, &mut had)?;
        for data in had {
            for at in data.clone().step_by(PAGE) {
                self.differences(at, &[0; PAGE][..PAGE.min(data.end - at)], all);
            }
        }
        Ok(())
    }

    /// Byte by byte: what the guest did not write, it must not write back.
    fn differences(&self, at: usize, now: &[u8], all: &mut Vec<Change>) {
        let mut home = [0; PAGE];
        let home = &mut home[..now.len()];
        self.home.read(at, home);
        let mut i = 0;
        while let Some(from) = (i..now.len()).find(|&k| now[k] != home[k]) {
            i = (from..now.len()).find(|&k| now[k] == home[k]).unwrap_or(now.len());
            let offset = self.first + (at + from) as u64;
            all.push(Change { offset, bytes: now[from..i].to_vec() });
        }
    }

    /// Home has these bytes now.
    pub(super) fn accept(&mut self, offset: u64, bytes: &[u8]) {
        self.home.write((offset - self.first) as usize, bytes);
    }

    /// Home did not take what the guest wrote there, so the guest has not written it.
    pub(super) fn take_back(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let mut bytes = vec![0; len];
        self.home.read((offset - self.first) as usize, &mut bytes);
        self.memfd.write_all_at(&bytes, offset)
    }

    /// Home has these bytes, and nobody here has written them: the guest is to see them.
    pub(super) fn learn(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (i, now) in bytes.chunks(PAGE).enumerate() {
            let at = offset + (i * PAGE) as u64;
            let mut known = [0; PAGE];
            let known = &mut known[..now.len()];
            self.home.read((at - self.first) as usize, known);
            let Some(from) = known.iter().zip(now).position(|(a, b)| a != b) else { continue };
            let last = known.iter().zip(now).rposition(|(a, b)| a != b).unwrap_or(from);
            self.memfd.write_all_at(&now[from..=last], at + from as u64)?;
            self.accept(at + from as u64, &now[from..=last]);
        }
        Ok(())
    }

    /// The file has another length at home.
    pub(super) fn resize(&mut self, size: u64) -> io::Result<()> {
        // What stood behind a new end is zeros if the file grows again.
        self.memfd.set_len(size)?;
        self.kept.set_len(size)?;
        self.size = size;
        Ok(())
    }

    /// Of a file that others have: until it is dropped, none of them looks at it or sends anything.
    pub(super) fn hold(&self) -> io::Result<Option<Hold>> {
        self.is_shared.then(|| Hold::of(&self.kept)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64) -> File {
        let f = mapping::memfd().unwrap();
        f.set_len(len).unwrap();
        f
    }

    fn change(offset: u64, bytes: &[u8]) -> Change {
        Change { offset, bytes: bytes.to_vec() }
    }

    #[test]
    fn what_was_written_is_found_byte_by_byte() {
        let f = file(10 * 4096 + 100);
        f.write_all_at(b"before", 4096).unwrap();
        let mut twin = Twin::of(f.try_clone().unwrap(), None, 4096..12 * 4096).unwrap();
        assert_eq!(twin.changes().unwrap(), []);
        f.write_all_at(b"beFoRe", 4096).unwrap();
        f.write_all_at(b"x", 9 * 4096 + 4095).unwrap();
        f.write_all_at(b"end", 10 * 4096 + 97).unwrap();
        let seen = twin.changes().unwrap();
        let last = change(10 * 4096 + 97, b"end");
        let want =
            [change(4098, b"F"), change(4100, b"R"), change(9 * 4096 + 4095, b"x"), last.clone()];
        assert_eq!(seen, want);
        seen.iter().take(3).for_each(|c| twin.accept(c.offset, &c.bytes));
        twin.take_back(last.offset, 3).unwrap();
        assert_eq!(twin.changes().unwrap(), []);
        let mut end = [1; 3];
        f.read_exact_at(&mut end, last.offset).unwrap();
        assert_eq!(end, [0; 3]);
    }

    #[test]
    fn a_page_that_is_taken_out_is_zeros() {
        let f = file(4 * 4096);
        f.write_all_at(b"gone", 2 * 4096 + 8).unwrap();
        let twin = Twin::of(f.try_clone().unwrap(), None, 0..4 * 4096).unwrap();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain call on an open file.
        assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), mode, 2 * 4096, 4096) }, 0);
        assert_eq!(twin.changes().unwrap(), [change(2 * 4096 + 8, &[0; 4])]);
    }

    #[test]
    fn a_file_that_shrinks_and_grows_has_zeros_there() {
        let f = file(3 * 4096);
        f.write_all_at(&[7; 3 * 4096], 0).unwrap();
        let mut twin = Twin::of(f.try_clone().unwrap(), None, 0..3 * 4096).unwrap();
        twin.resize(5000).unwrap();
        assert_eq!(twin.changes().unwrap(), []);
        twin.resize(3 * 4096).unwrap();
        assert_eq!(twin.changes().unwrap(), []);
        twin.learn(4999, &[7, 8]).unwrap();
        assert_eq!(twin.changes().unwrap(), []);
        let mut two = [0; 3];
        f.read_exact_at(&mut two, 4999).unwrap();
        assert_eq!(two, [7, 8, 0]);
    }
}
