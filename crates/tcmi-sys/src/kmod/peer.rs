//! The other end of a link, which our module and its ask each other about.

use std::net::SocketAddr;
use std::time::Duration;

use super::Session;
use super::abi::*;
use crate::errno::{Errno, Result};

/// Of the process that set us as the peer there, as its kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    Served,
    /// It has ended without a word.
    Abandoned,
}

/// A session with a peer. Dropped, the peer is forgotten, and gets no answer any more. If this
/// process is killed instead, our module goes on to answer, and tells that.
#[derive(Debug)]
pub struct Peer {
    session: Session,
}

impl Peer {
    /// The addresses are of one family; the keys were never used before, and the peer has them
    /// the other way round.
    pub fn set(
        local: SocketAddr,
        remote: SocketAddr,
        sent_key: [u8; 32],
        received_key: [u8; 32],
    ) -> Result<Self> {
        let session = Session::open_with(libc::O_CLOEXEC)?;
        let (local, remote) = (raw(local), raw(remote));
        let mut args = PeerSetArgs { sent_key, received_key, local, remote };
        session.ioctl("kmod peer", TCMI_PEER_SET, &mut args)?;
        Ok(Self { session })
    }

    /// None: no answer in this time.
    pub fn ask(&self, timeout: Duration) -> Result<Option<PeerState>> {
        let mut args = PeerAskArgs { timeout_ms: timeout.as_millis() as u32, state: 0 };
        match self.session.ioctl("kmod ask", TCMI_PEER_ASK, &mut args) {
            Ok(()) if args.state == TCMI_PEER_SERVED => Ok(Some(PeerState::Served)),
            Ok(()) if args.state == TCMI_PEER_ABANDONED => Ok(Some(PeerState::Abandoned)),
            Ok(()) => Err(Errno::new("kmod ask", libc::EPROTO)),
            Err(e) if e.code == libc::ETIMEDOUT => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let forgotten = self.session.ioctl("kmod forget", TCMI_PEER_FORGET, &mut Nothing);
        debug_assert!(forgotten.is_ok(), "{forgotten:?}");
    }
}

/// A sockaddr_in or sockaddr_in6.
fn raw(address: SocketAddr) -> [u8; 28] {
    let mut raw = [0; 28];
    raw[2..4].copy_from_slice(&address.port().to_be_bytes());
    let family = match address {
        SocketAddr::V4(v4) => {
            raw[4..8].copy_from_slice(&v4.ip().octets());
            libc::AF_INET
        }
        SocketAddr::V6(v6) => {
            raw[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            raw[8..24].copy_from_slice(&v6.ip().octets());
            raw[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
            libc::AF_INET6
        }
    };
    raw[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    raw
}
