//! The original process while its guest is away: the agent serves in each of its threads, its
//! memory is given back, and what no agent can see comes from our ptrace attachment.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::time::Duration;

use tcmi_call::abi::{
    AgentStream, Batch, POKE_CODE, POKE_SIGNAL, ProcArea, ThreadArea, UserRegs, decision,
};
use tcmi_call::frame::CALL_BUFFER_INLINE_BYTES;
use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::freeze::{Frozen, Thread, ends_by_stop, freeze_held, restartable, settle};
use tcmi_ckpt::image::{ProcessImage, ThreadImage, Vma, vma_flags};
use tcmi_ckpt::rebuild::{self, Batcher};
use tcmi_ckpt::remote::{Agent, Ids, Script, bytes_of};
use tcmi_ckpt::{Error, Result};
use tcmi_sys::affinity::Cores;
use tcmi_sys::ptrace::{Running, Stop, Stopped, Waited, try_wait_any};
use tcmi_sys::signal::{self, KernelAction};
use tcmi_sys::{Errno, memory};

use crate::word::WORD_BYTES;

mod births;

use births::Seat;

/// Where the agent's parts are in the process.
#[derive(Clone, Debug)]
pub struct Places {
    pub agent: Agent,
    pub proc_area: u64,
    /// One for each thread, in the order of the frozen threads, then those of threads to come.
    pub thread_areas: Vec<u64>,
    /// Descriptors for threads that its guest begins, to be replaced by their streams.
    pub spare_fds: Vec<i32>,
    /// Where the word of its party is mapped, if it moves with others.
    pub word: Option<u64>,
}

impl Places {
    fn own_word(&self) -> u64 {
        self.proc_area + offset_of!(ProcArea, decision) as u64
    }
}

/// A stream's descriptor in the process, and its keys.
#[derive(Clone, Copy)]
pub struct StreamAt {
    pub fd: i32,
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
}

impl StreamAt {
    fn for_agent(&self) -> AgentStream {
        AgentStream { fd: self.fd, pad: 0, tx: self.tx, rx: self.rx }
    }
}

/// A shadow that serves. Its threads are ours to trace.
pub struct Shadow {
    pub pid: i32,
    places: Places,
    /// Of each thread, and those for threads to come.
    seats: BTreeMap<i32, Seat>,
    free: Vec<Seat>,
    running: BTreeMap<i32, Running>,
    /// The program's own; the agent moves its threads to where their calls come from.
    cores: BTreeMap<i32, Cores>,
    /// What to give back again if a return fails.
    private: Vec<Vma>,
    kept: (u64, u64),
    actions: Vec<(i32, KernelAction)>,
    /// First and last of our descriptors.
    reserved: (i32, i32),
    job: Job,
    /// Threads that were let pass their gates.
    passing: u32,
    /// Of the job, told while calls were taken back.
    missed: Vec<Fate>,
}

/// Where job control has the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Runs,
    Stopped,
    /// Continued; the SIGCONT that did it is still to be taken by a thread.
    Continued,
}

impl Job {
    /// A thread shows that the process is in a group stop by this signal, or in none.
    fn at_stop(&mut self, group: Option<i32>) -> Option<Fate> {
        let (job, fate) = match (*self, group) {
            (Self::Runs | Self::Continued, Some(sig)) => (Self::Stopped, Fate::Stopped(sig)),
            (Self::Stopped, None) => (Self::Continued, Fate::Continued),
            _ => return None,
        };
        *self = job;
        Some(fate)
    }
}

/// What happened to a shadow that the guest must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Stopped by job control, with this signal.
    Stopped(i32),
    Continued,
    /// Gone: the wait status of its leader, if it was ours to see.
    Ended,
}

/// A held original of which every thread, should its keeper die, goes on by itself: at home as
/// it was, until [`Armed::decide`]; as a shadow from then on.
pub struct Armed(Shadow);

