//! One link: a reader thread that owns what arrives and all events, a writer thread that
//! owns what leaves, and on the dialing side a few threads that dial streams.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::dial::StreamDialer;
use super::streams::Streams;
use super::waker::Waker;
use super::{LinkEvent, LinkId, SendError, Shared, StreamError};
use crate::control::{ControlError, ControlReader, ControlWriter};
use crate::identity::PeerKey;
use crate::limits::*;
use crate::message::{Control, StreamKind};
use crate::session::{Dial, DownReason, Hello, Moment, Role, Session, SessionEvent};
use crate::socket::{recv_some, timespec};
use crate::stream::Stream;
use crate::tls::{self, ExportedKeys, Keys};

/// How long the writer waits, after its last message, for the peer to close too.
const LINGER: Duration = Duration::from_secs(1);

/// An authenticated control connection.
pub(super) struct Connection {
    pub role: Role,
    pub peer: PeerKey,
    pub address: SocketAddr,
    pub session: u64,
    pub tcp: TcpStream,
    pub keys: Keys,
}

enum Outgoing {
    Message(Vec<u8>),
    Close,
}

pub(super) struct Inner {
    pub id: LinkId,
    pub role: Role,
    pub peer: PeerKey,
    pub session_id: u64,
    pub streams: Streams,
    local_address: SocketAddr,
    address: SocketAddr,
    exported: ExportedKeys,
    hello: OnceLock<Hello>,
    load: AtomicU32,
    session: Mutex<Session>,
    epoch: Instant,
    outgoing: Sender<Outgoing>,
    queued_bytes: AtomicUsize,
    /// Dialer, while the link lives.
    dials: Mutex<Option<Sender<Dial>>>,
    waker: Waker,
    outcome: Mutex<Outcome>,
    outcome_changed: Condvar,
}

#[derive(Clone)]
enum Outcome {
    Starting,
    Up,
    Down(DownReason),
}

/// Registers the link and starts its threads. It is down before the error is returned.
pub(super) fn start(shared: &Arc<Shared>, connection: Connection) -> io::Result<Arc<Inner>> {
    let Connection { role, peer, address, session, tcp, keys } = connection;
    let (outgoing, to_send) = crossbeam_channel::bounded(CONTROL_QUEUE_MESSAGES_MAX);
    let (dials, to_dial) = crossbeam_channel::unbounded();
    let inner = Arc::new(Inner {
        id: shared.next_link_id(),
        role,
        peer,
        session_id: session,
        streams: Streams::default(),
        local_address: tcp.local_addr()?,
        address,
        exported: keys.exported,
        hello: OnceLock::new(),
        load: AtomicU32::new(0),
        session: Mutex::new(Session::new(
            role,
            shared.hello.clone(),
            shared.options.session,
            Moment::ZERO,
        )),
        epoch: Instant::now(),
        outgoing,
        queued_bytes: AtomicUsize::new(0),
        dials: Mutex::new((role == Role::Dialer).then_some(dials)),
        waker: Waker::new()?,
        outcome: Mutex::new(Outcome::Starting),
        outcome_changed: Condvar::new(),
    });
    shared.add_link(&inner);
    let started = start_threads(shared, &inner, tcp, &keys, &to_send, &to_dial);
    if started.is_err() {
        shared.remove_link(inner.id);
        inner.dials.lock().take();
        // A writer that was started ends with the queue's last sender, or by this.
        inner
            .outgoing
            .try_send(Outgoing::Close)
            .map_err(|_| io::Error::other("a new queue is full"))?;
    }
    started.map(|()| inner)
}

