//! Making a guest thread's wait end as a signal would have ended it.
//!
//! The kernel acts on a restart code only if the thread has been told to look for
//! signals (TIF_SIGPENDING); otherwise the program would see errno 512. A signal to the
//! thread tells that thread; one to the process tells some thread that could take it.

use std::fs;
use std::io;
use std::ptr;

use tcmi_sys::seccomp::{Answer, Listener, Notification};

pub(crate) const SYSCALL_INSN_BYTES: u64 = 2;
const ERESTARTNOHAND: i32 = 514;

/// What waits for a guest thread that does not block it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    Nothing,
    /// The thread has been told.
    Told,
    /// A signal to the process: the kernel may have told another thread.
    PerhapsTold,
    /// Only under the mask that the call brought.
    LetIn,
}

pub(crate) fn field(status: &str, name: &str, radix: u32) -> io::Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| u64::from_str_radix(value.trim(), radix).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in status")))
}

/// `mask`: the one that the call brings, if it does.
pub(crate) fn pending(tid: i32, mask: Option<u64>) -> io::Result<Pending> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    let blocked = field(&status, "SigBlk", 16)?;
    let own = field(&status, "SigPnd", 16)?;
    let all = own | field(&status, "ShdPnd", 16)?;
    let deliverable = all & !mask.unwrap_or(blocked);
    if deliverable == 0 {
        return Ok(Pending::Nothing);
    }
    if deliverable & !blocked == 0 {
        return Ok(Pending::LetIn);
    }
    // The steward blocks everything, so of two threads it is not the one that was told.
    let alone = field(&status, "Threads", 10)? <= 2;
    Ok(if alone || deliverable & own & !blocked != 0 {
        Pending::Told
    } else {
        Pending::PerhapsTold
    })
}