/// Arms a held original.
///
/// Err: it may be let go as it was.
pub fn arm(
    f: &mut Frozen,
    image: &ProcessImage,
    places: Places,
    events: StreamAt,
    calls: &[StreamAt],
    reserved: (i32, i32),
) -> Result<Armed> {
    write_areas(f, &places, events, calls, reserved, &masks(image))?;
    let fds = calls.iter().map(|s| s.fd).chain(places.spare_fds.iter().copied());
    let mut all = places.thread_areas.iter().zip(fds).map(|(&area, fd)| Seat { area, fd });
    let shadow = Shadow {
        pid: f.pid,
        seats: f.threads.iter().map(|t| t.tid).zip(all.by_ref()).collect(),
        free: all.collect(),
        running: BTreeMap::new(),
        cores: f.threads.iter().map(|t| Ok((t.tid, Cores::of(t.tid)?))).collect::<Result<_>>()?,
        private: image.mm.vmas.clone(),
        kept: (image.mm.arg_start & !4095, image.mm.env_end),
        actions: agent_actions(&places.agent, image),
        reserved,
        places,
        job: if image.stopped_by == 0 { Job::Runs } else { Job::Stopped },
        passing: 0,
        missed: Vec::new(),
    };
    let timers = timers(f.pid)?;
    for t in &f.threads {
        let own = image.threads.iter().find(|i| i.tid == t.tid);
        let rseq = t.stopped()?.rseq()?.map(|q| (q.ptr, q.size, q.signature));
        shadow.lay_out(t, (restartable(&t.regs), t.mask), |s| {
            unregister_rseq(s, rseq);
            // What was pending has moved with the image; what came since is the agent's to send.
            take_pending(s, own.map_or(&[], |i| i.pending.as_slice()));
            if t.tid == shadow.pid {
                take_pending(s, &image.pending);
                shadow.settle_process(s, &timers);
            }
        })?;
    }
    shadow.to_gates(f)?;
    Ok(Armed(shadow))
}

impl Armed {
    /// The commit point at home of one that moves alone: it is a shadow from here on, whoever
    /// lives or dies.
    ///
    /// Err: it has ended.
    pub fn decide(&self) -> Result<()> {
        self.0.decide(decision::AWAY)
    }
    /// Gives home's memory back, as far as that can be done.
    pub fn release_memory(&self, f: &mut Frozen) {
        if let Err(error) = self.0.release_memory(f) {
            tracing::warn!(pid = self.0.pid, %error, "memory of a shadow not given back");
        }
    }
    /// Lets it serve. Err: it has ended.
    pub fn run(mut self, mut f: Frozen) -> Result<Shadow> {
        self.0.pass_gates(&mut f)?;
        Ok(self.0)
    }
}

fn leader<'a>(f: &'a mut Frozen, agent: &'a Agent) -> Batcher<'a> {
    let pid = f.pid;
    Batcher::new(agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid })
}

fn write_areas(
    f: &Frozen,
    places: &Places,
    events: StreamAt,
    calls: &[StreamAt],
    reserved: (i32, i32),
    masks: &BTreeMap<i32, u64>,
) -> Result<()> {
    let area = ProcArea {
        reserved_first: reserved.0,
        reserved_last: reserved.1,
        tgid: f.pid,
        event_lock: 0,
        signal_seq: 0,
        calls_begun: 0,
        blob: places.agent.base,
        events_broken: 0,
        decision: decision::HOME,
        settled: 0,
        serving: 0,
        decision_at: places.word.unwrap_or(places.own_word()),
        events: events.for_agent(),
    };
    // SAFETY: the structure's own bytes; padding is written as whatever it is, to our own agent.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const area).cast::<u8>(), std::mem::size_of::<ProcArea>())
    };
    memory::write(f.pid, places.proc_area, bytes)?;
    for ((t, &at), stream) in f.threads.iter().zip(&places.thread_areas).zip(calls) {
        let mask = masks.get(&t.tid).copied().unwrap_or(0);
        write_thread_area(f.pid, at, places.proc_area, mask, *stream)?;
        memory::write(f.pid, at + offset_of!(ThreadArea, tid) as u64, &t.tid.to_le_bytes())?;
    }
    Ok(())
}

/// All but the thread's id. Another thread may have had the place.
fn write_thread_area(pid: i32, at: u64, proc_area: u64, mask: u64, stream: StreamAt) -> Result<()> {
    let put = |offset: usize, bytes: &[u8]| memory::write(pid, at + offset as u64, bytes);
    put(0, &[0; offset_of!(ThreadArea, mask)])?;
    put(offset_of!(ThreadArea, me), &at.to_le_bytes())?;
    put(offset_of!(ThreadArea, proc_area), &proc_area.to_le_bytes())?;
    put(offset_of!(ThreadArea, mask), &mask.to_le_bytes())?;
    put(offset_of!(ThreadArea, calls), bytes_of(&stream.for_agent())).map_err(Error::from)
}

