//! Threads under ptrace as values: a [`Running`] thread becomes a [`Stopped`]
//! one by waiting, and back by resuming. Neither can be copied, so registers
//! cannot be read from a thread that runs. All calls for one thread must come
//! from the OS thread that seized it.
//!
//! Who waits for one thread takes what all that it traces have to tell ([`news`]), so an OS
//! thread that traces waits for children of its own only here, too ([`wait_for_end`]).

use crate::errno::{Result, check};
use libc::{c_int, c_long, c_void, pid_t};
pub use tcmi_call::abi::UserRegs;

mod news;

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const EVENT_STOP: c_int = 128;

/// A siginfo_t as the kernel lays it out.
pub type SigInfo = [u8; 128];

/// A seized thread that may be running.
#[derive(Debug)]
#[must_use]
pub struct Running {
    tid: pid_t,
}

/// A seized thread in a ptrace stop.
#[derive(Debug)]
#[must_use]
pub struct Stopped {
    tid: pid_t,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_INTERRUPT, or a new thread's first stop.
    Interrupt,
    /// The whole process is stopped by job control, by this signal.
    Group(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    Syscall,
    /// A PTRACE_EVENT_* other than a stop.
    Event(i32),
}

/// What waiting for a thread gave.
#[derive(Debug)]
pub enum Waited {
    Stopped(Stopped, Stop),
    /// The thread is gone; the raw wait status.
    Ended(i32),
}

fn request(what: &'static str, req: u32, tid: pid_t, addr: usize, data: usize) -> Result<u64> {
    // SAFETY: callers pass addresses of live, correctly sized objects in `data`; the kernel
    // checks that `tid` is our tracee in a stop.
    check(what, unsafe { libc::ptrace(req, tid, addr as *mut c_void, data as *mut c_void) })
}

impl Running {
    /// Attaches without stopping. `options` are PTRACE_O_*.
    pub fn seize(tid: pid_t, options: c_int) -> Result<Self> {
        request("ptrace seize", libc::PTRACE_SEIZE, tid, 0, options as usize)?;
        news::forget(tid);
        Ok(Self { tid })
    }
    /// A thread that the kernel attached for us (PTRACE_O_TRACECLONE).
    pub fn attached_by_kernel(tid: pid_t) -> Self {
        Self { tid }
    }
    pub fn tid(&self) -> pid_t {
        self.tid
    }
    /// Asks for a stop; that, or that the thread is gone, is seen by [`Running::wait`]. The kernel
    /// forgets it for a stop at a call or an event that comes first.
    pub fn interrupt(&self) -> Result<()> {
        match request("ptrace interrupt", libc::PTRACE_INTERRUPT, self.tid, 0, 0) {
            Err(e) if !e.is_gone() => Err(e),
            _ => Ok(()),
        }
    }
    /// Blocks until the thread stops or ends.
    ///
    /// Meanwhile it takes the ends of the others that this OS thread traces: before them the
    /// kernel tells neither the end of their group's leader, nor lets one of them execute.
    pub fn wait(self) -> Result<Waited> {
        news::wait(self.tid).map(|status| decode(self.tid, status))
    }
    /// As [`Running::wait`], but gives the thread back if nothing has happened.
    pub fn try_wait(self) -> Result<std::result::Result<Waited, Self>> {
        Ok(match news::try_wait(self.tid)? {
            Some(status) => Ok(decode(self.tid, status)),
            None => Err(self),
        })
    }
}

fn decode(tid: pid_t, status: i32) -> Waited {
    if !libc::WIFSTOPPED(status) {
        return Waited::Ended(status);
    }
    let sig = libc::WSTOPSIG(status);
    let stop = match (status >> 16, sig) {
        (EVENT_STOP, libc::SIGTRAP) => Stop::Interrupt,
        (EVENT_STOP, s) => Stop::Group(s),
        (0, s) if s == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (0, s) => Stop::Signal(s),
        (event, _) => Stop::Event(event),
    };
    Waited::Stopped(Stopped { tid }, stop)
}

impl Stopped {
    pub fn tid(&self) -> pid_t {
        self.tid
    }
    fn resume(self, what: &'static str, req: u32, sig: c_int) -> Result<Running> {
        request(what, req, self.tid, 0, sig as usize)?;
        Ok(Running { tid: self.tid })
    }
    /// Lets the thread run; `sig` (0: none) is delivered to it.
    pub fn cont(self, sig: c_int) -> Result<Running> {
        self.resume("ptrace cont", libc::PTRACE_CONT, sig)
    }
    /// Runs to the next system call entry or exit; `sig` (0: none) is delivered to it first.
    pub fn to_syscall(self, sig: c_int) -> Result<Running> {
        self.resume("ptrace syscall", libc::PTRACE_SYSCALL, sig)
    }
    /// Runs on, but stops before it is back in its program.
    pub fn cont_to_stop(self) -> Result<Running> {
        request("ptrace interrupt", libc::PTRACE_INTERRUPT, self.tid, 0, 0)?;
        self.cont(0)
    }
    /// Runs one instruction.
    pub fn step(self) -> Result<Running> {
        self.resume("ptrace singlestep", libc::PTRACE_SINGLESTEP, 0)
    }
    /// Leaves a group stop in place while we go on watching.
    pub fn listen(self) -> Result<Running> {
        self.resume("ptrace listen", libc::PTRACE_LISTEN, 0)
    }
    /// Lets go of the thread.
    pub fn detach(self, sig: c_int) -> Result<()> {
        request("ptrace detach", libc::PTRACE_DETACH, self.tid, 0, sig as usize).map(drop)
    }
    pub fn set_options(&self, options: c_int) -> Result<()> {
        request("ptrace setoptions", libc::PTRACE_SETOPTIONS, self.tid, 0, options as usize)
            .map(drop)
    }
    pub fn event_message(&self) -> Result<u64> {
        let mut v: u64 = 0;
        request("ptrace geteventmsg", libc::PTRACE_GETEVENTMSG, self.tid, 0, &raw mut v as usize)?;
        Ok(v)
    }
    pub fn regs(&self) -> Result<UserRegs> {
        let mut r = UserRegs::default();
        request("ptrace getregs", libc::PTRACE_GETREGS, self.tid, 0, &raw mut r as usize)?;
        Ok(r)
    }
    pub fn set_regs(&self, r: &UserRegs) -> Result<()> {
        request("ptrace setregs", libc::PTRACE_SETREGS, self.tid, 0, r as *const _ as usize)
            .map(drop)
    }
    /// The whole XSAVE area (x87, SSE, AVX, AVX-512, AMX, as the CPU has them).
    pub fn xstate(&self) -> Result<Vec<u8>> {
        let mut buf = vec![0u8; 16 * 1024];
        let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        request(
            "ptrace getregset xstate",
            libc::PTRACE_GETREGSET,
            self.tid,
            NT_X86_XSTATE,
            &raw mut iov as usize,
        )?;
        buf.truncate(iov.iov_len);
        Ok(buf)
    }
    pub fn set_xstate(&self, x: &[u8]) -> Result<()> {
        let mut iov = libc::iovec { iov_base: x.as_ptr() as *mut c_void, iov_len: x.len() };
        request(
            "ptrace setregset xstate",
            libc::PTRACE_SETREGSET,
            self.tid,
            NT_X86_XSTATE,
            &raw mut iov as usize,
        )
        .map(drop)
    }
    /// The blocked signals; inside sigsuspend and the like, the mask that will be restored.
    pub fn sigmask(&self) -> Result<u64> {
        let mut m: u64 = 0;
        request("ptrace getsigmask", PTRACE_GETSIGMASK, self.tid, 8, &raw mut m as usize)?;
        Ok(m)
    }
    pub fn set_sigmask(&self, m: u64) -> Result<()> {
        request("ptrace setsigmask", PTRACE_SETSIGMASK, self.tid, 8, &raw const m as usize)
            .map(drop)
    }
    pub fn siginfo(&self) -> Result<SigInfo> {
        let mut s: SigInfo = [0; 128];
        request("ptrace getsiginfo", libc::PTRACE_GETSIGINFO, self.tid, 0, &raw mut s as usize)?;
        Ok(s)
    }
    /// Pending signals, oldest first: those of the thread, or those of the process.
    pub fn pending(&self, shared: bool) -> Result<Vec<SigInfo>> {
        #[repr(C)]
        struct Args {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut all = Vec::new();
        loop {
            let flags = if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 };
            let args = Args { off: all.len() as u64, flags, nr: 32 };
            let mut chunk: [SigInfo; 32] = [[0; 128]; 32];
            let n = request(
                "ptrace peeksiginfo",
                PTRACE_PEEKSIGINFO,
                self.tid,
                &raw const args as usize,
                &raw mut chunk as usize,
            )? as usize;
            if n == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&chunk[..n.min(32)]);
        }
    }
    /// Restartable sequence registration; None if there is none or the kernel cannot tell.
    pub fn rseq(&self) -> Result<Option<Rseq>> {
        #[repr(C)]
        #[derive(Default)]
        struct Conf {
            ptr: u64,
            size: u32,
            sig: u32,
            flags: u32,
            pad: u32,
        }
        let mut c = Conf::default();
        let size = std::mem::size_of::<Conf>();
        match request(
            "ptrace rseq",
            PTRACE_GET_RSEQ_CONFIGURATION,
            self.tid,
            size,
            &raw mut c as usize,
        ) {
            Ok(_) if c.ptr == 0 => Ok(None),
            Ok(_) => Ok(Some(Rseq { ptr: c.ptr, size: c.size, signature: c.sig })),
            Err(e) if e.code == libc::EIO || e.code == libc::EINVAL => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A registered rseq area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rseq {
    pub ptr: u64,
    pub size: u32,
    pub signature: u32,
}

/// Next event of any thread that the calling OS thread traces; None if nothing is waiting.
pub fn try_wait_any() -> Result<Option<(pid_t, Waited)>> {
    Ok(news::try_wait_any()?.map(|(tid, status)| (tid, decode(tid, status))))
}

/// The same, but leaves the end of `pid` to be waited for.
pub fn try_wait_any_but_end_of(pid: pid_t) -> Result<Option<(pid_t, Waited)>> {
    Ok(news::try_wait_any_but_end_of(pid)?.map(|(tid, status)| (tid, decode(tid, status))))
}

/// Whether the end of `pid` is there to be waited for. It stays there.
pub fn has_ended(pid: pid_t) -> Result<bool> {
    news::has_ended(pid)
}

/// The same as [`try_wait_any`], but waits for it. None: there is no such thread.
pub fn wait_any() -> Result<Option<(pid_t, Waited)>> {
    Ok(news::wait_any()?.map(|(tid, status)| (tid, decode(tid, status))))
}

/// Waits for the end of a child of the calling OS thread, or of a thread that it traces and that
/// is about to end; its raw wait status. Stops on the way are passed over.
pub fn wait_for_end(tid: pid_t) -> Result<c_int> {
    loop {
        let status = news::wait(tid)?;
        if !libc::WIFSTOPPED(status) {
            return Ok(status);
        }
    }
}

/// get_robust_list(2) of a thread, from outside: (head, length).
pub fn robust_list(tid: pid_t) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both out-pointers are live u64s.
    let r: c_long =
        unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    check("get_robust_list", r)?;
    Ok((head, len))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::proc;

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            // It may have ended.
            self.0.kill().ok();
        }
    }

