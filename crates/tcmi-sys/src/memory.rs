//! Another process's memory.

use crate::errno::{Errno, Result};
use libc::{iovec, pid_t};
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Reads exactly `buf.len()` bytes of readable memory.
pub fn read(pid: pid_t, addr: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        done += gather(pid, addr + done as u64, &mut [IoSliceMut::new(&mut buf[done..])])?;
    }
    Ok(())
}

/// Reads what stands at `addr` into `rooms`, in order, up to the first page that cannot be read;
/// returns how much, at least one byte.
pub fn gather(pid: pid_t, addr: u64, rooms: &mut [IoSliceMut<'_>]) -> Result<usize> {
    let len = rooms.iter().map(|r| r.len()).sum();
    let remote = iovec { iov_base: addr as *mut _, iov_len: len };
    // SAFETY: IoSliceMut is iovec by its documented layout, and each is writable memory of ours.
    let n = unsafe {
        libc::process_vm_readv(pid, rooms.as_ptr().cast(), rooms.len() as u64, &remote, 1, 0)
    };
    if n <= 0 { Err(Errno::last("process_vm_readv")) } else { Ok(n as usize) }
}

/// Writes all of `buf` into writable memory.
pub fn write(pid: pid_t, addr: u64, buf: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        done += write_some(pid, addr + done as u64, &buf[done..])?;
    }
    Ok(())
}

/// Writes up to the first page that cannot be written; returns how much, at least one byte.
pub fn write_some(pid: pid_t, addr: u64, buf: &[u8]) -> Result<usize> {
    let local = iovec { iov_base: buf.as_ptr() as *mut _, iov_len: buf.len() };
    let remote = iovec { iov_base: addr as *mut _, iov_len: buf.len() };
    // SAFETY: `local` covers `buf` and is only read; `remote` is checked by the kernel.
    let n = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    if n <= 0 { Err(Errno::last("process_vm_writev")) } else { Ok(n as usize) }
}

/// A range in parts of at most `most` bytes: where each begins, and its length.
pub fn parts(of: Range<u64>, most: usize) -> impl Iterator<Item = (u64, usize)> {
    let length = move |at| (most as u64).min(of.end - at) as usize;
    of.clone().step_by(most).map(move |at| (at, length(at)))
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

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn the_last_part_is_the_rest() {
        let all = |range, most| parts(range, most).collect::<Vec<_>>();
        assert_eq!(all(3..13, 4), [(3, 4), (7, 4), (11, 2)]);
        assert_eq!(all(3..7, 4), [(3, 4)]);
        assert_eq!(all(3..3, 4), []);
    }
}
