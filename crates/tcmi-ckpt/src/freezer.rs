//! Ways to hold a process and look at it. What is to be changed in it, as a migration does,
//! takes a tracer in the end: only that writes registers.

use crate::error::{Error, Result};
use crate::freeze::{self, Frozen};
use tcmi_core::limits::FREEZE_TIMEOUT_MS;
use tcmi_sys::kmod::{self, Extent, Session};
use tcmi_sys::ptrace::{SigInfo, UserRegs};

pub trait Freezer {
    /// Ok: no thread of it runs. Err: it runs on.
    fn freeze(&self, pid: i32) -> Result<Box<dyn Held>>;
}

/// A process that runs on when this is dropped, or its holder dies.
pub trait Held {
    fn look(&self) -> Result<Look>;
    /// Makes the calling OS thread its tracer; nothing of it runs in between. Err: it runs on.
    fn trace(self: Box<Self>) -> Result<Frozen>;
    /// Err: of something that could not be put right; it runs on as far as it can.
    fn thaw(self: Box<Self>) -> Result<()>;
}

#[derive(Clone, Debug)]
pub struct Look {
    /// Signal of a job-control stop that the process is in.
    pub group_stop: Option<i32>,
    /// The process's, oldest first.
    pub pending: Vec<SigInfo>,
    pub threads: Vec<ThreadLook>,
}

/// `regs` hold restart codes as the kernel left them.
#[derive(Clone, Debug)]
pub struct ThreadLook {
    pub tid: i32,
    pub regs: UserRegs,
    pub mask: u64,
    pub xstate: Vec<u8>,
    pub pending: Vec<SigInfo>,
}

/// Its processes are held by the OS thread that froze them.
#[derive(Clone, Copy, Debug)]
pub struct Ptrace;

struct Traced(Option<Frozen>);

impl Freezer for Ptrace {
    fn freeze(&self, pid: i32) -> Result<Box<dyn Held>> {
        Ok(Box::new(Traced(Some(freeze::freeze(pid)?))))
    }
}

impl Held for Traced {
    fn look(&self) -> Result<Look> {
        let frozen = self.0.as_ref().ok_or(Error::Ended)?;
        let look = |thread: &freeze::Thread| {
            let stopped = thread.stopped()?;
            Ok(ThreadLook {
                tid: thread.tid,
                regs: thread.regs,
                mask: thread.mask,
                xstate: stopped.xstate()?,
                pending: stopped.pending(false)?,
            })
        };
        Ok(Look {
            group_stop: frozen.group_stop,
            pending: frozen.leader().stopped()?.pending(true)?,
            threads: frozen.threads.iter().map(look).collect::<Result<_>>()?,
        })
    }

    fn trace(mut self: Box<Self>) -> Result<Frozen> {
        self.0.take().ok_or(Error::Ended)
    }

    fn thaw(mut self: Box<Self>) -> Result<()> {
        self.0.take().map_or(Ok(()), Frozen::thaw)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // The kernel would let it run on only when the calling thread ends. What went wrong is
        // `thaw`'s to tell.
        if let Some(frozen) = self.0.take() {
            drop(frozen.thaw());
        }
    }
}

/// The kernel module's, which no parent or tracer notices.
#[derive(Clone, Copy, Debug)]
pub struct Module;

struct Parked {
    pid: i32,
    frozen: kmod::Frozen,
}

impl Freezer for Module {
    fn freeze(&self, pid: i32) -> Result<Box<dyn Held>> {
        let frozen = Session::open()?.freeze(pid, Extent::Process, FREEZE_TIMEOUT_MS);
        Ok(Box::new(Parked { pid, frozen: frozen.map_err(|(_, e)| e)? }))
    }
}

impl Held for Parked {
    fn look(&self) -> Result<Look> {
        let captured = self.frozen.capture()?;
        let process = captured.processes.into_iter().find(|p| p.pid == self.pid);
        let process = process.ok_or(Error::Ended)?;
        let look = |t: kmod::CapturedThread| ThreadLook {
            tid: t.tid,
            regs: t.regs,
            mask: t.mask,
            xstate: t.xstate,
            pending: t.pending,
        };
        Ok(Look {
            group_stop: process.group_stop,
            pending: process.pending,
            threads: captured.threads.into_iter().map(look).collect(),
        })
    }

    fn trace(self: Box<Self>) -> Result<Frozen> {
        freeze::freeze_pinned(self.pid, self.frozen)
    }

    fn thaw(self: Box<Self>) -> Result<()> {
        Ok(self.frozen.thaw().map(drop)?)
    }
}
