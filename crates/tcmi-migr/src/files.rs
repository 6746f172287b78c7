//! Mapped files, named by content: at home hashed and sent when asked for, on a node kept in a
//! cache under their hash.

use crate::error::{Error, Result};
use crate::messages as msg;
use crate::pages;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::LazyLock;
use tcmi_ckpt::capture::{self, Files};
use tcmi_ckpt::image::FileRef;
use tcmi_ckpt::sysv;
use tcmi_kkc::{BulkReader, BulkWriter};
use tcmi_sys::maps::{self, Mapping};

const CHUNK_BYTES: usize = 1 << 20;

/// What identifies bytes of a file without reading them.
type Identity = (u64, u64, u64, i64, i64, u64, u64);
static HASHES: LazyLock<Mutex<HashMap<Identity, [u8; 32]>>> = LazyLock::new(Mutex::default);
/// Hashes remembered before the oldest knowledge is dropped at once.
const HASHES_MAX: usize = 4096;

/// The files that a process at home has mapped.
pub struct HomeFiles {
    pid: i32,
    pub refs: Vec<FileRef>,
    open: Vec<File>,
    /// File offsets that are mapped of each.
    mapped: Vec<Vec<Range<u64>>>,
    /// It runs: who else maps its live files is not looked for yet, which takes longer than the
    /// rest.
    in_passing: bool,
    /// All who share memory with it move with it.
    together: bool,
}

impl HomeFiles {
    /// Of a process that is held.
    pub fn of(pid: i32, together: bool) -> Self {
        let (refs, open, mapped) = Default::default();
        Self { pid, refs, open, mapped, in_passing: false, together }
    }

    pub fn in_passing(pid: i32, together: bool) -> Self {
        Self { in_passing: true, ..Self::of(pid, together) }
    }

    /// Fills in the hashes, reading what is not known yet.
    pub fn hash(&mut self) -> Result<()> {
        for (r, f) in self.refs.iter_mut().zip(&self.open) {
            if r.live {
                (r.size, r.first, r.last) = (0, 0, 0);
                continue;
            }
            let m = f.metadata().map_err(Error::io("stat a mapped file"))?;
            r.size = m.size();
            r.last = r.last.min(r.size);
            r.first = r.first.min(r.last);
            let id = (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), r.first, r.last);
            if let Some(known) = HASHES.lock().get(&id) {
                r.hash = *known;
                continue;
            }
            r.hash = hash_range(f, r.first, r.last)?;
            let mut all = HASHES.lock();
            if all.len() >= HASHES_MAX {
                all.clear();
            }
            all.insert(id, r.hash);
        }
        Ok(())
    }

    /// Makes a file live, if the process is the only one that has it so.
    fn live(&mut self, index: usize, m: &Mapping) -> tcmi_ckpt::Result<()> {
        let sharer = match self.in_passing {
            true => None,
            false => capture::sharer_of(self.pid, m)?,
        };
        match sharer {
            Some(why) => Err(tcmi_ckpt::Error::Unsupported(why)),
            None => {
                self.refs[index].live = true;
                Ok(())
            }
        }
    }

    /// What the held process has mapped of its live files, each behind a [`msg::Live`].
    pub fn send_live(&self, w: &mut BulkWriter) -> Result<()> {
        let all = self.refs.iter().zip(&self.open).zip(&self.mapped).zip(0..);
        for (((r, f), mapped), index) in all {
            if !r.live {
                continue;
            }
            let m = f.metadata().map_err(Error::io("stat a mapped file"))?;
            let (size, dev, ino) = (m.size(), m.dev(), m.ino());
            msg::send(w, &msg::Live { index, size, dev, ino })?;
            let mut data = Vec::new();
            for range in joined(mapped) {
                data_in(f, range.start..range.end.min(size), &mut data)
                    .map_err(Error::io("look for data in a mapped file"))?;
            }
            pages::send_file(w, f, &data)?;
        }
        Ok(())
    }

    pub fn send(&self, w: &mut BulkWriter, index: u32) -> Result<()> {
        let missing = Error::Protocol { want: "the index of a file", got: 0 };
        let (r, f) = match (self.refs.get(index as usize), self.open.get(index as usize)) {
            (Some(r), Some(f)) => (r, f),
            _ => return Err(missing),
        };
        let mut buf = vec![0; CHUNK_BYTES];
        let mut at = r.first;
        while at < r.last {
            let n = ((r.last - at) as usize).min(CHUNK_BYTES);
            f.read_exact_at(&mut buf[..n], at).map_err(Error::io("read a mapped file"))?;
            w.write(&buf[..n])?;
            at += n as u64;
        }
        Ok(())
    }
}

/// Sorted, and none touches the next.
pub fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all = ranges.to_vec();
    all.sort_unstable_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for r in all {
        match joined.last_mut() {
            Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
            _ => joined.push(r),
        }
    }
    joined
}

/// Appends where a range of a file is no hole.
fn data_in(f: &File, range: Range<u64>, out: &mut Vec<Range<u64>>) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let Some(start) = seek(f, at, libc::SEEK_DATA)?.filter(|s| *s < range.end) else { break };
        let end = seek(f, start, libc::SEEK_HOLE)?.map_or(range.end, |e| e.min(range.end));
        out.push(start..end);
        at = end;
    }
    Ok(())
}

