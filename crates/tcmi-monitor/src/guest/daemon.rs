//! What a guest's monitor says to its daemon and asks of it.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use tcmi_kkc::Stream;
use tcmi_migr::{Error, Result};
use tcmi_sys::Errno;

use crate::ipc::{self, ToDaemon, ToMonitor};

/// The daemon may be gone; the guest goes on without it.
pub(super) fn tell(daemon: &OwnedFd, what: &ToDaemon) {
    if let Err(e) = ipc::send(daemon.as_fd(), what, &[]) {
        tracing::debug!(error = %e, "the daemon is gone");
    }
}

/// Has the daemon hand over a stream that home parked for us. What else it says meanwhile, that
/// the guest is `unwanted`, is told, too.
pub(super) fn claim(daemon: &OwnedFd, id: u64, unwanted: &Cell<bool>) -> Result<Stream> {
    match ask(daemon, &ToDaemon::Claim { id }, unwanted)? {
        (ToMonitor::Stream { keys }, Some(fd)) => Ok(keys.with(fd)),
        _ => Err(Errno::new("the daemon's answer", libc::EPROTO).into()),
    }
}

/// Memory that other guests have, too.
pub(super) fn shared(daemon: &OwnedFd, which: &ToDaemon, unwanted: &Cell<bool>) -> Result<OwnedFd> {
    match ask(daemon, which, unwanted)? {
        (ToMonitor::Shared {}, Some(fd)) => Ok(fd),
        _ => Err(Errno::new("the daemon's answer", libc::EPROTO).into()),
    }
}

fn ask(
    daemon: &OwnedFd,
    question: &ToDaemon,
    unwanted: &Cell<bool>,
) -> Result<(ToMonitor, Option<OwnedFd>)> {
    let io = || Error::io("the daemon's socket");
    ipc::send(daemon.as_fd(), question, &[]).map_err(io())?;
    loop {
        let (answer, mut fds) = ipc::receive::<ToMonitor>(daemon.as_fd()).map_err(io())?;
        match answer {
            ToMonitor::NoStream { text } => {
                return Err(Error::Peer { errno: libc::EHOSTUNREACH, text });
            }
            ToMonitor::SendHome {} => unwanted.set(true),
            answer => return Ok((answer, fds.pop())),
        }
    }
}

/// Until the daemon shows the guest. True: it wants it to leave already.
pub(super) fn until_listed(daemon: &OwnedFd) -> bool {
    let mut unwanted = false;
    loop {
        match ipc::receive::<ToMonitor>(daemon.as_fd()) {
            Ok((ToMonitor::SendHome {}, _)) => unwanted = true,
            Ok((ToMonitor::Listed {}, _)) | Err(_) => return unwanted,
            Ok(_) => {}
        }
    }
}
