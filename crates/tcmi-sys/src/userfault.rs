//! userfaultfd(2) of another process, to learn which pages of its shared mappings it has written.

use crate::errno::{Errno, Result, check};
use crate::waker::{Waker, poll_in};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// userfaultfd(2)'s flags by which a process makes one for us: O_CLOEXEC, O_NONBLOCK, and
/// UFFD_USER_MODE_ONLY, which needs no privilege.
pub const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1;

const API_VERSION: u64 = 0xaa;
/// EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP; PAGEFAULT_FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED,
/// WP_ASYNC.
const FEATURES: u64 = 1 << 2 | 1 << 3 | 1 << 6 | 1 | 1 << 12 | 1 << 13 | 1 << 15;
/// _IOWR(0xaa, 0x3f, struct uffdio_api), of 24 bytes.
const UFFDIO_API: u64 = 0xc018_aa3f;
/// _IOWR(0xaa, 0x00, struct uffdio_register), of 32 bytes.
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const MODE_WP: u64 = 2;
const MESSAGE_BYTES: usize = 32;

/// Write protection that the kernel takes off by itself, and events of mappings that go.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// `fd`: made by another process with [`FLAGS`]. Err (EINVAL): a kernel before 6.7.
    pub fn open(fd: OwnedFd) -> Result<Self> {
        let mut api = [API_VERSION, FEATURES, 0];
        // SAFETY: a structure of the size that the number says.
        let ret = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        check("UFFDIO_API", ret.into())?;
        Ok(Self(fd))
    }

    /// Has writes to `range` (page-aligned) told by [`crate::pages::Pagemap::written_runs`].
    pub fn watch(&self, range: Range<u64>) -> Result<()> {
        let mut register = [range.start, range.end - range.start, MODE_WP, 0];
        // SAFETY: as above.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        check("UFFDIO_REGISTER", ret.into()).map(drop)
    }

    /// Waits for an event, or until woken, at most so long. Ok(true): one is there until it is taken,
    /// and who caused it waits for that.
    pub fn wait(&self, waker: &Waker, timeout: Option<Duration>) -> Result<bool> {
        match poll_in([self.0.as_fd(), waker.as_fd()], timeout)? {
            [0, _] => Ok(false),
            [ready, _] if ready & libc::POLLIN == 0 => {
                Err(Errno::new("a userfaultfd of nobody", libc::ESRCH))
            }
            _ => Ok(true),
        }
    }

    /// Takes the events that are there: a part of a mapping goes, is emptied or moves.
    pub fn take_events(&self) -> Result<usize> {
        let mut taken = 0;
        loop {
            let mut message = [0u64; MESSAGE_BYTES / 8];
            let (fd, room) = (self.0.as_raw_fd(), message.as_mut_ptr().cast());
            // SAFETY: room for one message.
            match unsafe { libc::read(fd, room, MESSAGE_BYTES) } {
                n if n > 0 => taken += 1,
                0 => return Ok(taken),
                _ => match Errno::last("read a userfaultfd") {
                    e if e.code == libc::EAGAIN => return Ok(taken),
                    e => return Err(e),
                },
            }
        }
    }
}
