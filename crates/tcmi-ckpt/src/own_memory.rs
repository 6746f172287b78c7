//! Files by which a process reads and writes its own memory.

use tcmi_sys::proc;

use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnMemory {
    Mem,
    Pagemap,
}

impl OwnMemory {
    /// By the last part of its name.
    pub fn by_leaf(leaf: &str) -> Option<Self> {
        match leaf {
            "mem" => Some(Self::Mem),
            "pagemap" => Some(Self::Pagemap),
            _ => None,
        }
    }

    /// By the name that /proc tells of an open file of process `pid`.
    pub fn of(pid: i32, name: &str) -> Option<Self> {
        let rest = name.strip_prefix("/proc/")?.strip_prefix(&pid.to_string())?;
        let rest = rest.strip_prefix('/')?;
        match rest.strip_prefix("task/") {
            Some(thread) => Self::by_leaf(thread.split_once('/')?.1),
            None => Self::by_leaf(rest),
        }
    }

    pub fn leaf(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Pagemap => "pagemap",
        }
    }
}

/// Whether a process has one of its own open.
pub fn is_open_in(pid: i32) -> Result<bool> {
    Ok(proc::descriptors(pid)?.iter().any(|(_, name)| OwnMemory::of(pid, name).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known_by_the_name_of_its_process() {
        let of = |name| OwnMemory::of(42, name);
        assert_eq!(of("/proc/42/mem"), Some(OwnMemory::Mem));
        assert_eq!(of("/proc/42/pagemap"), Some(OwnMemory::Pagemap));
        assert_eq!(of("/proc/42/task/43/mem"), Some(OwnMemory::Mem));
        for name in [
            "/proc/421/mem",
            "/proc/4/mem",
            "/proc/42/memory",
            "/proc/42/task/mem",
            "/proc/42/fd/mem",
            "/proc/42/task/43/fd/mem",
            "/tmp/proc/42/mem",
            "mem",
            "",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn an_open_one_is_found() {
        let pid = std::process::id() as i32;
        assert!(!is_open_in(pid).unwrap());
        let _open = std::fs::File::open("/proc/self/mem").unwrap();
        assert!(is_open_in(pid).unwrap());
    }
}
