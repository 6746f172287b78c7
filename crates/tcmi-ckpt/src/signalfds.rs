//! Signals that a process reads from descriptors.

use std::io;

use tcmi_call::abi::POKE_SIGNAL;
use tcmi_sys::{Errno, proc, signal};

use crate::image::ProcessImage;
use crate::{Error, Result};

const SIGNALFD: &str = "anon_inode:[signalfd]";

/// All that its signalfds take. Err (unsupported): they take signals that are ours.
pub fn of(pid: i32) -> Result<u64> {
    let mut all = 0;
    for (fd, target) in proc::descriptors(pid)? {
        if target == SIGNALFD {
            all |= taken_by(pid, fd)?;
        }
    }
    done_signal(all)?;
    match all & signal::bit(POKE_SIGNAL) {
        0 => Ok(all),
        _ => {
            Err(Error::unsupported("a signalfd that takes SIGSTKFLT, by which its calls are ended"))
        }
    }
}

/// By which the calls that are made inside of a guest tell that they are done, if it reads these
/// signals from descriptors.
pub fn done_signal(read: u64) -> Result<i32> {
    signal::stopping(read).ok_or_else(|| {
        Error::unsupported("a signalfd that takes each signal that is ignored by default")
    })
}

/// None, if it was closed meanwhile.
fn taken_by(pid: i32, fd: i32) -> Result<u64> {
    let info = match std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        info => info.map_err(|e| Errno::from_io("read fdinfo", &e))?,
    };
    let mask = info.lines().find_map(|line| line.strip_prefix("sigmask:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // Its number may be another file's by now.
    Ok(mask.unwrap_or(0))
}

/// What is pending for a read stays where it is read: it moves only with a thread that does not
/// block it.
pub fn leave_pending(image: &mut ProcessImage) {
    let nobody = image.threads.iter().fold(signal::ALL, |all, t| all & t.mask);
    let readable = image.descriptor_signals;
    let stays = |info: &Vec<u8>, blocked: u64| {
        let number = info.first_chunk().map_or(0, |n| i32::from_le_bytes(*n));
        (1..=64).contains(&number) && signal::bit(number) & readable & blocked != 0
    };
    image.pending.retain(|info| !stays(info, nobody));
    for t in &mut image.threads {
        t.pending.retain(|info| !stays(info, t.mask));
    }
}
