//! A guest begins a thread: home first, then the guest's own kernel, by the call as the guest
//! made it. Who may see the new thread sees it with its shadow.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tcmi_call::table::Restart;
use tcmi_call::table::errno::EAGAIN;
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::{Begun, Denied, Shared};
use crate::interrupt::{Traced, detach, ptrace, stop, wait_id};
use crate::stream::StreamError;
use crate::visit;
use crate::worker::{Outcome, Thread, failed};

/// What a thread shares with those before it. One that does not is a process of its own, or
/// would have to be another thing at home than here.
const SHARED: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;
const MAY_HAVE: u64 = (libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_DETACHED) as u64;
/// From the answer to the new thread; the kernel needs some 50 us. A call that fails stops nowhere,
/// so the wait has to have an end.
const BIRTH_MAX: Duration = Duration::from_millis(100);
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

pub(crate) fn is_thread(flags: u64) -> bool {
    // The low byte is a signal to a parent, which threads do not have.
    flags & SHARED == SHARED && flags & !(SHARED | MAY_HAVE | 0xff) == 0
}

pub(crate) fn begin_thread(shared: &Shared, notif: &Notification) -> Result<Outcome, StreamError> {
    if !is_thread(notif.args[0]) {
        return Ok(visit::visit(shared, notif));
    }
    begin(shared, notif, |parent| let_it(shared, notif, parent))
}

/// Begins a thread at home, and has `bear` begin it here.
pub(crate) fn begin(
    shared: &Shared,
    notif: &Notification,
    bear: impl FnOnce(&Traced) -> io::Result<Option<i32>>,
) -> Result<Outcome, StreamError> {
    let again = visit::again();
    let _one = shared.births.lock();
    let Begun { tid, stream } = match shared.hooks.begin_thread(notif.tid) {
        Ok(begun) => begun,
        Err(Denied::Leaving) => return Ok(again),
        Err(Denied::Failed(errno)) => return Ok(failed(errno)),
    };
    // Dropped without a request, it ends its shadow thread.
    let served = Thread::new(stream, Usage::default());
    let here = match Traced::seize(notif.tid, libc::PTRACE_O_TRACECLONE) {
        // The freezer was first.
        Ok(None) => return Ok(again),
        Ok(Some(parent)) => bear(&parent),
        Err(error) => Err(error),
    };
    match here {
        Ok(Some(here)) => {
            // Let go when it can be served.
            let child = Traced(here);
            if let Err(error) = shared.add_thread(here, served) {
                tracing::error!(%error, "a thread that is not served");
            }
            shared.hooks.thread_begun(here, tid);
            drop(child);
            Ok(Outcome::Answered(Answer::Value(tid.into())))
        }
        Ok(None) => Ok(Outcome::Answered(Answer::Error(EAGAIN.0))),
        Err(error) => {
            tracing::debug!(%error, tid = notif.tid, "no thread begun");
            Ok(failed(EAGAIN))
        }
    }
}

/// The thread whose call the guest's kernel makes now, and the next one that it makes itself.
#[derive(Default)]
pub(crate) struct Bearing {
    tid: AtomicI32,
    next_call: Mutex<Option<u64>>,
}

impl Bearing {
    /// Whether a call is left to who waits for this thread to stop. Its `clone` has failed, then,
    /// and no thread stops while its call is being served.
    pub(crate) fn takes(&self, notif: &Notification) -> bool {
        let mut next = self.next_call.lock();
        let takes = self.tid.load(Ordering::Relaxed) == notif.tid;
        if takes {
            *next = Some(notif.id);
        }
        takes
    }
    /// 0: none.
    fn set(&self, tid: i32) {
        let mut next = self.next_call.lock();
        self.tid.store(tid, Ordering::Relaxed);
        *next = None;
    }
}

/// Has the guest's kernel make the call. Some: the new thread, stopped and traced. None: it began
/// none; the call has failed, or is made again behind a signal.
fn let_it(shared: &Shared, notif: &Notification, parent: &Traced) -> io::Result<Option<i32>> {
    shared.bearing.set(parent.0);
    let stopped = until_stopped(shared, notif, parent);
    shared.bearing.set(0);
    stopped?;
    let status = stop(parent.0)?;
    if status >> 8 != libc::SIGTRAP | libc::PTRACE_EVENT_CLONE << 8 {
        detach(parent.0, status)?;
        return Ok(None);
    }
    let mut child: libc::c_ulong = 0;
    ptrace(libc::PTRACE_GETEVENTMSG, parent.0, (&raw mut child).addr())?;
    stop(child as i32)?;
    Ok(Some(child as i32))
}

fn until_stopped(shared: &Shared, notif: &Notification, parent: &Traced) -> io::Result<()> {
    shared.listener.answer(notif.id, Answer::Continue)?;
    let until = Instant::now() + BIRTH_MAX;
    let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    let mut is_told = false;
    // SAFETY: reads a field that waitid always fills in.
    while unsafe { wait_id(parent.0, flags)?.si_pid() } == 0 {
        let next_call = shared.bearing.next_call.lock().take();
        if !is_told && (next_call.is_some() || Instant::now() > until) {
            // On its way back from a call that failed: it shows itself by this.
            ptrace(libc::PTRACE_INTERRUPT, parent.0, 0)?;
            is_told = true;
        }
        if let Some(id) = next_call {
            shared.listener.answer(id, Answer::Error(Restart::Always.code()))?;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}
