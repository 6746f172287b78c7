//! Ends another thread's wait.

use crate::errno::{Errno, Result, check};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An eventfd. It stays woken until it is cleared.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    pub fn new() -> Result<Self> {
        // SAFETY: plain call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check("eventfd", fd.into())?;
        // SAFETY: a descriptor of nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes. It can only fail when the counter is full, and then it is woken.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), 8) };
    }

    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: room for the counter; EAGAIN if nobody woke it.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    }

    /// Waits until it is woken, at most so long. None: for as long as it takes.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        poll_in([self.0.as_fd()], timeout).map(drop)
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What each of the descriptors is ready for; nothing if time is up, or a signal came.
pub(crate) fn poll_in<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> Result<[i16; N]> {
    let mut polled =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // Rounded up: 0 would spin until it is due.
    let ms = timeout.map_or(-1, |t| t.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    // SAFETY: so many valid pollfds.
    match unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, ms) } {
        -1 if Errno::last("poll").code == libc::EINTR => Ok([0; N]),
        -1 => Err(Errno::last("poll")),
        _ => Ok(polled.map(|fd| fd.revents)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_it_is_woken_and_not_twice() {
        let waker = Waker::new().expect("eventfd");
        let woken = |timeout| poll_in([waker.as_fd()], timeout).expect("poll")[0] != 0;
        assert!(!woken(Some(Duration::from_millis(1))));
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            waker.wait(None).expect("poll");
        });
        assert!(woken(None), "it stays woken");
        waker.clear();
        assert!(!woken(Some(Duration::ZERO)));
    }
}
