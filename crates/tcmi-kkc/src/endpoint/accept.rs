//! Listening sockets, and what comes in on them before it is known who it is.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;

use super::link::{self, Connection};
use super::{Shared, waker::Waker};
use crate::control::CONTROL_CIPHER;
use crate::identity::PeerKey;
use crate::message::{Opened, Opening, StreamKind};
use crate::session::{Role, printable};
use crate::socket;
use crate::stream::Stream;
use crate::tls::{Handshake, OpenError};

/// Until another attempt to accept when the process is out of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

pub(super) struct Listening {
    pub sockname: SocketAddr,
    stop: Arc<Waker>,
    thread: JoinHandle<()>,
}

impl Listening {
    pub fn start(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<Self> {
        let sockname = listener.local_addr()?;
        // The connection may be gone between poll and accept.
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Waker::new()?);
        let (shared, stopped) = (shared.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("kkc-listen".into())
            .spawn(move || accept_loop(&shared, &listener, &stopped))?;
        Ok(Self { sockname, stop, thread })
    }

    /// Closes the socket; connections that came in through it stay.
    pub fn stop(self) {
        self.stop.wake();
        if self.thread.join().is_err() {
            tracing::error!(sockname = %self.sockname, "the listener's thread had panicked");
        }
    }
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener, stop: &Waker) {
    loop {
        let mut polled = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        if let Err(e) = poll(&mut polled, None)
            && e != rustix::io::Errno::INTR
        {
            tracing::error!("waiting for connections: {e}");
            return;
        }
        if !polled[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((tcp, from)) => admit(shared, tcp, from),
            Err(e) => match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(
                    rustix::io::Errno::MFILE
                    | rustix::io::Errno::NFILE
                    | rustix::io::Errno::NOBUFS
                    | rustix::io::Errno::NOMEM,
                ) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    let pause = socket::timespec(ACCEPT_RETRY_DELAY);
                    match poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&pause)) {
                        Ok(0) | Err(_) => {}
                        Ok(_) => return,
                    }
                }
                // The connection was reset before it was accepted, or the network complains.
                _ => {}
            },
        }
    }
}

/// Connections that have not shown who they are, oldest first.
#[derive(Default)]
pub(super) struct HalfOpen {
    entries: Vec<HalfOpenEntry>,
    next: u64,
}

struct HalfOpenEntry {
    ticket: u64,
    source: IpAddr,
    tcp: Arc<TcpStream>,
}

impl HalfOpen {
    /// Its ticket. When there are too many, the oldest of the source that has most is
    /// shut down: who is a peer needs milliseconds, who floods is in its own way.
    fn enter(&mut self, tcp: Arc<TcpStream>, source: IpAddr, max: usize) -> u64 {
        if self.entries.len() >= max {
            let count = |ip: IpAddr| self.entries.iter().filter(|e| e.source == ip).count();
            let oldest =
                (0..self.entries.len()).rev().max_by_key(|&i| count(self.entries[i].source));
            if let Some(i) = oldest {
                shut(&self.entries.remove(i).tcp);
            }
        }
        self.next += 1;
        self.entries.push(HalfOpenEntry { ticket: self.next, source, tcp });
        self.next
    }

    fn leave(&mut self, ticket: u64) {
        self.entries.retain(|e| e.ticket != ticket);
    }

    pub fn shut_all(&mut self) {
        self.entries.drain(..).for_each(|e| shut(&e.tcp));
    }
}

fn shut(tcp: &TcpStream) {
    match rustix::net::shutdown(tcp, Shutdown::Both) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => {}
        Err(e) => tracing::warn!("shutting a connection down: {e}"),
    }
}

fn admit(shared: &Arc<Shared>, tcp: TcpStream, from: SocketAddr) {
    let tcp = Arc::new(tcp);
    let ticket =
        shared.half_open.lock().enter(tcp.clone(), from.ip(), shared.options.half_open_max);
    let theirs = shared.clone();
    let spawned = thread::Builder::new().name("kkc-accept".into()).spawn(move || {
        let answered = answer(&theirs, &tcp, from);
        theirs.half_open.lock().leave(ticket);
        match answered {
            Ok(start) => {
                // The table's handle is gone with its entry.
                if let Some(tcp) = Arc::into_inner(tcp) {
                    start.go(&theirs, tcp, from);
                }
            }
            Err(e) => theirs.refuse(from.ip(), &e),
        }
    });
    if let Err(e) = spawned {
        shared.half_open.lock().leave(ticket);
        shared.refuse(from.ip(), &OpenError::Io(e));
    }
}

/// What an accepted connection is, with its keys.
enum Accepted {
    Link { peer: PeerKey, session: u64, keys: crate::tls::Keys },
    Stream { link: Arc<link::Inner>, id: u64, kind: StreamKind, keys: crate::tls::Keys },
}

impl Accepted {
    fn go(self, shared: &Arc<Shared>, tcp: TcpStream, from: SocketAddr) {
        match self {
            Self::Link { peer, session, keys } => {
                let connection =
                    Connection { role: Role::Listener, peer, address: from, session, tcp, keys };
                if let Err(e) = link::start(shared, connection) {
                    shared.refuse(from.ip(), &OpenError::Io(e));
                }
            }
            Self::Stream { link, id, kind, keys } => {
                link.streams.park(Stream { id, kind, fd: tcp.into(), tx: keys.tx, rx: keys.rx });
            }
        }
    }
}

fn answer(shared: &Arc<Shared>, tcp: &TcpStream, from: SocketAddr) -> Result<Accepted, OpenError> {
    socket::tune(tcp)?;
    let until = Instant::now() + shared.options.handshake_timeout;
    let mut handshake = Handshake::accept(tcp, shared.listener_tls.clone(), until)?;
    let peer = handshake.peer()?;
    let opening = handshake.receive().and_then(|frame| Ok(Opening::from_frame(&frame)?));
    let admitted = opening.and_then(|opening| match opening {
        Opening::Link { session } => {
            handshake.check_cipher(CONTROL_CIPHER)?;
            Ok((None, session, 0, CONTROL_CIPHER))
        }
        Opening::Stream { session, id, kind } => {
            handshake.check_cipher(kind)?;
            let link = shared.link_of(&peer, session).ok_or_else(|| refused("no such link"))?;
            link.streams.has_room(kind, id).map_err(refused)?;
            Ok((Some(link), session, id, kind))
        }
    });
    let (link, session, id, kind) = match admitted {
        Ok(admitted) => admitted,
        Err(e) => {
            let no = Opened::No { reason: printable(&e.to_string()) };
            if let Err(unsent) = handshake.send(&no.encode()?) {
                tracing::debug!(%from, "could not say why it was refused: {unsent}");
            }
            return Err(e);
        }
    };
    handshake.send(&Opened::Yes {}.encode()?)?;
    let keys = handshake.into_keys()?;
    Ok(match link {
        None => Accepted::Link { peer, session, keys },
        Some(link) => Accepted::Stream { link, id, kind, keys },
    })
}

fn refused(why: &str) -> OpenError {
    OpenError::Refused(why.to_owned())
}
