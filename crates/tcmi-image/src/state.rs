//! What an image has of a process but for its memory.

use crate::format::Flaw;
use crate::wire::{choice, record};
use tcmi_ckpt::image::{
    Action, AddressSpace, Backing, Clocks, FileRef, PosixTimer, ProcessImage, ThreadImage, Vma,
};

/// Where and when an image was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub host: String,
    pub kernel: String,
    /// In seconds since 1970, UTC.
    pub taken: u64,
    /// XCR0 bits of the state that the threads' registers have.
    pub xfeatures: u64,
    /// Features of the processor, as in /proc/cpuinfo.
    pub cpu: Vec<String>,
}
record!(Origin { host, kernel, taken, xfeatures, cpu });

/// What a process has of its system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    pub credentials: Credentials,
    pub cwd: String,
    pub umask: u32,
    /// PR_SET_PDEATHSIG, or 0.
    pub death_signal: i32,
    /// PR_SET_CHILD_SUBREAPER.
    pub is_subreaper: bool,
    /// Open files; several descriptors can be one.
    pub opens: Vec<Open>,
    pub pipes: Vec<Pipe>,
    pub descriptors: Vec<Descriptor>,
}
record!(Surroundings {
    credentials,
    cwd,
    umask,
    death_signal,
    is_subreaper,
    opens,
    pipes,
    descriptors,
});

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective, saved.
    pub uids: [u32; 3],
    pub gids: [u32; 3],
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding.
    pub capabilities: [u64; 4],
    pub no_new_privileges: bool,
    pub dumpable: bool,
}
record!(Credentials { uids, gids, groups, capabilities, no_new_privileges, dumpable });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub fd: i32,
    /// Index in `opens`.
    pub open: u32,
    pub close_on_exec: bool,
}
record!(Descriptor { fd, open, close_on_exec });

/// A pipe of which only the process has ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipe {
    pub capacity: u32,
    /// What was written and not read.
    pub bytes: Vec<u8>,
}
record!(Pipe { capacity, bytes });

/// `flags` are those of open(2) that stay with an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Open {
    File {
        file: OpenFile,
    },
    /// A directory, or a file in which the kernel tells something.
    Named {
        path: String,
        flags: i32,
        position: u64,
    },
    /// That has no state: null, zero, full, random or urandom.
    Device {
        path: String,
        flags: i32,
    },
    /// Standard input, output or error of who restarts it.
    Standard {
        fd: i32,
    },
    Pipe {
        pipe: u32,
        flags: i32,
    },
    Event {
        count: u64,
        semaphore: bool,
        flags: i32,
    },
    /// Nanoseconds from now; `ticks` that were not read.
    Timer {
        clock: i32,
        flags: i32,
        ticks: u64,
        value: i64,
        interval: i64,
    },
    Signals {
        mask: u64,
        flags: i32,
    },
    /// (descriptor, events, data)
    Epoll {
        flags: i32,
        watches: Vec<(i32, u32, u64)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    pub path: String,
    pub flags: i32,
    pub position: u64,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
}
record!(OpenFile { path, flags, position, size, modified });

