//! Another process's memory.

use crate::errno::{Errno, Result};
use libc::{iovec, pid_t};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Reads exactly `buf.len()` bytes of readable memory.
pub fn read(pid: pid_t, addr: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let local = iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let remote = iovec { iov_base: (addr + done as u64) as *mut _, iov_len: rest.len() };
        // SAFETY: `local` covers `rest`, which is writable; `remote` is checked by the kernel.
        let n = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        if n <= 0 {
            return Err(Errno::last("process_vm_readv"));
        }
        done += n as usize;
    }
    Ok(())
}

/// Writes all of `buf` into writable memory.
pub fn write(pid: pid_t, addr: u64, buf: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &buf[done..];
        let local = iovec { iov_base: rest.as_ptr() as *mut _, iov_len: rest.len() };
        let remote = iovec { iov_base: (addr + done as u64) as *mut _, iov_len: rest.len() };
        // SAFETY: `local` covers `rest` and is only read; `remote` is checked by the kernel.
        let n = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
        if n <= 0 {
            return Err(Errno::last("process_vm_writev"));
        }
        done += n as usize;
    }
    Ok(())
}

/// /proc/PID/mem: reaches what protections hide (PROT_NONE, read-only text), slower.
pub struct Forced(File);

impl Forced {
    pub fn open(pid: pid_t) -> Result<Self> {
        File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map(Self)
            .map_err(|e| Errno::from_io("open /proc/PID/mem", &e))
    }
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buf, addr).map_err(|e| Errno::from_io("read /proc/PID/mem", &e))
    }
    pub fn write(&self, addr: u64, buf: &[u8]) -> Result<()> {
        self.0.write_all_at(buf, addr).map_err(|e| Errno::from_io("write /proc/PID/mem", &e))
    }
}
