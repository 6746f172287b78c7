//! Socket input and output with a deadline. The descriptors stay in blocking mode, because the
//! agent and the monitor that inherit them want that; each call here asks not to block.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 4;
/// A peer that is gone is noticed as soon with bytes on the way as without: probes are sent only
/// on a silent stream, and what waits for an answer is sent again for a quarter of an hour.
const UNANSWERED_LIMIT: Duration =
    KEEPALIVE_IDLE.saturating_add(KEEPALIVE_PROBE_INTERVAL.saturating_mul(KEEPALIVE_PROBES));

/// No delay for small frames, and an end for streams whose peer is silent for long.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(tcp, UNANSWERED_LIMIT.as_millis() as u32)?;
    Ok(())
}

/// Waits until `fd` is ready, has hung up, or `until` is over (TimedOut).
pub(crate) fn wait(fd: BorrowedFd<'_>, flags: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timespec(left))) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

pub(crate) fn timespec(d: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}

/// At least one byte, or 0 at the end of the stream.
pub(crate) fn recv_some(fd: impl AsFd, buf: &mut [u8], until: Instant) -> io::Result<usize> {
    let fd = fd.as_fd();
    loop {
        match recv(fd, &mut *buf, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::AGAIN) => wait(fd, PollFlags::IN, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// At least one byte of a `buf` that is not empty.
pub(crate) fn send_some(fd: impl AsFd, buf: &[u8], until: Instant) -> io::Result<usize> {
    let fd = fd.as_fd();
    loop {
        match send(fd, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// All of it; `idle` bounds each wait that brings no progress.
pub(crate) fn send_all(fd: impl AsFd, mut buf: &[u8], idle: Duration) -> io::Result<()> {
    while !buf.is_empty() {
        let n = send_some(&fd, buf, Instant::now() + idle)?;
        buf = &buf[n..];
    }
    Ok(())
}

/// True if the peer has closed or reset the connection.
pub(crate) fn is_hung_up(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    match poll(&mut polled, Some(&timespec(Duration::ZERO))) {
        Ok(0) => false,
        Ok(_) => {
            let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            polled[0].revents().intersects(gone)
        }
        Err(_) => false,
    }
}
