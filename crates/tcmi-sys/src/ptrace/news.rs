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

/// Takes the ends of `tids` that the kernel tells this OS thread, and leaves stops alone: they may
/// be for another OS thread of ours that traces a child of this one. To be asked for each by
/// itself: who asks for any is shown the stops of such children, too, whatever it asks for.
pub(super) fn take_ends(tids: &[pid_t]) -> Result<()> {
    const ENDS: [c_int; 3] = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    for &tid in tids {
        // SAFETY: plain integers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a live siginfo_t.
        if unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, flags) } < 0 {
            let e = Errno::last("waitid");
            // Not this OS thread's.
            if e.code == libc::ECHILD {
                continue;
            }
            return Err(e);
        }
        if ENDS.contains(&info.si_code)
            && let Some(one) = ask(tid, libc::WNOHANG | libc::__WNOTHREAD)?
        {
            KEPT.with_borrow_mut(|kept| kept.push_back(one));
        }
    }
    Ok(())
}
