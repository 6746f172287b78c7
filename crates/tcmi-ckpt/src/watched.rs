//! A process that runs at home with us as its tracer, until it begins another process or executes
//! another program.

use crate::error::{Error, Result};
use crate::freeze::{self, Frozen, Thread, held, restartable, seize_new, settle};
use std::collections::{BTreeMap, BTreeSet};
use tcmi_sys::proc;
use tcmi_sys::ptrace::{Running, Stop, Stopped, Waited, try_wait_any, wait_any};

const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// Whose memory a new process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Own,
    /// Its parent's, which waits until it executes another program or ends.
    Lent,
    Shared,
}

/// A process that a watched one has begun. It runs, untraced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub pid: i32,
    pub memory: Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    Began(Child),
    /// Another program is in it, of which nothing has run. It is held.
    Executed,
    /// The one call that it was let make has returned. It is held.
    Returned,
    Ended,
}

pub struct Watched {
    pid: i32,
    running: BTreeMap<i32, Running>,
    /// Threads that stand still meanwhile.
    held: Vec<Thread>,
    /// Signal of a job-control stop that those are in.
    group_stop: Option<i32>,
    /// The thread that makes one call, and the number of the call that it is in.
    caller: Option<(i32, Option<u64>)>,
    /// New processes whose first stop is still to come.
    expected: BTreeSet<i32>,
    /// New ones that have shown themselves before who began them.
    early: BTreeMap<i32, Stopped>,
    /// Each thread is held at its next stop.
    freezing: bool,
}

impl Watched {
    /// Lets thread `tid` of a held process make one call: the first of those that begin a process,
    /// execute a program, map memory or make a signalfd. The others stand still.
    pub fn for_call(mut f: Frozen, tid: i32) -> Result<Self> {
        let at = f.threads.iter().position(|t| t.tid == tid).ok_or(Error::Ended)?;
        let mut t = f.threads.remove(at);
        t.own_again()?;
        let s = t.take()?;
        // Let go to its next call, it may not pass where the kernel would do this.
        s.set_regs(&restartable(&t.regs))?;
        s.set_options(OPTIONS)?;
        let mut watched = Self::new(f.pid, f.threads);
        watched.caller = Some((tid, None));
        watched.running.insert(tid, s.to_syscall(0)?);
        Ok(watched)
    }

    /// Whether the call that a thread of a held process makes next begins a process with the same
    /// mappings, and with memory of its own.
    pub fn is_fork(f: &Frozen, tid: i32) -> bool {
        let Some(t) = f.threads.iter().find(|t| t.tid == tid) else { return false };
        let regs = restartable(&t.regs);
        let flags = match regs.rax as i64 {
            libc::SYS_fork => 0,
            libc::SYS_clone => regs.rdi,
            libc::SYS_clone3 => {
                let mut flags = [0; 8];
                // What cannot be read begins nothing.
                match tcmi_sys::memory::read(f.pid, regs.rdi, &mut flags) {
                    Ok(()) => u64::from_le_bytes(flags),
                    Err(_) => return false,
                }
            }
            _ => return false,
        };
        flags & libc::CLONE_VM as u64 == 0
    }

    /// Watches a process that runs on.
    pub fn seize(pid: i32) -> Result<Self> {
        let mut watched = Self::new(pid, Vec::new());
        loop {
            let new = seize_new(pid, OPTIONS, |tid| watched.running.contains_key(&tid))?;
            if new.is_empty() {
                break;
            }
            watched.running.extend(new.into_iter().map(|t| (t.tid(), t)));
        }
        match watched.running.contains_key(&pid) {
            true => Ok(watched),
            false => Err(Error::Ended),
        }
    }

    fn new(pid: i32, held: Vec<Thread>) -> Self {
        let (running, expected, early) = Default::default();
        let (group_stop, caller, freezing) = (None, None, false);
        Self { pid, running, held, group_stop, caller, expected, early, freezing }
    }

    /// What has happened since the last time. Err: it has ended, or cannot be watched.
    pub fn poll(&mut self) -> Result<Vec<Happening>> {
        let mut all = Vec::new();
        while let Some((tid, waited)) = try_wait_any()? {
            self.hears(tid, waited, &mut all)?;
        }
        Ok(all)
    }

    fn hears(&mut self, tid: i32, waited: Waited, all: &mut Vec<Happening>) -> Result<()> {
        match waited {
            Waited::Ended(_) => {
                self.running.remove(&tid);
                self.expected.remove(&tid);
                self.held.retain(|t| t.tid != tid);
                if tid == self.pid || self.running.is_empty() && !self.freezing {
                    all.push(Happening::Ended);
                }
                Ok(())
            }
            Waited::Stopped(s, stop) => self.stopped(s, stop, all),
        }
    }

    /// Every process that it has begun runs untraced.
    pub fn is_settled(&self) -> bool {
        self.expected.is_empty()
    }