    fn wait_for_state(pid: pid_t, state: char) {
        let until = Instant::now() + Duration::from_secs(20);
        while proc::status(pid).expect("status").state != state {
            assert!(Instant::now() < until, "never in state {state}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_stop_that_nobody_took_is_no_end() {
        let mut child = Sleeper(Command::new("sleep").arg("1000").spawn().expect("sleep"));
        let pid = child.0.id() as pid_t;
        let running = Running::seize(pid, 0).expect("seize");
        assert!(!has_ended(pid).expect("looked"), "it runs");
        running.interrupt().expect("interrupt");
        wait_for_state(pid, 't');
        assert!(!has_ended(pid).expect("looked"), "it has stopped");
        let told = try_wait_any_but_end_of(pid).expect("looked");
        let Some((_, Waited::Stopped(stopped, Stop::Interrupt))) = told else {
            panic!("told {told:?}");
        };
        let running = stopped.cont(0).expect("goes on");
        child.0.kill().expect("kill");
        wait_for_state(pid, 'Z');
        assert!(has_ended(pid).expect("looked"), "it has ended");
        assert!(try_wait_any_but_end_of(pid).expect("looked").is_none(), "its end is taken");
        assert!(matches!(running.wait().expect("waited"), Waited::Ended(9)));
        assert!(!has_ended(pid).expect("looked"), "it is waited for");
        // Its tracer's wait was its parent's.
        assert!(child.0.wait().is_err());
    }
}