/// The kernel writes to it whenever the thread goes on, and the page is the guest's.
fn unregister_rseq(s: &mut Script, rseq: Option<(u64, u32, u32)>) {
    const UNREGISTER: u64 = 1;
    if let Some((at, len, signature)) = rseq {
        s.call(libc::SYS_rseq, [at, len.into(), UNREGISTER, signature.into(), 0, 0]);
    }
}

/// What each shadow thread blocks: what its guest thread did when it left, so that signals which
/// one thread takes alone stay in their order. What no thread would take is the leader's.
fn masks(image: &ProcessImage) -> BTreeMap<i32, u64> {
    let nobody = image.threads.iter().fold(signal::ALL, |all, t| all & t.mask);
    let blocked = |t: &ThreadImage| match t.tid == image.pid {
        true => t.mask & !nobody,
        false => t.mask,
    };
    let poke = signal::bit(POKE_SIGNAL);
    image.threads.iter().map(|t| (t.tid, blocked(t) & !poke)).collect()
}

fn take_pending(s: &mut Script, pending: &[Vec<u8>]) {
    let now = s.data(&[0; 16]);
    for info in pending {
        let Some(Ok(number)) = info.get(..4).map(<[u8; 4]>::try_from) else { continue };
        let set = s.data(&signal::bit(i32::from_le_bytes(number)).to_le_bytes());
        s.call(libc::SYS_rt_sigtimedwait, [set, 0, now, 8, 0, 0]);
    }
}

fn timers(pid: i32) -> Result<Vec<i32>> {
    Ok(tcmi_sys::proc::timers(pid)?.iter().map(|t| t.id).collect())
}

/// The guest's timers run with the guest.
fn disarm(s: &mut Script, timers: &[i32]) {
    let never = s.data(&[0; 32]);
    for which in 0..3 {
        s.call(libc::SYS_setitimer, [which, never, 0, 0, 0, 0]);
    }
    for &id in timers {
        // Not deleted: before 6.15 a kernel never gives an id again.
        s.call(libc::SYS_timer_settime, [id as u64, 0, never, 0, 0, 0]);
    }
}

/// Dispositions of the shadow: what the guest ignores is ignored here, what stops a process
/// stops this one, everything else goes to the agent.
fn agent_actions(agent: &Agent, image: &ProcessImage) -> Vec<(i32, KernelAction)> {
    const SA_RESTORER: u64 = 0x0400_0000;
    const SIG_IGN: u64 = 1;
    let child = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
    (1..=64)
        .filter(|n| ![libc::SIGKILL, libc::SIGSTOP].contains(n))
        .map(|n| {
            let own = image.actions.iter().find(|a| a.signal == n);
            let (handler, flags) = own.map_or((0, 0), |a| (a.handler, a.flags));
            let kernel_acts = signal::ignored_by_default(n)
                || [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&n);
            let kept = flags & child;
            let action = match handler {
                SIG_IGN => KernelAction { handler: SIG_IGN, flags: kept, ..Default::default() },
                0 if kernel_acts => KernelAction { flags: kept, ..Default::default() },
                _ => KernelAction {
                    handler: agent.entry(agent.blob.on_signal),
                    flags: libc::SA_SIGINFO as u64 | SA_RESTORER | kept,
                    restorer: agent.entry(agent.blob.restorer),
                    mask: signal::ALL,
                },
            };
            (n, action)
        })
        .collect()
}

/// Those of a guest's pending signals that a return has already queued here.
fn made_again(here: &[[u8; 128]], guest: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
    let is_here = |info: &&Vec<u8>| here.iter().any(|h| h[..] == info[..]);
    guest.unwrap_or(&[]).iter().filter(is_here).cloned().collect()
}

fn set_actions(s: &mut Script, actions: &[(i32, KernelAction)]) {
    for (n, a) in actions {
        let at = s.data(bytes_of(a));
        s.call(libc::SYS_rt_sigaction, [*n as u64, at, 0, 8, 0, 0]);
    }
}

