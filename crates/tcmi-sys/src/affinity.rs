//! On which cores a thread may run.

use crate::errno::{Result, check};

/// A set of cores.
#[derive(Clone, Copy)]
pub struct Cores(libc::cpu_set_t);

impl std::fmt::Debug for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: only counts.
        write!(f, "{} cores", unsafe { libc::CPU_COUNT(&self.0) })
    }
}

const BYTES: usize = std::mem::size_of::<libc::cpu_set_t>();

impl Cores {
    /// Those of thread `tid`, 0 for the caller.
    pub fn of(tid: i32) -> Result<Self> {
        // SAFETY: all-zero is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is writable for the size given.
        let ret = unsafe { libc::sched_getaffinity(tid, BYTES, &mut set) };
        check("sched_getaffinity", ret.into()).map(|_| Self(set))
    }
    /// The one that the caller runs on.
    pub fn current() -> Result<Self> {
        // SAFETY: no arguments.
        let cpu = check("sched_getcpu", unsafe { libc::sched_getcpu() }.into())?;
        // SAFETY: all-zero is the empty set; a core's number is within the set.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu as usize, &mut set);
            set
        };
        Ok(Self(set))
    }
    /// Thread `tid`, 0 for the caller, runs there from now on.
    pub fn bind(&self, tid: i32) -> Result<()> {
        // SAFETY: the kernel reads the set, whose size is given.
        let ret = unsafe { libc::sched_setaffinity(tid, BYTES, &self.0) };
        check("sched_setaffinity", ret.into()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_runs_there_until_it_is_released() {
        let all = Cores::of(0).expect("own cores");
        let one = Cores::current().expect("a core");
        one.bind(0).expect("bind");
        assert_eq!(format!("{:?}", Cores::of(0).expect("own cores")), "1 cores");
        all.bind(0).expect("release");
        assert_eq!(format!("{:?}", Cores::of(0).expect("own cores")), format!("{all:?}"));
    }
}
