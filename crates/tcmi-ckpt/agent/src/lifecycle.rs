//! The guest's end, and its signal dispositions, as home has to have them.

use crate::broken::Broken;
use crate::serve::Shadow;
use crate::signal::blob_on_signal;
use crate::sys::syscall;
use linux_raw_sys::errno::EINVAL;
use linux_raw_sys::general::{
    __NR_exit, __NR_exit_group, __NR_prctl, __NR_prlimit64, __NR_rt_sigaction, __NR_rt_sigprocmask,
    __NR_tgkill, RLIMIT_CORE, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_RESTORER, SA_SIGINFO, SIG_UNBLOCK,
    SIGCHLD, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH,
};
use linux_raw_sys::prctl::PR_SET_DUMPABLE;
use tcmi_call::frame::{CallHeader, disposition, kind};

pub fn serve(shadow: &mut Shadow, header: &CallHeader) -> Result<(), Broken> {
    shadow.end_of_frame()?;
    match header.kind {
        kind::EXIT_THREAD => exit(__NR_exit, header.args[0]),
        kind::EXIT_GROUP => exit(__NR_exit_group, header.args[0]),
        kind::EXIT_SIGNAL => die_of(shadow, header.args[0]),
        _ => {
            let ret = set_disposition(header.args[0], header.args[1], header.args[2]);
            shadow.reply_without_outs(header.seq, ret)
        }
    }
}

pub fn end_thread() -> ! {
    exit(__NR_exit, 0)
}

fn exit(nr: u32, code: u64) -> ! {
    loop {
        // SAFETY: ends the thread or the process; nothing of ours is needed after it.
        unsafe { syscall(nr, [code, 0, 0, 0, 0, 0]) };
    }
}

#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SIGSET_BYTES: u64 = 8;
const SIGNAL_MAX: u64 = 64;

fn sigaction(signo: u64, action: &Action) -> i64 {
    let args = [signo, (action as *const Action) as u64, 0, SIGSET_BYTES, 0, 0];
    // SAFETY: the kernel reads the structure; a handler in it is `on_signal`.
    unsafe { syscall(__NR_rt_sigaction, args) }
}

fn default(signo: u64, flags: u64) -> i64 {
    sigaction(signo, &Action { handler: SIG_DFL, flags, restorer: 0, mask: 0 })
}

/// For the handler of a fault: when it returns, the fault is repeated and ends the process.
pub fn default_and_return(signo: i32) {
    forbid_core();
    default(signo as u64, 0);
}

/// Home's memory is not the guest's: a core of it would tell nothing. The limit does not
/// hold for a core that is piped to a program, the dumpable attribute does.
fn forbid_core() {
    let none = [0u64; 2];
    let limit = [0, RLIMIT_CORE.into(), (&raw const none) as u64, 0, 0, 0];
    // SAFETY: both lower what this process, which is about to die, may do; if one fails the
    // other does.
    unsafe {
        syscall(__NR_prlimit64, limit);
        syscall(__NR_prctl, [PR_SET_DUMPABLE.into(), 0, 0, 0, 0, 0]);
    }
}

fn die_of(shadow: &Shadow, signo: u64) -> ! {
    if (1..=SIGNAL_MAX).contains(&signo) {
        forbid_core();
        default(signo, 0);
        let set = 1u64 << (signo - 1);
        let unblock = [SIG_UNBLOCK.into(), (&raw const set) as u64, 0, SIGSET_BYTES, 0, 0];
        // SAFETY: reads one word; then a signal to ourselves. Where that does not kill (the
        // first process of a namespace), the exit below does.
        unsafe {
            syscall(__NR_rt_sigprocmask, unblock);
            let (tgid, tid) = ((*shadow.proc).tgid as u64, (*shadow.area).tid as u64);
            syscall(__NR_tgkill, [tgid, tid, signo, 0, 0, 0]);
        }
    }
    exit(__NR_exit_group, 128 + signo)
}

/// True if SIG_DFL at home has the effect of SIG_DFL in the guest, or none.
fn default_serves(signo: u64) -> bool {
    matches!(signo as u32, SIGCHLD | SIGURG | SIGWINCH | SIGCONT | SIGTSTP | SIGTTIN | SIGTTOU)
}

fn set_disposition(signo: u64, how: u64, guest_flags: u64) -> i64 {
    let kept = guest_flags & u64::from(SA_NOCLDSTOP | SA_NOCLDWAIT);
    match how {
        disposition::IGNORE => {
            sigaction(signo, &Action { handler: SIG_IGN, flags: kept, restorer: 0, mask: 0 })
        }
        disposition::DEFAULT if default_serves(signo) => default(signo, kept),
        disposition::DEFAULT | disposition::HANDLE => sigaction(signo, &forwarding(kept)),
        _ => -i64::from(EINVAL as i32),
    }
}

unsafe extern "C" {
    static blob_restorer: u8;
}

/// Without SA_RESTART: a forwarded call ends in EINTR, and the guest's side knows whether
/// it is to be made again.
fn forwarding(kept: u64) -> Action {
    Action {
        handler: blob_on_signal as *const () as u64,
        flags: kept | u64::from(SA_SIGINFO | SA_RESTORER),
        restorer: (&raw const blob_restorer) as u64,
        mask: u64::MAX,
    }
}
