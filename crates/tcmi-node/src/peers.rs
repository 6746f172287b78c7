//! The nodes at the other ends of our links, as the control files name them.
//!
//! A peer's number is its link's: it counts up and is never reused. Its name is what
//! it calls itself, with a suffix if a peer with another key has that name already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tcmi_core::command::{Address, KeyText, NodeName, NodeRef, TrustChange};
use tcmi_core::error::MigrateError;
use tcmi_core::limits::NODE_NAME_BYTES_MAX;
use tcmi_ctlfs::tree::Role;
use tcmi_kkc::{
    ConnectError, DownReason, Endpoint, Link, LinkEvent, LinkId, ListenError, PeerKey,
    Role as LinkRole,
};
use tracing::{info, warn};

use crate::beat::{self, Beat, Sign};
use crate::control::Tasks;
use crate::tree::Tree;
use crate::trusted::{Trusted, TrustedError};

/// A peer whose own name cannot be a file here.
const NAMELESS: &str = "node";

#[derive(Clone, Debug)]
pub struct Peer {
    pub name: NodeName,
    /// Our role towards it.
    role: Role,
    /// As it is, or was when it was lost.
    pub link: Link,
    /// Asked to go, or to be let go; gets no more processes.
    pub leaving: bool,
    /// None: one of the two nodes has no module for it.
    beat: Option<Arc<Beat>>,
    /// The link ended without a word, and the peer's kernel is asked why.
    pub lost: Option<Sign>,
}

pub struct Peers {
    endpoint: Endpoint,
    known: Mutex<BTreeMap<LinkId, Peer>>,
    /// Our kernel answers for us.
    beats: bool,
    trusted: Mutex<Trusted>,
    tree: Arc<Tree>,
}

