//! From a frozen process to its image. Changes nothing in the process but the
//! registers of its held threads, which thawing puts back.

use crate::error::{Error, Result};
use crate::freeze::{Frozen, interrupted};
use crate::image::*;
use crate::remote::{Agent, Calls, Ids, Slot, bytes_of, from_bytes, returned};
use crate::sysv;
use std::ops::Range;
use tcmi_sys::maps::Mapping;
use tcmi_sys::pages::{PAGE_BYTES, Pagemap};
use tcmi_sys::ptrace::Rseq;
use tcmi_sys::signal::{self, KernelAction};
use tcmi_sys::{Errno, maps, memory, proc, ptrace};

/// Knows the files behind mappings: at home from the file system, on an execution node from
/// what was fetched.
pub trait Files {
    /// Index into the image's `files` of the file behind `m`, or why it cannot be moved.
    fn index(&mut self, m: &Mapping) -> Result<u32>;
    /// Where in that file `m` begins, in bytes.
    fn offset(&self, m: &Mapping) -> u64 {
        m.offset
    }
    /// Whether shared anonymous memory is seen by no process that does not move with this one.
    /// Away there is none; at home a parent or a child may have it too.
    fn is_alone(&self, _: &Mapping) -> bool {
        false
    }
}

/// Names threads as the process itself does (an execution node sees other numbers).
pub type Names<'a> = &'a dyn Fn(i32) -> i32;

/// What is special in an address space.
#[derive(Clone, Debug, Default)]
pub struct Space {
    pub vmas: Vec<Vma>,
    pub vvar: (u64, u64),
    pub vdso: (u64, u64),
}

/// Sorts the mappings of a process; `reserved` (tcmi's own region) is left out.
pub fn space(all: &[Mapping], reserved: (u64, u64), files: &mut dyn Files) -> Result<Space> {
    let mut s = Space::default();
    refuse_aliases(all)?;
    for m in all.iter().flat_map(|m| outside(m, reserved)) {
        let m = &m;
        match m.name.as_str() {
            "[vsyscall]" => {}
            "[vdso]" => s.vdso = (m.start, m.end),
            name if name.starts_with("[vvar") => {
                s.vvar = (if s.vvar.0 == 0 { m.start } else { s.vvar.0 }, m.end);
            }
            _ => s.vmas.push(vma(m, files)?),
        }
    }
    Ok(s)
}

/// The parts of a mapping outside of `reserved`: the kernel merges neighbours that look alike.
pub fn outside(m: &Mapping, reserved: (u64, u64)) -> Vec<Mapping> {
    let below = (m.start, m.end.min(reserved.0));
    let above = (m.start.max(reserved.1), m.end);
    [below, above]
        .into_iter()
        .filter(|(start, end)| start < end)
        .map(|(start, end)| Mapping {
            start,
            end,
            offset: m.offset + (start - m.start),
            ..m.clone()
        })
        .collect()
}

fn vma(m: &Mapping, files: &mut dyn Files) -> Result<Vma> {
    let own = is_shared_memory(m) && files.is_alone(m);
    if sysv::is_segment(m) && !m.has(b"mw") {
        return Err(Error::Unsupported(format!("System V memory to be read alone ({})", m.name)));
    }
    if let Some(why) = obstacle(m).filter(|_| !own) {
        return Err(Error::Unsupported(why));
    }
    let backing = match own || m.inode == 0 || m.name == "/dev/zero" || is_huge(m) {
        true => Backing::Anonymous,
        false => Backing::File { file: files.index(m)?, offset: files.offset(m) },
    };
    let known: [(&[u8; 2], u32); 10] = [
        (b"gd", vma_flags::GROWS_DOWN),
        (b"nr", vma_flags::NO_RESERVE),
        (b"lo", vma_flags::LOCKED),
        (b"dc", vma_flags::DONT_FORK),
        (b"dd", vma_flags::DONT_DUMP),
        (b"wf", vma_flags::WIPE_ON_FORK),
        (b"hg", vma_flags::HUGE),
        (b"nh", vma_flags::NO_HUGE),
        (b"mg", vma_flags::MERGEABLE),
        (b"ht", vma_flags::HUGE_TLB),
    ];
    let mut flags = known.iter().filter(|(f, _)| m.has(f)).fold(0, |all, (_, bit)| all | bit);
    if m.shared {
        // What is shared stays where it is at home.
        flags = flags & !vma_flags::HUGE_TLB | vma_flags::SHARED;
        if is_live(m) {
            flags |= vma_flags::MAY_WRITE;
        }
    }
    Ok(Vma { start: m.start, end: m.end, prot: m.prot(), backing, flags })
}

