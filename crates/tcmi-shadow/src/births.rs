//! A guest begins a thread: home first, then the guest's own kernel, by the call as the guest
//! made it. Who may see the new thread sees it with its shadow.

use std::io;

use tcmi_call::table::errno::EAGAIN;
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::{Begun, Denied, Shared};
use crate::stream::StreamError;
use crate::tracer::{Closed, Orders};
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

pub(crate) fn is_thread(flags: u64) -> bool {
    // The low byte is a signal to a parent, which threads do not have.
    flags & SHARED == SHARED && flags & !(SHARED | MAY_HAVE | 0xff) == 0
}

pub(crate) fn begin_thread(shared: &Shared, notif: &Notification) -> Result<Outcome, StreamError> {
    if !is_thread(notif.args[0]) {
        return Ok(visit::visit(shared, notif));
    }
    begin(shared, notif, |orders| {
        orders.bear(notif.tid, || shared.listener.answer(notif.id, Answer::Continue))
    })
}

/// Begins a thread at home, and has `bear` begin it here: Some(the thread, held with its parent).
pub(crate) fn begin(
    shared: &Shared,
    notif: &Notification,
    bear: impl FnOnce(&Orders) -> Result<io::Result<Option<i32>>, Closed>,
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
    let orders = &shared.guest.orders;
    match bear(orders) {
        // The guest is being held.
        Err(Closed) => Ok(again),
        Ok(Ok(Some(here))) => {
            if let Err(error) = shared.add_thread(here, served) {
                tracing::error!(%error, "a thread that is not served");
            }
            shared.hooks.thread_begun(here, tid);
            orders.let_go();
            Ok(Outcome::Answered(Answer::Value(tid.into())))
        }
        Ok(Ok(None)) => Ok(Outcome::Answered(Answer::Error(EAGAIN.0))),
        Ok(Err(error)) => {
            tracing::debug!(%error, tid = notif.tid, "no thread begun");
            Ok(failed(EAGAIN))
        }
    }
}
