//! What an end of a link does when, without sockets, threads or a clock.
//!
//! The driver hands in what arrived and what time it is, and takes out what is to be
//! sent, what happened, and when to come back. After [`SessionEvent::Down`] it sends
//! what [`Session::poll_transmit`] still has (a Bye) and closes the connection.

use std::collections::VecDeque;
use std::time::Duration;

use crate::codec::{self, CodecError};
use crate::limits::*;
use crate::message::{Control, PROTOCOL_VERSION, StreamKind};

/// Time since an instant that the driver chose once.
pub type Moment = Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The execution node: dialed the link, and dials its streams.
    Dialer,
    /// The home.
    Listener,
}

/// How a node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub name: String,
    pub features: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "a node's name has 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -, begins with none of . _ -, and is no number"
    )]
    Name,
    #[error("a node has at most {FEATURES_MAX} features")]
    TooManyFeatures,
    #[error("a feature is one line of 1 to {FEATURE_BYTES_MAX} printable bytes")]
    Feature,
}

impl Hello {
    /// Names become names of files, features lines of one.
    pub fn check(&self) -> Result<(), NameError> {
        let name = self.name.as_bytes();
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        let sized = (1..=NAME_BYTES_MAX).contains(&name.len());
        if !sized
            || !name.iter().all(plain)
            || !name[0].is_ascii_alphanumeric()
            || name.iter().all(u8::is_ascii_digit)
        {
            return Err(NameError::Name);
        }
        if self.features.len() > FEATURES_MAX {
            return Err(NameError::TooManyFeatures);
        }
        let line = |f: &String| {
            (1..=FEATURE_BYTES_MAX).contains(&f.len())
                && f.bytes().all(|b| (b' '..=b'~').contains(&b))
        };
        match self.features.iter().all(line) {
            true => Ok(()),
            false => Err(NameError::Feature),
        }
    }
}

/// Why a link ended.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DownReason {
    #[error("closed here: {0}")]
    ClosedHere(String),
    #[error("closed by the peer: {0}")]
    ClosedByPeer(String),
    #[error("the peer speaks protocol version {theirs}, this node {ours}")]
    Version { theirs: u16, ours: u16 },
    #[error("nothing was heard from the peer for {0:?}")]
    Silent(Duration),
    #[error("the peer did not introduce itself in {0:?}")]
    NoHello(Duration),
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    #[error("connection lost: {0}")]
    Lost(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    Up(Hello),
    /// Offers, guests' messages, questions: what the session does not answer itself.
    Message(Control),
    /// The peer's load average in thousandths.
    Load(u32),
    /// The last event.
    Down(DownReason),
}

/// Dialer only: a stream to dial, and then to call [`Session::stream_dialed`] for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    pub id: u64,
    pub kind: StreamKind,
}

#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    pub keepalive_interval: Duration,
    pub keepalive_limit: Duration,
    pub hello_timeout: Duration,
    /// Streams that a dialer keeps parked.
    pub parked_bulk: u32,
    pub parked_call: u32,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_limit: KEEPALIVE_LIMIT,
            hello_timeout: HELLO_TIMEOUT,
            parked_bulk: PARKED_BULK_DEFAULT,
            parked_call: PARKED_CALL_DEFAULT,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitHello { until: Moment },
    Up { ping_at: Moment },
    Down,
}

/// Streams of one kind, as the dialer counts them.
#[derive(Debug)]
struct Pool {
    kind: StreamKind,
    /// Kept parked at all times.
    floor: u32,
    /// Parked at the listener, or being dialed.
    have: u32,
    /// Dials that failed and are tried again.
    failed: u32,
}

/// One end of a link.
#[derive(Debug)]
pub struct Session {
    role: Role,
    local: Hello,
    options: SessionOptions,
    state: State,
    load: u32,
    heard_at: Moment,
    pools: [Pool; 2],
    redial_at: Option<Moment>,
    next_stream: u64,
    transmit: VecDeque<Control>,
    dials: VecDeque<Dial>,
    events: VecDeque<SessionEvent>,
}

