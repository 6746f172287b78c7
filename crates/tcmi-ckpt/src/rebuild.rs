//! From an image to a process: its address space, its pages, its threads' state. Used on both
//! nodes: on a fresh process to make a guest, on the shadow to bring a process home.

use crate::error::{Error, Result};
use crate::freeze::{Frozen, Thread};
use crate::image::*;
use crate::layout::Step;
use crate::remote::{Agent, Calls, DATA_MAX, Ids, Results, bytes_of, from_bytes};
use std::ops::Range;
use tcmi_sys::memory::{self, Forced};
use tcmi_sys::pages::PAGE_BYTES;
use tcmi_sys::ptrace::UserRegs;
use tcmi_sys::signal::{self, KernelAction};

/// Makes calls in a thread, a batch at a time.
pub struct Batcher<'a> {
    pub(crate) agent: &'a Agent,
    thread: &'a mut Thread,
    pub(crate) pid: i32,
    ids: Ids,
    pub calls: Calls,
}

impl<'a> Batcher<'a> {
    /// `pid` is the process as we see it, `ids` as it sees itself.
    pub fn new(agent: &'a Agent, thread: &'a mut Thread, pid: i32, ids: Ids) -> Self {
        Self { agent, thread, pid, ids, calls: Calls::new() }
    }
    /// The thread's id, as its process sees it.
    pub fn tid(&self) -> i32 {
        self.ids.tid
    }
    /// Puts bytes where the calls of this batch can point; gives their address.
    pub fn data(&mut self, bytes: &[u8]) -> Result<u64> {
        if bytes.len() >= DATA_MAX {
            return Err(Error::Image("a part that is too long"));
        }
        if !self.calls.has_room(bytes.len()) {
            self.flush()?;
        }
        let slot = self.calls.data(bytes);
        Ok(self.agent.address(slot))
    }
    pub fn push(&mut self, what: &'static str, nr: i64, args: [u64; 6]) -> Result<usize> {
        if !self.calls.has_room(0) {
            self.flush()?;
        }
        Ok(self.calls.push(what, nr, args))
    }
    pub fn attempt(&mut self, what: &'static str, nr: i64, args: [u64; 6]) -> Result<usize> {
        if !self.calls.has_room(0) {
            self.flush()?;
        }
        Ok(self.calls.attempt(what, nr, args))
    }
    pub fn flush(&mut self) -> Result<Results> {
        let calls = std::mem::take(&mut self.calls);
        self.agent.run(self.thread, self.pid, &calls, self.ids)
    }
}

/// Descriptor, in the process, of a mapped file.
pub type Descriptors<'a> = &'a dyn Fn(u32) -> Result<i32>;

/// Carries out steps from [`crate::layout::reconcile`].
pub fn apply(b: &mut Batcher, steps: &[Step], fd_of: Descriptors) -> Result<()> {
    for step in steps {
        match *step {
            Step::Unmap { start, end } => {
                b.push("munmap", libc::SYS_munmap, [start, end - start, 0, 0, 0, 0])?;
            }
            Step::Protect { start, end, prot } => {
                let args = [start, end - start, prot as u64, 0, 0, 0];
                b.push("mprotect", libc::SYS_mprotect, args)?;
            }
            Step::Map(v) => map(b, &v, fd_of)?,
        }
    }
    b.flush().map(drop)
}