impl Shadow {
    /// Gives the memory back. The mappings stay, so that a return finds them; so do arguments
    /// and environment, which `ps` reads.
    fn release_memory(&self, f: &mut Frozen) -> Result<()> {
        let mut b = leader(f, &self.places.agent);
        for v in &self.private {
            if v.flags & vma_flags::LOCKED != 0 {
                let args = [v.start, v.end - v.start, 0, 0, 0, 0];
                b.push("munlock", libc::SYS_munlock, args)?;
            }
            let below = (v.start, v.end.min(self.kept.0));
            let above = (v.start.max(self.kept.1.next_multiple_of(4096)), v.end);
            for (start, end) in [below, above] {
                if start < end {
                    let advice = libc::MADV_DONTNEED as u64;
                    let args = [start, end - start, advice, 0, 0, 0];
                    b.attempt("madvise", libc::SYS_madvise, args)?;
                }
            }
        }
        b.flush().map(drop)
    }

    /// What the leader does for its process before it serves.
    fn settle_process(&self, s: &mut Script, timers: &[i32]) {
        disarm(s, timers);
        set_actions(s, &self.actions);
    }

    fn area(&self, tid: i32) -> Result<u64> {
        self.seats.get(&tid).map(|seat| seat.area).ok_or(Error::Ended)
    }

    /// Writes what thread `t` does behind its gate: to be itself, with these registers and this
    /// mask, or to serve. It is held, with no call under way.
    fn lay_out(
        &self,
        t: &Thread,
        (regs, mask): (UserRegs, u64),
        away: impl FnOnce(&mut Script),
    ) -> Result<()> {
        let area = self.area(t.tid)?;
        let start = area + offset_of!(ThreadArea, buffer) as u64;
        let mut s = Script::new(start, CALL_BUFFER_INLINE_BYTES);
        const ARCH_SET_GS: u64 = 0x1001;
        const ARCH_SET_FS: u64 = 0x1002;
        s.call(libc::SYS_arch_prctl, [ARCH_SET_GS, regs.gs_base, 0, 0, 0, 0]);
        s.call(libc::SYS_arch_prctl, [ARCH_SET_FS, regs.fs_base, 0, 0, 0, 0]);
        if t.tid == self.pid {
            // Without its streams the guest can do nothing, and ends.
            let (first, last) = (self.reserved.0 as u64, self.reserved.1 as u64);
            s.call(libc::SYS_close_range, [first, last, 0, 0, 0, 0]);
            if let Some(word) = self.places.word {
                // Zeros: for the other threads HOME, as before.
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let read = libc::PROT_READ as u64;
                s.call(libc::SYS_mmap, [word, WORD_BYTES, read, flags as u64, u64::MAX, 0]);
            }
        }
        let (home, end) = s.write(self.pid)?;
        let home = Batch { regs, mask, ..home };
        let mut s = Script::new(end, CALL_BUFFER_INLINE_BYTES - (end - start) as usize);
        away(&mut s);
        let (away, _) = s.write(self.pid)?;
        let serve = self.at_entry(t, self.places.agent.blob.serve)?;
        let away = Batch { regs: serve, mask: signal::ALL, ..away };
        let put =
            |offset: usize, b: &Batch| memory::write(self.pid, area + offset as u64, bytes_of(b));
        put(offset_of!(ThreadArea, home), &home)?;
        Ok(put(offset_of!(ThreadArea, away), &away)?)
    }

    /// From here on every thread goes on at its gate if its keeper dies.
    fn to_gates(&self, f: &mut Frozen) -> Result<()> {
        for word in [offset_of!(ProcArea, settled), offset_of!(ProcArea, serving)] {
            memory::write(self.pid, self.places.proc_area + word as u64, &0u32.to_le_bytes())?;
        }
        for t in &mut f.threads {
            let gate = self.at_entry(t, self.places.agent.blob.gate)?;
            t.fall_back_to(gate)?;
        }
        Ok(())
    }

