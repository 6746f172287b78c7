//! The files that a process at home has mapped, named by content.

use crate::capture::{Files, is_live, is_shared_at_home, sharer_of};
use crate::error::{Error, Result};
use crate::image::{Common, FileRef, SharedFile};
use crate::sysv;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::LazyLock;
use tcmi_sys::maps::{self, Mapping};
use tcmi_sys::{Errno, memory};

const CHUNK_BYTES: usize = 1 << 20;

/// What identifies bytes of a file without reading them.
type Identity = (u64, u64, u64, i64, i64, u64, u64);
static HASHES: LazyLock<Mutex<HashMap<Identity, [u8; 32]>>> = LazyLock::new(Mutex::default);
/// Hashes remembered before the oldest knowledge is dropped at once.
const HASHES_MAX: usize = 4096;

/// Device and inode of the file behind a mapping, as a [`FileRef`] has them.
pub fn id_of(m: &Mapping) -> (u64, u64) {
    (u64::from(m.dev.0) << 32 | u64::from(m.dev.1), m.inode)
}

/// The files that a process at home has mapped.
pub struct HomeFiles {
    pid: i32,
    pub refs: Vec<FileRef>,
    /// Each of `refs`, open to be read.
    pub open: Vec<File>,
    /// File offsets that are mapped of each.
    pub mapped: Vec<Vec<Range<u64>>>,
    /// It runs: who else maps its live files is not looked for yet, which takes longer than the
    /// rest.
    in_passing: bool,
    /// All who share memory with it move with it.
    together: bool,
    /// Live files that others which move with it have mapped, too.
    shared: Vec<SharedFile>,
}

impl HomeFiles {
    /// Of a process that is held.
    pub fn of(pid: i32, common: &Common) -> Self {
        let (refs, open, mapped) = Default::default();
        let (together, shared) = (!common.segments.is_empty(), common.files.clone());
        Self { pid, refs, open, mapped, in_passing: false, together, shared }
    }

    pub fn in_passing(pid: i32, common: &Common) -> Self {
        Self { in_passing: true, ..Self::of(pid, common) }
    }

    /// Whether what is mapped of a live file goes with this process, not with others.
    pub fn is_sent(&self, r: &FileRef) -> bool {
        self.shared.iter().find(|s| s.is_of(r)).is_none_or(|s| s.is_sent)
    }

    /// Fills in the hashes, reading what is not known yet.
    pub fn hash(&mut self) -> Result<()> {
        for (r, f) in self.refs.iter_mut().zip(&self.open) {
            if r.live {
                (r.size, r.first, r.last) = (0, 0, 0);
                continue;
            }
            let m = f.metadata().map_err(|e| Errno::from_io("stat a mapped file", &e))?;
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

    /// Makes a file live, if the process is the only one that has it so, but for those with which it
    /// moves.
    fn live(&mut self, index: usize, m: &Mapping) -> Result<()> {
        let is_known = self.in_passing || self.shared.iter().any(|s| s.is_of(&self.refs[index]));
        let sharer = if is_known { None } else { sharer_of(self.pid, m, &[])? };
        match sharer {
            Some(why) => Err(Error::Unsupported(why)),
            None => {
                self.refs[index].live = true;
                Ok(())
            }
        }
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

/// BLAKE3 of a part of a file.
pub fn hash_range(f: &File, first: u64, last: u64) -> Result<[u8; 32]> {
    let mut h = blake3::Hasher::new();
    let mut buf = vec![0; CHUNK_BYTES];
    for (at, n) in memory::parts(first..last, CHUNK_BYTES) {
        f.read_exact_at(&mut buf[..n], at).map_err(|e| Errno::from_io("read a mapped file", &e))?;
        h.update(&buf[..n]);
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
        is_shared_at_home(m) && (self.together || alone())
    }
    fn index(&mut self, m: &Mapping) -> Result<u32> {
        let (dev, inode) = id_of(m);
        let (first, last) = (m.offset, m.offset + m.len());
        if let Some(i) = self.refs.iter().position(|r| (r.dev, r.inode) == (dev, inode)) {
            let r = &mut self.refs[i];
            (r.first, r.last) = (r.first.min(first), r.last.max(last));
            self.mapped[i].push(first..last);
            if !r.live && is_live(m) {
                self.live(i, m)?;
            }
            return Ok(i as u32);
        }
        // By the mapping, not by the path: the file may be deleted or renamed.
        let path = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, m.start, m.end);
        let f = File::open(&path).map_err(|e| {
            Error::unsupported(format!("its mapped file {} cannot be read: {e}", m.name))
        })?;
        let kind = f.metadata().map(|m| m.is_file()).unwrap_or(false);
        if !kind {
            return Err(Error::unsupported(format!("a mapping of {}", m.name)));
        }
        self.open.push(f);
        self.refs.push(FileRef {
            path: m.name.clone(),
            dev,
            inode,
            size: 0,
            first,
            last,
            hash: [0; 32],
            live: self.shared.iter().any(|s| (s.dev, s.inode) == (dev, inode)),
        });
        self.mapped.push(Vec::new());
        let i = self.refs.len() - 1;
        self.mapped[i].push(first..last);
        if !self.refs[i].live && is_live(m) {
            self.live(i, m)?;
        }
        Ok(i as u32)
    }
}