impl OpenFile {
    pub fn is_written(&self) -> bool {
        self.flags & libc::O_PATH == 0 && self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

choice!(Open, "an open file of no known kind" {
    1 => File { file },
    2 => Named { path, flags, position },
    3 => Device { path, flags },
    4 => Standard { fd },
    5 => Pipe { pipe, flags },
    6 => Event { count, semaphore, flags },
    7 => Timer { clock, flags, ticks, value, interval },
    8 => Signals { mask, flags },
    9 => Epoll { flags, watches },
});

impl Surroundings {
    /// Whether its parts fit together.
    pub fn check(&self) -> Result<(), Flaw> {
        let is_in_order = self.descriptors.windows(2).all(|w| w[0].fd < w[1].fd);
        let is_number = |fd: i32| (0..DESCRIPTORS_END).contains(&fd);
        if !is_in_order || !self.descriptors.iter().all(|d| is_number(d.fd)) {
            return Err(Flaw::Content("the numbers of its descriptors"));
        }
        if self.descriptors.iter().any(|d| d.open as usize >= self.opens.len()) {
            return Err(Flaw::Content("a descriptor of no open file"));
        }
        self.opens.iter().try_for_each(|open| self.check_open(open))
    }
    fn check_open(&self, open: &Open) -> Result<(), Flaw> {
        let has = |fd: i32| self.descriptors.binary_search_by_key(&fd, |d| d.fd).is_ok();
        match open {
            Open::Standard { fd } if !(0..3).contains(fd) => {
                Err(Flaw::Content("a standard stream beyond 2"))
            }
            Open::Pipe { pipe, .. } if *pipe as usize >= self.pipes.len() => {
                Err(Flaw::Content("an end of no pipe"))
            }
            Open::Epoll { watches, .. } if !watches.iter().all(|w| has(w.0)) => {
                Err(Flaw::Content("an epoll that watches no descriptor"))
            }
            Open::Timer { value, interval, .. } if *value < 0 || *interval < 0 => {
                Err(Flaw::Content("a timer of a negative time"))
            }
            _ => Ok(()),
        }
    }
}

/// The kernel's limit of what RLIMIT_NOFILE can be, where nobody has raised it.
pub const DESCRIPTORS_END: i32 = 1 << 20;

record!(ProcessImage {
    pid,
    comm,
    exe,
    uid,
    gid,
    personality,
    no_huge_pages,
    mm,
    files,
    threads,
    actions,
    descriptor_signals,
    pending,
    itimers,
    timers,
    limits,
    stopped_by,
    clocks,
});
record!(AddressSpace {
    vmas,
    start_code,
    end_code,
    start_data,
    end_data,
    start_brk,
    brk,
    start_stack,
    arg_start,
    arg_end,
    env_start,
    env_end,
    auxv,
    locks,
    vvar,
    vdso,
    vdso_text,
    reserved,
});
record!(Vma { start, end, prot, backing, flags });
record!(FileRef { path, dev, inode, size, first, last, hash, live });
record!(ThreadImage {
    tid,
    comm,
    regs,
    xstate,
    mask,
    altstack,
    robust,
    clear_tid,
    rseq,
    pending,
    sched_policy,
    sched_priority,
    nice,
    timer_slack,
});
record!(Action { signal, handler, flags, restorer, mask });
record!(PosixTimer { id, clock, notify, signal, tid, value, interval, left, overrun });
record!(Clocks { monotonic, boottime, coarse });

choice!(Backing, "a mapping of no known kind" {
    1 => Anonymous {},
    2 => File { file, offset },
});

/// Whether an image describes a process that can exist, as far as its parts tell.
pub fn check_process(p: &ProcessImage) -> Result<(), Flaw> {
    p.mm.check().map_err(|_| Flaw::Content("its mappings"))?;
    let is_id = |id: i32| id > 0;
    let ids: std::collections::HashSet<i32> = p.threads.iter().map(|t| t.tid).collect();
    if ids.len() != p.threads.len() || !ids.contains(&p.pid) || !ids.iter().all(|id| is_id(*id)) {
        return Err(Flaw::Content("the ids of its threads"));
    }
    let of_a_file = |v: &Vma| match v.backing {
        Backing::File { file, .. } => (file as usize) < p.files.len(),
        Backing::Anonymous => true,
    };
    if !p.mm.vmas.iter().all(of_a_file) {
        return Err(Flaw::Content("a mapping of no file"));
    }
    match p.files.iter().all(|f| f.first <= f.last && f.last <= f.size) {
        true => Ok(()),
        false => Err(Flaw::Content("the extent of a mapped file")),
    }
}

/// The runs of pages, whose bytes are `len` together, lie in order in the mappings.
pub fn check_runs(runs: &[(u64, u64)], vmas: &[Vma], len: u64) -> Result<(), Flaw> {
    const WRONG: Flaw = Flaw::Content("its runs of pages");
    let (mut free, mut sum) = (0, 0u64);
    for &(start, end) in runs {
        tcmi_ckpt::image::check_range("", (start, end)).map_err(|_| WRONG)?;
        if start < free || start == end || !is_mapped(vmas, start, end) {
            return Err(WRONG);
        }
        free = end;
        sum += end - start;
    }
    if sum == len { Ok(()) } else { Err(WRONG) }
}

fn is_mapped(vmas: &[Vma], start: u64, end: u64) -> bool {
    let first = vmas.partition_point(|v| v.end <= start);
    let mut at = start;
    for v in vmas[first..].iter().take_while(|v| v.start < end) {
        if v.start > at {
            return false;
        }
        at = v.end;
    }
    at >= end
}
