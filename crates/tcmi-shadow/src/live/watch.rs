//! Which pages of large live files the guest has written, as its kernel knows: to compare all of
//! them before each call would cost more than the call.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tcmi_sys::maps;
use tcmi_sys::pages::Pagemap;
use tcmi_sys::userfault::Userfault;
use tcmi_sys::waker::Waker;

/// Less is compared in a few microseconds.
const WATCHED_BYTES: u64 = 128 * 1024;
/// A guest's pages tell what it has written, not what others have that share the file.
const SHARED_WATCHED_BYTES: u64 = 1 << 20;

/// Size from which a file is watched.
pub(super) fn watched_from(is_shared: bool) -> u64 {
    if is_shared { SHARED_WATCHED_BYTES } else { WATCHED_BYTES }
}

/// A guest's mapping of a live file.
pub(super) struct Part {
    guest: Range<u64>,
    /// In the file, in bytes.
    offset: u64,
}

/// Of one live file.
pub(super) enum Sight {
    /// All of it is looked at.
    Whole,
    /// Mappings have gone or moved, and with them what their pages told.
    Lost,
    Parts(Vec<Part>),
}

pub(super) struct Watch {
    userfault: Userfault,
    pagemap: Pagemap,
    pid: i32,
}

impl Watch {
    /// None: this kernel cannot.
    pub(super) fn open((pid, fd): (i32, OwnedFd)) -> Option<Self> {
        let opened = Userfault::open(fd)
            .and_then(|userfault| Ok(Self { userfault, pagemap: Pagemap::open(pid)?, pid }));
        opened.inspect_err(|e| tracing::debug!(%e, "live files are compared whole")).ok()
    }

    /// Watches all mappings of the file behind memfd `inode`. What was written before shows no
    /// more, what is from here on does.
    pub(super) fn begin(&self, inode: u64) -> Sight {
        self.parts(inode).map_or_else(
            |e| {
                tracing::debug!(%e, "a live file is compared whole");
                Sight::Whole
            },
            Sight::Parts,
        )
    }

    fn parts(&self, inode: u64) -> tcmi_sys::errno::Result<Vec<Part>> {
        let mut parts = Vec::new();
        for m in maps::read_short(self.pid)?.iter().filter(|m| m.shared && m.inode == inode) {
            self.userfault.watch(m.start..m.end)?;
            self.pagemap.written_runs(m.start..m.end, &mut Vec::new())?;
            parts.push(Part { guest: m.start..m.end, offset: m.offset });
        }
        Ok(parts)
    }

    /// Where the file was written since the last look, or may have been, in bytes. None: not to be
    /// told.
    pub(super) fn written(&self, parts: &[Part]) -> Option<Vec<Range<u64>>> {
        let mut all = Vec::new();
        for part in parts {
            let mut runs = Vec::new();
            self.pagemap.written_runs(part.guest.clone(), &mut runs).ok()?;
            let in_file = |at: u64| at - part.guest.start + part.offset;
            all.extend(runs.iter().map(|r| in_file(r.start)..in_file(r.end)));
        }
        Some(all)
    }

    /// True: an event is there, whose cause waits until it is taken. None, at once: there will be
    /// no more, as the guest is gone.
    pub(super) fn wait(&self, waker: &Waker, timeout: Option<Duration>) -> Option<bool> {
        let waited = self.userfault.wait(waker, timeout);
        waited.inspect_err(|e| tracing::debug!(%e, "no more events")).ok()
    }

    /// Whether mappings have gone or moved since the last time.
    pub(super) fn take_events(&self) -> bool {
        self.userfault.take_events().map_or(true, |taken| taken > 0)
    }
}
