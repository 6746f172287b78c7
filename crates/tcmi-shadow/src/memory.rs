//! A guest's memory from outside.

use tcmi_call::engine::{Fault, GuestMemory};

/// By `process_vm_readv` and `process_vm_writev`, which honour the pages' protection.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pub pid: i32,
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

impl GuestMemory for ProcessMemory {
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
}