const SHARED_MEMORY: &str = "/dev/zero (deleted)";
/// Of hugetlbfs, without a file.
const HUGE_MEMORY: &str = "/anon_hugepage (deleted)";
/// The name of the memfd that is a segment on an execution node.
pub const SEGMENT: &str = "tcmi-segment";

/// A mapping made with MAP_SHARED | MAP_ANONYMOUS or by shmat, or on an execution node what stands for one.
fn is_shared_memory(m: &Mapping) -> bool {
    is_shared_at_home(m) || is_segment(m)
}

/// The first of these at home, where a memfd of that name is the program's.
pub fn is_shared_at_home(m: &Mapping) -> bool {
    m.shared && [SHARED_MEMORY, HUGE_MEMORY].contains(&m.name.as_str()) || sysv::is_segment(m)
}

pub fn is_segment(m: &Mapping) -> bool {
    m.shared && m.name.strip_prefix("/memfd:").is_some_and(|n| n.starts_with(SEGMENT))
}

/// A shared mapping of a file through which the process writes, or may come to: its file is
/// *live*, one memory on both nodes, whose changes go home. Needs what smaps tells.
pub fn is_live(m: &Mapping) -> bool {
    let has_file = ![SHARED_MEMORY, HUGE_MEMORY].contains(&m.name.as_str()) && !m.is_system_v();
    m.shared && (m.write || m.has(b"mw")) && m.inode != 0 && has_file
}

/// Why the live file behind a mapping of `pid` has to stay: another process, none of those that go
/// `along`, has it mapped, too. Its stores, and its view of ours, would be those of another machine.
pub fn sharer_of(pid: i32, m: &Mapping, along: &[i32]) -> Result<Option<String>> {
    let is_other = |other: &i32| *other != pid && !along.contains(other);
    let sharer = maps::sharers(&[m.object()])?.into_iter().find(is_other);
    let at = format!("{:x}-{:x} {}", m.start, m.end, m.name);
    let why = |n| {
        let what = format!("writable shared memory ({at}), also mapped by process {n}");
        what + ": as one tree they move together"
    };
    Ok(sharer.map(why))
}

/// Two mappings of one page of shared memory can be told from two pages, so they cannot be made
/// again as what they are not. `mremap` of no bytes makes such.
fn refuse_aliases(all: &[Mapping]) -> Result<()> {
    let mut parts: Vec<_> = all
        .iter()
        .filter(|m| is_shared_memory(m))
        .map(|m| (m.object(), m.offset, m.offset + m.len()))
        .collect();
    parts.sort_unstable();
    match parts.windows(2).find(|w| w[0].0 == w[1].0 && w[1].1 < w[0].2) {
        Some(_) => Err(Error::unsupported("shared memory that is mapped twice")),
        None => Ok(()),
    }
}

/// Made with MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB.
fn is_huge(m: &Mapping) -> bool {
    !m.shared && m.has(b"ht") && m.name == HUGE_MEMORY
}

/// Why a mapping cannot be moved, if it cannot.
pub fn obstacle(m: &Mapping) -> Option<String> {
    let at = format!("{:x}-{:x} {}", m.start, m.end, m.name);
    if m.name.starts_with("[v") {
        // vvar, vdso, vsyscall: the kernel's own, there on every node.
        None
    } else if m.has(b"io") || m.has(b"pf") {
        Some(format!("a mapped device ({at})"))
    } else if is_huge(m) {
        None
    } else if m.has(b"ht") && !is_live(m) && !is_shared_at_home(m) {
        Some(format!("huge pages of a file of hugetlbfs, private or read-only ({at})"))
    } else if m.name.starts_with("anon_inode:") {
        Some(format!("a mapped kernel object ({at})"))
    } else if m.shared && (m.write || m.has(b"mw") || m.inode == 0) && !is_live(m) {
        Some(format!("writable shared memory ({at})"))
    } else {
        None
    }
}

