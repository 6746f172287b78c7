//! Bytes of files at home, fetched when they are first asked for and kept as long as there is room.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::{OWN_BASE, ask};
use crate::calls::Shared;
use crate::memory::word;
use crate::stream::StreamError;
use crate::worker::Thread;

pub(super) const STAT_BYTES: usize = 144;
/// What is kept of a file, is kept in pieces of so many bytes.
const UNIT_BYTES: u64 = 64 * 1024;
/// What is fetched at once grows to so many of them while a file is read from front to back.
const UNITS_AT_ONCE_MAX: u64 = 16;
/// Of one guest.
const KEPT_BYTES_MAX: u64 = 64 << 20;
const FILES_MAX: usize = 4096;

/// From a change until its time cannot be that of another; clocks differ by less.
const SETTLED: Duration = Duration::from_secs(10);

/// What identifies the bytes of a file without reading them: device, inode, size, and the times of
/// its change.
type Identity = [u64; 7];

/// A file as it was when it was looked at.
pub(super) struct Content {
    pub(super) stat: [u8; STAT_BYTES],
    pub(super) size: u64,
    units: Mutex<Units>,
}

#[derive(Default)]
struct Units {
    all: HashMap<u64, Arc<[u8]>>,
    /// The one behind what was fetched last, and how many that were.
    next: u64,
    at_once: u64,
}

#[derive(Default)]
pub(super) struct Contents(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    known: HashMap<Identity, Arc<Content>>,
    /// With those that only their open has.
    all: Vec<Weak<Content>>,
    bytes: u64,
}

/// None: no regular file, or one whose size does not say what is in it.
pub(super) fn identity(stat: &[u8; STAT_BYTES]) -> Option<Identity> {
    let mode = word(stat, 24) as u32;
    let is_file = mode & libc::S_IFMT == libc::S_IFREG && word(stat, 48) > 0;
    is_file.then(|| [0, 8, 48, 88, 96, 104, 112].map(|at| word(stat, at)))
}

fn is_settled(changed: u64, now: SystemTime) -> bool {
    now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(changed))
        .is_ok_and(|age| age > SETTLED)
}

impl Contents {
    pub(super) fn get(&self, id: &Identity) -> Option<Arc<Content>> {
        self.0.lock().known.get(id).map(Arc::clone)
    }

    /// For the next who opens it as well, unless it was changed but now: another change may not
    /// show in its times.
    pub(super) fn add(&self, id: Identity, stat: [u8; STAT_BYTES]) -> Arc<Content> {
        let content = Arc::new(Content { stat, size: id[2], units: Mutex::default() });
        let mut kept = self.0.lock();
        if kept.all.len() >= FILES_MAX {
            kept.clear();
        }
        kept.all.push(Arc::downgrade(&content));
        if is_settled(id[5], SystemTime::now()) {
            kept.known.insert(id, Arc::clone(&content));
        }
        content
    }

    /// True: there was no room, and all is forgotten.
    fn count(&self, more: u64) -> bool {
        let mut kept = self.0.lock();
        let is_full = kept.bytes + more > KEPT_BYTES_MAX;
        if is_full {
            kept.clear();
        }
        kept.bytes += more;
        is_full
    }
}

impl Kept {
    /// Forgets all that is not being read this moment.
    fn clear(&mut self) {
        for content in self.all.iter().filter_map(Weak::upgrade) {
            if let Some(mut units) = content.units.try_lock() {
                units.all.clear();
            }
        }
        self.known.retain(|_, content| Arc::strong_count(content) > 1);
        self.all.retain(|content| content.strong_count() > 0);
        self.bytes = 0;
    }
}

/// A part of a file: from `offset` on, within a piece.
pub(super) struct Part {
    unit: Arc<[u8]>,
    from: usize,
}

impl Part {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.unit[self.from..]
    }
}

