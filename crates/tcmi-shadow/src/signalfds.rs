//! Signals that the guest may read from a signalfd, which is home's: a read there finds what is
//! pending for the shadow thread that makes it. So a shadow thread blocks of these signals what its
//! guest thread does, and what all of them block is not sent on.

use std::collections::HashMap;
use std::fs;
use std::io;

use parking_lot::Mutex;
use tcmi_call::abi::BatchOp;
use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::EFAULT;
use tcmi_ckpt::birth;
use tcmi_sys::seccomp::{Answer, Notification};
use tcmi_sys::signal;

use crate::calls::Shared;
use crate::interrupt::field;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

const SIGSET_BYTES: u64 = 8;
const SIGINFO_BYTES: usize = 128;

/// Signals that the guest's own kernel sends: those of its timers. All others come from home.
const RAISED_HERE: u64 = signal::bit(libc::SIGALRM)
    | signal::bit(libc::SIGVTALRM)
    | signal::bit(libc::SIGPROF)
    | signal::bit(libc::SIGXCPU)
    | !0 << (libc::SIGSYS);

/// What is known of one shadow thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mirror {
    /// What it blocks of the signals. None: not known.
    blocked: Option<u64>,
    /// A call let some in for its own time.
    is_loose: bool,
    /// Number of the last signal in the guest at the last look at it: its handler may have changed
    /// the mask.
    seen: u32,
}

/// What a guest thread blocks, and what waits for it.
struct Waiting {
    blocked: u64,
    own: u64,
    of_process: u64,
}

impl Waiting {
    fn read(tid: i32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
        Ok(Self {
            blocked: field(&status, "SigBlk", 16)?,
            own: field(&status, "SigPnd", 16)?,
            of_process: field(&status, "ShdPnd", 16)?,
        })
    }
}

/// What threads are about to take themselves, in calls that let it in, until they have run: it is not
/// to be taken home from before them.
#[derive(Debug, Default)]
pub(crate) struct LetIn(Mutex<HashMap<i32, Window>>);

#[derive(Clone, Copy, Debug)]
struct Window {
    set: u64,
    /// How often the thread had run.
    runs: u64,
}

impl LetIn {
    fn open(&self, tid: i32, set: u64) {
        self.0.lock().insert(tid, Window { set, runs: runs(tid) });
    }

    pub(crate) fn close(&self, tid: i32) {
        self.0.lock().remove(&tid);
    }

    /// By any thread.
    fn set(&self) -> u64 {
        let is_open = |(tid, window): &(&i32, &Window)| {
            // Where it is not counted there is no telling.
            window.runs != 0 && runs(**tid) == window.runs
        };
        self.0.lock().iter().filter(is_open).fold(0, |all, (_, window)| all | window.set)
    }
}

