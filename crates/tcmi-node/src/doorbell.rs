//! Wakes the threads that keep shadows: ptrace stops make themselves known to the process
//! only, by SIGCHLD.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

/// One keeper's bell: readable when there may be something to do.
pub struct Bell(EventFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }
    pub fn ring(&self) {
        // It fails only with its counter full: then it rings already.
        if let Err(error) = self.0.write(1) {
            tracing::debug!(%error, "bell");
        }
    }
    pub fn quiet(&self) {
        // EAGAIN: nobody rang.
        if let Err(error) = self.0.read()
            && error != nix::errno::Errno::EAGAIN
        {
            tracing::error!(%error, "bell");
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Rings every bell at each SIGCHLD. The signal is blocked in all threads.
#[derive(Clone, Default)]
pub struct Doorbell(Arc<Mutex<Vec<Weak<Bell>>>>);

impl Doorbell {
    pub fn start() -> io::Result<Self> {
        let doorbell = Self::default();
        let bells = doorbell.0.clone();
        let signals = SigSet::from_iter([Signal::SIGCHLD]);
        thread::Builder::new().name("sigchld".to_owned()).spawn(move || {
            while signals.wait().is_ok() {
                bells.lock().retain(|bell| bell.upgrade().map(|bell| bell.ring()).is_some());
            }
        })?;
        Ok(doorbell)
    }
    pub fn add(&self, bell: &Arc<Bell>) {
        self.0.lock().push(Arc::downgrade(bell));
    }
}
