//! What a peer's kernel says of it when the link is lost: whether its daemon is gone, or its
//! machine. Both nodes need the kernel module.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tcmi_kkc::Link;
use tcmi_sys::kmod;
use tracing::warn;

/// In `node/features`, of a node whose kernel answers for it.
pub const FEATURE: &str = "beat=kernel";
/// From one question to the next, while the link is lost.
pub const AGAIN: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);
/// For the peer to be as far as we are.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);

/// Of a peer whose link was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It did not answer while the link was up either, or was not asked yet.
    Unknown,
    DaemonIsThere,
    DaemonIsGone,
    Nothing,
}

/// After "lost".
impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "",
            Self::DaemonIsThere => ": its daemon is there, the link failed",
            Self::DaemonIsGone => ": its machine answers, its daemon is gone",
            Self::Nothing => ": its machine gives no sign",
        })
    }
}

/// Our kernel and the peer's know of each other until it is dropped.
#[derive(Debug)]
pub struct Beat {
    peer: kmod::Peer,
    /// Silence means something only of who could answer before: there are firewalls.
    answered: AtomicBool,
}

impl Beat {
    /// UDP, from and to the addresses and port numbers that the link has for TCP.
    pub fn of(link: &Link) -> tcmi_sys::Result<Self> {
        let keys = link.exported_keys();
        let (local, remote) = (plain(link.local_address()), plain(link.peer_address()));
        let peer = kmod::Peer::set(local, remote, keys.sent, keys.received)?;
        Ok(Self { peer, answered: AtomicBool::new(false) })
    }

    /// While the link is up: whether it will be possible to ask.
    pub fn try_out(&self) -> bool {
        !matches!(self.ask(FIRST_TIMEOUT), Sign::Unknown)
    }

    pub fn sign(&self) -> Sign {
        self.ask(TIMEOUT)
    }

    fn ask(&self, timeout: Duration) -> Sign {
        let state = self.peer.ask(timeout).unwrap_or_else(|e| {
            warn!("cannot ask a peer's kernel: {e}");
            None
        });
        if state.is_some() {
            self.answered.store(true, Ordering::Relaxed);
        }
        match state {
            Some(kmod::PeerState::Served) => Sign::DaemonIsThere,
            Some(kmod::PeerState::Abandoned) => Sign::DaemonIsGone,
            None if self.answered.load(Ordering::Relaxed) => Sign::Nothing,
            None => Sign::Unknown,
        }
    }
}

/// What listens on all addresses has those of IPv4 in the form of IPv6.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv4_is_one_however_it_came() {
        let plain = |text: &str| plain(text.parse().unwrap()).to_string();
        assert_eq!(plain("[::ffff:10.0.0.1]:7770"), "10.0.0.1:7770");
        assert_eq!(plain("10.0.0.1:7770"), "10.0.0.1:7770");
        assert_eq!(plain("[fe80::1%3]:7770"), "[fe80::1%3]:7770");
    }
}