pub(crate) fn ptrace(request: libc::c_uint, tid: i32, data: usize) -> io::Result<()> {
    // SAFETY: the requests used here write to our memory only in `registers`, whose `data` is
    // a whole user_regs_struct.
    let ret = unsafe { libc::ptrace(request, tid, ptr::null_mut::<libc::c_void>(), data) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Exchanges the signal mask of a stopped thread; returns what it was.
pub(crate) fn exchange_mask(tid: i32, mask: u64) -> io::Result<u64> {
    const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
    const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
    let (mut was, size) = (0u64, ptr::without_provenance_mut::<libc::c_void>(8));
    for (request, mask) in
        [(PTRACE_GETSIGMASK, &raw mut was), (PTRACE_SETSIGMASK, &raw const mask as _)]
    {
        // SAFETY: a mask of eight bytes, as `size` says, which the first request writes to.
        if unsafe { libc::ptrace(request, tid, size, mask) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(was)
}

/// A thread that we trace, and let go whatever happens: one that stays stopped would never be
/// looked at again.
pub(crate) struct Traced(pub(crate) i32);

impl Drop for Traced {
    fn drop(&mut self) {
        let gone = ptrace(libc::PTRACE_DETACH, self.0, 0).is_err();
        // It has been let go, or else it runs or has ended: then its end is ours to take, or
        // that of its process never shows.
        if gone
            && ptrace(libc::PTRACE_INTERRUPT, self.0, 0).is_ok()
            && let Ok(status) = stop(self.0)
            && let Err(error) = detach(self.0, status)
        {
            tracing::debug!(tid = self.0, %error, "a thread stays traced");
        }
    }
}

impl Traced {
    /// None: someone traces it already, which is the freezer.
    pub(crate) fn seize(tid: i32, options: i32) -> io::Result<Option<Self>> {
        match ptrace(libc::PTRACE_SEIZE, tid, options as usize) {
            Ok(()) => Ok(Some(Self(tid))),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// And tells it to stop. None: the freezer traces it.
///
/// `freezer_told`: waits a little, and says whether the freezer has told every thread that it
/// traces.
fn seize(
    listener: &Listener,
    notif: &Notification,
    options: i32,
    freezer_told: impl Fn() -> bool,
) -> io::Result<Option<Traced>> {
    loop {
        match Traced::seize(notif.tid, options)? {
            // Of a thread that has ended the kernel says the same as of one that is traced; and
            // one that is told of a signal is for a moment.
            None if listener.is_valid(notif.id) && !freezer_told() => {}
            None => return Ok(None),
            seized => {
                ptrace(libc::PTRACE_INTERRUPT, notif.tid, 0)?;
                return Ok(seized);
            }
        }
    }
}

/// Answers so that the thread looks for signals on its way out, whoever was told.
pub(crate) fn answer_told(
    listener: &Listener,
    notif: &Notification,
    answer: Answer,
    freezer_told: impl Fn() -> bool,
) -> io::Result<()> {
    let tid = notif.tid;
    let seized = seize(listener, notif, 0, freezer_told)?;
    let answered = listener.answer(notif.id, answer);
    if seized.is_some() {
        let status = stop(tid)?;
        detach(tid, status)?;
    }
    answered
}

/// Answers a call that lets a signal in by a mask of its own.
///
/// Only the thread itself can exchange its mask so that a handler restores the old one: it is
/// led through one `rt_sigsuspend` with the mask that the program gave, whose return is then
/// made to look like the call's own.
pub(crate) fn answer_under_mask(
    listener: &Listener,
    notif: &Notification,
    mask: u64,
    freezer_told: impl Fn() -> bool,
) -> io::Result<()> {
    let tid = notif.tid;
    let seized = seize(listener, notif, libc::PTRACE_O_TRACESYSGOOD, freezer_told)?;
    let answered = listener.answer(notif.id, Answer::Error(libc::EINTR));
    if seized.is_none() {
        return answered;
    }
    let status = stop(tid)?;
    if status >> 16 == 0 {
        // A signal got through on the thread's own mask.
        detach(tid, status)?;
        return answered;
    }
    let regs = registers(tid)?;
    let mut suspend = regs;
    suspend.rax = libc::SYS_rt_sigsuspend as u64;
    // Not the way out of a call, as far as restarts are concerned.
    suspend.orig_rax = u64::MAX;
    suspend.rdi = mask;
    suspend.rsi = 8;
    suspend.rip -= SYSCALL_INSN_BYTES;
    set_registers(tid, &suspend)?;
    for _ in ["enters", "leaves"] {
        ptrace(libc::PTRACE_SYSCALL, tid, 0)?;
        stop(tid)?;
    }
    let mut back = regs;
    back.orig_rax = u64::from(notif.nr);
    back.rax = (-i64::from(ERESTARTNOHAND)) as u64;
    set_registers(tid, &back)?;
    ptrace(libc::PTRACE_DETACH, tid, 0)?;
    answered
}

pub(crate) fn registers(tid: i32) -> io::Result<libc::user_regs_struct> {
    // SAFETY: plain integers.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, (&raw mut regs).addr())?;
    Ok(regs)
}

pub(crate) fn set_registers(tid: i32, regs: &libc::user_regs_struct) -> io::Result<()> {
    ptrace(libc::PTRACE_SETREGS, tid, ptr::from_ref(regs).addr())
}

/// Waits for a stop; its wait status. ESRCH: the thread ended. The end of a leader, which is its
/// process's, is left to whoever bore the guest.
pub(crate) fn stop(tid: i32) -> io::Result<i32> {
    let told = libc::WSTOPPED | libc::WEXITED;
    let news = wait_id(tid, told | libc::WNOWAIT)?;
    let stopped = [libc::CLD_TRAPPED, libc::CLD_STOPPED].contains(&news.si_code);
    if !stopped && tcmi_sys::proc::status(tid).is_ok_and(|s| s.tgid == tid) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
    match waited {
        -1 => Err(io::Error::last_os_error()),
        _ if waited == tid && libc::WIFSTOPPED(status) => Ok(status),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

pub(crate) fn wait_id(tid: i32, flags: i32) -> io::Result<libc::siginfo_t> {
    // SAFETY: plain integers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let (id, flags) = (tid as libc::id_t, flags | libc::__WALL);
    // SAFETY: `info` is writable.
    while unsafe { libc::waitid(libc::P_PID, id, &mut info, flags) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(info)
}

pub(crate) fn detach(tid: i32, status: i32) -> io::Result<()> {
    // A signal-delivery stop carries a signal that is to be delivered; an event stop does not.
    let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
    ptrace(libc::PTRACE_DETACH, tid, signal as usize)
}
