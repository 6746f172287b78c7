//! The node's side of all its links: what the daemon holds.

mod accept;
mod dial;
mod link;
mod streams;
mod waker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rustls::ServerConfig;

use crate::address::{Address, AddressError};
use crate::codec::CodecError;
use crate::identity::{Identity, PeerKey};
use crate::limits::{CONTROL_MESSAGE_BYTES_MAX, HALF_OPEN_MAX, HANDSHAKE_TIMEOUT};
use crate::message::Control;
use crate::pins::Pins;
use crate::refusals::Refusals;
use crate::session::{DownReason, Hello, NameError, Role, SessionOptions};
use crate::tls;

use accept::{HalfOpen, Listening};
pub use dial::ConnectError;
pub use link::Link;

/// Counts up over the life of an endpoint; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// First event of a link. A link that replaces an older one of the same node may come
    /// up before the older one's Down.
    Up {
        link: LinkId,
    },
    Message {
        link: LinkId,
        message: Control,
    },
    /// Last event of a link.
    Down {
        link: LinkId,
        reason: DownReason,
    },
}

/// What may be set differently from [`crate::limits`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub session: SessionOptions,
    pub handshake_timeout: Duration,
    pub half_open_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            session: SessionOptions::default(),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            half_open_max: HALF_OPEN_MAX,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerInfo {
    /// Counts up; never reused.
    pub id: u64,
    /// With the port that the kernel gave, if 0 was asked for.
    pub sockname: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(transparent)]
    Name(#[from] NameError),
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{address}: {source}")]
    Io { address: Address, source: io::Error },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendError {
    #[error("the link is down")]
    Down,
    #[error("the peer does not read what it is sent")]
    Congested,
    #[error("{0} is sent by the link itself")]
    Reserved(&'static str),
    #[error("message of {bytes} bytes, {CONTROL_MESSAGE_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    #[error(transparent)]
    Codec(#[from] CodecError),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamError {
    #[error("no stream in {0:?}")]
    Timeout(Duration),
    #[error("the link is down: {0}")]
    Down(DownReason),
    #[error("home takes streams, execution nodes claim them")]
    WrongRole,
}

pub(crate) struct Shared {
    identity: Identity,
    hello: Hello,
    options: Options,
    pins: Pins,
    listener_tls: Arc<ServerConfig>,
    events: Sender<LinkEvent>,
    links: Mutex<BTreeMap<LinkId, Arc<link::Inner>>>,
    listeners: Mutex<BTreeMap<u64, Listening>>,
    next_id: AtomicU64,
    half_open: Mutex<HalfOpen>,
    refusals: Mutex<Refusals>,
    load: AtomicU32,
}

impl Shared {
    fn next_link_id(&self) -> LinkId {
        LinkId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    fn add_link(&self, link: &Arc<link::Inner>) {
        self.links.lock().insert(link.id, link.clone());
    }

    fn remove_link(&self, id: LinkId) {
        self.links.lock().remove(&id);
    }

    fn links_where(&self, wanted: impl Fn(&link::Inner) -> bool) -> Vec<Arc<link::Inner>> {
        self.links.lock().values().filter(|l| wanted(l)).cloned().collect()
    }

    /// The accepted link that a peer's stream belongs to.
    fn link_of(&self, peer: &PeerKey, session: u64) -> Option<Arc<link::Inner>> {
        let same = |l: &link::Inner| {
            l.role == Role::Listener && l.peer == *peer && l.session_id == session
        };
        self.links_where(same).pop()
    }

    fn link_with(&self, peer: &PeerKey, role: Role) -> Option<LinkId> {
        self.links_where(|l| l.role == role && l.peer == *peer).pop().map(|l| l.id)
    }

    /// A node that dials again has given its old link up, even if this end has not noticed.
    fn retire_others(&self, new: &link::Inner) {
        let older = |l: &link::Inner| l.role == new.role && l.peer == new.peer && l.id < new.id;
        for old in self.links_where(older) {
            old.close("replaced by a newer link of the same node");
        }
    }

    fn tell(&self, event: LinkEvent) {
        if self.events.send(event).is_err() {
            tracing::debug!("nobody takes the events of links any more");
        }
    }

    /// Counts and logs a connection that was turned away.
    fn refuse(&self, source: IpAddr, why: &dyn fmt::Display) {
        if let Some(unlogged) = self.refusals.lock().note(source, Instant::now()) {
            tracing::warn!(%source, unlogged, "refused a connection: {why}");
        }
    }

    fn load(&self) -> u32 {
        self.load.load(Ordering::Relaxed)
    }
}

/// Dropping it closes its listeners and links.
pub struct Endpoint {
    shared: Arc<Shared>,
}

impl Endpoint {
    /// `events` may be bounded: a link whose events are not taken stops reading.
    pub fn new(
        identity: Identity,
        name: &str,
        features: Vec<String>,
        events: Sender<LinkEvent>,
    ) -> Result<Self, EndpointError> {
        Self::with_options(identity, name, features, events, Options::default())
    }

    pub fn with_options(
        identity: Identity,
        name: &str,
        features: Vec<String>,
        events: Sender<LinkEvent>,
        options: Options,
    ) -> Result<Self, EndpointError> {
        let hello = Hello { name: name.to_owned(), features };
        hello.check()?;
        let pins = Pins::default();
        let shared = Shared {
            listener_tls: tls::listener(&identity, pins.clone()),
            identity,
            hello,
            options,
            pins,
            events,
            links: Mutex::default(),
            listeners: Mutex::default(),
            next_id: AtomicU64::new(1),
            half_open: Mutex::default(),
            refusals: Mutex::default(),
            load: AtomicU32::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn key(&self) -> PeerKey {
        self.shared.identity.key()
    }

    /// One-minute load average in thousandths, for the peers.
    pub fn set_load(&self, load: u32) {
        self.shared.load.store(load, Ordering::Relaxed);
    }

    /// `tcp:HOST:PORT`; port 0 lets the kernel choose.
    pub fn listen(&self, address: &str) -> Result<ListenerInfo, ListenError> {
        let address: Address = address.parse()?;
        let io = |source| ListenError::Io { address: address.clone(), source };
        let found = address.resolve().map_err(io)?;
        let listener = TcpListener::bind(&found[..]).map_err(io)?;
        let listening = Listening::start(&self.shared, listener).map_err(io)?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let info = ListenerInfo { id, sockname: listening.sockname };
        self.shared.listeners.lock().insert(id, listening);
        Ok(info)
    }

    /// False if there is no such listener. Its port is free when this returns; links that
    /// came in through it stay, and can have no further streams from it.
    pub fn stop_listening(&self, id: u64) -> bool {
        let found = self.shared.listeners.lock().remove(&id);
        found.map(Listening::stop).is_some()
    }

    pub fn listeners(&self) -> Vec<ListenerInfo> {
        let listeners = self.shared.listeners.lock();
        listeners.iter().map(|(&id, l)| ListenerInfo { id, sockname: l.sockname }).collect()
    }

    /// Lets the node with this key connect. False if it could already.
    pub fn trust(&self, key: PeerKey) -> bool {
        self.shared.pins.add(key)
    }

    /// Takes that back and ends the links that came in with it. False if it was not trusted.
    pub fn untrust(&self, key: &PeerKey) -> bool {
        let was = self.shared.pins.remove(key);
        for link in self.shared.links_where(|l| l.role == Role::Listener && l.peer == *key) {
            link.close("this node trusts the key no longer");
        }
        was
    }

    pub fn trusted(&self) -> Vec<PeerKey> {
        self.shared.pins.list()
    }

    /// Dials a home whose key must be `key`. Blocks until the link is up; its streams are
    /// parked in the background.
    pub fn connect(&self, address: &str, key: PeerKey) -> Result<LinkId, ConnectError> {
        dial::connect(&self.shared, address, key)
    }

    /// None if there is no such link, or it is not up.
    pub fn link(&self, id: LinkId) -> Option<Link> {
        let link = self.shared.links.lock().get(&id).cloned()?;
        link.is_up().then_some(Link(link))
    }

    /// The links that are up, oldest first.
    pub fn links(&self) -> Vec<Link> {
        self.shared.links_where(link::Inner::is_up).into_iter().map(Link).collect()
    }

    /// Connections turned away so far.
    pub fn refused(&self) -> u64 {
        self.shared.refusals.lock().total()
    }

    /// Closes all listeners and tells all peers that this node goes.
    pub fn close(&self, reason: &str) {
        let listeners = std::mem::take(&mut *self.shared.listeners.lock());
        listeners.into_values().for_each(Listening::stop);
        self.shared.half_open.lock().shut_all();
        for link in self.shared.links_where(|_| true) {
            link.close(reason);
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close("the node is going down");
    }
}
