//! Two nodes on one host, on ports that the kernel gives.
#![allow(dead_code, reason = "each test program uses its part")]

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use tcmi_kkc::{Endpoint, Identity, Link, LinkEvent, LinkId, ListenerInfo, Options, PeerKey};

/// Far more than anything here takes; a test that waits so long fails.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Node {
    pub endpoint: Endpoint,
    pub events: Receiver<LinkEvent>,
}

impl Node {
    pub fn new(name: &str) -> Self {
        Self::with(name, Options::default())
    }

    pub fn with(name: &str, options: Options) -> Self {
        let (tx, events) = unbounded();
        let identity = Identity::ephemeral().unwrap();
        let features = vec!["arch=x86_64".to_owned(), format!("node={name}")];
        let endpoint = Endpoint::with_options(identity, name, features, tx, options).unwrap();
        Self { endpoint, events }
    }

    pub fn event(&self) -> LinkEvent {
        self.events.recv_timeout(LONG).expect("an event")
    }

    pub fn link_up(&self) -> Link {
        match self.event() {
            LinkEvent::Up { link } => self.endpoint.link(link).expect("the link is up"),
            other => panic!("{other:?}"),
        }
    }

    pub fn down(&self, id: LinkId) -> tcmi_kkc::DownReason {
        match self.event() {
            LinkEvent::Down { link, reason } if link == id => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn key(&self) -> PeerKey {
        self.endpoint.key()
    }
}

/// A home that listens, an execution node that is connected to it, and both ends of the link.
pub struct Pair {
    pub home: Node,
    pub desk: Node,
    pub at_home: Link,
    pub at_desk: Link,
    pub listener: ListenerInfo,
}

impl Pair {
    pub fn new() -> Self {
        Self::with(Options::default(), Options::default())
    }

    pub fn with(home: Options, desk: Options) -> Self {
        let (home, desk) = (Node::with("home", home), Node::with("desk", desk));
        let listener = home.endpoint.listen("tcp:127.0.0.1:0").unwrap();
        home.endpoint.trust(desk.key());
        let id = desk.endpoint.connect(&text(&listener), home.key()).unwrap();
        let at_home = home.link_up();
        let at_desk = desk.link_up();
        assert_eq!(at_desk.id(), id);
        Self { home, desk, at_home, at_desk, listener }
    }
}

pub fn text(listener: &ListenerInfo) -> String {
    format!("tcp:{}", listener.sockname)
}

/// Polls without a fixed pause: yields until `done` or too long.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}