impl Session {
    /// Begins with a Hello to send. `local` must pass [`Hello::check`], or the peer refuses it.
    pub fn new(role: Role, local: Hello, options: SessionOptions, now: Moment) -> Self {
        let pool = |kind, floor: u32| Pool {
            kind,
            floor: floor.min(STREAMS_PARKED_MAX),
            have: 0,
            failed: 0,
        };
        let hello = Control::Hello {
            protocol: PROTOCOL_VERSION,
            name: local.name.clone(),
            features: local.features.clone(),
        };
        Self {
            role,
            local,
            state: State::AwaitHello { until: now + options.hello_timeout },
            load: 0,
            heard_at: now,
            pools: [
                pool(StreamKind::Bulk, options.parked_bulk),
                pool(StreamKind::Call, options.parked_call),
            ],
            options,
            redial_at: None,
            next_stream: 1,
            transmit: VecDeque::from([hello]),
            dials: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub fn local(&self) -> &Hello {
        &self.local
    }

    /// What the next Pong says, in thousandths.
    pub fn set_load(&mut self, load: u32) {
        self.load = load;
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    pub fn poll_transmit(&mut self) -> Option<Control> {
        self.transmit.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    pub fn poll_dial(&mut self) -> Option<Dial> {
        self.dials.pop_front()
    }

    /// When [`Session::handle_timeout`] wants to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.state {
            State::AwaitHello { until } => Some(until),
            State::Up { ping_at } => {
                let silent_at = self.heard_at + self.options.keepalive_limit;
                Some(ping_at.min(silent_at).min(self.redial_at.unwrap_or(Moment::MAX)))
            }
            State::Down => None,
        }
    }

    pub fn handle_timeout(&mut self, now: Moment) {
        self.forgive(now);
        match self.state {
            State::AwaitHello { until } if now >= until => {
                self.fail(DownReason::NoHello(self.options.hello_timeout));
            }
            State::Up { .. } if now >= self.heard_at + self.options.keepalive_limit => {
                // No Bye: if it arrives after all, the peer has lost its link, and not been left.
                self.end(DownReason::Silent(self.options.keepalive_limit));
            }
            State::Up { ping_at } => {
                if now >= ping_at {
                    self.transmit.push_back(Control::Ping {});
                    self.state = State::Up { ping_at: now + self.options.keepalive_interval };
                }
                if self.redial_at.is_some_and(|at| now >= at) {
                    self.redial();
                }
            }
            State::AwaitHello { .. } | State::Down => {}
        }
    }

    /// A machine on which nothing ran for a while heard nothing meanwhile, and said nothing: that
    /// is not the peer's silence.
    fn forgive(&mut self, now: Moment) {
        if let State::Up { ping_at } = self.state {
            let late = now.saturating_sub(ping_at);
            if late >= self.options.keepalive_interval {
                self.heard_at = (self.heard_at + late).min(now);
            }
        }
    }

    /// Whole encoded message, as it came.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Moment) {
        let max = if self.is_up() { CONTROL_MESSAGE_BYTES_MAX } else { OPENING_BYTES_MAX };
        match codec::decode_frame(bytes, max).and_then(|f| Control::from_frame(&f)) {
            Ok(message) => self.handle_message(message, now),
            Err(e) => self.handle_undecodable(&e),
        }
    }

    pub fn handle_undecodable(&mut self, e: &CodecError) {
        self.fail(match *e {
            CodecError::Version { theirs, ours } => DownReason::Version { theirs, ours },
            ref other => DownReason::Protocol(other.to_string()),
        });
    }

    /// The connection broke; nothing can be sent any more.
    pub fn handle_lost(&mut self, why: String) {
        self.fail(DownReason::Lost(why));
        self.transmit.clear();
    }

    pub fn handle_message(&mut self, message: Control, now: Moment) {
        self.heard_at = now;
        match (self.state, message) {
            (State::Down, _) => {}
            (_, Control::Bye { reason }) => {
                self.end(DownReason::ClosedByPeer(printable(&reason)));
            }
            (State::AwaitHello { .. }, Control::Hello { protocol, name, features }) => {
                self.handle_hello(protocol, Hello { name, features }, now);
            }
            (State::AwaitHello { .. }, other) => self.out_of_order(&other),
            (State::Up { .. }, message) => self.handle_up(message),
        }
    }

    fn handle_hello(&mut self, theirs: u16, hello: Hello, now: Moment) {
        if theirs != PROTOCOL_VERSION {
            return self.fail(DownReason::Version { theirs, ours: PROTOCOL_VERSION });
        }
        if let Err(e) = hello.check() {
            return self.fail(DownReason::Protocol(format!("bad Hello: {e}")));
        }
        self.state = State::Up { ping_at: now + self.options.keepalive_interval };
        self.events.push_back(SessionEvent::Up(hello));
        if self.role == Role::Dialer {
            for i in 0..self.pools.len() {
                self.top_up(i, self.pools[i].floor);
            }
        }
    }

    fn handle_up(&mut self, message: Control) {
        match (self.role, message) {
            (_, Control::Ping {}) => self.transmit.push_back(Control::Pong { load: self.load }),
            (_, Control::Pong { load }) => self.events.push_back(SessionEvent::Load(load)),
            (Role::Dialer, Control::StreamsWanted { kind, parked }) => self.want(kind, parked),
            (Role::Dialer, Control::StreamTaken { kind, id }) => self.handle_taken(kind, id),
            (Role::Listener, m @ (Control::StreamsWanted { .. } | Control::StreamTaken { .. }))
            | (_, m @ Control::Hello { .. }) => self.out_of_order(&m),
            (
                _,
                m @ (Control::Offer { .. }
                | Control::OfferAnswer { .. }
                | Control::Guest { .. }
                | Control::MigrationStatus { .. }
                | Control::MigrationStatusAnswer { .. }),
            ) => self.events.push_back(SessionEvent::Message(m)),
            (_, Control::Bye { .. }) => unreachable!("handled in every state"),
        }
    }

    fn handle_taken(&mut self, kind: StreamKind, id: u64) {
        let i = self.pool(kind);
        if id >= self.next_stream || self.pools[i].have == 0 {
            return self
                .fail(DownReason::Protocol(format!("took stream {id}, which was not parked")));
        }
        self.pools[i].have -= 1;
        self.top_up(i, self.pools[i].floor);
    }

    /// Have so many parked now. Streams that are taken later are replaced up to the floor
    /// that the options set. Listener: asks the dialer.
    pub fn want(&mut self, kind: StreamKind, parked: u32) {
        if !self.is_up() {
            return;
        }
        match self.role {
            Role::Listener => self.transmit.push_back(Control::StreamsWanted { kind, parked }),
            Role::Dialer => self.top_up(self.pool(kind), parked.min(STREAMS_PARKED_MAX)),
        }
    }

    /// How the dial that a [`SessionEvent::Dial`] asked for ended.
    pub fn stream_dialed(&mut self, kind: StreamKind, parked: bool, now: Moment) {
        if parked || !self.is_up() {
            return;
        }
        let i = self.pool(kind);
        self.pools[i].failed += 1;
        self.redial_at.get_or_insert(now + STREAM_REDIAL_DELAY);
    }

    /// Listener: a parked stream is used from now on.
    pub fn take(&mut self, kind: StreamKind, id: u64) {
        if self.is_up() {
            self.transmit.push_back(Control::StreamTaken { kind, id });
        }
    }

    /// Ends the link and tells the peer why.
    pub fn close(&mut self, reason: &str) {
        self.fail(DownReason::ClosedHere(printable(reason)));
    }

    fn pool(&self, kind: StreamKind) -> usize {
        usize::from(self.pools[0].kind != kind)
    }

    fn top_up(&mut self, i: usize, to: u32) {
        while self.pools[i].have < to {
            self.pools[i].have += 1;
            self.dial(i);
        }
    }

    fn redial(&mut self) {
        self.redial_at = None;
        for i in 0..self.pools.len() {
            for _ in 0..std::mem::take(&mut self.pools[i].failed) {
                self.dial(i);
            }
        }
    }

    fn dial(&mut self, i: usize) {
        let id = self.next_stream;
        self.next_stream += 1;
        self.dials.push_back(Dial { id, kind: self.pools[i].kind });
    }

    fn out_of_order(&mut self, m: &Control) {
        let when = if self.is_up() { "on an open link" } else { "before Hello" };
        self.fail(DownReason::Protocol(format!("{} {when}", m.label())));
    }

    fn fail(&mut self, reason: DownReason) {
        if self.state != State::Down {
            let text = match &reason {
                DownReason::ClosedHere(why) => why.clone(),
                other => other.to_string(),
            };
            self.transmit.push_back(Control::Bye { reason: printable(&text) });
        }
        self.end(reason);
    }

    fn end(&mut self, reason: DownReason) {
        if self.state != State::Down {
            self.state = State::Down;
            self.events.push_back(SessionEvent::Down(reason));
        }
    }
}

/// What may stand in a log line or a status file, cut to its bound.
pub(crate) fn printable(text: &str) -> String {
    let mut cut = String::new();
    for c in text.chars().map(|c| if c.is_control() { '?' } else { c }) {
        if cut.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        cut.push(c);
    }
    cut
}
