//! What a process is, without its pages: enough to build it again.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tcmi_sys::namespace;
use tcmi_sys::pages::PAGE_BYTES;

/// End of what a process can map, but for one page.
const USER_END: u64 = 1 << 47;

/// Of what stands here; goes up with every change that another version cannot read.
pub const VERSION: u32 = 3;
pub const SIGINFO_BYTES: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessImage {
    pub pid: i32,
    pub comm: Vec<u8>,
    pub exe: String,
    pub uid: u32,
    pub gid: u32,
    pub personality: u32,
    /// PR_SET_THP_DISABLE.
    pub no_huge_pages: bool,
    pub mm: AddressSpace,
    pub files: Vec<FileRef>,
    pub threads: Vec<ThreadImage>,
    /// Dispositions that are not the default.
    pub actions: Vec<Action>,
    /// Signals that it may read from descriptors, which are home's. What is pending of those that
    /// all threads block is there, too.
    pub descriptor_signals: u64,
    /// Pending for the process, oldest first.
    pub pending: Vec<SigInfo>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: (interval, value) in microseconds.
    pub itimers: [(i64, i64); 3],
    pub timers: Vec<PosixTimer>,
    /// (resource, soft, hard)
    pub limits: Vec<(u32, u64, u64)>,
    /// The signal of a job-control stop that it is in, or 0.
    pub stopped_by: i32,
    /// Clocks that never go back, as the process can last have seen them.
    pub clocks: Clocks,
}

pub type SigInfo = Vec<u8>;

/// In nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic: i64,
    pub boottime: i64,
    /// CLOCK_MONOTONIC_COARSE, which stands still between two ticks.
    pub coarse: i64,
}

