//! `prctl`, by option.

use super::Arg;
use super::Size::Bytes;
use super::When::Success;
use super::errno::{EINVAL, EPERM, Errno};

/// Who executes an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    /// With what the second argument is.
    Home(Arg),
    /// At home, then by the guest's kernel too if home agreed.
    HomeThenLocal(Arg),
    Refused(Errno),
}

pub fn option(option: u64) -> Side {
    use Side::*;
    match option as u32 {
        1 => Home(Arg::Value),                   // PR_SET_PDEATHSIG
        2 => Home(Arg::Out(Bytes(4), Success)),  // PR_GET_PDEATHSIG
        3 => Home(Arg::Value),                   // PR_GET_DUMPABLE
        4 => Home(Arg::Value),                   // PR_SET_DUMPABLE
        5 => Local,                              // PR_GET_UNALIGN
        7 => Home(Arg::Value),                   // PR_GET_KEEPCAPS
        8 => Home(Arg::Value),                   // PR_SET_KEEPCAPS
        13 | 14 => Local,                        // PR_GET_TIMING, PR_SET_TIMING
        15 => HomeThenLocal(Arg::In(Bytes(16))), // PR_SET_NAME
        16 => Local,                             // PR_GET_NAME
        21 => Home(Arg::Value),                  // PR_GET_SECCOMP
        22 => Refused(EINVAL),                   // PR_SET_SECCOMP
        23 | 24 => Home(Arg::Value),             // PR_CAPBSET_READ, PR_CAPBSET_DROP
        25 | 26 => Local,                        // PR_GET_TSC, PR_SET_TSC
        27 => Home(Arg::Value),                  // PR_GET_SECUREBITS
        28 => Home(Arg::Value),                  // PR_SET_SECUREBITS
        29 | 30 => Local,                        // PR_SET_TIMERSLACK, PR_GET_TIMERSLACK
        33 | 34 => Local,                        // PR_MCE_KILL, PR_MCE_KILL_GET
        35 => Refused(EPERM),                    // PR_SET_MM
        36 => Home(Arg::Value),                  // PR_SET_CHILD_SUBREAPER
        37 => Home(Arg::Out(Bytes(4), Success)), // PR_GET_CHILD_SUBREAPER
        38 => Home(Arg::Value),                  // PR_SET_NO_NEW_PRIVS
        39 => Home(Arg::Value),                  // PR_GET_NO_NEW_PRIVS
        40 => Local,                             // PR_GET_TID_ADDRESS
        41 | 42 => Local,                        // PR_SET_THP_DISABLE, PR_GET_THP_DISABLE
        47 => Home(Arg::Value),                  // PR_CAP_AMBIENT
        50 | 51 => Local,                        // PR_SVE_*
        52 | 53 => Local,                        // PR_GET/SET_SPECULATION_CTRL
        57 => Home(Arg::Value),                  // PR_SET_IO_FLUSHER
        58 => Home(Arg::Value),                  // PR_GET_IO_FLUSHER
        65 | 66 => Local,                        // PR_SET_MDWE, PR_GET_MDWE
        67 | 68 => Local,                        // PR_SET/GET_MEMORY_MERGE
        0x5356_4d41 => Local,                    // PR_SET_VMA
        0x5961_6d61 => Home(Arg::Value),         // PR_SET_PTRACER
        _ => Refused(EINVAL),
    }
}
