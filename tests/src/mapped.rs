//! A file that a test itself has mapped.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Result, ensure};

/// Its first page, shared and to be written.
pub struct Mapped(*mut libc::c_void);

impl Mapped {
    pub fn of(file: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(file)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self(at))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which nothing points.
        unsafe { libc::munmap(self.0, 4096) };
    }
}
