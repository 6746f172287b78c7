//! System V shared memory, as the kernel lists it.

use std::fs;

use tcmi_sys::Errno;
use tcmi_sys::maps::Mapping;

use crate::{Error, Result};

/// Of the mode: it goes with the last who has it attached.
const DESTROYED: u32 = 0o1000;

/// A segment of our own IPC namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Mappings of it, everywhere.
    pub attached: u64,
    /// It is there as long as somebody has it attached, and nobody finds it by its key.
    pub is_destroyed: bool,
}

/// A mapping made by `shmat`. Its inode is the segment's number.
pub fn is_segment(m: &Mapping) -> bool {
    m.is_system_v()
}

/// The segment behind a mapping of `pid`. Err (unsupported): it is of another namespace.
pub fn listed(pid: i32, m: &Mapping) -> Result<Listed> {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/ipc"));
    let is_ours =
        matches!((namespace("self"), namespace(&pid.to_string())), (Ok(a), Ok(b)) if a == b);
    let all = fs::read_to_string("/proc/sysvipc/shm")
        .map_err(|e| Errno::from_io("read /proc/sysvipc/shm", &e))?;
    let found = all.lines().skip(1).find_map(|line| entry(line, m.inode));
    found.filter(|_| is_ours).ok_or_else(|| {
        Error::unsupported(format!("System V memory of another namespace ({})", m.name))
    })
}

fn entry(line: &str, id: u64) -> Option<Listed> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    fields.next()?.parse().ok().filter(|n: &u64| *n == id)?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    // Behind its size and the two processes that made it and used it last.
    let attached = fields.nth(3)?.parse().ok()?;
    Some(Listed { attached, is_destroyed: mode & DESTROYED != 0 })
}

/// Why a segment cannot move as one process's own memory: what it holds has to be there when its
/// last process is gone, or others have it.
pub fn obstacle(pid: i32, m: &Mapping) -> Option<String> {
    match listed(pid, m) {
        Ok(Listed { attached: 1, is_destroyed: true }) => None,
        Ok(_) => Some(format!("System V memory ({}): it moves with --tree", m.name)),
        Err(e) => Some(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_segment() {
        let line =
            "         0     294947  1600                    56   998   999      7   0     0 0 0";
        assert_eq!(entry(line, 294_947), Some(Listed { attached: 7, is_destroyed: true }));
        assert_eq!(entry(line, 294_948), None);
        assert_eq!(entry("", 1), None);
    }
}