impl Peers {
    /// `more` is trusted besides what is kept, and kept from the next change on.
    pub fn new(
        endpoint: Endpoint,
        trusted: Trusted,
        more: &[PeerKey],
        beats: bool,
        tree: Arc<Tree>,
    ) -> Self {
        for key in trusted.keys().iter().chain(more) {
            endpoint.trust(*key);
        }
        Self { endpoint, known: Mutex::default(), beats, trusted: Mutex::new(trusted), tree }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// None: not known in this role.
    pub fn get(&self, role: Role, id: LinkId) -> Option<Peer> {
        self.known.lock().get(&id).filter(|peer| peer.role == role).cloned()
    }

    pub fn by_name(&self, role: Role, name: &NodeName) -> Option<LinkId> {
        let known = self.known.lock();
        let found = known.iter().find(|(_, peer)| peer.role == role && peer.name == *name);
        found.map(|(id, _)| *id)
    }

    pub fn list(&self, role: Role) -> Vec<(LinkId, Peer)> {
        let known = self.known.lock();
        let ours = known.iter().filter(|(_, peer)| peer.role == role);
        ours.map(|(id, peer)| (*id, peer.clone())).collect()
    }

    /// An execution node that takes processes.
    pub fn destination(&self, node: &NodeRef) -> Result<LinkId, MigrateError> {
        let id = match node {
            NodeRef::Number(number) => Some(LinkId(*number)),
            NodeRef::Name(name) => self.by_name(Role::Ccn, name),
        };
        let found = id.and_then(|id| Some((id, self.get(Role::Ccn, id)?)));
        match found {
            Some((_, peer)) if peer.leaving => {
                let reason = "it is leaving".to_owned();
                Err(MigrateError::PeerGone { node: peer.name.to_string(), reason })
            }
            Some((_, Peer { name, lost: Some(sign), .. })) => Err(link_lost(&name, sign)),
            Some((id, _)) => Ok(id),
            None => Err(MigrateError::NoSuchNode(node.clone())),
        }
    }

    /// The link, if it is up and `role` is our role on it.
    pub fn link(&self, role: Role, id: LinkId) -> Option<Link> {
        self.get(role, id).map(|peer| peer.link).filter(Link::is_up)
    }

    /// False: it is leaving already, or gone.
    pub fn set_leaving(&self, id: LinkId) -> bool {
        let mut known = self.known.lock();
        known.get_mut(&id).is_some_and(|peer| !std::mem::replace(&mut peer.leaving, true))
    }

    pub fn set_staying(&self, id: LinkId) {
        if let Some(peer) = self.known.lock().get_mut(&id) {
            peer.leaving = false;
        }
    }

    pub fn listen(&self, address: &Address) -> Result<(), MigrateError> {
        let listening = self.endpoint.listen(&address.to_string());
        let listener = listening.map_err(|error| listen_error(address, error))?;
        info!("listening on tcp:{}", listener.sockname);
        self.tree.changed();
        Ok(())
    }

    /// False: there is no such listener.
    pub fn stop_listening(&self, listener: u64) -> bool {
        let stopped = self.endpoint.stop_listening(listener);
        self.tree.changed();
        stopped
    }

    /// Ok: connected, and the peer said who it is.
    pub fn connect(&self, address: &Address, key: &KeyText) -> Result<(), MigrateError> {
        let key = peer_key(key)?;
        let connected = self.endpoint.connect(&address.to_string(), key);
        let id = connected.map_err(|error| connect_error(address, error))?;
        // Not left to the link's Up event: who connects may look for its directory at once.
        if let Some(link) = self.endpoint.link(id) {
            self.add(&link);
        }
        Ok(())
    }

    /// Ok: all of them, and kept. Err: none of them.
    pub fn change_trust(&self, changes: &[TrustChange]) -> Result<(), MigrateError> {
        let mut trusted = self.trusted.lock();
        let before: BTreeSet<PeerKey> = self.endpoint.trusted().into_iter().collect();
        let mut after = before.clone();
        for change in changes {
            match change {
                TrustChange::Add(key) => {
                    after.insert(peer_key(key)?);
                }
                TrustChange::Remove(key) => {
                    if !after.remove(&peer_key(key)?) {
                        return Err(MigrateError::NotTrusted(key.to_string()));
                    }
                }
            }
        }
        trusted.replace(after.clone()).map_err(trusted_error)?;
        for key in before.difference(&after) {
            self.endpoint.untrust(key);
            self.known.lock().retain(|_, peer| peer.lost.is_none() || peer.link.peer_key() != *key);
        }
        for key in after.difference(&before) {
            self.endpoint.trust(*key);
        }
        self.tree.changed();
        Ok(())
    }

    /// Takes the endpoint's events until it is gone.
    pub fn follow(self: &Arc<Self>, events: &Receiver<LinkEvent>, tasks: &Arc<dyn Tasks>) {
        for event in events {
            match event {
                LinkEvent::Up { link } => {
                    // None: down again already; its Down follows.
                    if let Some(link) = self.endpoint.link(link) {
                        self.add(&link);
                        self.begin_beat(&link);
                        tasks.link_up(link);
                    }
                }
                LinkEvent::Message { link, message } => tasks.message(link, message),
                LinkEvent::Down { link, reason } => {
                    self.end(link, &reason);
                    tasks.link_down(link, &reason.to_string());
                }
            }
        }
    }

    /// Adds it unless it is there, or down again.
    fn add(&self, link: &Link) {
        let role = match link.role() {
            LinkRole::Listener => Role::Ccn,
            LinkRole::Dialer => Role::Pen,
        };
        let mut known = self.known.lock();
        // A link is down before its Down event is, which waits for this lock to remove it.
        if !link.is_up() || known.contains_key(&link.id()) {
            return;
        }
        let key = link.peer_key();
        // The peer's older link, if it is still there, is on its way out, and its name is needed.
        // So is that of one that was lost, and is perhaps the same machine with another key.
        let is_lost = |peer: &Peer| peer.lost.is_some() && peer.name.as_str() == link.peer_name();
        let gives_way = |peer: &Peer| peer.link.peer_key() == key || is_lost(peer);
        known.retain(|_, peer| peer.role != role || !gives_way(peer));
        let of_others = |peer: &&Peer| peer.role == role;
        let taken: Vec<_> = known.values().filter(of_others).map(|peer| &peer.name).collect();
        let name = free_name(link.peer_name(), &taken);
        if name.as_str() != link.peer_name() {
            warn!("node {} ({key}) is called {name} here", link.peer_name());
        }
        let link = link.clone();
        known.insert(link.id(), Peer { name, role, link, leaving: false, beat: None, lost: None });
        drop(known);
        self.tree.changed();
    }

    /// From now on the two kernels know of each other, if both can.
    fn begin_beat(self: &Arc<Self>, link: &Link) {
        if !self.beats || !link.peer_features().iter().any(|f| f == beat::FEATURE) {
            return;
        }
        let beat = match Beat::of(link) {
            Ok(beat) => Arc::new(beat),
            Err(e) => return info!("our kernel cannot answer node {}: {e}", link.peer_name()),
        };
        if let Some(peer) = self.known.lock().get_mut(&link.id()) {
            peer.beat = Some(Arc::clone(&beat));
        }
        let name = link.peer_name().to_owned();
        self.in_thread(link.id(), move |_| {
            if beat.try_out() {
                info!("the kernel of node {name} answers for it");
            }
        });
    }

    /// Forgets it, unless its end was no good-bye and there is a kernel to ask.
    fn end(self: &Arc<Self>, id: LinkId, reason: &DownReason) {
        let is_lost = matches!(reason, DownReason::Lost(_) | DownReason::Silent(_));
        let mut known = self.known.lock();
        let beat = known.get_mut(&id).filter(|_| is_lost).and_then(|peer| {
            peer.lost = peer.beat.is_some().then_some(Sign::Unknown);
            peer.beat.clone()
        });
        drop(known);
        match beat {
            Some(beat) => self.in_thread(id, move |peers| {
                while peers.tell(id, beat.sign()) {
                    thread::sleep(beat::AGAIN);
                }
            }),
            None => self.forget(id),
        }
    }

    /// False: it is forgotten, or back over another link.
    fn tell(&self, id: LinkId, sign: Sign) -> bool {
        let mut known = self.known.lock();
        let Some(peer) = known.get_mut(&id) else { return false };
        if peer.lost.replace(sign) != Some(sign) {
            info!("node {} is lost{sign}", peer.name);
        }
        true
    }

    pub fn forget(&self, id: LinkId) {
        let forgotten = self.known.lock().remove(&id);
        drop(forgotten);
        self.tree.changed();
    }

    fn in_thread(self: &Arc<Self>, id: LinkId, work: impl FnOnce(&Self) + Send + 'static) {
        let peers = Arc::clone(self);
        let spawned = thread::Builder::new().name(format!("beat-{id}")).spawn(move || work(&peers));
        if let Err(e) = spawned {
            warn!("no thread to ask the kernel of node {id}: {e}");
        }
    }

    /// All links end with a good-bye, and our kernel answers nobody any more.
    pub fn close(&self, reason: &str) {
        self.endpoint.close(reason);
        self.known.lock().clear();
    }
}

pub fn link_lost(name: &NodeName, sign: Sign) -> MigrateError {
    MigrateError::PeerGone { node: name.to_string(), reason: format!("its link is lost{sign}") }
}

pub fn peer_key(text: &KeyText) -> Result<PeerKey, MigrateError> {
    text.as_str().parse().map_err(|_| MigrateError::BadKey(text.to_string()))
}

/// `wanted`, or `wanted-2` and so on.
fn free_name(wanted: &str, taken: &[&NodeName]) -> NodeName {
    let base = wanted.parse::<NodeName>();
    let base = base.as_ref().map_or(NAMELESS, NodeName::as_str);
    let suffixed = (2u64..).map(|n| {
        let suffix = format!("-{n}");
        let kept = base.len().min(NODE_NAME_BYTES_MAX - suffix.len());
        format!("{}{suffix}", &base[..kept])
    });
    std::iter::once(base.to_owned())
        .chain(suffixed)
        .filter_map(|name| name.parse().ok())
        .find(|name| !taken.contains(&name))
        .expect("more names than peers")
}

fn trusted_error(error: TrustedError) -> MigrateError {
    match error {
        TrustedError::Io { path, source } => {
            MigrateError::Local { doing: format!("cannot keep {}", path.display()), source }
        }
        TrustedError::Damaged { .. } => MigrateError::Local {
            doing: "cannot keep who is trusted".to_owned(),
            source: std::io::Error::other(error.to_string()),
        },
    }
}

fn listen_error(address: &Address, error: ListenError) -> MigrateError {
    let address = address.to_string();
    match error {
        ListenError::Address(error) => {
            let source = std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, error);
            MigrateError::Listen { address, source }
        }
        ListenError::Io { source, .. } => MigrateError::Listen { address, source },
    }
}

