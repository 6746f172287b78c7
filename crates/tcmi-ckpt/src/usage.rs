//! What a process or a thread has used of this node, as the kernel counts it.

use serde::{Deserialize, Serialize};
use tcmi_sys::namespace;
use tcmi_sys::{Errno, proc};

use crate::Result;

/// USER_HZ, for every process on x86-64.
pub const TICK_NS: u64 = 10_000_000;
/// CPUCLOCK_SCHED of a process, by its id.
const CLOCK_SCHED: i32 = 2;
/// In /proc/PID/stat, counted from behind the name.
const MINOR_FAULTS: usize = 7;
const MAJOR_FAULTS: usize = 9;
const USER: usize = 11;
const SYSTEM: usize = 12;

/// Times in nanoseconds. The kernel gives their sum exactly and each of them in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub user: u64,
    pub system: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    /// Largest resident set, in bytes; of a process only.
    pub peak: u64,
}

/// What a process has used on other nodes than home.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub process: Usage,
    /// By their ids at home.
    pub threads: Vec<(i32, Usage)>,
    /// By children that it waited for while it was away, and theirs.
    pub children: Usage,
}

impl Used {
    pub fn thread(&self, tid: i32) -> Usage {
        self.threads.iter().find(|(t, _)| *t == tid).map_or(Usage::default(), |(_, usage)| *usage)
    }
}

impl Usage {
    /// With the threads that it had.
    pub fn of_process(pid: i32) -> Result<Self> {
        let total = namespace::clock_of(!pid << 3 | CLOCK_SCHED)?;
        let peak = proc::status(pid)?.peak_rss;
        Ok(Self { peak, ..Self::from_stat(&proc::stat(pid, None)?, total)? })
    }

    pub fn of_thread(pid: i32, tid: i32) -> Result<Self> {
        let total = proc::schedstat(pid, tid)?;
        Self::from_stat(&proc::stat(pid, Some(tid))?, total)
    }

    fn from_stat(stat: &str, total: u64) -> Result<Self> {
        let malformed = || Errno::new("parse /proc/PID/stat", libc::EPROTO);
        let behind = stat.rfind(')').map(|at| &stat[at + 1..]).ok_or_else(malformed)?;
        let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
        let field = |at: usize| -> Result<u64> {
            Ok(fields.get(at).and_then(|f| f.parse().ok()).ok_or_else(malformed)?)
        };
        let (user, system) = (field(USER)? * TICK_NS, field(SYSTEM)? * TICK_NS);
        // Kernels without that count have 0.
        let system = if total == 0 { system } else { system.min(total) };
        let user = if total == 0 { user } else { total - system };
        let (minor_faults, major_faults) = (field(MINOR_FAULTS)?, field(MAJOR_FAULTS)?);
        Ok(Self { user, system, minor_faults, major_faults, peak: 0 })
    }

    pub fn total(&self) -> u64 {
        self.user.saturating_add(self.system)
    }

    pub fn and(&self, other: &Self) -> Self {
        Self {
            user: self.user.saturating_add(other.user),
            system: self.system.saturating_add(other.system),
            minor_faults: self.minor_faults.saturating_add(other.minor_faults),
            major_faults: self.major_faults.saturating_add(other.major_faults),
            peak: self.peak.max(other.peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_clock_split_as_the_ticks_are() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 0 100 5 3 4 250 51 9 9 20 0";
        let usage = Usage::from_stat(stat, 3_015_000_000).unwrap();
        assert_eq!((usage.user, usage.system), (2_505_000_000, 510_000_000));
        assert_eq!((usage.minor_faults, usage.major_faults), (100, 3));
        assert_eq!(Usage::from_stat(stat, 0).unwrap().total(), 3_010_000_000);
        assert!(Usage::from_stat("7 (a) S 1", 5).is_err());
    }

    #[test]
    fn what_we_use_ourselves_is_counted() {
        let us = std::process::id() as i32;
        // SAFETY: no arguments.
        let tid = unsafe { libc::gettid() };
        let ours = || Usage::of_thread(us, tid).unwrap().total();
        let (before, mut word) = (ours(), 1u64);
        while ours() < before + 20_000_000 {
            word = std::hint::black_box(word.wrapping_mul(3));
        }
        // With the threads of other tests.
        let all = Usage::of_process(us).unwrap();
        assert!(all.total() >= 20_000_000 && all.peak > 0, "{all:?}");
        assert!(Usage::of_process(i32::MAX).is_err());
    }
}