    /// Lets every thread pass its gate; those of a stopped process stop behind it.
    fn pass_gates(&mut self, f: &mut Frozen) -> Result<()> {
        for t in &mut f.threads {
            let gate = self.at_entry(t, self.places.agent.blob.gate)?;
            t.fall_back_to(gate)?;
            self.running.insert(t.tid, t.take()?.cont(0)?);
        }
        self.passing = self.running.len() as u32;
        if !f.is_in_group_stop() {
            return Ok(());
        }
        // A tracer's word makes a thread run on in spite of job control; told to stop, it finds
        // itself stopped still, if it is.
        self.wait_serving()?;
        for t in self.running.values() {
            t.interrupt()?;
        }
        Ok(())
    }

    /// Until every thread that was let pass its gate serves: what it does on the way is not to be
    /// cut in two. It needs nobody for it, unless job control stopped it there: then the
    /// caller goes on after a while all the same.
    fn wait_serving(&self) -> Result<()> {
        const STEP: Duration = Duration::from_micros(200);
        const STEPS_MAX: u32 = 10_000;
        for _ in 0..STEPS_MAX {
            if self.word(offset_of!(ProcArea, serving))? >= self.passing {
                break;
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    fn decide(&self, decision: u32) -> Result<()> {
        Ok(memory::write(self.pid, self.places.own_word(), &decision.to_le_bytes())?)
    }

    /// From the word of the party that it left with to its own, which says the same. No thread
    /// of it stands at its gate.
    fn decide_alone(&self) -> Result<()> {
        self.decide(decision::AWAY)?;
        let at = self.places.proc_area + offset_of!(ProcArea, decision_at) as u64;
        Ok(memory::write(self.pid, at, &self.places.own_word().to_le_bytes())?)
    }

    /// Registers with which a thread comes to one of the agent's entries.
    fn at_entry(&self, t: &Thread, entry: u64) -> Result<UserRegs> {
        let at = self.area(t.tid)?;
        let stack = at + offset_of!(ThreadArea, stack) as u64;
        let top = stack + tcmi_call::abi::THREAD_STACK_BYTES as u64;
        Ok(UserRegs {
            rip: self.places.agent.entry(entry),
            rdi: at,
            gs_base: at,
            // As after a call: 16-byte alignment less the return address.
            rsp: (top & !15) - 8,
            eflags: 0x202,
            orig_rax: u64::MAX,
            ..t.regs
        })
    }

    /// Arms a held shadow for its return as `image`: should its keeper die, it serves again,
    /// until [`Shadow::decide_home`]; from then on it is the process of `image`. Not `alone`: until
    /// the word of its party says so.
    pub fn arm_return(&self, f: &mut Frozen, image: &ProcessImage, alone: bool) -> Result<()> {
        let timers: Vec<i32> = image.timers.iter().map(|t| t.id).collect();
        if alone {
            self.decide_alone()?;
        }
        for t in &f.threads {
            let state = rebuild::thread_of(image, t.tid)?;
            let own = (restartable(&rebuild::registers_of(state)?), state.mask);
            self.lay_out(t, own, |s| {
                unregister_rseq(s, state.rseq);
                if t.tid == self.pid {
                    self.settle_process(s, &timers);
                }
            })?;
        }
        self.to_gates(f)
    }

    /// The commit point of the way back: the rebuilt process runs at home from here on, whoever
    /// lives or dies. Err: it has ended.
    pub fn decide_home(&self) -> Result<()> {
        self.decide(decision::HOME)
    }

    /// Handles what happened since the last time; tells what the guest must follow.
    pub fn poll(&mut self) -> Result<Vec<Fate>> {
        let mut fates = std::mem::take(&mut self.missed);
        while let Some((tid, waited)) = try_wait_any()? {
            match waited {
                Waited::Ended(_) => {
                    self.running.remove(&tid);
                    self.left(tid);
                    if tid == self.pid || self.running.is_empty() {
                        fates.push(Fate::Ended);
                    }
                }
                Waited::Stopped(s, stop) => {
                    let going = self.go_on(s, stop, &mut fates)?;
                    self.running.insert(tid, going);
                }
            }
        }
        Ok(fates)
    }

    /// Every thread shows a stop and its end; the guest is told each once.
    fn go_on(&mut self, s: Stopped, stop: Stop, fates: &mut Vec<Fate>) -> Result<Running> {
        Ok(match stop {
            // The guest's own SIGCONT continues it and is what its handler gets.
            Stop::Signal(libc::SIGCONT) if self.job == Job::Continued => {
                self.job = Job::Runs;
                s.cont(0)?
            }
            // Of a thread that had not stopped yet, told before the others' end of the stop.
            Stop::Signal(libc::SIGCONT) if self.job == Job::Stopped => {
                self.job = Job::Runs;
                fates.push(Fate::Continued);
                s.cont(0)?
            }
            Stop::Signal(sig) => s.cont(sig)?,
            Stop::Group(sig) => {
                fates.extend(self.job.at_stop(Some(sig)));
                s.listen()?
            }
            // The end of a group stop shows itself so.
            Stop::Interrupt => {
                fates.extend(self.job.at_stop(None));
                s.cont(0)?
            }
            Stop::Syscall | Stop::Event(_) => s.cont(0)?,
        })
    }

    /// Takes back the forwarded calls that wait, so that each is answered CANCELLED.
    pub fn cancel_calls(&mut self) -> Result<()> {
        for tid in self.running.keys().copied().collect::<Vec<_>>() {
            let Some(t) = self.running.remove(&tid) else { continue };
            t.interrupt()?;
            let Some((mut t, group)) = settle(t)? else { continue };
            self.missed.extend(self.job.at_stop(group));
            self.cancel(&t)?;
            let s = t.take()?;
            let going = if group.is_some() { s.listen()? } else { s.cont(0)? };
            self.running.insert(tid, going);
        }
        Ok(())
    }

    /// Ends one forwarded call as a signal does: its guest thread has a signal to take of which
    /// its shadow thread knows nothing.
    pub fn poke(&self, tid: i32, seq: u64) -> Result<()> {
        let mut info = [0u8; 128];
        info[..4].copy_from_slice(&POKE_SIGNAL.to_le_bytes());
        info[8..12].copy_from_slice(&POKE_CODE.to_le_bytes());
        info[24..32].copy_from_slice(&seq.to_le_bytes());
        let nr = libc::SYS_rt_tgsigqueueinfo;
        // SAFETY: the kernel copies a whole siginfo; the tids are of a process that we trace.
        let r = unsafe { libc::syscall(nr, self.pid, tid, POKE_SIGNAL, info.as_ptr()) };
        match r {
            0 => Ok(()),
            _ => Err(Errno::last("rt_tgsigqueueinfo").into()),
        }
    }

    fn cancel(&self, t: &Thread) -> Result<()> {
        let blob = &self.places.agent.blob;
        let entry = |at| self.places.agent.entry(at);
        let (start, end) = (entry(blob.window_start), entry(blob.window_end));
        let by_stop = t.regs.rax as i64 == -i64::from(libc::EINTR) && ends_by_stop(t.regs.orig_rax);
        let restarts = by_stop || [-512, -513, -514, -516].contains(&(t.regs.rax as i64));
        let regs = if (start..=end - 2).contains(&t.regs.rip) {
            UserRegs { rip: entry(blob.window_abort), orig_rax: u64::MAX, ..t.regs }
        } else if t.regs.rip == end && (t.regs.orig_rax as i64) >= 0 && restarts {
            UserRegs { rax: -i64::from(libc::EINTR) as u64, orig_rax: u64::MAX, ..t.regs }
        } else {
            return Ok(());
        };
        let at = self.area(t.tid)?;
        let flag = at + offset_of!(ThreadArea, cancelled) as u64;
        memory::write(self.pid, flag, &1u32.to_le_bytes())?;
        t.stopped()?.set_regs(&regs)?;
        Ok(())
    }

    /// Stops every thread. Returns how many signals were sent to the guest in all.
    pub fn hold(&mut self) -> Result<(Frozen, u32)> {
        self.wait_serving()?;
        let held = std::mem::take(&mut self.running).into_values().collect();
        let mut f = freeze_held(self.pid, held, &[])?;
        self.drop_pokes(&mut f)?;
        for (tid, cores) in &self.cores {
            // It matters again where the program runs; a thread may have ended meanwhile.
            if let Err(error) = cores.bind(*tid) {
                tracing::debug!(tid, %error, "cores of a thread not given back");
            }
        }
        Ok((f, self.word(offset_of!(ProcArea, signal_seq))?))
    }

    /// One that has not been delivered is not for the program.
    fn drop_pokes(&self, f: &mut Frozen) -> Result<()> {
        let pid = f.pid;
        for t in &mut f.threads {
            let waiting = t.stopped()?.pending(false)?;
            let pokes =
                waiting.iter().filter(|info| info[8..12] == POKE_CODE.to_le_bytes()).count();
            let tid = t.tid;
            let mut b = Batcher::new(&self.places.agent, t, pid, Ids { tgid: pid, tid });
            for _ in 0..pokes {
                let set = b.data(&signal::bit(POKE_SIGNAL).to_le_bytes())?;
                let now = b.data(&[0; 16])?;
                b.attempt("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, [set, 0, now, 8, 0, 0])?;
            }
            b.flush()?;
        }
        Ok(())
    }

    fn word(&self, offset: usize) -> Result<u32> {
        let mut w = [0; 4];
        memory::read(self.pid, self.places.proc_area + offset as u64, &mut w)?;
        Ok(u32::from_le_bytes(w))
    }

    /// After a return that failed: serves again. What the return made is taken back.
    pub fn serve_again(&mut self, mut f: Frozen, image: Option<&ProcessImage>) -> Result<()> {
        let timers = timers(self.pid)?;
        let shared = f.leader().stopped()?.pending(true)?;
        for t in &f.threads {
            let rseq = t.stopped()?.rseq()?.map(|q| (q.ptr, q.size, q.signature));
            let own = t.stopped()?.pending(false)?;
            let state = image.and_then(|i| i.threads.iter().find(|s| s.tid == t.tid));
            self.lay_out(t, (t.regs, t.mask), |s| {
                unregister_rseq(s, rseq);
                take_pending(s, &made_again(&own, state.map(|i| i.pending.as_slice())));
                if t.tid == self.pid {
                    take_pending(s, &made_again(&shared, image.map(|i| i.pending.as_slice())));
                    self.settle_process(s, &timers);
                }
            })?;
        }
        self.to_gates(&mut f)?;
        self.release_memory(&mut f)?;
        self.pass_gates(&mut f)
    }

    /// The guest is lost: so is the process.
    pub fn kill(&self) {
        // SAFETY: plain call on a process that we trace and have not reaped.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Ends the shadow as its guest ended: `status` is the guest's raw wait status.
    pub fn end_as(&mut self, status: i32) -> Result<()> {
        let (mut f, _) = self.hold()?;
        if libc::WIFSIGNALED(status) {
            let sig = libc::WTERMSIG(status);
            let mut b = leader(&mut f, &self.places.agent);
            let none = b.data(&[0; 32])?;
            b.attempt("rt_sigaction", libc::SYS_rt_sigaction, [sig as u64, none, 0, 8, 0, 0])?;
            // A core of the agent would tell nothing.
            b.attempt("setrlimit", libc::SYS_setrlimit, [4, none, 0, 0, 0, 0])?;
            b.flush()?;
            let mut sig = sig;
            for t in &mut f.threads {
                let s = t.take()?;
                s.set_sigmask(0)?;
                // The first, which is the leader, takes it with it.
                s.detach(std::mem::take(&mut sig))?;
            }
            return Ok(());
        }
        let code = libc::WEXITSTATUS(status) as u64;
        let agent = self.places.agent;
        let t = f.leader_mut();
        let regs = UserRegs {
            rip: agent.entry(agent.blob.syscall_insn),
            rax: libc::SYS_exit_group as u64,
            rdi: code,
            orig_rax: u64::MAX,
            ..t.regs
        };
        t.stopped()?.set_regs(&regs)?;
        for t in &mut f.threads {
            self.running.insert(t.tid, t.take()?.cont(0)?);
        }
        Ok(())
    }

    /// Reaps what is left of a process that ended.
    pub fn reap(mut self) -> Result<()> {
        for t in std::mem::take(&mut self.running).into_values() {
            match t.wait() {
                Ok(Waited::Ended(_)) => {}
                Ok(Waited::Stopped(s, _)) => s.detach(0)?,
                Err(e) if e.code == libc::ECHILD => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    pub fn agent(&self) -> &Agent {
        &self.places.agent
    }
}
