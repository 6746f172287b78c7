//! All threads of a process, held.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tcmi_core::limits::FREEZE_RESCAN_ATTEMPTS_MAX;
use tcmi_sys::kmod;
use tcmi_sys::ptrace::{Running, Stop, Stopped, UserRegs, Waited};
use tcmi_sys::{proc, signal};

/// A held thread and what it was doing.
#[derive(Debug)]
pub struct Thread {
    stopped: Option<Stopped>,
    pub tid: i32,
    /// Registers at the stop. `orig_rax >= 0` with a restart code in rax: inside a system call.
    pub regs: UserRegs,
    /// Blocked signals at the stop.
    pub mask: u64,
    /// Where it goes on, with every signal blocked, if its tracer dies; None: as it was.
    fallback: Option<UserRegs>,
    /// The signal of a job-control stop that began while it was held.
    pub(crate) group_stop: Option<i32>,
}

impl Thread {
    pub fn stopped(&self) -> Result<&Stopped> {
        self.stopped.as_ref().ok_or(Error::Ended)
    }
    pub fn take(&mut self) -> Result<Stopped> {
        self.stopped.take().ok_or(Error::Ended)
    }
    pub fn put_back(&mut self, s: Stopped) {
        self.stopped = Some(s);
    }
    /// From now on until [`Thread::own_again`] the thread goes on at `regs`, with every signal
    /// blocked, should its tracer die. What it was doing stays in `regs` and `mask`.
    pub fn fall_back_to(&mut self, regs: UserRegs) -> Result<()> {
        self.fallback = Some(regs);
        self.fall_back()
    }
    /// After something else was made in it: it stands again where a dead tracer is to leave it.
    pub(crate) fn fall_back(&self) -> Result<()> {
        let (regs, mask) = self.abandoned();
        let s = self.stopped()?;
        s.set_sigmask(mask)?;
        Ok(s.set_regs(&regs)?)
    }
    /// It goes on as it was, let go or left alone.
    pub fn own_again(&mut self) -> Result<()> {
        let s = self.stopped()?;
        s.set_regs(&interrupted(&self.regs))?;
        s.set_sigmask(self.mask)?;
        self.fallback = None;
        Ok(())
    }
    /// Registers and mask with which a dead tracer leaves it.
    pub(crate) fn abandoned(&self) -> (UserRegs, u64) {
        match self.fallback {
            Some(regs) => (regs, signal::ALL),
            None => (restartable(&self.regs), self.mask),
        }
    }
}

/// A process of which every thread is in a ptrace stop, held by the calling OS thread.
#[derive(Debug)]
pub struct Frozen {
    pub pid: i32,
    /// The thread group's leader first, then by tid.
    pub threads: Vec<Thread>,
    /// Signal of a job-control stop that the process was in.
    pub group_stop: Option<i32>,
}

/// Of a thread that is held.
pub const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// Of a guest's thread, which is traced for as long as it is there.
pub const GUEST_OPTIONS: i32 = OPTIONS | libc::PTRACE_O_TRACECLONE;
/// Longest that another OS thread of ours is let trace a thread that is to be held, as the one that
/// saw its process begin.
const TRACED_MAX: Duration = Duration::from_millis(200);
const TRACED_STEP: Duration = Duration::from_millis(1);
/// Longest that a thread which ends is waited for, and how long between two looks.
const ENDING_MAX: Duration = Duration::from_secs(1);
const ENDING_STEP: Duration = Duration::from_micros(200);

/// Seizes the threads of `pid` that are not known yet, with these PTRACE_O_*. Err: none of them.
pub fn seize_new(pid: i32, options: i32, known: impl Fn(i32) -> bool) -> Result<Vec<Running>> {
    let mut new = Vec::new();
    match scan(pid, options, known, &mut new) {
        Ok(_) => Ok(new),
        Err(e) => {
            release(new);
            Err(e)
        }
    }
}