fn start_threads(
    shared: &Arc<Shared>,
    inner: &Arc<Inner>,
    tcp: TcpStream,
    keys: &Keys,
    to_send: &Receiver<Outgoing>,
    to_dial: &Receiver<Dial>,
) -> io::Result<()> {
    let name = |what: &str| thread::Builder::new().name(format!("kkc-{what}-{}", inner.id));
    let tcp = Arc::new(tcp);

    let (link, queue, socket, writer) =
        (inner.clone(), to_send.clone(), tcp.clone(), ControlWriter::new(&keys.tx));
    name("write").spawn(move || link.write_loop(&socket, writer, &queue))?;

    if inner.role == Role::Dialer {
        let dialer = Arc::new(StreamDialer {
            address: inner.address,
            session: inner.session_id,
            call_tls: tls::dialer(&shared.identity, inner.peer, StreamKind::Call),
            bulk_tls: tls::dialer(&shared.identity, inner.peer, StreamKind::Bulk),
            timeout: shared.options.handshake_timeout,
        });
        for _ in 0..DIALS_AT_ONCE_MAX {
            let (link, queue, dialer) = (inner.clone(), to_dial.clone(), dialer.clone());
            name("dial").spawn(move || link.dial_loop(&dialer, &queue))?;
        }
    }

    let (link, shared, reader) = (inner.clone(), shared.clone(), ControlReader::new(&keys.rx));
    name("read").spawn(move || {
        let reason = link.read_loop(&shared, &tcp, reader);
        link.finish(&shared, &tcp, reason);
    })?;
    Ok(())
}

impl Inner {
    fn now(&self) -> Moment {
        self.epoch.elapsed()
    }

    /// Lets the session work, and carries out what it wants sent and dialed. Its events are
    /// taken by the reader thread alone.
    fn drive<T>(&self, work: impl FnOnce(&mut Session, Moment) -> T) -> T {
        let mut session = self.session.lock();
        let done = work(&mut session, self.now());
        while let Some(message) = session.poll_transmit() {
            if let Err(e) = self.queue(&message) {
                session.handle_lost(e.to_string());
                self.waker.wake();
            }
        }
        let dials = self.dials.lock();
        while let Some(dial) = session.poll_dial() {
            let sent = dials.as_ref().map(|d| d.send(dial));
            debug_assert!(
                sent.is_none_or(|s| s.is_ok()),
                "the dialing threads outlive their queue"
            );
        }
        done
    }

