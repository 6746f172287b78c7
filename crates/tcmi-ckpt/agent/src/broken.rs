//! What happens to a thread whose stream is of no more use.

use crate::signal::SigInfo;
use crate::sys::syscall;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general::{__NR_close, __NR_pause, __NR_rt_tgsigqueueinfo};
use tcmi_call::abi::{POKE_SIGNAL, ProcArea, ThreadArea, broken};
use tcmi_call::record::RecordError;

#[derive(Clone, Copy)]
pub enum Broken {
    Closed,
    Record,
    Protocol,
    /// Of this negative errno.
    Io(i64),
}

impl From<RecordError> for Broken {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Alert => Self::Closed,
            RecordError::NotARecord
            | RecordError::TooLong
            | RecordError::BadTag
            | RecordError::Exhausted => Self::Record,
        }
    }
}

impl Broken {
    fn code(self) -> u32 {
        match self {
            Self::Closed => broken::CLOSED,
            Self::Record => broken::RECORD,
            Self::Protocol => broken::PROTOCOL,
            Self::Io(errno) => broken::IO | (-errno as u32) << broken::ERRNO_SHIFT,
        }
    }
}

/// Closes the stream and leaves the thread to the keeper, which the signal's stop tells. Signals
/// still reach their handler.
pub fn wait_for_keeper(area: *mut ThreadArea, why: Broken) -> ! {
    // SAFETY: `area` is this thread's for as long as it lives.
    let (fd, state) =
        unsafe { (&mut (*area).calls.fd, AtomicU32::from_ptr(&raw mut (*area).broken)) };
    // SAFETY: the descriptor is the agent's own; an error leaves nothing else to do with it.
    unsafe { syscall(__NR_close, [*fd as u64, 0, 0, 0, 0, 0]) };
    *fd = -1;
    state.store(why.code(), Ordering::Release);
    let poke = SigInfo::poke(0);
    // SAFETY: this thread's own ids; the kernel reads a whole siginfo. Its handler returns here.
    unsafe {
        let tgid = (*((*area).proc_area as *const ProcArea)).tgid;
        let to = [tgid as u64, (*area).tid as u64, POKE_SIGNAL as u64];
        let info = (&raw const poke) as u64;
        syscall(__NR_rt_tgsigqueueinfo, [to[0], to[1], to[2], info, 0, 0])
    };
    loop {
        // SAFETY: takes no arguments; returns after each signal.
        unsafe { syscall(__NR_pause, [0; 6]) };
    }
}