fn connect_error(address: &Address, error: ConnectError) -> MigrateError {
    let reason = error.to_string();
    let address = address.to_string();
    let of_kind = |kind| MigrateError::Connect {
        address: address.clone(),
        source: std::io::Error::new(kind, reason.clone()),
    };
    match error {
        ConnectError::Resolve { source, .. } | ConnectError::Tcp { source, .. } => {
            MigrateError::Connect { address, source }
        }
        ConnectError::Timeout(_) => of_kind(std::io::ErrorKind::TimedOut),
        ConnectError::Refused { .. } => of_kind(std::io::ErrorKind::ConnectionRefused),
        ConnectError::AlreadyConnected(_) => MigrateError::Exists(reason),
        ConnectError::WrongKey(_) | ConnectError::NotTrusted(_) => {
            MigrateError::Untrusted { reason }
        }
        ConnectError::Address(_) => of_kind(std::io::ErrorKind::InvalidInput),
        ConnectError::NotANode { .. }
        | ConnectError::Version { .. }
        | ConnectError::Ended { .. } => MigrateError::Protocol { node: address, reason },
        ConnectError::Resources(source) => {
            MigrateError::Local { doing: format!("cannot connect to {address}"), source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_collide() {
        let desk: NodeName = "desk".parse().unwrap();
        let desk_2: NodeName = "desk-2".parse().unwrap();
        assert_eq!(free_name("desk", &[]), desk);
        assert_eq!(free_name("desk", &[&desk]), desk_2);
        assert_eq!(free_name("desk", &[&desk, &desk_2]).as_str(), "desk-3");
        assert_eq!(free_name("count", &[]).as_str(), "node");
        let long: NodeName = "a".repeat(NODE_NAME_BYTES_MAX).parse().unwrap();
        assert_eq!(free_name(long.as_str(), &[&long]).as_str().len(), NODE_NAME_BYTES_MAX);
    }
}