    fn queue(&self, message: &Control) -> Result<(), SendError> {
        let frame = message.encode()?;
        if frame.len() > CONTROL_MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge { bytes: frame.len() });
        }
        let bytes = frame.len();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > CONTROL_QUEUE_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SendError::Congested);
        }
        self.outgoing.try_send(Outgoing::Message(frame)).map_err(|e| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match e {
                TrySendError::Full(_) => SendError::Congested,
                TrySendError::Disconnected(_) => SendError::Down,
            }
        })
    }

    fn write_loop(&self, tcp: &TcpStream, mut writer: ControlWriter, queue: &Receiver<Outgoing>) {
        while let Ok(Outgoing::Message(frame)) = queue.recv() {
            self.queued_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
            if let Err(e) = writer.send(tcp, &frame, CONTROL_WRITE_TIMEOUT) {
                self.drive(|session, _| session.handle_lost(e.to_string()));
                self.waker.wake();
                break;
            }
        }
        hang_up(tcp);
    }

    fn dial_loop(&self, dialer: &StreamDialer, queue: &Receiver<Dial>) {
        while let Ok(Dial { id, kind }) = queue.recv() {
            let dialed = dialer.dial(id, kind);
            let parked = dialed.is_ok();
            match dialed {
                Ok(stream) => self.streams.park(stream),
                Err(e) => {
                    tracing::debug!(link = %self.id, stream = id, ?kind, "dialing a stream: {e}")
                }
            }
            self.drive(|session, now| session.stream_dialed(kind, parked, now));
            if !parked {
                self.waker.wake();
            }
        }
    }

    fn read_loop(&self, shared: &Shared, tcp: &TcpStream, mut reader: ControlReader) -> DownReason {
        loop {
            self.drive(|session, now| {
                session.set_load(shared.load());
                session.handle_timeout(now);
            });
            if let Some(reason) = self.deliver(shared) {
                return reason;
            }
            let next = self.session.lock().poll_timeout();
            let readable = match self.wait(tcp, next) {
                Ok(readable) => readable,
                Err(e) => {
                    self.drive(|session, _| session.handle_lost(e.to_string()));
                    continue;
                }
            };
            if readable {
                self.receive(tcp, &mut reader);
            }
        }
    }

    fn wait(&self, tcp: &TcpStream, next: Option<Moment>) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.waker, PollFlags::IN), PollFd::new(tcp, PollFlags::IN)];
        let timeout =
            next.map(|at| timespec(at.saturating_sub(self.now()) + Duration::from_millis(1)));
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        let (woken, readable) = (!polled[0].revents().is_empty(), !polled[1].revents().is_empty());
        if woken {
            self.waker.clear();
        }
        Ok(readable)
    }

    fn receive(&self, tcp: &TcpStream, reader: &mut ControlReader) {
        let received = reader.receive(tcp);
        // What came before the end is still heard: a Bye says more than a closed connection.
        loop {
            let max = if self.session.lock().is_up() {
                CONTROL_MESSAGE_BYTES_MAX
            } else {
                OPENING_BYTES_MAX
            };
            let message = reader.next_frame(max).and_then(|frame| match frame {
                Some(frame) => Ok(Some(Control::from_frame(&frame)?)),
                None => Ok(None),
            });
            match message {
                Ok(Some(message)) => {
                    self.drive(|session, now| session.handle_message(message, now))
                }
                Ok(None) => break,
                Err(e) => return self.fail(&e),
            }
        }
        if let Err(e) = received {
            self.fail(&e);
        }
    }

    fn fail(&self, e: &ControlError) {
        self.drive(|session, _| match e {
            ControlError::Codec(codec) => session.handle_undecodable(codec),
            other => session.handle_lost(other.to_string()),
        });
    }

    /// Hands the session's events on; the reason if the last one was among them.
    fn deliver(&self, shared: &Shared) -> Option<DownReason> {
        let events: Vec<_> = {
            let mut session = self.session.lock();
            std::iter::from_fn(|| session.poll_event()).collect()
        };
        for event in events {
            match event {
                SessionEvent::Up(hello) => self.come_up(shared, hello),
                SessionEvent::Message(message) => {
                    shared.tell(LinkEvent::Message { link: self.id, message })
                }
                SessionEvent::Load(load) => {
                    self.load.store(load, Ordering::Relaxed);
                    // The peer answered a Ping, so this is as often as it need be: nothing tells
                    // of a stream that home took for a move and dropped.
                    if self.role == Role::Dialer {
                        self.streams.drop_forsaken();
                    }
                }
                SessionEvent::Down(reason) => return Some(reason),
            }
        }
        None
    }

    fn come_up(&self, shared: &Shared, hello: Hello) {
        tracing::info!(link = %self.id, peer = %hello.name, key = %self.peer, address = %self.address, "link is up");
        self.hello.set(hello).expect("a session comes up once");
        self.set_outcome(Outcome::Up);
        shared.tell(LinkEvent::Up { link: self.id });
        shared.retire_others(self);
        // The key may have been taken back while the handshake ran, before this link was listed.
        if self.role == Role::Listener && !shared.pins.contains(&self.peer) {
            self.close("this node trusts the key no longer");
        }
        if shared.is_closed() {
            self.close("the node is going down");
        }
    }

    fn finish(&self, shared: &Shared, tcp: &TcpStream, reason: DownReason) {
        shared.remove_link(self.id);
        self.streams.close();
        self.dials.lock().take();
        if self.outgoing.try_send(Outgoing::Close).is_err() {
            // The writer is stuck behind a full queue: what is in it will not be sent.
            shut(tcp, Shutdown::Both);
        }
        let was_up = self.hello.get().is_some();
        self.set_outcome(Outcome::Down(reason.clone()));
        match was_up {
            true => {
                tracing::info!(link = %self.id, key = %self.peer, "link is down: {reason}");
                shared.tell(LinkEvent::Down { link: self.id, reason });
            }
            false if self.role == Role::Listener => shared.refuse(self.address.ip(), &reason),
            false => {}
        }
    }

    fn set_outcome(&self, outcome: Outcome) {
        *self.outcome.lock() = outcome;
        self.outcome_changed.notify_all();
    }

    /// Blocks until the session is up or over; its timeouts bound that.
    pub fn wait_up(&self) -> Result<LinkId, DownReason> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Outcome::Up => return Ok(self.id),
                Outcome::Down(reason) => return Err(reason.clone()),
                Outcome::Starting => self.outcome_changed.wait(&mut outcome),
            }
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.outcome.lock(), Outcome::Up)
    }

    pub fn close(&self, reason: &str) {
        self.drive(|session, _| session.close(reason));
        self.waker.wake();
    }
}

