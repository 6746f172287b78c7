//! The agent's stay in a process at home, from before a move until after it.

use crate::error::{Error, Result};
use tcmi_call::abi::{ProcArea, ThreadArea};
use tcmi_ckpt::blob::Blob;
use tcmi_ckpt::capture::{self, xfeatures};
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::freezer::Freezer;
use tcmi_ckpt::layout::gap;
use tcmi_ckpt::remote::{self, Agent, page_up};
use tcmi_sys::maps::Mapping;
use tcmi_sys::proc;

/// The agent in a process that still runs at home, and how to call there without it.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    pub pid: i32,
    pub agent: Agent,
    /// A `syscall` instruction in the vDSO.
    pub vdso_call: u64,
    /// Threads that the agent's region has room for.
    pub room: usize,
    pub(super) xfeatures: u64,
}

/// Threads that may come into being between attaching and the final freeze, and while the process
/// is away. 70 MiB of addresses, of which nothing is touched until then.
const SPARE_THREADS: usize = 512;
/// Of a process whose address space is limited.
const SPARE_THREADS_MIN: usize = 16;
const PROC_AREA_BYTES: u64 = (std::mem::size_of::<ProcArea>() as u64).next_multiple_of(4096);
const WORD_BYTES: u64 = 4096;
const THREAD_AREA_BYTES: u64 = (std::mem::size_of::<ThreadArea>() as u64).next_multiple_of(4096);

impl Attached {
    /// Puts the agent into a process and lets it run on.
    pub fn attach(pid: i32, by: &dyn Freezer) -> Result<Self> {
        let mut frozen = by.freeze(pid)?.trace()?;
        let made = Self::inject(&mut frozen);
        frozen.thaw()?;
        made
    }
    /// Puts the agent into a held process.
    pub(super) fn inject(f: &mut Frozen) -> Result<Self> {
        let maps = capture::mappings(f.pid)?;
        let vdso = maps.iter().find(|m| m.name == "[vdso]");
        let vdso = vdso.ok_or_else(|| tcmi_ckpt::Error::unsupported("it has no vDSO"))?;
        let vdso_call = remote::find_syscall(f.pid, vdso.start, vdso.end)?;
        let is_limited = proc::limit(f.pid, libc::RLIMIT_AS)?.0 != libc::RLIM_INFINITY;
        let spare = if is_limited { SPARE_THREADS_MIN } else { SPARE_THREADS };
        let xstate = f.leader().stopped()?.xstate()?;
        let xfeatures = xfeatures(&xstate);
        let threads = f.threads.len();
        let mut with = |room: usize| {
            let extra = PROC_AREA_BYTES + WORD_BYTES + room as u64 * THREAD_AREA_BYTES;
            let blob = Blob::built_in();
            let place = away_from_stacks(&maps, Agent::room(&blob) + page_up(extra));
            let agent = Agent::inject(f, vdso_call, &blob, extra, place)?;
            Ok(Self { pid: f.pid, agent, vdso_call, room, xfeatures })
        };
        match with(threads + spare) {
            // Where memory is not overcommitted, or all of it is locked, addresses are not free.
            Err(tcmi_ckpt::Error::Remote { errno: libc::ENOMEM | libc::EAGAIN, .. }) => {
                Ok(with(threads + SPARE_THREADS_MIN)?)
            }
            made => Ok(made?),
        }
    }
    /// The process may have executed another program since the agent was put into it.
    pub(super) fn is_in(&self, pid: i32) -> bool {
        let mut magic = [0; 8];
        tcmi_sys::memory::read(pid, self.agent.base, &mut magic).is_ok()
            && u64::from_le_bytes(magic) == tcmi_call::abi::BLOB_MAGIC
    }
    /// Takes the agent out of a held process, whose threads go on by themselves from here.
    pub fn unmap(&self, f: &mut Frozen) -> Result<()> {
        for t in &mut f.threads {
            t.own_again()?;
        }
        if !self.is_in(f.pid) {
            return Ok(());
        }
        let args = [self.agent.base, self.agent.len, 0, 0, 0, 0];
        remote::call(f.leader_mut(), self.vdso_call, "munmap agent", libc::SYS_munmap, args)?;
        Ok(())
    }
    /// Takes the agent out of the running process. A process that is gone needs nothing.
    pub fn remove(&self, by: &dyn Freezer) {
        let held = by.freeze(self.pid).and_then(|held| held.trace());
        let done = held.map_err(Error::from).and_then(|mut f| {
            let unmapped = self.unmap(&mut f);
            f.thaw()?;
            unmapped
        });
        if let Err(e) = done {
            tracing::warn!(pid = self.pid, error = %e, "the agent stays mapped");
        }
    }
    pub fn reserved(&self) -> (u64, u64) {
        (self.agent.base, self.agent.base + self.agent.len)
    }
    pub fn proc_area(&self) -> u64 {
        page_up(self.agent.extra())
    }
    pub fn thread_area(&self, n: usize) -> u64 {
        self.word() + WORD_BYTES + n as u64 * THREAD_AREA_BYTES
    }
    /// Where a word may be mapped that decides for several processes.
    pub fn word(&self) -> u64 {
        self.proc_area() + PROC_AREA_BYTES
    }
}

/// The process runs on beside the agent: where the kernel would put it, it may end the growth of
/// a stack. None: there is no other place.
fn away_from_stacks(maps: &[Mapping], len: u64) -> Option<u64> {
    const GROWTH: u64 = 64 << 20;
    let grows = |m: &Mapping| if m.has(b"gd") { GROWTH } else { 0 };
    let taken: Vec<_> = maps.iter().map(|m| (m.start.saturating_sub(grows(m)), m.end)).collect();
    gap(&taken, len)
}