/// Everything but the pages.
pub fn capture(
    f: &mut Frozen,
    agent: &Agent,
    names: Names,
    mappings: &[Mapping],
    files: &mut dyn Files,
) -> Result<ProcessImage> {
    let pid = f.pid;
    let status = proc::status(pid)?;
    let reserved = (agent.base, agent.base + agent.len);
    let space = space(mappings, reserved, files)?;
    let own = leader_calls(f, agent, names, &status)?;
    let threads = capture_threads(f, agent, names)?;
    // Timers first, then what is pending: one that fires in between is in both otherwise.
    let pending = f.leader().stopped()?.pending(true)?.iter().map(|s| s.to_vec()).collect();
    let l = proc::layout(pid)?;
    let mut vdso_text = vec![0; (space.vdso.1 - space.vdso.0) as usize];
    memory::read(pid, space.vdso.0, &mut vdso_text)?;
    Ok(ProcessImage {
        pid: names(pid),
        comm: proc::comm(pid, pid)?,
        exe: proc::exe(pid)?.to_string_lossy().into_owned(),
        uid: status.uid[0],
        gid: status.gid[0],
        personality: proc::personality(pid)?,
        no_huge_pages: !status.huge_pages,
        mm: AddressSpace {
            vmas: space.vmas,
            start_code: l.start_code,
            end_code: l.end_code,
            start_data: l.start_data,
            end_data: l.end_data,
            start_brk: l.start_brk,
            brk: own.brk,
            start_stack: l.start_stack,
            arg_start: l.arg_start,
            arg_end: l.arg_end,
            env_start: l.env_start,
            env_end: l.env_end,
            auxv: proc::auxv(pid)?,
            locks: own.locks,
            vvar: space.vvar,
            vdso: space.vdso,
            vdso_text,
            reserved,
        },
        files: Vec::new(),
        threads,
        actions: own.actions,
        descriptor_signals: 0,
        pending,
        itimers: own.itimers,
        timers: own.timers,
        limits: limits(pid)?,
        stopped_by: f.group_stop.unwrap_or(0),
        clocks: Clocks::now((0, 0)),
    })
}

struct Own {
    actions: Vec<Action>,
    itimers: [(i64, i64); 3],
    timers: Vec<PosixTimer>,
    brk: u64,
    locks: u32,
}