fn map(b: &mut Batcher, v: &Vma, fd_of: Descriptors) -> Result<()> {
    if v.start >= v.end || !(v.start | v.end).is_multiple_of(PAGE_BYTES) {
        return Err(Error::Image("a mapping without extent"));
    }
    let has = |bit, flag| if v.flags & bit != 0 { flag } else { 0 };
    let share = if v.flags & vma_flags::SHARED != 0 { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let flags = libc::MAP_FIXED_NOREPLACE
        | share
        | has(vma_flags::NO_RESERVE, libc::MAP_NORESERVE)
        | has(vma_flags::GROWS_DOWN, libc::MAP_GROWSDOWN);
    let len = v.end - v.start;
    // Its pages cannot be forced in: a write that the protection forbids would make a private copy.
    let prot = if is_shared_memory(v) { libc::PROT_READ | libc::PROT_WRITE } else { v.prot };
    let (flags, fd, offset) = match v.backing {
        Backing::Anonymous => (flags | libc::MAP_ANONYMOUS, -1, 0),
        Backing::File { file, offset } => (flags, fd_of(file)?, offset),
    };
    let args = [v.start, len, prot as u64, flags as u64, fd as u64, offset];
    b.push("mmap", libc::SYS_mmap, args)?;
    let advice = [
        (vma_flags::DONT_FORK, libc::MADV_DONTFORK),
        (vma_flags::DONT_DUMP, libc::MADV_DONTDUMP),
        (vma_flags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (vma_flags::HUGE | vma_flags::HUGE_TLB, libc::MADV_HUGEPAGE),
        (vma_flags::NO_HUGE, libc::MADV_NOHUGEPAGE),
        (vma_flags::MERGEABLE, libc::MADV_MERGEABLE),
    ];
    for (bit, advice) in advice {
        if v.flags & bit != 0 {
            // A kernel built without it loses nothing but the hint.
            b.attempt("madvise", libc::SYS_madvise, [v.start, len, advice as u64, 0, 0, 0])?;
        }
    }
    Ok(())
}

fn is_shared_memory(v: &Vma) -> bool {
    v.flags & vma_flags::SHARED != 0 && v.backing == Backing::Anonymous
}

/// Until [`protect_shared`], for its pages.
pub fn open_shared(b: &mut Batcher, vmas: &[Vma]) -> Result<()> {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    for v in vmas.iter().filter(|v| is_shared_memory(v)) {
        b.push("mprotect", libc::SYS_mprotect, [v.start, v.end - v.start, prot, 0, 0, 0])?;
    }
    b.flush().map(drop)
}

/// Gives shared memory the protection that it is to have, once it has its pages.
pub fn protect_shared(b: &mut Batcher, vmas: &[Vma]) -> Result<()> {
    for v in vmas.iter().filter(|v| is_shared_memory(v)) {
        let args = [v.start, v.end - v.start, v.prot as u64, 0, 0, 0];
        b.push("mprotect", libc::SYS_mprotect, args)?;
    }
    b.flush().map(drop)
}

/// Locks what was locked, and has locked what is mapped from then on. Pages that are not there are
/// locked when they come.
pub fn lock(b: &mut Batcher, mm: &AddressSpace) -> Result<()> {
    const MLOCK_ONFAULT: u64 = 1;
    if mm.locks != 0 {
        b.attempt("mlockall", libc::SYS_mlockall, [mm.locks.into(), 0, 0, 0, 0, 0])?;
    }
    for v in mm.vmas.iter().filter(|v| v.flags & vma_flags::LOCKED != 0) {
        let args = [v.start, v.end - v.start, MLOCK_ONFAULT, 0, 0, 0];
        // Beyond a limit it is as any other memory.
        b.attempt("mlock2", libc::SYS_mlock2, args)?;
    }
    b.flush().map(drop)
}

/// Faults the pages of `runs` in, so that writing them later costs no page faults.
pub fn populate(b: &mut Batcher, runs: &[Range<u64>], vmas: &[Vma]) -> Result<()> {
    const MADV_POPULATE_WRITE: u64 = 23;
    for r in runs {
        if is_writable(vmas, r) {
            let args = [r.start, r.end - r.start, MADV_POPULATE_WRITE, 0, 0, 0];
            b.attempt("madvise populate", libc::SYS_madvise, args)?;
        }
    }
    b.flush().map(drop)
}

fn is_writable(vmas: &[Vma], r: &Range<u64>) -> bool {
    let i = vmas.partition_point(|v| v.end <= r.start);
    vmas[i..]
        .iter()
        .take_while(|v| v.start < r.end)
        .all(|v| v.prot & libc::PROT_WRITE != 0 || is_shared_memory(v))
}

/// Writes and reads pages of a frozen process, whatever their protection.
pub struct Pages<'a> {
    pid: i32,
    forced: Forced,
    vmas: &'a [Vma],
}

impl<'a> Pages<'a> {
    pub fn open(pid: i32, vmas: &'a [Vma]) -> Result<Self> {
        Ok(Self { pid, forced: Forced::open(pid)?, vmas })
    }
    /// Writes to mappings of the image only: a peer cannot reach anything else.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let r = addr..addr.checked_add(bytes.len() as u64).ok_or(Error::Image("page address"))?;
        if !self.is_mapped(&r) {
            return Err(Error::Image("pages outside the mappings"));
        }
        if is_writable(self.vmas, &r) {
            memory::write(self.pid, addr, bytes)?;
        } else {
            self.forced.write(addr, bytes)?;
        }
        Ok(())
    }
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<()> {
        if memory::read(self.pid, addr, bytes).is_err() {
            self.forced.read(addr, bytes)?;
        }
        Ok(())
    }
    fn is_mapped(&self, r: &Range<u64>) -> bool {
        let mut at = r.start;
        let i = self.vmas.partition_point(|v| v.end <= r.start);
        for v in &self.vmas[i..] {
            if v.start > at || at >= r.end {
                break;
            }
            at = v.end;
        }
        at >= r.end
    }
}

/// `struct prctl_mm_map`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MmMap {
    places: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Code, data, heap, stack and argument addresses, as /proc and brk(2) know them. With `exe`, the
