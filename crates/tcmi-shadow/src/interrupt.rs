//! Making a guest thread's wait end as a signal would have ended it.
//!
//! The kernel acts on a restart code only if the thread has been told to look for
//! signals (TIF_SIGPENDING); otherwise the program would see errno 512. A signal to the
//! thread tells that thread; one to the process tells some thread that could take it.

use std::fs;
use std::io;

use tcmi_sys::seccomp::Notification;
use tcmi_sys::signal;

use crate::calls::Shared;
use crate::tracer::{Closed, Orders};

/// Those that do nothing by default. A traced thread has them wait, too.
const IDLE: u64 = signal::bit(libc::SIGCHLD)
    | signal::bit(libc::SIGURG)
    | signal::bit(libc::SIGWINCH)
    | signal::bit(libc::SIGCONT);

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
    let idle = field(&status, "SigIgn", 16)? | IDLE & !field(&status, "SigCgt", 16)?;
    let deliverable = all & !idle & !mask.unwrap_or(blocked);
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

/// Has the thread, whose call is answered next, look for signals on its way out, whoever was told.
/// Ok: by the tracer. Err: by who holds the guest.
pub(crate) fn look_out(
    shared: &Shared,
    notif: &Notification,
    order: impl Fn(&Orders) -> Result<(), Closed>,
) -> Result<(), Closed> {
    loop {
        match order(&shared.guest.orders) {
            // Of a thread that has ended nobody sees the answer.
            Err(Closed) if shared.listener.is_valid(notif.id) && !shared.freezer_told() => {}
            done => return done,
        }
    }
}
