//! Connections that this node makes.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;

use crate::address::{Address, AddressError};
use crate::control::CONTROL_CIPHER;
use crate::identity::PeerKey;
use crate::limits::TCP_CONNECT_TIMEOUT;
use crate::message::{Opened, Opening, StreamKind};
use crate::session::{DownReason, Role};
use crate::socket;
use crate::stream::Stream;
use crate::tls::{self, Handshake, Keys, OpenError};

use super::link::{self, Connection};
use super::{LinkId, Shared};

/// Nothing is left of the attempt after any of these.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{address}: {source}")]
    Resolve { address: Address, source: io::Error },
    #[error("{address}: {source}")]
    Tcp { address: Address, source: io::Error },
    #[error("already connected to that node, link {0}")]
    AlreadyConnected(LinkId),
    #[error("the node at {0} has another key than the one given")]
    WrongKey(Address),
    #[error("the node at {0} does not trust this node's key")]
    NotTrusted(Address),
    #[error("the node at {0} did not answer in time")]
    Timeout(Address),
    #[error("the node at {address} refuses: {reason}")]
    Refused { address: Address, reason: String },
    #[error("what answers at {address} is not a node: {reason}")]
    NotANode { address: Address, reason: String },
    #[error("the node at {address} speaks version {theirs}, this node {ours}")]
    Version { address: Address, theirs: u16, ours: u16 },
    #[error("the link to {address} ended at once: {reason}")]
    Ended { address: Address, reason: DownReason },
    #[error("no thread or descriptor for the link: {0}")]
    Resources(#[source] io::Error),
}

fn at(address: Address, e: OpenError) -> ConnectError {
    let reason = e.to_string();
    match e {
        OpenError::WrongKey => ConnectError::WrongKey(address),
        OpenError::NotTrusted => ConnectError::NotTrusted(address),
        OpenError::Timeout => ConnectError::Timeout(address),
        OpenError::Refused(reason) => ConnectError::Refused { address, reason },
        OpenError::Io(source) => ConnectError::Tcp { address, source },
        OpenError::Codec(crate::codec::CodecError::Version { theirs, ours }) => {
            ConnectError::Version { address, theirs, ours }
        }
        OpenError::Closed
        | OpenError::Tls(_)
        | OpenError::Codec(_)
        | OpenError::TooEager
        | OpenError::Cipher(_) => ConnectError::NotANode { address, reason },
    }
}

pub(super) fn connect(
    shared: &Arc<Shared>,
    address: &str,
    key: PeerKey,
) -> Result<LinkId, ConnectError> {
    let address: Address = address.parse()?;
    if let Some(id) = shared.link_with(&key, Role::Dialer) {
        return Err(ConnectError::AlreadyConnected(id));
    }
    let found = address
        .resolve()
        .map_err(|source| ConnectError::Resolve { address: address.clone(), source })?;
    let tcp = connect_any(&found)
        .map_err(|source| ConnectError::Tcp { address: address.clone(), source })?;
    let peer_address = tcp.peer_addr().map_err(ConnectError::Resources)?;
    let session = random_u64().map_err(ConnectError::Resources)?;
    let config = tls::dialer(&shared.identity, key, CONTROL_CIPHER);
    let until = Instant::now() + shared.options.handshake_timeout;
    let keys = open(&tcp, config, &Opening::Link { session }, until)
        .map_err(|e| at(address.clone(), e))?;
    let connection =
        Connection { role: Role::Dialer, peer: key, address: peer_address, session, tcp, keys };
    let link = link::start(shared, connection).map_err(ConnectError::Resources)?;
    link.wait_up().map_err(|reason| match reason {
        DownReason::Version { theirs, ours } => ConnectError::Version { address, theirs, ours },
        DownReason::ClosedByPeer(reason) => ConnectError::Refused { address, reason },
        reason => ConnectError::Ended { address, reason },
    })
}

/// What is needed to dial streams of a link again and again.
pub(super) struct StreamDialer {
    pub address: SocketAddr,
    pub session: u64,
    pub call_tls: Arc<ClientConfig>,
    pub bulk_tls: Arc<ClientConfig>,
    pub timeout: std::time::Duration,
}

impl StreamDialer {
    pub fn dial(&self, id: u64, kind: StreamKind) -> Result<Stream, OpenError> {
        let tcp = connect_any(&[self.address])?;
        let config = match kind {
            StreamKind::Call => &self.call_tls,
            StreamKind::Bulk => &self.bulk_tls,
        };
        let opening = Opening::Stream { session: self.session, id, kind };
        let keys = open(&tcp, config.clone(), &opening, Instant::now() + self.timeout)?;
        Ok(Stream { id, kind, fd: tcp.into(), tx: keys.tx, rx: keys.rx })
    }
}

fn open(
    tcp: &TcpStream,
    config: Arc<ClientConfig>,
    opening: &Opening,
    until: Instant,
) -> Result<Keys, OpenError> {
    let mut handshake = Handshake::dial(tcp, config, until)?;
    handshake.send(&opening.encode()?)?;
    match Opened::from_frame(&handshake.receive()?)? {
        Opened::Yes {} => handshake.into_keys(),
        Opened::No { reason } => Err(OpenError::Refused(crate::session::printable(&reason))),
    }
}

/// The first address that answers; the last error if none does.
fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, TCP_CONNECT_TIMEOUT) {
            Ok(tcp) => {
                socket::tune(&tcp)?;
                return Ok(tcp);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn random_u64() -> io::Result<u64> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
    Ok(u64::from_le_bytes(bytes))
}
