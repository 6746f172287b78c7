//! What the kernel tells the calling OS thread of those that it traces, kept for whoever asks.

use crate::errno::{Errno, Result};
use libc::{c_int, pid_t};
use std::cell::RefCell;
use std::collections::VecDeque;

thread_local! {
    /// Taken from the kernel while another thread was waited for; oldest first. The kernel ties
    /// a tracee to an OS thread, so its news are tied to it as well.
    static KEPT: RefCell<VecDeque<(pid_t, c_int)>> = const { RefCell::new(VecDeque::new()) };
}

const ANY: pid_t = -1;

/// waitpid(2); None: WNOHANG, and nothing has happened.
fn ask(tid: pid_t, flags: c_int) -> Result<Option<(pid_t, c_int)>> {
    let mut status = 0;
    loop {
        // SAFETY: status is a live int.
        match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | flags) } {
            0 => return Ok(None),
            tid if tid > 0 => return Ok(Some((tid, status))),
            _ => {
                let e = Errno::last("waitpid");
                if e.code != libc::EINTR {
                    return Err(e);
                }
            }
        }
    }
}

fn take_kept(tid: pid_t) -> Option<c_int> {
    KEPT.with_borrow_mut(|kept| {
        let at = kept.iter().position(|(of, _)| *of == tid)?;
        kept.remove(at).map(|(_, status)| status)
    })
}

/// What is kept of a thread that had this id before.
pub(super) fn forget(tid: pid_t) {
    KEPT.with_borrow_mut(|kept| kept.retain(|(of, _)| *of != tid));
}

pub(super) fn try_wait(tid: pid_t) -> Result<Option<c_int>> {
    match take_kept(tid) {
        Some(status) => Ok(Some(status)),
        None => Ok(ask(tid, libc::WNOHANG)?.map(|(_, status)| status)),
    }
}

/// ECHILD: there is no such thread any more; one that executed has its leader's id since.
pub(super) fn wait(tid: pid_t) -> Result<c_int> {
    loop {
        if let Some(status) = try_wait(tid)? {
            return Ok(status);
        }
        if let Some(one) = ask(ANY, libc::__WNOTHREAD)? {
            KEPT.with_borrow_mut(|kept| kept.push_back(one));
        }
    }
}

pub(super) fn try_wait_any() -> Result<Option<(pid_t, c_int)>> {
    if let Some(kept) = KEPT.with_borrow_mut(VecDeque::pop_front) {
        return Ok(Some(kept));
    }
    match ask(ANY, libc::WNOHANG | libc::__WNOTHREAD) {
        Err(e) if e.code == libc::ECHILD => Ok(None),
        told => told,
    }
}

/// None: the calling OS thread traces nobody any more, and has no child.
pub(super) fn wait_any() -> Result<Option<(pid_t, c_int)>> {
    if let Some(kept) = KEPT.with_borrow_mut(VecDeque::pop_front) {
        return Ok(Some(kept));
    }
    match ask(ANY, libc::__WNOTHREAD) {
        Err(e) if e.code == libc::ECHILD => Ok(None),
        told => told,
    }
}

/// Of a process that has ended nothing else is told any more. Its end is looked at and not taken:
/// until it is waited for, the kernel tells what the process has used.
pub(super) fn try_wait_any_but_end_of(pid: pid_t) -> Result<Option<(pid_t, c_int)>> {
    let kept = KEPT.with_borrow_mut(|kept| {
        let at = kept.iter().position(|one| !is_end_of(pid, one))?;
        kept.remove(at)
    });
    if kept.is_some() {
        return Ok(kept);
    }
    match peek()? {
        Some((tid, ends)) if tid != pid || !ends => ask(tid, libc::WNOHANG | libc::__WNOTHREAD),
        _ => Ok(None),
    }
}

fn is_end_of(pid: pid_t, (tid, status): &(pid_t, c_int)) -> bool {
    *tid == pid && !libc::WIFSTOPPED(*status)
}

/// Looked at, and not taken.
pub(super) fn has_ended(pid: pid_t) -> Result<bool> {
    if KEPT.with_borrow(|kept| kept.iter().any(|one| is_end_of(pid, one))) {
        return Ok(true);
    }
    Ok(look(libc::P_PID, pid)?.is_some_and(|(_, ends)| ends))
}

/// Who has news for this OS thread, and whether they are of its end.
fn peek() -> Result<Option<(pid_t, bool)>> {
    look(libc::P_ALL, 0)
}

/// Stops of who is traced are told whether they are asked for or not.
fn look(of: libc::idtype_t, id: pid_t) -> Result<Option<(pid_t, bool)>> {
    const ENDS: [c_int; 3] = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
    // SAFETY: plain integers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let what = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    let flags = what | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: `info` is a live siginfo_t.
    if unsafe { libc::waitid(of, id as libc::id_t, &mut info, flags) } < 0 {
        let e = Errno::last("waitid");
        return if e.code == libc::ECHILD { Ok(None) } else { Err(e) };
    }
    // SAFETY: waitid has filled it in; 0 when there is nothing.
    let tid = unsafe { info.si_pid() };
    Ok((tid != 0).then_some((tid, ENDS.contains(&info.si_code))))
}
