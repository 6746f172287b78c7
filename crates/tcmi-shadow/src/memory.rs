//! A guest's memory from outside.

use std::ops::Range;

use parking_lot::Mutex;
use tcmi_call::engine::{Fault, GuestMemory};
use tcmi_call::table::errno::{EFAULT, EINVAL, Errno};
use tcmi_sys::maps;

/// How far the kernel lets a stack grow below what is mapped of it, at most and by default.
const STACK_GROWTH_BYTES: u64 = 8 << 20;

/// The kernel's MAX_RW_COUNT: more is not moved by one call.
pub(crate) const MOVED_MAX: u64 = i32::MAX as u64 & !0xfff;
/// The kernel's UIO_MAXIOV.
const IOVECS_MAX: u64 = 1024;
const IOVEC_BYTES: usize = 16;

/// Memory of a guest that was writable when its mappings were last read.
///
/// The guest maps and protects without our knowing, so an answer of yes may be out of date: the
/// call is then made, and its result lost as the guest asked for. No is said only after a look.
#[derive(Debug, Default)]
pub struct Writable(Mutex<Vec<Range<u64>>>);

impl Writable {
    /// Of `len` bytes at `addr`, how many are writable.
    fn reach(&self, pid: i32, addr: u64, len: usize) -> usize {
        let mut known = self.0.lock();
        let reach = reach_in(&known, addr, len);
        if reach == len {
            return len;
        }
        // A guest whose mappings cannot be read ends: nobody waits for the answer.
        let Ok(all) = maps::read_short(pid) else { return len };
        known.clear();
        for m in all.iter().filter(|m| m.write) {
            let below = if m.name == "[stack]" { STACK_GROWTH_BYTES } else { 0 };
            let start = m.start.saturating_sub(below);
            match known.last_mut() {
                Some(last) if last.end >= start => last.end = m.end,
                _ => known.push(start..m.end),
            }
        }
        reach_in(&known, addr, len)
    }
}

/// `ranges` are sorted and none touches the next.
fn reach_in(ranges: &[Range<u64>], addr: u64, len: usize) -> usize {
    let i = ranges.partition_point(|r| r.end <= addr);
    match ranges.get(i) {
        Some(r) if r.start <= addr => ((r.end - addr) as usize).min(len),
        _ => 0,
    }
}

/// Little-endian, at an offset into `bytes` that has eight of them.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

/// Address and length of each buffer of a call that has several.
pub(crate) fn iovecs(
    mem: &mut ProcessMemory<'_>,
    addr: u64,
    count: u64,
) -> Result<Vec<(u64, u64)>, Errno> {
    if count > IOVECS_MAX {
        return Err(EINVAL);
    }
    let mut bytes = vec![0; count as usize * IOVEC_BYTES];
    mem.read(addr, &mut bytes).map_err(|_| EFAULT)?;
    let buffers: Vec<_> =
        bytes.chunks_exact(IOVEC_BYTES).map(|iovec| (word(iovec, 0), word(iovec, 8))).collect();
    match buffers.iter().all(|(_, len)| i64::try_from(*len).is_ok()) {
        true => Ok(buffers),
        false => Err(EINVAL),
    }
}

/// By `process_vm_readv` and `process_vm_writev`, which honour the pages' protection.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory<'a> {
    pub pid: i32,
    pub writable: &'a Writable,
}

fn outcome(copied: isize, wanted: usize) -> Result<(), Fault> {
    match usize::try_from(copied) {
        Ok(n) if n == wanted => Ok(()),
        Ok(n) => Err(Fault { copied: n }),
        // EFAULT at the first page, or the process is gone and nobody waits for the answer.
        Err(_) => Err(Fault { copied: 0 }),
    }
}

fn remote(addr: u64, len: usize) -> libc::iovec {
    libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len }
}

impl GuestMemory for ProcessMemory<'_> {
    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), Fault> {
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let there = remote(addr, into.len());
        // SAFETY: `local` describes `into`; the remote side is checked by the kernel.
        let n = unsafe { libc::process_vm_readv(self.pid, &local, 1, &there, 1, 0) };
        outcome(n, into.len())
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), Fault> {
        let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
        let there = remote(addr, from.len());
        // SAFETY: `local` describes `from`, which is only read.
        let n = unsafe { libc::process_vm_writev(self.pid, &local, 1, &there, 1, 0) };
        outcome(n, from.len())
    }

    fn writable(&mut self, addr: u64, len: usize) -> usize {
        self.writable.reach(self.pid, addr, len)
    }
}