/// None: there is no more of what was looked for.
pub fn seek(f: &File, at: u64, whence: i32) -> std::io::Result<Option<u64>> {
    // SAFETY: plain call on an open file.
    match unsafe { libc::lseek(f.as_raw_fd(), at as i64, whence) } {
        -1 => match std::io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
        found => Ok(Some(found as u64)),
    }
}

fn hash_range(f: &File, first: u64, last: u64) -> Result<[u8; 32]> {
    let mut h = blake3::Hasher::new();
    let mut buf = vec![0; CHUNK_BYTES];
    let mut at = first;
    while at < last {
        let n = ((last - at) as usize).min(CHUNK_BYTES);
        f.read_exact_at(&mut buf[..n], at).map_err(Error::io("read a mapped file"))?;
        h.update(&buf[..n]);
        at += n as u64;
    }
    Ok(*h.finalize().as_bytes())
}

impl Files for HomeFiles {
    fn is_alone(&self, m: &Mapping) -> bool {
        let alone = || {
            if sysv::is_segment(m) {
                return sysv::obstacle(self.pid, m).is_none();
            }
            let sharers = maps::sharers(&[m.object()]);
            sharers.is_ok_and(|all| all.iter().all(|pid| *pid == self.pid))
        };
        capture::is_shared_at_home(m) && (self.together || alone())
    }
    fn index(&mut self, m: &Mapping) -> tcmi_ckpt::Result<u32> {
        let dev = u64::from(m.dev.0) << 32 | u64::from(m.dev.1);
        let (first, last) = (m.offset, m.offset + m.len());
        if let Some(i) = self.refs.iter().position(|r| r.dev == dev && r.inode == m.inode) {
            let r = &mut self.refs[i];
            (r.first, r.last) = (r.first.min(first), r.last.max(last));
            self.mapped[i].push(first..last);
            if !r.live && capture::is_live(m) {
                self.live(i, m)?;
            }
            return Ok(i as u32);
        }
        // By the mapping, not by the path: the file may be deleted or renamed.
        let path = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, m.start, m.end);
        let f = File::open(&path).map_err(|e| {
            tcmi_ckpt::Error::unsupported(format!("its mapped file {} cannot be read: {e}", m.name))
        })?;
        let kind = f.metadata().map(|m| m.is_file()).unwrap_or(false);
        if !kind {
            return Err(tcmi_ckpt::Error::unsupported(format!("a mapping of {}", m.name)));
        }
        self.open.push(f);
        self.refs.push(FileRef {
            path: m.name.clone(),
            dev,
            inode: m.inode,
            size: 0,
            first,
            last,
            hash: [0; 32],
            live: false,
        });
        self.mapped.push(Vec::new());
        let i = self.refs.len() - 1;
        self.mapped[i].push(first..last);
        if capture::is_live(m) {
            self.live(i, m)?;
        }
        Ok(i as u32)
    }
}

/// Files on an execution node, by the hash of their bytes.
pub struct Cache {
    dir: OwnedFd,
}

/// Largest extent of one mapped file that a node takes, in bytes.
pub const FILE_BYTES_MAX: u64 = 8 << 30;

impl Cache {
    /// `dir` is an open directory that only this node writes to.
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }
    fn name(r: &FileRef) -> String {
        let hex: String = r.hash.iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}-{:x}", r.first)
    }
    fn open_at(&self, name: &str, flags: i32) -> std::io::Result<File> {
        let c = std::ffi::CString::new(name)?;
        let flags = flags | libc::O_CLOEXEC;
        // SAFETY: an open directory and a C string; the result is checked before it is owned.
        let fd = unsafe { libc::openat(self.dir.as_raw_fd(), c.as_ptr(), flags, 0o600) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
    /// The file, if it is here.
    pub fn open(&self, r: &FileRef) -> Option<File> {
        self.open_at(&Self::name(r), libc::O_RDONLY).ok()
    }
    /// Takes a file from the stream. It is kept only if its bytes have the hash it was named by.
    pub fn receive(&self, r: &FileRef, from: &mut BulkReader) -> Result<File> {
        if r.first > r.last || r.last > r.size || r.last - r.first > FILE_BYTES_MAX {
            return Err(tcmi_ckpt::Error::Image("extent of a mapped file").into());
        }
        let io = || Error::io("write to the file cache");
        let part = format!("part-{}", std::process::id());
        let f = self.open_at(&part, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).map_err(io())?;
        let mut h = blake3::Hasher::new();
        let mut at = r.first;
        while at < r.last {
            let bytes = from.fill()?;
            let n = bytes.len().min((r.last - at) as usize);
            f.write_all_at(&bytes[..n], at).map_err(io())?;
            h.update(&bytes[..n]);
            from.consume(n);
            at += n as u64;
        }
        if *h.finalize().as_bytes() != r.hash {
            return Err(tcmi_ckpt::Error::Image("a mapped file has other bytes than said").into());
        }
        f.set_len(r.last).map_err(io())?;
        self.rename(&part, &Self::name(r)).map_err(io())?;
        // Read-only: a shared mapping of a writable descriptor could become writable.
        self.open_at(&Self::name(r), libc::O_RDONLY).map_err(io())
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        let (from, to) = (std::ffi::CString::new(from)?, std::ffi::CString::new(to)?);
        let d = self.dir.as_fd().as_raw_fd();
        // SAFETY: an open directory and two C strings.
        match unsafe { libc::renameat(d, from.as_ptr(), d, to.as_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
