//! A shadow's threads begin to serve when the leader has put the agent's handlers in place.

use crate::signal::announce;
use crate::sys::syscall;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general::{__NR_futex, FUTEX_WAIT, FUTEX_WAKE};
use tcmi_call::abi::{ProcArea, ThreadArea};

/// # Safety
/// `area` is the calling thread's; all signals are blocked.
pub unsafe fn settle(area: *mut ThreadArea) {
    // SAFETY: the process area outlives its threads; the words are used as atomics only.
    let (proc, settled, serving) = unsafe {
        let proc = (*area).proc_area as *mut ProcArea;
        let word = |at| AtomicU32::from_ptr(at);
        (proc, word(&raw mut (*proc).settled), word(&raw mut (*proc).serving))
    };
    // SAFETY: plain words that nobody writes any more.
    let leads = unsafe { (*area).tid == (*proc).tgid };
    if leads && settled.load(Ordering::Acquire) == 0 {
        // SAFETY: as the caller says.
        unsafe { announce(proc) };
        settled.store(1, Ordering::Release);
        futex(settled, FUTEX_WAKE, i32::MAX as u32);
    }
    // Until then a signal would find the program's handlers.
    while settled.load(Ordering::Acquire) == 0 {
        futex(settled, FUTEX_WAIT, 0);
    }
    serving.fetch_add(1, Ordering::Release);
}

pub fn futex(word: &AtomicU32, op: u32, value: u32) {
    // SAFETY: a live word; a wait that ends early is repeated by the caller, a wake of nobody
    // is none.
    unsafe { syscall(__NR_futex, [word.as_ptr() as u64, op.into(), value.into(), 0, 0, 0]) };
}
