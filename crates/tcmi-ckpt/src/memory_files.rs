//! Files of /proc by which memory is read and written.

use tcmi_sys::proc;

use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFile {
    Mem,
    Pagemap,
}

impl MemoryFile {
    /// By the last part of its name.
    pub fn by_leaf(leaf: &str) -> Option<Self> {
        match leaf {
            "mem" => Some(Self::Mem),
            "pagemap" => Some(Self::Pagemap),
            _ => None,
        }
    }

    /// By the name that /proc tells of an open file: with the process whose memory it is.
    pub fn named(name: &str) -> Option<(i32, Self)> {
        let (pid, rest) = name.strip_prefix("/proc/")?.split_once('/')?;
        let leaf = match rest.strip_prefix("task/") {
            Some(thread) => thread.split_once('/')?.1,
            None => rest,
        };
        Some((pid.parse().ok()?, Self::by_leaf(leaf)?))
    }

    pub fn leaf(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Pagemap => "pagemap",
        }
    }
}

/// Of an entry of a page map.
pub const ENTRY_BYTES: u64 = 8;
/// Which page of the node's it is, or where it is swapped to.
const PLACE: u64 = (1 << 55) - 1;

/// Where its pages are is the node's affair.
pub fn hide_places(entries: &mut [u8]) {
    for entry in entries.as_chunks_mut::<{ ENTRY_BYTES as usize }>().0 {
        *entry = (u64::from_le_bytes(*entry) & !PLACE).to_le_bytes();
    }
}

/// Whether a process has such a file open.
pub fn are_open_in(pid: i32) -> Result<bool> {
    Ok(proc::descriptors(pid)?.iter().any(|(_, name)| MemoryFile::named(name).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name() {
        for (name, file) in [
            ("/proc/42/mem", MemoryFile::Mem),
            ("/proc/42/pagemap", MemoryFile::Pagemap),
            ("/proc/42/task/43/mem", MemoryFile::Mem),
        ] {
            assert_eq!(MemoryFile::named(name), Some((42, file)), "{name}");
        }
        for name in [
            "/proc/42/memory",
            "/proc/42/task/mem",
            "/proc/42/fd/mem",
            "/proc/42/task/43/fd/mem",
            "/proc/self/mem",
            "/tmp/proc/42/mem",
            "mem",
            "",
        ] {
            assert_eq!(MemoryFile::named(name), None, "{name}");
        }
    }

    #[test]
    fn whether_a_page_is_there_shows_and_not_where() {
        let mut entries = [0x8180_0000_0001_2345_u64.to_le_bytes(), 7_u64.to_le_bytes()].concat();
        hide_places(&mut entries);
        assert_eq!(entries, [0x8180_0000_0000_0000_u64.to_le_bytes(), [0; 8]].concat());
    }

    #[test]
    fn an_open_one_is_found() {
        let pid = std::process::id() as i32;
        assert!(!are_open_in(pid).unwrap());
        let _open = std::fs::File::open("/proc/self/mem").unwrap();
        assert!(are_open_in(pid).unwrap());
    }
}