/// What only the process itself can ask for.
fn leader_calls(f: &mut Frozen, agent: &Agent, names: Names, s: &proc::Status) -> Result<Own> {
    let mut c = Calls::new();
    let signals: Vec<i32> = (1..=64)
        .filter(|&n| (s.sig_caught | s.sig_ignored) & signal::bit(n) != 0)
        .filter(|&n| n != libc::SIGKILL && n != libc::SIGSTOP)
        .collect();
    let mut actions: Vec<(i32, Slot)> = Vec::new();
    for &n in &signals {
        let old = c.room(std::mem::size_of::<KernelAction>());
        let args = [n as u64, 0, agent.address(old), 8, 0, 0];
        c.push("rt_sigaction", libc::SYS_rt_sigaction, args);
        actions.push((n, old));
    }
    let itimers: [Slot; 3] = std::array::from_fn(|which| {
        let slot = c.room(32);
        let args = [which as u64, agent.address(slot), 0, 0, 0, 0];
        c.push("getitimer", libc::SYS_getitimer, args);
        slot
    });
    let lines = proc::timers(f.pid)?;
    let timers: Vec<(usize, Slot)> = lines
        .iter()
        .map(|t| {
            let slot = c.room(32);
            let args = [t.id as u64, agent.address(slot), 0, 0, 0, 0];
            c.push("timer_gettime", libc::SYS_timer_gettime, args);
            let id = [t.id as u64, 0, 0, 0, 0, 0];
            (c.push("timer_getoverrun", libc::SYS_timer_getoverrun, id), slot)
        })
        .collect();
    let brk = c.push("brk", libc::SYS_brk, [0; 6]);
    let (flags, nowhere) = ((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64, u64::MAX);
    let args = [0, PAGE_BYTES, libc::PROT_READ as u64, flags, nowhere, 0];
    let probe = c.attempt("mmap", libc::SYS_mmap, args);
    let pid = f.pid;
    let me = Ids { tgid: names(pid), tid: names(pid) };
    let r = agent.run(f.leader_mut(), pid, &c, me)?;
    let word = |s: Slot, i: usize| r.u64_at(s, i) as i64;
    let locks = locks(f, agent, me, r.ret(probe))?;
    Ok(Own {
        actions: actions
            .into_iter()
            .map(|(signal, slot)| {
                let a: KernelAction = from_bytes(r.bytes(slot));
                let KernelAction { handler, flags, restorer, mask } = a;
                Action { signal, handler, flags, restorer, mask }
            })
            .collect(),
        itimers: itimers
            .map(|s| (word(s, 0) * 1_000_000 + word(s, 1), word(s, 2) * 1_000_000 + word(s, 3))),
        timers: lines
            .iter()
            .zip(timers)
            .map(|(t, (overrun, s))| PosixTimer {
                id: t.id,
                clock: t.clock,
                notify: t.notify,
                signal: t.signal,
                tid: if t.tid == 0 { 0 } else { names(t.tid) },
                value: t.value,
                interval: word(s, 0) * 1_000_000_000 + word(s, 1),
                left: word(s, 2) * 1_000_000_000 + word(s, 3),
                overrun: r.ret(overrun) as i32,
            })
            .collect(),
        brk: r.ret(brk) as u64,
        locks,
    })
}

/// How the process has what it maps locked, by the result of an mmap of a page, which is unmapped.
fn locks(f: &mut Frozen, agent: &Agent, me: Ids, page: i64) -> Result<u32> {
    // It would be locked, and no more may be.
    if page == -i64::from(libc::EAGAIN) {
        return Ok(libc::MCL_FUTURE as u32);
    }
    let page = returned("mmap", page)?;
    let mut c = Calls::new();
    let there = c.room(1);
    let args = [page, PAGE_BYTES, agent.address(there), 0, 0, 0];
    c.push("mincore", libc::SYS_mincore, args);
    // Which the kernel does to no locked memory.
    let dropped = c.attempt(
        "madvise",
        libc::SYS_madvise,
        [page, PAGE_BYTES, libc::MADV_DONTNEED as u64, 0, 0, 0],
    );
    c.push("munmap", libc::SYS_munmap, [page, PAGE_BYTES, 0, 0, 0, 0]);
    let pid = f.pid;
    let r = agent.run(f.leader_mut(), pid, &c, me)?;
    Ok(match (r.ret(dropped), r.bytes(there)) {
        (0.., _) => 0,
        (_, [0]) => (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32,
        _ => libc::MCL_FUTURE as u32,
    })
}

fn capture_threads(f: &mut Frozen, agent: &Agent, names: Names) -> Result<Vec<ThreadImage>> {
    const PR_GET_TID_ADDRESS: u64 = 40;
    let pid = f.pid;
    let mut all = Vec::with_capacity(f.threads.len());
    for t in &mut f.threads {
        let mut c = Calls::new();
        let alt = c.room(24);
        c.push("sigaltstack", libc::SYS_sigaltstack, [0, agent.address(alt), 0, 0, 0, 0]);
        let clear = c.room(8);
        let args = [PR_GET_TID_ADDRESS, agent.address(clear), 0, 0, 0, 0];
        let has_clear = c.attempt("prctl", libc::SYS_prctl, args);
        let args = [libc::PR_GET_TIMERSLACK as u64, 0, 0, 0, 0, 0];
        let slack = c.attempt("prctl", libc::SYS_prctl, args);
        // Before any call in the thread: the agent's own calls do not touch it, but may.
        let (xstate, rseq) = {
            let s = t.stopped()?;
            (s.xstate()?, s.rseq()?)
        };
        let r = agent.run(t, pid, &c, Ids { tgid: names(pid), tid: names(t.tid) })?;
        let s = t.stopped()?;
        let regs = left_critical_section(pid, interrupted(&t.regs), rseq);
        // What run() set aside is on this stack now: the flags say whether it is in use.
        let alt_flags = r.u64_at(alt, 1) as i32 & !libc::SS_ONSTACK;
        let (policy, priority, nice) = scheduling(t.tid)?;
        all.push(ThreadImage {
            tid: names(t.tid),
            comm: proc::comm(pid, t.tid)?,
            regs: words(bytes_of(&regs)),
            xstate,
            mask: t.mask,
            altstack: (r.u64_at(alt, 0), alt_flags, r.u64_at(alt, 2)),
            robust: ptrace::robust_list(t.tid)?,
            clear_tid: if r.ret(has_clear) < 0 { 0 } else { r.u64_at(clear, 0) },
            rseq: rseq.map(|q| (q.ptr, q.size, q.signature)),
            pending: s.pending(false)?.iter().map(|s| s.to_vec()).collect(),
            sched_policy: policy,
            sched_priority: priority,
            nice,
            timer_slack: r.ret(slack).max(0) as u64,
        });
    }
    Ok(all)
}

pub fn words(b: &[u8]) -> Vec<u64> {
    b.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect()
}

/// A restartable sequence does not survive a move: the kernel would send the thread to its
/// abort address, so that is where it goes on.
fn left_critical_section(
    pid: i32,
    mut regs: ptrace::UserRegs,
    rseq: Option<Rseq>,
) -> ptrace::UserRegs {
    let Some(rseq) = rseq else { return regs };
    let mut cs = [0; 8];
    // The program may have unmapped its rseq area or point it anywhere; then it is in none.
    if memory::read(pid, rseq.ptr + 8, &mut cs).is_err() || cs == [0; 8] {
        return regs;
    }
    let mut desc = [0; 32];
    if memory::read(pid, u64::from_le_bytes(cs), &mut desc).is_err() {
        return regs;
    }
    let w = words(&desc);
    let (start, len, abort) = (w[1], w[2], w[3]);
    if regs.rip.wrapping_sub(start) < len {
        regs.rip = abort;
    }
    regs
}

fn scheduling(tid: i32) -> Result<(i32, i32, i32)> {
    // SAFETY: plain calls with a live out-structure.
    unsafe {
        let policy = libc::sched_getscheduler(tid);
        let mut p: libc::sched_param = std::mem::zeroed();
        if policy < 0 || libc::sched_getparam(tid, &mut p) < 0 {
            return Err(Errno::last("sched_getscheduler").into());
        }
        // The raw call gives 20 - nice, never negative.
        let nice = 20 - libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) as i32;
        Ok((policy & !libc::SCHED_RESET_ON_FORK, p.sched_priority, nice))
    }
}

fn limits(pid: i32) -> Result<Vec<(u32, u64, u64)>> {
    let all = proc::limits(pid)?;
    Ok(all.iter().zip(0..).map(|(&(soft, hard), resource)| (resource, soft, hard)).collect())
}

/// Runs of pages that only the process has, in the order of their addresses.
pub fn own_pages(pid: i32, vmas: &[Vma]) -> Result<Vec<Range<u64>>> {
    let mut map = Pagemap::open(pid)?;
    let mut runs = Vec::new();
    for v in vmas {
        match (v.flags & vma_flags::SHARED != 0, v.backing) {
            (false, _) => map.own_runs(v.start..v.end, &mut runs)?,
            // Its pages count as a file's. Those that only the object holds, not this mapping,
            // look absent, so it goes whole.
            (true, Backing::Anonymous) => runs.push(v.start..v.end),
            (true, Backing::File { .. }) => {}
        }
    }
    Ok(runs)
}

/// All mappings of a process.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>> {
    Ok(maps::read(pid)?)
}

/// XCR0 bits in an XSAVE image as ptrace gives it.
pub fn xfeatures(xstate: &[u8]) -> u64 {
    let mut w = [0; 8];
    match xstate.get(464..472) {
        Some(b) => w.copy_from_slice(b),
        None => w[0] = 3,
    }
    u64::from_le_bytes(w)
}
