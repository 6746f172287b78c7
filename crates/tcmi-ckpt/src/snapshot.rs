//! A copy of a held process's memory, as fork makes it, that stays as it is while the process goes
//! on.

use crate::error::{Error, Result};
use crate::freeze::{self, Frozen, Thread, freeze, settle};
use crate::remote::{Agent, Calls, Ids, bytes_of, call, find_syscall};
use tcmi_sys::maps;
use tcmi_sys::namespace::CloneArgs;
use tcmi_sys::ptrace::{self, Running};

/// A child of the process that never runs a program's instruction. It has the process's memory but
/// for what MADV_DONTFORK and MADV_WIPEONFORK keep from children, and no descriptors: a pipe whose
/// end it had would not end. No wait of the process finds it, unless by __WALL or __WCLONE: it
/// tells nobody of its end.
pub struct Snapshot {
    of: i32,
    copy: Thread,
}

impl Snapshot {
    /// Err: the process is as it was, held.
    pub fn take(f: &mut Frozen, agent: &Agent) -> Result<Self> {
        /// No process has it.
        const NOBODY: u64 = i32::MAX as u64;
        let of = f.pid;
        let leader = f.leader_mut();
        leader.stopped()?.set_options(freeze::OPTIONS | libc::PTRACE_O_TRACECLONE)?;
        // Should we die while the copy is not ours yet, it goes on with this batch: the kernel
        // writes the copy's id, in the copy, where its next call has the process that it kills.
        let mut c = Calls::new();
        let child_tid = agent.argument(1);
        let flags = libc::CLONE_CHILD_SETTID as u64;
        let args = c.data(bytes_of(&CloneArgs { flags, child_tid, ..CloneArgs::default() }));
        let size = std::mem::size_of::<CloneArgs>() as u64;
        let clone = c.push("clone3", libc::SYS_clone3, [agent.address(args), size, 0, 0, 0, 0]);
        c.attempt("kill", libc::SYS_kill, [NOBODY, libc::SIGKILL as u64, 0, 0, 0, 0]);
        let made = agent.run(leader, of, &c, Ids { tgid: of, tid: of });
        leader.stopped()?.set_options(freeze::OPTIONS)?;
        let pid = made?.ret(clone) as i32;
        let copy = settle(Running::attached_by_kernel(pid))?.ok_or(Error::Ended)?.0;
        let mut snapshot = Self { of, copy };
        match snapshot.make_ours(agent) {
            Ok(()) => Ok(snapshot),
            Err(e) => {
                snapshot.end_held(f)?;
                Err(e)
            }
        }
    }

    fn make_ours(&mut self, agent: &Agent) -> Result<()> {
        let pid = self.pid();
        let copy = self.copy.stopped()?;
        copy.set_options(freeze::OPTIONS | libc::PTRACE_O_EXITKILL)?;
        let mut c = Calls::new();
        c.push("close_range", libc::SYS_close_range, [0, u32::MAX as u64, 0, 0, 0, 0]);
        agent.run(&mut self.copy, pid, &c, Ids { tgid: pid, tid: pid }).map(drop)
    }

    pub fn pid(&self) -> i32 {
        self.copy.tid
    }

    /// Ends it. The process is held once more, as only a parent can take its child's remains.
    pub fn end(self) -> Result<()> {
        let of = self.of;
        let pid = self.kill()?;
        let mut f = match freeze(of) {
            // What the copy left is init's.
            Err(e) if e.is_gone() => return Ok(()),
            frozen => frozen?,
        };
        let reaped = reap(&mut f, pid);
        f.thaw()?;
        reaped
    }

    /// Ends it while the process is held.
    pub fn end_held(self, f: &mut Frozen) -> Result<()> {
        reap(f, self.kill()?)
    }

    fn kill(self) -> Result<i32> {
        let pid = self.pid();
        // SAFETY: plain call on a process that we trace, so that its id is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        ptrace::wait_for_end(pid)?;
        Ok(pid)
    }
}

fn reap(parent: &mut Frozen, pid: i32) -> Result<()> {
    let maps = maps::read(parent.pid)?;
    let vdso = maps.iter().find(|m| m.name == "[vdso]");
    let vdso = vdso.ok_or_else(|| Error::unsupported("it has no vDSO"))?;
    let at = find_syscall(parent.pid, vdso.start, vdso.end)?;
    let args = [pid as u64, 0, (libc::__WALL | libc::WNOHANG) as u64, 0, 0, 0];
    call(parent.leader_mut(), at, "wait4", libc::SYS_wait4, args).map(drop)
}
