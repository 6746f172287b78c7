//! All threads of a process, held.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tcmi_core::limits::FREEZE_RESCAN_ATTEMPTS_MAX;
use tcmi_sys::ptrace::{Running, Stop, Stopped, UserRegs, Waited};
use tcmi_sys::{Errno, proc};

/// A held thread and what it was doing.
#[derive(Debug)]
pub struct Thread {
    stopped: Option<Stopped>,
    pub tid: i32,
    /// Registers at the stop. `orig_rax >= 0` with a restart code in rax: inside a system call.
    pub regs: UserRegs,
    /// Blocked signals at the stop.
    pub mask: u64,
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

/// Seizes the threads of `pid` that are not known yet.
pub fn seize_new(pid: i32, known: impl Fn(i32) -> bool) -> Result<Vec<Running>> {
    let mut new = Vec::new();
    for tid in proc::tids(pid)? {
        if known(tid) {
            continue;
        }
        match Running::seize(tid, libc::PTRACE_O_TRACESYSGOOD) {
            Ok(t) => new.push(t),
            // It ended since the listing; the kernel also says EPERM for one that is exiting.
            Err(e) if e.is_gone() || is_exiting(pid, tid) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(new)
}

fn is_exiting(pid: i32, tid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))
        .ok()
        .and_then(|s| s.rsplit_once(") ").map(|(_, r)| r.starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// Stops `pid` with all its threads.
///
/// Ok: every thread is held and nothing of the process runs. Err: it runs on.
pub fn freeze(pid: i32) -> Result<Frozen> {
    freeze_held(pid, Vec::new(), &[])
}

/// As [`freeze`], for a process of which some threads are seized already; those in `except`
/// are left alone.
pub fn freeze_held(pid: i32, mut held: Vec<Running>, except: &[i32]) -> Result<Frozen> {
    let mut stopped: BTreeMap<i32, Thread> = BTreeMap::new();
    let mut group_stop = None;
    for _ in 0..FREEZE_RESCAN_ATTEMPTS_MAX {
        // Seize before reading more of /proc: from then on the pid cannot be reused unseen.
        let seized: Vec<i32> = held.iter().map(Running::tid).collect();
        held.extend(seize_new(pid, |t| {
            stopped.contains_key(&t) || seized.contains(&t) || except.contains(&t)
        })?);
        if held.is_empty() {
            return all_held(pid, stopped, group_stop);
        }
        for t in &held {
            t.interrupt().or_else(|e| if e.is_gone() { Ok(()) } else { Err(e) })?;
        }
        // The leader's end is not told before those of all others are taken.
        held.sort_by_key(|t| t.tid() == pid);
        for t in std::mem::take(&mut held) {
            if let Some((t, group)) = settle(t)? {
                group_stop = group_stop.or(group);
                stopped.insert(t.tid, t);
            }
        }
    }
    Err(Error::ThreadStorm)
}

fn all_held(
    pid: i32,
    mut stopped: BTreeMap<i32, Thread>,
    group_stop: Option<i32>,
) -> Result<Frozen> {
    let Some(leader) = stopped.remove(&pid) else {
        return Err(match stopped.is_empty() {
            true => Error::Ended,
            false => Error::unsupported("its main thread has ended while others run"),
        });
    };
    let threads = std::iter::once(leader).chain(stopped.into_values()).collect();
    Ok(Frozen { pid, threads, group_stop })
}

/// Waits for the stop of a thread that was interrupted, letting signals that come first be delivered: their
/// handler's frame is then part of the state, and no instruction of it has run.
pub fn settle(mut t: Running) -> Result<Option<(Thread, Option<i32>)>> {
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
                t = s.cont(sig)?;
                continue;
            }
            Stop::Syscall | Stop::Event(_) => {
                t = s.cont(0)?;
                continue;
            }
        };
        let thread = Thread { tid: s.tid(), regs: s.regs()?, mask: s.sigmask()?, stopped: Some(s) };
        return Ok(Some((thread, group)));
    }
}

impl Frozen {
    pub fn leader(&self) -> &Thread {
        &self.threads[0]
    }
    pub fn leader_mut(&mut self) -> &mut Thread {
        &mut self.threads[0]
    }

    /// Lets the process run on exactly as it was. Err: a thread could not be put right;
    /// the rest runs.
    pub fn thaw(self) -> Result<()> {
        let mut first_error = None;
        for mut t in self.threads {
            let Ok(s) = t.take() else { continue };
            let restored = s.set_regs(&t.regs).and_then(|()| s.set_sigmask(t.mask));
            if let Err(e) = restored.and_then(|()| s.detach(0))
                && !e.is_gone()
            {
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(()), |e: Errno| Err(e.into()))
    }
}

/// Registers as they must be set in a process where the interrupted call is to be made again:
/// what the kernel would do on the way to user mode.
pub fn restartable(regs: &UserRegs) -> UserRegs {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    let mut r = *regs;
    if (r.orig_rax as i64) < 0 {
        return r;
    }
    match r.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
            r.rax = r.orig_rax;
            r.rip -= 2;
        }
        ERESTART_RESTARTBLOCK => {
            // A sleep goes on in the shadow thread, whose kernel knows when it ends. The other
            // calls that restart this way take the same arguments again.
            let sleeps = [libc::SYS_nanosleep as u64, libc::SYS_clock_nanosleep as u64];
            r.rax = match r.orig_rax {
                nr if sleeps.contains(&nr) => libc::SYS_restart_syscall as u64,
                nr => nr,
            };
            r.rip -= 2;
        }
        _ => {}
    }
    // No longer inside a call, so that the kernel does not restart it a second time.
    r.orig_rax = u64::MAX;
    r
}
