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
    fn an_open_one_is_found() {
        let pid = std::process::id() as i32;
        assert!(!are_open_in(pid).unwrap());
        let _open = std::fs::File::open("/proc/self/mem").unwrap();
        assert!(are_open_in(pid).unwrap());
    }
}