impl Clocks {
    /// This node's, in a time namespace with these offsets of the first two.
    pub fn now((monotonic, boottime): (i64, i64)) -> Self {
        Self {
            monotonic: namespace::clock(libc::CLOCK_MONOTONIC).saturating_add(monotonic),
            boottime: namespace::clock(libc::CLOCK_BOOTTIME).saturating_add(boottime),
            coarse: namespace::clock(libc::CLOCK_MONOTONIC_COARSE).saturating_add(monotonic),
        }
    }
    /// How far the clock that is most behind `seen` is; not positive: none is.
    pub fn behind(&self, seen: &Self) -> i64 {
        let behind = |seen: i64, now: i64| seen.saturating_sub(now);
        behind(seen.monotonic, self.monotonic)
            .max(behind(seen.boottime, self.boottime))
            .max(behind(seen.coarse, self.coarse))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSpace {
    pub vmas: Vec<Vma>,
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    pub auxv: Vec<u8>,
    /// How what it maps from now on is locked: MCL_* of mlockall, or 0.
    pub locks: u32,
    /// The vvar pages and the vdso, as (start, end); vvar lies below vdso.
    pub vvar: (u64, u64),
    pub vdso: (u64, u64),
    /// The vdso's bytes, as home's kernel maps them.
    pub vdso_text: Vec<u8>,
    /// Where tcmi's own region stands, in the shadow and in the guest alike; not in `vmas`.
    pub reserved: (u64, u64),
}

impl AddressSpace {
    /// Whether a process can have it. What a peer sends passes here before it is computed with.
    pub fn check(&self) -> Result<()> {
        let mut free = 0;
        for v in &self.vmas {
            check_range("a mapping", (v.start, v.end))?;
            if v.start < free || v.start == v.end {
                return Err(Error::Image("mappings out of order"));
            }
            free = v.end;
            if let Backing::File { offset, .. } = v.backing {
                let last = offset.checked_add(v.end - v.start);
                if !offset.is_multiple_of(PAGE_BYTES) || last.is_none_or(|l| l > i64::MAX as u64) {
                    return Err(Error::Image("the offset of a mapping"));
                }
            }
        }
        check_range("the vvar pages", self.vvar)?;
        check_range("the vdso", self.vdso)?;
        check_range("the reserved region", self.reserved)?;
        match self.vvar.0 <= self.vdso.0 {
            true => Ok(()),
            false => Err(Error::Image("the vvar pages lie above the vdso")),
        }
    }
    pub fn has_vdso(&self) -> bool {
        self.vdso.1 > self.vdso.0
    }
}

/// May be empty.
pub fn check_range(what: &'static str, (start, end): (u64, u64)) -> Result<()> {
    match start <= end && end <= USER_END && (start | end).is_multiple_of(PAGE_BYTES) {
        true => Ok(()),
        false => Err(Error::Image(what)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous memory: private, or shared and no other process's.
    Anonymous,
    /// Mapping of `files[file]`, beginning at `offset` bytes; shared and writable only of a live
    /// one.
    File { file: u32, offset: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    /// PROT_*
    pub prot: i32,
    pub backing: Backing,
    /// Bits of [`vma_flags`].
    pub flags: u32,
}

pub mod vma_flags {
    pub const GROWS_DOWN: u32 = 1;
    pub const NO_RESERVE: u32 = 2;
    pub const LOCKED: u32 = 4;
    pub const DONT_FORK: u32 = 8;
    pub const DONT_DUMP: u32 = 16;
    pub const WIPE_ON_FORK: u32 = 32;
    pub const HUGE: u32 = 64;
    pub const NO_HUGE: u32 = 128;
    pub const MERGEABLE: u32 = 256;
    /// MAP_SHARED: of a file, or of anonymous memory.
    pub const SHARED: u32 = 512;
    /// Private memory of hugetlbfs where it was captured. It is made of ordinary pages wherever it
    /// comes to.
    pub const HUGE_TLB: u32 = 1024;
    /// Of a file, shared, and may be written to, whatever its protection is now.
    pub const MAY_WRITE: u32 = 2048;
}

/// A mapping of memory that several processes share and that moves with all of them. Among the
/// `vmas` it is shared anonymous memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub id: u64,
    pub start: u64,
    pub end: u64,
    /// Of `start` in the segment, in bytes.
    pub offset: u64,
    /// Of the whole segment.
    pub bytes: u64,
    /// Whether its pages come with this process, not with another one.
    pub is_sent: bool,
    /// It is there at home when its last process is gone, as System V memory is.
    pub outlives: bool,
}

/// A file that several processes which move together have mapped shared, and one of them to write:
/// live in each of them, and one memory on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFile {
    pub id: u64,
    /// Of the memory in which the node keeps what home has of it.
    pub kept: u64,
    /// As in its [`FileRef`].
    pub dev: u64,
    pub inode: u64,
    /// Whether what is mapped of it comes with this process, not with others.
    pub is_sent: bool,
}

impl SharedFile {
    /// Whether `r` is the same file.
    pub fn is_of(&self, r: &FileRef) -> bool {
        (self.dev, self.inode) == (r.dev, r.inode)
    }
}

/// What a process shares with others that move with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    pub segments: Vec<Segment>,
    pub files: Vec<SharedFile>,
}

impl Common {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.files.is_empty()
    }
    /// Whether others need what comes with this process.
    pub fn is_sent(&self) -> bool {
        self.segments.iter().any(|s| s.is_sent) || self.files.iter().any(|f| f.is_sent)
    }
    pub fn check(&self, vmas: &[Vma]) -> Result<()> {
        if self.segments.len() > SEGMENTS_MAX || self.files.len() > SEGMENTS_MAX {
            return Err(Error::Image("too many segments"));
        }
        self.segments.iter().try_for_each(|s| s.check(vmas))
    }
}

/// Largest segment, in bytes, and most mappings of segments, and shared files, in one process.
const SEGMENT_BYTES_MAX: u64 = 1 << 40;
const SEGMENTS_MAX: usize = 256;

impl Segment {
    /// Whether it can be a mapping of `vmas`.
    pub fn check(&self, vmas: &[Vma]) -> Result<()> {
        check_range("a segment", (self.start, self.end))?;
        let fits = self.offset.is_multiple_of(PAGE_BYTES)
            && self.bytes <= SEGMENT_BYTES_MAX
            && self.offset.checked_add(self.end - self.start).is_some_and(|l| l <= self.bytes);
        let is_here = |v: &Vma| {
            let kind = v.backing == Backing::Anonymous && v.flags & vma_flags::SHARED != 0;
            kind && v.start <= self.start && self.end <= v.end
        };
        match fits && self.start < self.end && vmas.iter().any(is_here) {
            true => Ok(()),
            false => Err(Error::Image("a segment")),
        }
    }
    pub fn covers(&self, start: u64, end: u64) -> bool {
        self.start <= start && end <= self.end
    }
}

/// A file at home that is mapped, named by content, or live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    pub path: String,
    pub dev: u64,
    pub inode: u64,
    pub size: u64,
    /// The bytes `first..last` are mapped somewhere; `hash` is BLAKE3 of these.
    pub first: u64,
    pub last: u64,
    pub hash: [u8; 32],
    /// The process may write to it by a shared mapping: it is named by device and inode alone
    /// (the four before are 0), and what is mapped of it comes with the pages.
    pub live: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadImage {
    pub tid: i32,
    pub comm: Vec<u8>,
    /// `struct user_regs_struct`, little-endian words.
    pub regs: Vec<u64>,
    pub xstate: Vec<u8>,
    pub mask: u64,
    /// sigaltstack: (sp, flags, size)
    pub altstack: (u64, i32, u64),
    /// get_robust_list: (head, length)
    pub robust: (u64, u64),
    pub clear_tid: u64,
    /// (address, size, signature)
    pub rseq: Option<(u64, u32, u32)>,
    pub pending: Vec<SigInfo>,
    pub sched_policy: i32,
    pub sched_priority: i32,
    pub nice: i32,
    /// PR_GET_TIMERSLACK, in nanoseconds.
    pub timer_slack: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    pub signal: i32,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    pub notify: i32,
    pub signal: i32,
    pub tid: i32,
    pub value: u64,
    /// Nanoseconds; `left` 0: disarmed.
    pub interval: i64,
    pub left: i64,
    pub overrun: i32,
}