fn hang_up(tcp: &TcpStream) {
    shut(tcp, Shutdown::Write);
    let until = Instant::now() + LINGER;
    let mut rest = [0; 4096];
    // Data left unread would make the kernel reset the connection, and the Bye be lost.
    while matches!(recv_some(tcp, &mut rest, until), Ok(n) if n > 0) {}
    shut(tcp, Shutdown::Both);
}

fn shut(tcp: &TcpStream, how: Shutdown) {
    match rustix::net::shutdown(tcp, how) {
        Ok(()) | Err(Errno::NOTCONN) => {}
        Err(e) => tracing::warn!("shutting a link's connection down: {e}"),
    }
}

/// A link that came up. It may be down by now: then what it was stays readable, and what
/// it could do fails with the reason.
#[derive(Clone)]
pub struct Link(pub(super) Arc<Inner>);

impl Link {
    pub fn id(&self) -> LinkId {
        self.0.id
    }

    /// This node's role on the link.
    pub fn role(&self) -> Role {
        self.0.role
    }

    pub fn peer_key(&self) -> PeerKey {
        self.0.peer
    }

    pub fn peer_address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn local_address(&self) -> SocketAddr {
        self.0.local_address
    }

    /// Known to the two ends of this link alone.
    pub fn exported_keys(&self) -> ExportedKeys {
        self.0.exported
    }

    pub fn peer_name(&self) -> &str {
        &self.peer().name
    }

    pub fn peer_features(&self) -> &[String] {
        &self.peer().features
    }

    fn peer(&self) -> &Hello {
        self.0.hello.get().expect("a Link is made of a link that came up")
    }

    /// The peer's one-minute load average in thousandths, as of its last Pong.
    pub fn peer_load(&self) -> u32 {
        self.0.load.load(Ordering::Relaxed)
    }

    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Queues a message; Ok does not mean that it arrived. Messages of the session itself are
    /// refused.
    pub fn send(&self, message: &Control) -> Result<(), SendError> {
        if message.is_of_session() {
            return Err(SendError::Reserved(message.label()));
        }
        match self.is_up() {
            true => self.0.queue(message),
            false => Err(SendError::Down),
        }
    }

    /// Home: a parked stream; the execution node claims its other end by its id.
    pub fn take_stream(&self, kind: StreamKind, timeout: Duration) -> Result<Stream, StreamError> {
        if self.0.role != Role::Listener {
            return Err(StreamError::WrongRole);
        }
        let until = Instant::now() + timeout;
        loop {
            let stream = self.0.streams.take(kind, until).ok_or_else(|| self.no_stream(timeout))?;
            self.0.drive(|session, _| session.take(kind, stream.id));
            if !stream.is_hung_up() {
                return Ok(stream);
            }
        }
    }

    /// Execution node: the stream that home took and named.
    pub fn claim_stream(&self, id: u64, timeout: Duration) -> Result<Stream, StreamError> {
        if self.0.role != Role::Dialer {
            return Err(StreamError::WrongRole);
        }
        self.0.streams.claim(id, Instant::now() + timeout).ok_or_else(|| self.no_stream(timeout))
    }

    fn no_stream(&self, waited: Duration) -> StreamError {
        match &*self.0.outcome.lock() {
            Outcome::Down(reason) => StreamError::Down(reason.clone()),
            Outcome::Up | Outcome::Starting => StreamError::Timeout(waited),
        }
    }

    /// Asks for `n` streams parked, and does not wait for them. They are a stock: what is taken
    /// is replaced only up to the number that the dialer's options keep.
    pub fn ensure(&self, kind: StreamKind, n: u32) {
        self.0.drive(|session, _| session.want(kind, n));
    }

    /// Streams that are ready now.
    pub fn parked(&self, kind: StreamKind) -> usize {
        self.0.streams.parked(kind)
    }

    /// Ends the link; the reason is told to the peer. Down follows as an event. Streams that
    /// were taken or claimed stay open: they are their owners'.
    pub fn close(&self, reason: &str) {
        self.0.close(reason);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.0.id)
            .field("peer", &self.0.peer)
            .finish_non_exhaustive()
    }
}