/// How often a thread has been given a processor; 0 of one that has ended, or where the kernel does
/// not count it.
fn runs(tid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap_or_default();
    text.split_whitespace().nth(2).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Whether a call is one of those that [`serve`] has a part in.
pub(crate) fn concerns(shared: &Shared, nr: u32) -> bool {
    let calls = [
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigpending,
        libc::SYS_rt_sigsuspend,
        libc::SYS_rt_sigtimedwait,
    ];
    shared.guest.signals != 0 && calls.contains(&i64::from(nr))
}

/// Before a call is served: the shadow thread blocks what the guest thread does, and what waits in
/// the guest for a read waits at home.
pub(crate) fn settle(shared: &Shared, thread: &mut Thread, tid: i32) -> Result<(), StreamError> {
    let all = shared.guest.signals;
    let Mirror { blocked, is_loose, seen } = thread.mirror;
    let injected = shared.guest.events.injected();
    if all == 0 || (blocked.is_some() && !is_loose && seen == injected && all & RAISED_HERE == 0) {
        return Ok(());
    }
    // Of one that has ended nobody sees the answer.
    let Ok(waiting) = Waiting::read(tid) else { return Ok(()) };
    shared.let_in.close(tid);
    mirror(shared, thread, tid, waiting.blocked)?;
    (thread.mirror.is_loose, thread.mirror.seen) = (false, injected);
    take_home(shared, thread, tid, &waiting)
}

/// Has the shadow thread block these, of the signals that are read from descriptors. What that lets
/// in there is in the guest then.
fn mirror(shared: &Shared, thread: &mut Thread, tid: i32, blocked: u64) -> Result<(), StreamError> {
    let want = blocked & shared.guest.signals;
    let let_in = shared.guest.signals & !want;
    let (block, unblock) = match thread.mirror.blocked {
        Some(have) => (want & !have, let_in & have),
        None => (want, let_in),
    };
    if unblock != 0 {
        shared.let_in.open(tid, unblock);
    }
    for (how, set) in [(libc::SIG_BLOCK, block), (libc::SIG_UNBLOCK, unblock)] {
        if set != 0 {
            thread.own(|call, seq| call.block(how, set, seq), &mut [])?;
        }
    }
    thread.mirror.blocked = Some(want);
    if unblock != 0 && !shared.guest.events.wait_injected(thread.sent) {
        return Err(StreamError::Closed);
    }
    Ok(())
}

/// Lets a call of thread `tid` have what comes with this mask. Until the next [`settle`] its shadow
/// thread sends that on.
pub(crate) fn let_in(
    shared: &Shared,
    thread: &mut Thread,
    tid: i32,
    mask: u64,
) -> Result<(), StreamError> {
    if shared.guest.signals == 0 {
        return Ok(());
    }
    let Ok(waiting) = Waiting::read(tid) else { return Ok(()) };
    thread.mirror.is_loose = true;
    mirror(shared, thread, tid, waiting.blocked & mask)
}

/// What waits in the guest, and is blocked there, goes to where it is read: signals of timers, and
/// such as came while a call let them in.
pub(crate) fn take_pending_home(
    shared: &Shared,
    thread: &mut Thread,
    tid: i32,
) -> Result<(), StreamError> {
    match Waiting::read(tid) {
        Ok(waiting) if shared.guest.signals != 0 => take_home(shared, thread, tid, &waiting),
        _ => Ok(()),
    }
}

fn take_home(
    shared: &Shared,
    thread: &mut Thread,
    tid: i32,
    waiting: &Waiting,
) -> Result<(), StreamError> {
    let set = to_be_read(shared, waiting);
    if set == 0 {
        return Ok(());
    }
    let Some(at_home) = birth::inner_tid(tid, tid) else { return Ok(()) };
    while let Some((number, mut info)) = dequeue(shared, set) {
        // To its own id the thread may give every code, and it stands for its process.
        let args = [at_home as u64, number, OWN_BASE, 0, 0, 0];
        let queued = thread.ask_own(libc::SYS_rt_sigqueueinfo, &args, &mut info)?;
        if queued < 0 {
            tracing::warn!(number, errno = -queued, "a signal to be read is lost");
        }
    }
    Ok(())
}

/// What waits in the guest, and is for a read at home.
fn to_be_read(shared: &Shared, waiting: &Waiting) -> u64 {
    match waiting.of_process & waiting.blocked & shared.guest.signals {
        0 => 0,
        set => set & !shared.let_in.set(),
    }
}

/// One signal of `set` that waits for the guest's process.
fn dequeue(shared: &Shared, set: u64) -> Option<(u64, [u8; SIGINFO_BYTES])> {
    const TIME: usize = 8;
    const INFO: usize = 24;
    let mut data = [0; INFO + SIGINFO_BYTES];
    data[..TIME].copy_from_slice(&set.to_le_bytes());
    let steward = &shared.guest.steward;
    let at = |offset| steward.data_address(offset);
    let args = [at(0), at(INFO), at(TIME), SIGSET_BYTES, 0, 0];
    let mut op = BatchOp { nr: libc::SYS_rt_sigtimedwait as u64, args, ..BatchOp::default() };
    // A guest that is gone has none.
    steward.run_with(std::slice::from_mut(&mut op), &mut data).ok()?;
    let number = u64::try_from(op.ret).ok().filter(|n| (1..=64).contains(n))?;
    let mut info = [0; SIGINFO_BYTES];
    info.copy_from_slice(&data[INFO..]);
    Some((number, info))
}

/// Whether a signal that some call may wait for is in the guest.
pub(crate) fn is_held_up(shared: &Shared) -> bool {
    let waiting =
        |w: Waiting| w.of_process & w.blocked & shared.guest.signals & !shared.let_in.set() != 0;
    shared.guest.signals != 0 && Waiting::read(shared.guest.pid).is_ok_and(waiting)
}

/// Calls that change or tell what the thread blocks and what waits for it. The guest's kernel makes
/// them, but for `rt_sigpending`.
pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    let here = Outcome::Answer(Answer::Continue);
    let [first, second, _, fourth, ..] = notif.args;
    let (set, size) = match i64::from(notif.nr) {
        libc::SYS_rt_sigprocmask => (second, fourth),
        libc::SYS_rt_sigtimedwait => (first, fourth),
        _ => (first, second),
    };
    // The guest's kernel finds the error in what is wrong here.
    if size != SIGSET_BYTES {
        return Ok(here);
    }
    if i64::from(notif.nr) == libc::SYS_rt_sigpending {
        return pending(shared, thread, notif, set);
    }
    let mut bytes = [0; 8];
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    if mem.read(set, &mut bytes).is_err() {
        return Ok(here);
    }
    let set = u64::from_le_bytes(bytes);
    match i64::from(notif.nr) {
        libc::SYS_rt_sigsuspend => let_in(shared, thread, notif.tid, set)?,
        libc::SYS_rt_sigtimedwait => let_in(shared, thread, notif.tid, !set)?,
        _ => {
            let Ok(waiting) = Waiting::read(notif.tid) else { return Ok(here) };
            let blocked = match first as i32 {
                libc::SIG_BLOCK => waiting.blocked | set,
                libc::SIG_UNBLOCK => waiting.blocked & !set,
                libc::SIG_SETMASK => set,
                _ => return Ok(here),
            };
            mirror(shared, thread, notif.tid, blocked)?;
        }
    }
    Ok(here)
}

fn pending(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    to: u64,
) -> Result<Outcome, StreamError> {
    let Ok(waiting) = Waiting::read(notif.tid) else {
        return Ok(Outcome::Answer(Answer::Continue));
    };
    let mut bytes = [0; 8];
    thread.own(|call, seq| call.pending(OWN_BASE, seq), &mut bytes)?;
    let at_home = u64::from_le_bytes(bytes) & shared.guest.signals;
    let all = (waiting.own | waiting.of_process | at_home) & waiting.blocked;
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    Ok(match mem.write(to, &all.to_le_bytes()) {
        Ok(()) => Outcome::Answer(Answer::Value(0)),
        Err(_) => failed(EFAULT),
    })
}

impl Thread {
    /// After a return that failed: its shadow thread blocks what it did at first.
    pub(crate) fn forget_mirror(&mut self) {
        self.mirror = Mirror::default();
    }
}