/// number of an open file there, that is its executable from now on; nothing may be mapped any
/// more of the one that was. This and what follows leaves its calls in the batch for the caller to
/// flush.
pub fn set_mm(b: &mut Batcher, mm: &AddressSpace, exe: Option<i32>) -> Result<()> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    let auxv = b.data(&mm.auxv)?;
    let map = MmMap {
        places: [
            mm.start_code,
            mm.end_code,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.brk,
            mm.start_stack,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
        ],
        auxv,
        auxv_size: mm.auxv.len() as u32,
        exe_fd: exe.map_or(u32::MAX, |fd| fd as u32),
    };
    let size = std::mem::size_of::<MmMap>() as u64;
    let at = b.data(bytes_of(&map))?;
    b.push("prctl mm map", libc::SYS_prctl, [PR_SET_MM, PR_SET_MM_MAP, at, size, 0, 0])?;
    Ok(())
}

/// Dispositions, timers, pending signals: what belongs to the process, not to a thread.
/// All threads have their signals blocked. `timers` are the ids of POSIX timers that are there
/// already. Of the signals in `kept` those that are ignored are so already: to ignore one anew
/// drops what is pending of it.
pub fn set_process(b: &mut Batcher, p: &ProcessImage, timers: &[i32], kept: u64) -> Result<()> {
    for n in (1..=64).filter(|n| ![libc::SIGKILL, libc::SIGSTOP].contains(n)) {
        let a = p.actions.iter().find(|a| a.signal == n);
        let a = a.map_or(KernelAction::default(), |a| KernelAction {
            handler: a.handler,
            flags: a.flags,
            restorer: a.restorer,
            mask: a.mask,
        });
        const SIG_IGN: u64 = 1;
        let ignored = a.handler == SIG_IGN || (a.handler == 0 && signal::ignored_by_default(n));
        if ignored && kept & signal::bit(n) != 0 {
            continue;
        }
        let at = b.data(bytes_of(&a))?;
        b.push("rt_sigaction", libc::SYS_rt_sigaction, [n as u64, at, 0, 8, 0, 0])?;
    }
    for (which, (interval, value)) in p.itimers.iter().enumerate() {
        const M: i64 = 1_000_000;
        // ITIMER_REAL between its end and the delivery of its signal, which is in the image: it is
        // armed again by the delivery. Value 0 would disarm it.
        let expired = which == libc::ITIMER_REAL as usize && *value == 0;
        let value = if expired { interval } else { value };
        let spec = [interval / M, interval % M, value / M, value % M];
        let at = b.data(bytes_of(&spec))?;
        b.push("setitimer", libc::SYS_setitimer, [which as u64, at, 0, 0, 0, 0])?;
    }
    let no_huge = [libc::PR_SET_THP_DISABLE as u64, p.no_huge_pages.into(), 0, 0, 0, 0];
    // A kernel without huge pages has nothing to disable.
    b.attempt("prctl huge pages", libc::SYS_prctl, no_huge)?;
    set_timers(b, &p.timers, timers)?;
    let pid = b.ids.tgid as u64;
    for info in &p.pending {
        let (sig, at) = queued(b, info)?;
        b.push("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, [pid, sig, at, 0, 0, 0])?;
    }
    Ok(())
}

fn queued(b: &mut Batcher, info: &[u8]) -> Result<(u64, u64)> {
    if info.len() != SIGINFO_BYTES {
        return Err(Error::Image("siginfo size"));
    }
    let sig: i32 = from_bytes(info);
    Ok((sig as u64, b.data(info)?))
}

fn set_timers(b: &mut Batcher, timers: &[PosixTimer], there: &[i32]) -> Result<()> {
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    for id in there.iter().filter(|id| timers.iter().all(|t| t.id != **id)) {
        b.push("timer_delete", libc::SYS_timer_delete, [*id as u64, 0, 0, 0, 0, 0])?;
    }
    if timers.is_empty() {
        return Ok(());
    }
    // An older kernel lists the newest first, and gives ids in one direction only.
    let mut timers: Vec<&PosixTimer> = timers.iter().collect();
    timers.sort_unstable_by_key(|t| t.id);
    let on = [PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0, 0];
    let chosen = b.attempt("prctl", libc::SYS_prctl, on)?;
    let can_choose = b.flush()?.ret(chosen) == 0;
    for t in timers {
        if !there.contains(&t.id) {
            create_timer(b, t, can_choose)?;
        }
        const G: i64 = 1_000_000_000;
        let spec = [t.interval / G, t.interval % G, t.left / G, t.left % G];
        let at = b.data(bytes_of(&spec))?;
        b.push("timer_settime", libc::SYS_timer_settime, [t.id as u64, 0, at, 0, 0, 0])?;
    }
    if can_choose {
        let off = [PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0, 0];
        b.push("prctl", libc::SYS_prctl, off)?;
    }
    Ok(())
}

/// `struct sigevent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    rest: [i32; 11],
}

