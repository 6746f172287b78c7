//! The original process while its guest is away: the agent serves in each of its threads, its
//! memory is given back, and what no agent can see comes from our ptrace attachment.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::offset_of;
use std::time::Duration;

use tcmi_call::abi::{
    AgentStream, POKE_CODE, POKE_SIGNAL, ProcArea, ThreadArea, UserRegs, broken, decision,
};
use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::freeze::{Frozen, Thread, ends_by_stop, freeze_held, settle};
use tcmi_ckpt::image::{ProcessImage, Vma};
use tcmi_ckpt::rebuild::Batcher;
use tcmi_ckpt::remote::{Agent, Ids};
use tcmi_ckpt::{Error, Result};
use tcmi_sys::affinity::Cores;
use tcmi_sys::ptrace::{self, Running, Stop, Stopped, Waited, try_wait_any_but_end_of};
use tcmi_sys::signal::{self, KernelAction};
use tcmi_sys::{Errno, memory};

mod arm;
mod births;

pub use arm::{Armed, arm};
use arm::{take_pending, timers, unregister_rseq};
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
    /// A thread's stream is of no more use.
    Broken(Broken),
}

/// Why a thread gave up its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The node closed it.
    Closed,
    Record,
    Protocol,
    Io(i32),
}

impl Broken {
    fn of(word: u32) -> Option<Self> {
        let errno = (word >> broken::ERRNO_SHIFT) as i32;
        match word & ((1 << broken::ERRNO_SHIFT) - 1) {
            broken::CLOSED => Some(Self::Closed),
            broken::RECORD => Some(Self::Record),
            broken::PROTOCOL => Some(Self::Protocol),
            broken::IO => Some(Self::Io(errno)),
            _ => None,
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the node closed a stream of calls",
            Self::Record => "a forged or damaged record on a stream of calls",
            Self::Protocol => "a call that breaks the protocol",
            Self::Io(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                return write!(f, "a stream of calls cannot be read or written: {error}");
            }
        })
    }
}

fn leader<'a>(f: &'a mut Frozen, agent: &'a Agent) -> Batcher<'a> {
    let pid = f.pid;
    Batcher::new(agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid })
}

/// Those of a guest's pending signals that a return has already queued here.
fn made_again(here: &[[u8; 128]], guest: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
    let is_here = |info: &&Vec<u8>| here.iter().any(|h| h[..] == info[..]);
    guest.unwrap_or(&[]).iter().filter(is_here).cloned().collect()
}

impl Shadow {
    /// Gives the memory back. The mappings stay, so that a return finds them; so do arguments
    /// and environment, which `ps` reads.
    fn release_memory(&self, f: &mut Frozen) -> Result<()> {
        let mut b = leader(f, &self.places.agent);
        // A return locks again what is to be.
        b.push("munlockall", libc::SYS_munlockall, [0; 6])?;
        for v in &self.private {
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

    fn area(&self, tid: i32) -> Result<u64> {
        self.seats.get(&tid).map(|seat| seat.area).ok_or(Error::Ended)
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

    /// The commit point of the way back: the rebuilt process runs at home from here on, whoever
    /// lives or dies. Err: it has ended.
    pub fn decide_home(&self) -> Result<()> {
        self.decide(decision::HOME)
    }

    /// Handles what happened since the last time; tells what the guest must follow. The end of the
    /// process is told to nobody else before [`Shadow::tell_end`], or [`Shadow::reap`].
    pub fn poll(&mut self) -> Result<Vec<Fate>> {
        let mut fates = std::mem::take(&mut self.missed);
        while let Some((tid, waited)) = try_wait_any_but_end_of(self.pid)? {
            match waited {
                Waited::Ended(_) => {
                    self.running.remove(&tid);
                    self.left(tid);
                }
                Waited::Stopped(s, stop) => {
                    if stop == Stop::Signal(POKE_SIGNAL) {
                        fates.extend(self.broken(tid)?.map(Fate::Broken));
                    }
                    let going = self.go_on(s, stop, &mut fates)?;
                    self.running.insert(tid, going);
                }
            }
        }
        if self.running.is_empty() || ptrace::has_ended(self.pid)? {
            fates.push(Fate::Ended);
        }
        Ok(fates)
    }

    fn broken(&self, tid: i32) -> Result<Option<Broken>> {
        let mut word = [0; 4];
        let at = self.area(tid)? + offset_of!(ThreadArea, broken) as u64;
        memory::read(self.pid, at, &mut word)?;
        Ok(Broken::of(u32::from_le_bytes(word)))
    }

    /// Of a process that has ended.
    pub fn tell_end(&mut self) -> Result<()> {
        match self.running.remove(&self.pid) {
            Some(leader) => Ok(leader.wait().map(drop)?),
            None => Ok(()),
        }
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
        let mut f = freeze_held(self.pid, held)?;
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
                    self.settle_process(s, &timers, 0);
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