    fn stopped(&mut self, s: Stopped, stop: Stop, all: &mut Vec<Happening>) -> Result<()> {
        let tid = s.tid();
        if self.expected.remove(&tid) {
            return Ok(s.detach(0)?);
        }
        if !self.running.contains_key(&tid) && tid != self.pid {
            self.early.insert(tid, s);
            return Ok(());
        }
        let going = match stop {
            Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                // It has the leader's id now, whichever thread it was.
                self.running.clear();
                self.held.clear();
                self.hold(behind_call(s)?, all, Happening::Executed)?;
                return Ok(());
            }
            Stop::Event(event) => {
                self.began(&s, event, all)?;
                self.resume(s, 0)?
            }
            Stop::Syscall => match self.returns(&s)? {
                true => return self.hold(s, all, Happening::Returned),
                false => self.resume(s, 0)?,
            },
            Stop::Signal(sig) => self.resume(s, sig)?,
            Stop::Group(sig) if self.freezing => return self.keep(s, Some(sig)),
            Stop::Interrupt if self.freezing => return self.keep(s, None),
            Stop::Group(_) => s.listen()?,
            Stop::Interrupt => self.resume(s, 0)?,
        };
        self.running.insert(tid, going);
        Ok(())
    }

    fn resume(&self, s: Stopped, sig: i32) -> Result<Running> {
        let calls = self.caller.is_some_and(|(tid, _)| tid == s.tid());
        Ok(match (calls, sig) {
            (true, _) => s.to_syscall(sig)?,
            (false, 0) if self.freezing => s.cont_to_stop()?,
            (false, _) => s.cont(sig)?,
        })
    }

    fn keep(&mut self, s: Stopped, group: Option<i32>) -> Result<()> {
        s.set_options(freeze::OPTIONS)?;
        self.group_stop = self.group_stop.or(group);
        self.running.remove(&s.tid());
        self.held.push(held(s)?);
        Ok(())
    }

    /// Whether it stands behind the call that it was let make.
    fn returns(&mut self, s: &Stopped) -> Result<bool> {
        let Some((_, inside)) = &mut self.caller else { return Ok(false) };
        match inside.take() {
            Some(nr) => Ok(is_made_at_home(nr)),
            None => {
                *inside = Some(s.regs()?.orig_rax);
                Ok(false)
            }
        }
    }

    fn began(&mut self, s: &Stopped, event: i32, all: &mut Vec<Happening>) -> Result<()> {
        if ![libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_VFORK, libc::PTRACE_EVENT_CLONE]
            .contains(&event)
        {
            return Ok(());
        }
        let new = s.event_message()? as i32;
        let early = self.early.remove(&new);
        // One that is gone already was no thread that matters.
        if proc::status(new).is_ok_and(|status| status.tgid == self.pid) {
            let going = match early {
                Some(s) => self.resume(s, 0)?,
                None => Running::attached_by_kernel(new),
            };
            self.running.insert(new, going);
            return Ok(());
        }
        let memory = match event {
            libc::PTRACE_EVENT_VFORK => Memory::Lent,
            _ if proc::share_memory(new, self.pid) => Memory::Shared,
            _ => Memory::Own,
        };
        match early {
            Some(s) => s.detach(0)?,
            None => drop(self.expected.insert(new)),
        }
        all.push(Happening::Began(Child { pid: new, memory }));
        Ok(())
    }

    /// Brings a thread from the end of its call to where a freeze finds threads.
    fn hold(&mut self, s: Stopped, all: &mut Vec<Happening>, what: Happening) -> Result<()> {
        s.set_options(freeze::OPTIONS)?;
        let running = s.cont_to_stop()?;
        let (thread, group) = settle(running)?.ok_or(Error::Ended)?;
        self.group_stop = self.group_stop.or(group);
        self.running.remove(&thread.tid);
        self.held.push(thread);
        self.caller = None;
        all.push(what);
        Ok(())
    }

    /// Holds all of it, and tells what has happened meanwhile: what it has begun runs untraced.
    pub fn freeze(mut self) -> Result<(Frozen, Vec<Happening>)> {
        self.freezing = true;
        for t in self.running.values() {
            t.interrupt()?;
        }
        let mut all = Vec::new();
        while !self.running.is_empty() || !self.expected.is_empty() {
            let (tid, waited) = wait_any()?.ok_or(Error::Ended)?;
            self.hears(tid, waited, &mut all)?;
        }
        let pid = self.pid;
        self.held.sort_by_key(|t| (t.tid != pid, t.tid));
        match self.held.first() {
            Some(leader) if leader.tid == pid => {
                Ok((Frozen { pid, threads: self.held, group_stop: self.group_stop }, all))
            }
            _ => Err(Error::Ended),
        }
    }

    /// Lets go of what is held; of the rest the kernel does when the calling OS thread ends.
    pub fn release(self) -> Result<()> {
        Frozen { pid: self.pid, threads: self.held, group_stop: self.group_stop }.thaw()
    }
}

fn is_made_at_home(nr: u64) -> bool {
    [
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_mmap,
        libc::SYS_signalfd,
        libc::SYS_signalfd4,
        libc::SYS_shmat,
        libc::SYS_shmdt,
        libc::SYS_mremap,
        libc::SYS_remap_file_pages,
    ]
    .contains(&(nr as i64))
}

/// From inside a call to its end.
fn behind_call(s: Stopped) -> Result<Stopped> {
    match s.to_syscall(0)?.wait()? {
        Waited::Stopped(s, _) => Ok(s),
        Waited::Ended(_) => Err(Error::Ended),
    }
}