fn create_timer(b: &mut Batcher, t: &PosixTimer, can_choose: bool) -> Result<()> {
    /// Timers an older kernel may have to make and delete until the id comes up.
    const ATTEMPTS_MAX: i32 = 4096;
    let ev =
        SigEvent { value: t.value, signo: t.signal, notify: t.notify, tid: t.tid, rest: [0; 11] };
    for _ in 0..ATTEMPTS_MAX {
        let ev = b.data(bytes_of(&ev))?;
        let slot = b.calls.data(&t.id.to_le_bytes());
        let id_at = b.agent.address(slot);
        let args = [t.clock as i64 as u64, ev, id_at, 0, 0, 0];
        b.push("timer_create", libc::SYS_timer_create, args)?;
        let made: i32 = from_bytes(b.flush()?.bytes(slot));
        if made == t.id {
            return Ok(());
        }
        b.push("timer_delete", libc::SYS_timer_delete, [made as u64, 0, 0, 0, 0, 0])?;
        if can_choose {
            break;
        }
    }
    Err(Error::unsupported(format!("timer id {} cannot be had on this kernel", t.id)))
}

/// A thread's own state but for registers and mask. To be called with the batch in that thread.
pub fn set_thread(b: &mut Batcher, t: &ThreadImage) -> Result<()> {
    const ROBUST_HEAD_BYTES: u64 = 24;
    let args = [t.robust.0, ROBUST_HEAD_BYTES, 0, 0, 0, 0];
    b.push("set_robust_list", libc::SYS_set_robust_list, args)?;
    b.push("set_tid_address", libc::SYS_set_tid_address, [t.clear_tid, 0, 0, 0, 0, 0])?;
    let (sp, flags, size) = t.altstack;
    let at = b.data(bytes_of(&[sp, flags as u32 as u64, size]))?;
    b.push("sigaltstack", libc::SYS_sigaltstack, [at, 0, 0, 0, 0, 0])?;
    if let Some((ptr, len, signature)) = t.rseq {
        let args = [ptr, len as u64, 0, signature as u64, 0, 0];
        b.push("rseq", libc::SYS_rseq, args)?;
    }
    let mut name = t.comm.clone();
    name.truncate(15);
    name.push(0);
    let at = b.data(&name)?;
    b.push("prctl name", libc::SYS_prctl, [libc::PR_SET_NAME as u64, at, 0, 0, 0, 0])?;
    let slack = [libc::PR_SET_TIMERSLACK as u64, t.timer_slack, 0, 0, 0, 0];
    b.attempt("prctl timer slack", libc::SYS_prctl, slack)?;
    let ids = b.ids;
    for info in &t.pending {
        let (sig, at) = queued(b, info)?;
        let args = [ids.tgid as u64, ids.tid as u64, sig, at, 0, 0];
        b.push("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, args)?;
    }
    Ok(())
}

/// Registers of a thread as an image has them.
pub fn registers_of(image: &ThreadImage) -> Result<UserRegs> {
    let raw: Vec<u8> = image.regs.iter().flat_map(|w| w.to_le_bytes()).collect();
    match raw.len() == std::mem::size_of::<UserRegs>() {
        true => Ok(from_bytes(&raw)),
        false => Err(Error::Image("register set size")),
    }
}

/// Registers and mask of a thread become the image's; it stays stopped.
pub fn set_registers(t: &mut Thread, image: &ThreadImage) -> Result<()> {
    let regs = registers_of(image)?;
    {
        let s = t.stopped()?;
        s.set_xstate(&image.xstate)?;
        s.set_regs(&regs)?;
        s.set_sigmask(image.mask)?;
    }
    t.regs = regs;
    t.mask = image.mask;
    Ok(())
}

/// The image's thread with a tid.
pub fn thread_of(image: &ProcessImage, tid: i32) -> Result<&ThreadImage> {
    image.threads.iter().find(|t| t.tid == tid).ok_or(Error::Image("a thread is missing"))
}

/// Lets every thread go on with the registers it has now, traced as before. It stops once more, so
/// that its kernel looks at what becomes of the call that it is in.
pub fn set_going(f: Frozen) -> Result<()> {
    f.threads.into_iter().try_for_each(|mut t| Ok(t.take()?.cont_to_stop().map(drop)?))
}

/// The same, not traced any more.
pub fn let_go(f: Frozen) -> Result<()> {
    f.threads.into_iter().try_for_each(|mut t| Ok(t.take()?.detach(0)?))
}