/// Seizes what it finds, also on Err. Ok(true): none were missed.
///
/// The kernel ends a listing at a thread that goes meanwhile, listed or not. It counts what may
/// be behind that one, though, and whoever is held is there for both.
fn scan(
    pid: i32,
    options: i32,
    known: impl Fn(i32) -> bool,
    new: &mut Vec<Running>,
) -> Result<bool> {
    let mut all_here = true;
    let listed = proc::tids(pid)?;
    for &tid in listed.iter().filter(|tid| !known(**tid)) {
        match seize(pid, tid, options)? {
            Some(t) => new.push(t),
            // Gone, or so new that it cannot be found by its id yet. A leader that has ended stays.
            None => all_here &= tid == pid,
        }
    }
    Ok(all_here && proc::status(pid)?.threads as usize == listed.len())
}

/// Lets go of threads that were not stopped yet.
fn release(held: Vec<Running>) {
    for t in held {
        // One that cannot be stopped is about to end.
        if t.interrupt().is_ok()
            && let Ok(Some((mut t, _))) = settle(t)
            && let Ok(s) = t.take()
        {
            s.detach(0).ok();
        }
    }
}

/// None: it is a zombie, or there is no such thread now.
fn seize(pid: i32, tid: i32, options: i32) -> Result<Option<Running>> {
    let until = Instant::now() + TRACED_MAX;
    loop {
        match Running::seize(tid, options) {
            Ok(t) => return Ok(Some(t)),
            // The kernel also says EPERM for a zombie.
            Err(e) if e.is_gone() || has_ended(pid, tid) => return Ok(None),
            Err(e) if e.code == libc::EPERM && Instant::now() < until => {
                std::thread::sleep(TRACED_STEP);
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// A zombie, or gone.
fn has_ended(pid: i32, tid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))
        .ok()
        .and_then(|s| s.rsplit_once(") ").map(|(_, r)| r.starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// Stops `pid` with all its threads.
///
/// Ok: every thread is held and nothing of the process runs. Err: it runs on.
pub fn freeze(pid: i32) -> Result<Frozen> {
    hold(pid, Vec::new(), None)
}

/// As [`freeze`], for a process that the kernel module holds: it has not run in between.
pub fn freeze_pinned(pid: i32, pin: kmod::Frozen) -> Result<Frozen> {
    hold(pid, Vec::new(), Some(pin))
}

/// As [`freeze`], for a process of which some threads are seized already.
pub fn freeze_held(pid: i32, held: Vec<Running>) -> Result<Frozen> {
    hold(pid, held, None)
}

fn hold(pid: i32, mut held: Vec<Running>, pin: Option<kmod::Frozen>) -> Result<Frozen> {
    let mut stopped = BTreeMap::new();
    let mut group_stop = None;
    let all = stop_all(pid, &mut held, pin, &mut stopped, &mut group_stop);
    release(held);
    let leader = stopped.remove(&pid);
    let led = leader.is_some();
    let alone = stopped.is_empty();
    let threads = leader.into_iter().chain(stopped.into_values()).collect();
    let frozen = Frozen { pid, threads, group_stop };
    let why = match all {
        Ok(()) if led => return Ok(frozen),
        Ok(()) if alone => Error::Ended,
        Ok(()) => leaderless(),
        Err(e) => e,
    };
    frozen.thaw()?;
    Err(why)
}

fn leaderless() -> Error {
    Error::unsupported("its main thread has ended while others run")
}

/// Until no thread appears any more. Also on Err, what was stopped is in `stopped`, and in `held`
/// what was not yet.
fn stop_all(
    pid: i32,
    held: &mut Vec<Running>,
    mut pin: Option<kmod::Frozen>,
    stopped: &mut BTreeMap<i32, Thread>,
    group_stop: &mut Option<i32>,
) -> Result<()> {
    let mut rounds = 0;
    let mut until = Instant::now() + ENDING_MAX;
    while rounds < FREEZE_RESCAN_ATTEMPTS_MAX && Instant::now() < until {
        // Seize before reading more of /proc: from then on the pid cannot be reused unseen.
        let seized: Vec<i32> = held.iter().map(Running::tid).collect();
        let known = |t| stopped.contains_key(&t) || seized.contains(&t);
        let complete = scan(pid, OPTIONS, known, held)?;
        if held.is_empty() {
            if complete {
                return Ok(());
            }
            // One ends, and is listed until it has. On a busy processor it may wait for its turn.
            std::thread::sleep(ENDING_STEP);
            continue;
        }
        (rounds, until) = (rounds + 1, Instant::now() + ENDING_MAX);
        for t in held.iter() {
            t.interrupt()?;
        }
        // Told to stop, they do so before they are back in the program.
        if let Some(pin) = pin.take() {
            pin.thaw()?;
        }
        while let Some(t) = held.pop() {
            if let Some((t, group)) = settle(t)? {
                *group_stop = group_stop.or(group);
                stopped.insert(t.tid, t);
            }
        }
    }
    Err(Error::ThreadStorm)
}

/// Waits for the stop of a thread that was interrupted, letting signals that come first be
/// delivered: their handler's frame is then part of the state, and no instruction of it has run.
pub fn settle(t: Running) -> Result<Option<(Thread, Option<i32>)>> {
    settle_after(t, &|_, _| Ok(()))
}

fn settle_after(mut t: Running, before: BeforeSignal<'_>) -> Result<Option<(Thread, Option<i32>)>> {
    loop {
        let (s, stop) = match t.wait() {
            Ok(Waited::Stopped(s, stop)) => (s, stop),
            Ok(Waited::Ended(_)) => return Ok(None),
            Err(e) if e.code == libc::ECHILD => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let group = match stop {
            Stop::Interrupt => None,
            Stop::Group(sig) => Some(sig),
            Stop::Signal(sig) => {
                before(&s, sig)?;
                t = s.cont(sig)?;
                continue;
            }
            // Such a stop ends the wish for another.
            Stop::Syscall | Stop::Event(_) => {
                t = s.cont_to_stop()?;
                continue;
            }
        };
        return Ok(Some((held(s)?, group)));
    }
}

/// What is done with a thread that is about to take a signal.
pub type BeforeSignal<'a> = &'a dyn Fn(&Stopped, i32) -> tcmi_sys::Result<()>;

/// Waits for all threads of guest `pid`, which are traced and begin no others. They were interrupted.
///
/// Err: those that are there run on, traced.
pub fn settle_guest(pid: i32, told: Vec<Running>, before: BeforeSignal<'_>) -> Result<Frozen> {
    let (mut threads, mut group_stop, mut failed) = (Vec::new(), None, None);
    for t in told {
        match settle_after(t, before) {
            Ok(Some((t, group))) => {
                group_stop = group_stop.or(group);
                threads.push(t);
            }
            Ok(None) => {}
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    threads.sort_by_key(|t| (t.tid != pid, t.tid));
    let led = threads.first().is_some_and(|t| t.tid == pid);
    let frozen = Frozen { pid, threads, group_stop };
    let why = match failed {
        None if led => return Ok(frozen),
        None if frozen.threads.is_empty() => Error::Ended,
        None => leaderless(),
        Some(e) => e,
    };
    frozen.resume()?;
    Err(why)
}

/// A thread in a stop as an interruption makes it.
pub fn held(s: Stopped) -> Result<Thread> {
    let (tid, regs, mask) = (s.tid(), s.regs()?, s.sigmask()?);
    let (fallback, stopped) = (None, Some(s));
    Ok(Thread { tid, regs, mask, fallback, stopped, group_stop: None })
}

impl Frozen {
    pub fn leader(&self) -> &Thread {
        &self.threads[0]
    }
    pub fn leader_mut(&mut self) -> &mut Thread {
        &mut self.threads[0]
    }
    /// Whether job control has stopped the process, before or since.
    pub fn is_in_group_stop(&self) -> bool {
        self.group_stop.is_some() || self.threads.iter().any(|t| t.group_stop.is_some())
    }

    /// Runs each thread that is inside of `ranges` on until it is not. For the vDSO: what its code
    /// has in registers in between fits one node and one time namespace only.
    pub fn step_out(&mut self, ranges: &[(u64, u64)]) -> Result<()> {
        const STEPS_MAX: u32 = 100_000;
        let inside = |rip| ranges.iter().any(|r| (r.0..r.1).contains(&rip));
        for t in self.threads.iter_mut().filter(|t| inside(t.regs.rip)) {
            let mut s = t.take()?;
            // A trap that is blocked would cost the program its handler.
            s.set_sigmask(signal::ALL & !signal::bit(libc::SIGTRAP))?;
            for _ in 0..STEPS_MAX {
                if !inside(s.regs()?.rip) {
                    break;
                }
                s = match s.step()?.wait()? {
                    Waited::Stopped(s, _) => s,
                    Waited::Ended(_) => return Err(Error::Ended),
                };
            }
            t.regs = s.regs()?;
            s.set_sigmask(t.mask)?;
            t.put_back(s);
            if inside(t.regs.rip) {
                return Err(Error::unsupported("a thread does not come out of the vDSO"));
            }
        }
        Ok(())
    }

    /// Lets the process run on as it was. Err: a thread could not be put right; the rest runs.
    ///
    /// A wait is made again as [`interrupted`] says: a later freeze would else find
    /// `restart_syscall`, which does not tell what waits.
    pub fn thaw(self) -> Result<()> {
        self.let_go(|s| s.detach(0))
    }

    /// As [`Frozen::thaw`], of a guest, whose threads stay traced.
    pub fn resume(self) -> Result<()> {
        let stopped = self.is_in_group_stop();
        self.let_go(|s| match s.tid() {
            // Whoever continues a thread ends its stop by job control; whoever lets go does not.
            tid if stopped => {
                s.detach(0).and_then(|()| Running::seize(tid, GUEST_OPTIONS).map(drop))
            }
            // Behind a call of ours its kernel would not look at what becomes of its own.
            _ => s.cont_to_stop().map(drop),
        })
    }

    fn let_go(self, how: impl Fn(Stopped) -> tcmi_sys::Result<()>) -> Result<()> {
        let mut first_error = None;
        for mut t in self.threads {
            let gone_on = t.own_again().and_then(|()| Ok(how(t.take()?)?));
            if let Err(e) = gone_on
                && !e.is_gone()
            {
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

const EINTR: i64 = -(libc::EINTR as i64);
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// A call that waits for time alone, or goes on doing so.
fn sleeps(nr: u64) -> bool {
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall]
        .contains(&(nr as i64))
}

/// Registers with which a thread goes on, here or elsewhere, and its kernel ends or restarts the
/// call that a stop interrupted, as the handlers of the signals that wait for it demand.
///
/// A sleep goes on by the restart block of its thread at home. Any other call that would is made
/// again from its arguments: what the restart block points to is memory of this process alone.
pub fn interrupted(regs: &UserRegs) -> UserRegs {
    let mut r = *regs;
    let nr = r.orig_rax;
    let again = match r.rax as i64 {
        ERESTART_RESTARTBLOCK => !sleeps(nr),
        EINTR => ends_by_stop(nr),
        _ => false,
    };
    if nr as i64 >= 0 && again {
        r.rax = ERESTARTNOHAND as u64;
    }
    r
}

/// Registers, as [`interrupted`] gives them, of a thread that goes on without its restart block: a
/// sleep begins again, with its whole time if that was relative.
pub fn begun_again(regs: &UserRegs) -> UserRegs {
    /// No memory is mapped below it, and clocks are few.
    const POINTER_MIN: u64 = 4096;
    let mut r = *regs;
    if (r.orig_rax as i64) < 0 || r.rax as i64 != ERESTART_RESTARTBLOCK {
        return r;
    }
    if r.orig_rax as i64 == libc::SYS_restart_syscall {
        // It has the arguments of the call that it goes on with.
        let has_clock = r.rdi < POINTER_MIN;
        let nr = if has_clock { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep };
        r.orig_rax = nr as u64;
    }
    r.rax = ERESTARTNOHAND as u64;
    r
}

/// Calls that the kernel ends with EINTR when their thread is merely stopped (signal(7)): the
/// program is to see that only of a signal that it handles.
pub fn ends_by_stop(nr: u64) -> bool {
    [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
    ]
    .contains(&(nr as i64))
}

/// Registers as they must be set in a process where the interrupted call is to be made again:
/// what the kernel would do on the way to user mode.
pub fn restartable(regs: &UserRegs) -> UserRegs {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    let mut r = interrupted(regs);
    if (r.orig_rax as i64) < 0 {
        return r;
    }
    match r.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
            r.rax = r.orig_rax;
            r.rip -= 2;
        }
        // Of what sleeps, only.
        ERESTART_RESTARTBLOCK => {
            r.rax = libc::SYS_restart_syscall as u64;
            r.rip -= 2;
        }
        _ => {}
    }
    // No longer inside a call, so that the kernel does not restart it a second time.
    r.orig_rax = u64::MAX;
    r
}