impl Content {
    /// What is there at `offset`, which lies in the file. None: home does not give it.
    pub(super) fn part(
        &self,
        shared: &Shared,
        thread: &mut Thread,
        fd: u64,
        offset: u64,
    ) -> Result<Option<Part>, StreamError> {
        let (index, from) = (offset / UNIT_BYTES, (offset % UNIT_BYTES) as usize);
        let part = |unit: &Arc<[u8]>| Part { unit: Arc::clone(unit), from };
        let known = self.units.lock().all.get(&index).map(part);
        if known.is_some() {
            return Ok(known);
        }
        let fetched = self.fetch(shared, thread, fd, index)?;
        Ok(fetched.filter(|unit| from < unit.len()).map(|unit| part(&unit)))
    }

    fn fetch(
        &self,
        shared: &Shared,
        thread: &mut Thread,
        fd: u64,
        index: u64,
    ) -> Result<Option<Arc<[u8]>>, StreamError> {
        // Others who read the file wait for what they may want as well.
        let mut units = self.units.lock();
        if let Some(unit) = units.all.get(&index) {
            return Ok(Some(Arc::clone(unit)));
        }
        let grown = (units.at_once * 2).clamp(1, UNITS_AT_ONCE_MAX);
        units.at_once = if index == units.next { grown } else { 1 };
        let end = self.size.div_ceil(UNIT_BYTES).min(index + units.at_once);
        let end = (index..end).find(|i| units.all.contains_key(i)).unwrap_or(end);
        let start = index * UNIT_BYTES;
        let mut bytes = vec![0; ((end * UNIT_BYTES).min(self.size) - start) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            let args = [fd, OWN_BASE, rest.len() as u64, start + done as u64, 0, 0];
            match ask(shared, thread, libc::SYS_pread64, args, rest)? {
                n @ 1.. => done += n as usize,
                // It has become shorter, or cannot be read.
                _ => return Ok(None),
            }
        }
        if shared.files.contents.count(bytes.len() as u64) {
            units.all.clear();
        }
        for (i, unit) in (index..).zip(bytes.chunks(UNIT_BYTES as usize)) {
            units.all.insert(i, unit.into());
        }
        units.next = end;
        Ok(units.all.get(&index).map(Arc::clone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mode: u32, size: u64) -> [u8; STAT_BYTES] {
        let mut stat = [0; STAT_BYTES];
        stat[8] = 7;
        stat[24..28].copy_from_slice(&mode.to_le_bytes());
        stat[48..56].copy_from_slice(&size.to_le_bytes());
        stat
    }

    #[test]
    fn what_has_no_content_of_its_own_is_not_known() {
        assert_eq!(identity(&stat(libc::S_IFREG | 0o644, 5)), Some([0, 7, 5, 0, 0, 0, 0]));
        assert_eq!(identity(&stat(libc::S_IFREG | 0o644, 0)), None);
        assert_eq!(identity(&stat(libc::S_IFIFO, 5)), None);
        assert_eq!(identity(&stat(libc::S_IFDIR, 5)), None);
    }

    #[test]
    fn what_was_changed_but_now_is_only_its_opens() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (changed, is) in [(0, true), (989, true), (990, false), (1000, false), (2000, false)] {
            assert_eq!(is_settled(changed, now), is, "{changed}");
        }
    }

    #[test]
    fn too_much_is_forgotten() {
        let contents = Contents::default();
        let stat = stat(libc::S_IFREG, 5);
        let id = identity(&stat).unwrap();
        let kept = contents.add(id, stat);
        kept.units.lock().all.insert(0, vec![1; 5].into());
        contents.count(KEPT_BYTES_MAX);
        assert_eq!(kept.units.lock().all.len(), 1);
        contents.count(1);
        assert_eq!(kept.units.lock().all.len(), 0);
        // It is open.
        assert!(contents.get(&id).is_some());
        drop(kept);
        contents.count(KEPT_BYTES_MAX);
        assert!(contents.get(&id).is_none());
    }
}
