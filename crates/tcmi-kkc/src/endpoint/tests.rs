//! Peers that are trusted and broken, or turned. They have the key; the rest is bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use super::*;
use crate::aead;
use crate::codec::HEADER_BYTES;
use crate::control::{CONTROL_CIPHER, ControlReader, ControlWriter};
use crate::message::{Opened, Opening, PROTOCOL_VERSION, StreamKind};
use crate::tls::{Handshake, Keys, OpenError};
use tcmi_call::record::OVERHEAD_BYTES;

const LONG: Duration = Duration::from_secs(20);

struct Home {
    endpoint: Endpoint,
    events: Receiver<LinkEvent>,
    address: SocketAddr,
    peer: Identity,
}

impl Home {
    fn new() -> Self {
        let (tx, events) = unbounded();
        let endpoint = Endpoint::new(Identity::ephemeral().unwrap(), "home", vec![], tx).unwrap();
        let address = endpoint.listen("tcp:127.0.0.1:0").unwrap().sockname;
        let peer = Identity::ephemeral().unwrap();
        endpoint.trust(peer.key());
        Self { endpoint, events, address, peer }
    }

    fn dial(&self, cipher: StreamKind, first: &[u8]) -> (TcpStream, Result<Keys, OpenError>) {
        let tcp = TcpStream::connect(self.address).unwrap();
        let config = tls::dialer(&self.peer, self.endpoint.key(), cipher);
        let keys = (|| {
            let mut handshake = Handshake::dial(&tcp, config, Instant::now() + LONG)?;
            handshake.send(first)?;
            match Opened::from_frame(&handshake.receive()?)? {
                Opened::Yes {} => handshake.into_keys(),
                Opened::No { reason } => Err(OpenError::Refused(reason)),
            }
        })();
        (tcp, keys)
    }

    fn refusal(&self, cipher: StreamKind, first: &[u8]) -> String {
        let before = self.endpoint.refused();
        let refusal = match self.dial(cipher, first).1 {
            Ok(_) => panic!("accepted"),
            Err(e) => e.to_string(),
        };
        let end = Instant::now() + LONG;
        while self.endpoint.refused() == before {
            assert!(Instant::now() < end, "not counted");
            std::thread::yield_now();
        }
        refusal
    }

    fn link(&self, session: u64) -> Raw {
        let (tcp, keys) = self.dial(CONTROL_CIPHER, &Opening::Link { session }.encode().unwrap());
        let keys = keys.unwrap();
        Raw { tcp, reader: ControlReader::new(&keys.rx), writer: ControlWriter::new(&keys.tx) }
    }

    fn up(&self, session: u64) -> (Raw, Link) {
        let mut raw = self.link(session);
        raw.say(&hello(PROTOCOL_VERSION));
        match self.events.recv_timeout(LONG).unwrap() {
            LinkEvent::Up { link } => (raw, self.endpoint.link(link).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn down(&self) -> DownReason {
        match self.events.recv_timeout(LONG).unwrap() {
            LinkEvent::Down { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// The peer's end of a control connection, without a session.
struct Raw {
    tcp: TcpStream,
    reader: ControlReader,
    writer: ControlWriter,
}

impl Raw {
    fn say(&mut self, m: &Control) {
        self.bytes(&m.encode().unwrap());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.writer.send(&self.tcp, bytes, LONG).unwrap();
    }

    /// Listens until the Bye.
    fn bye(&mut self) -> String {
        let end = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < end, "no Bye");
            let ended = self.reader.receive(&self.tcp).is_err();
            while let Some(frame) = self.reader.next_frame(1 << 20).unwrap() {
                if let Control::Bye { reason } = Control::from_frame(&frame).unwrap() {
                    return reason;
                }
            }
            assert!(!ended, "closed without a Bye");
            std::thread::yield_now();
        }
    }
}

fn hello(protocol: u16) -> Control {
    Control::Hello { protocol, name: "peer".into(), features: vec![] }
}

#[test]
fn broken_first_messages_are_refused_with_the_reason() {
    let home = Home::new();
    let good = Opening::Link { session: 1 }.encode().unwrap();
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let cases = [
        (patched(0, b"HTTP"), "not a tcmi message"),
        (patched(4, &[99, 0]), "version 99 is not spoken here, only 1"),
        (patched(6, &[1, 0]), "kind 1 is unknown here"),
        (patched(8, &u32::MAX.to_le_bytes()), "message of 4294967295 bytes"),
        (patched(8, &[7, 0, 0, 0]), "does not decode"),
        (
            Opening::Stream { session: 1, id: 1, kind: StreamKind::Bulk }.encode().unwrap(),
            "no such link",
        ),
    ];
    for (bytes, expected) in cases {
        let refusal = home.refusal(CONTROL_CIPHER, &bytes);
        assert!(refusal.contains(expected), "{refusal:?}, expected {expected:?}");
    }
    assert!(home.events.is_empty());
}

#[test]
fn a_first_message_that_stops_midway_is_dropped() {
    let home = Home::new();
    let good = Opening::Link { session: 1 }.encode().unwrap();
    let tcp = TcpStream::connect(home.address).unwrap();
    let config = tls::dialer(&home.peer, home.endpoint.key(), CONTROL_CIPHER);
    let mut handshake = Handshake::dial(&tcp, config, Instant::now() + LONG).unwrap();
    handshake.send(&good[..HEADER_BYTES + 3]).unwrap();
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(handshake.receive(), Err(OpenError::Refused(_) | OpenError::Closed) | Ok(_)));
    drop(tcp);
    home.up(2);
}

#[test]
fn the_cipher_must_be_that_of_the_kind() {
    let home = Home::new();
    let link = Opening::Link { session: 3 }.encode().unwrap();
    assert!(home.refusal(StreamKind::Call, &link).contains("cipher"));
    let (_raw, _link) = home.up(3);
    for (cipher, kind) in
        [(StreamKind::Call, StreamKind::Bulk), (StreamKind::Bulk, StreamKind::Call)]
    {
        let stream = Opening::Stream { session: 3, id: 1, kind }.encode().unwrap();
        assert!(home.refusal(cipher, &stream).contains("cipher"));
    }
}

#[test]
fn a_stream_belongs_to_the_key_of_its_link() {
    let mut home = Home::new();
    let (_raw, link) = home.up(4);
    let stream =
        |session, id| Opening::Stream { session, id, kind: StreamKind::Call }.encode().unwrap();
    let (_tcp, keys) = home.dial(StreamKind::Call, &stream(4, 9));
    assert!(keys.is_ok());
    assert_eq!(link.take_stream(StreamKind::Call, LONG).map(|s| s.id), Ok(9));
    assert!(home.refusal(StreamKind::Call, &stream(5, 9)).contains("no such link"));
    home.peer = Identity::ephemeral().unwrap();
    home.endpoint.trust(home.peer.key());
    assert!(home.refusal(StreamKind::Call, &stream(4, 10)).contains("no such link"));
}

#[test]
fn an_id_is_parked_once() {
    let home = Home::new();
    let (_raw, link) = home.up(6);
    let stream = Opening::Stream { session: 6, id: 1, kind: StreamKind::Bulk }.encode().unwrap();
    let (_tcp, keys) = home.dial(StreamKind::Bulk, &stream);
    assert!(keys.is_ok());
    let end = Instant::now() + LONG;
    while link.parked(StreamKind::Bulk) == 0 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert!(home.refusal(StreamKind::Bulk, &stream).contains("in use"));
}

#[test]
fn who_sends_before_the_answer_is_refused() {
    let home = Home::new();
    let mut early = Opening::Link { session: 7 }.encode().unwrap();
    early.extend(hello(PROTOCOL_VERSION).encode().unwrap());
    let (mut tcp, keys) = home.dial(CONTROL_CIPHER, &early);
    // The answer was on its way; the connection behind it is dead.
    assert!(keys.is_ok());
    tcp.set_read_timeout(Some(LONG)).unwrap();
    assert!(matches!(tcp.read(&mut [0; 16]), Ok(0) | Err(_)));
    assert!(home.events.is_empty());
}

#[test]
fn another_version_is_told_both() {
    let home = Home::new();
    let mut raw = home.link(8);
    raw.say(&hello(77));
    let bye = raw.bye();
    assert!(bye.contains("77") && bye.contains(&PROTOCOL_VERSION.to_string()), "{bye}");
    assert!(home.events.is_empty(), "it never came up");
}

#[test]
fn broken_messages_close_the_link_with_the_reason() {
    let home = Home::new();
    let ping = Control::Ping {}.encode().unwrap();
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = ping.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let cases = [
        (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "not a tcmi message"),
        (patched(6, &[200, 0]), "kind 200 is unknown here"),
        (patched(8, &[0, 0, 0, 0x40]), "message of 1073741824 bytes"),
        (hello(PROTOCOL_VERSION).encode().unwrap(), "Hello on an open link"),
    ];
    for (session, (bytes, expected)) in (100..).zip(cases) {
        let (mut raw, _link) = home.up(session);
        raw.bytes(&bytes);
        let bye = raw.bye();
        assert!(bye.contains(expected), "{bye:?}, expected {expected:?}");
        assert!(matches!(home.down(), DownReason::Protocol(why) if why.contains(expected)));
    }
    let (mut raw, _link) = home.up(200);
    raw.bytes(&patched(4, &[50, 0]));
    assert!(raw.bye().contains("version 50"));
    assert_eq!(home.down(), DownReason::Version { theirs: 50, ours: 1 });
}

#[test]
fn forged_records_end_the_link() {
    let home = Home::new();
    for (session, bytes) in
        (300..).zip([
            &[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                20,
            ][..],
            b"GET / HTTP/1.0\r\n\r\n",
            &[23, 3, 3, 0xff, 0xff],
        ])
    {
        let (mut raw, _link) = home.up(session);
        raw.tcp.write_all(bytes).unwrap();
        assert!(matches!(home.down(), DownReason::Lost(why) if why.contains("bad record")));
    }
}

#[test]
fn a_peer_that_vanishes_is_noticed() {
    let home = Home::new();
    let (raw, link) = home.up(400);
    drop(raw);
    assert!(matches!(home.down(), DownReason::Lost(_)));
    assert!(!link.is_up());
}

#[test]
fn a_newer_link_of_a_node_replaces_the_older() {
    let home = Home::new();
    let (mut old, link) = home.up(500);
    let (_new, newer) = home.up(501);
    assert!(old.bye().contains("replaced"));
    assert!(matches!(home.down(), DownReason::ClosedHere(why) if why.contains("replaced")));
    assert!(!link.is_up() && newer.is_up());
}

/// A key's records are counted from its first, whoever protected it.
#[test]
fn a_used_up_key_is_a_clear_error() {
    let home = Home::new();
    let (_raw, link) = home.up(600);
    let opening = Opening::Stream { session: 600, id: 1, kind: StreamKind::Bulk }.encode().unwrap();
    let (_tcp, keys) = home.dial(StreamKind::Bulk, &opening);
    assert!(keys.is_ok());
    let mut stream = link.take_stream(StreamKind::Bulk, LONG).unwrap();
    stream.tx.seq = crate::limits::AES_GCM_RECORDS_MAX - 1;
    let (mut writer, _reader) = stream.into_bulk();
    writer.write(b"last").unwrap();
    writer.flush().unwrap();
    writer.write(b"one too many").unwrap();
    assert!(matches!(writer.flush(), Err(crate::BulkError::KeyUsedUp)));
    assert!(matches!(writer.flush(), Err(crate::BulkError::Broken)));
}

#[test]
fn bulk_readers_refuse_what_is_damaged_cut_or_late() {
    use crate::BulkError;
    let home = Home::new();
    let (_raw, link) = home.up(700);
    let reader = |id: u64, sent: &dyn Fn(&Keys) -> Vec<u8>, close: bool| {
        let opening =
            Opening::Stream { session: 700, id, kind: StreamKind::Bulk }.encode().unwrap();
        let (mut tcp, keys) = home.dial(StreamKind::Bulk, &opening);
        tcp.write_all(&sent(&keys.unwrap())).unwrap();
        let (_w, mut r) = link.take_stream(StreamKind::Bulk, LONG).unwrap().into_bulk();
        r.set_idle_timeout(Duration::from_millis(100));
        if close {
            drop(tcp);
            return r.recv_message().unwrap_err();
        }
        r.recv_message().unwrap_err()
    };
    let record = |keys: &Keys, plain: &[u8]| {
        let mut buf = vec![0; plain.len() + OVERHEAD_BYTES];
        buf[5..5 + plain.len()].copy_from_slice(plain);
        aead::sealer(StreamKind::Bulk, &keys.tx).seal(&mut buf, plain.len()).unwrap();
        buf
    };
    let message = crate::codec::encode(3, &7u64).unwrap();
    let flipped = |keys: &Keys| {
        let mut r = record(keys, &message);
        r[9] ^= 1;
        r
    };
    assert!(matches!(reader(1, &flipped, false), BulkError::Record(_)));
    assert!(matches!(
        reader(2, &|k| record(k, &message)[..20].to_vec(), true),
        BulkError::Truncated
    ));
    assert!(matches!(reader(3, &|k| record(k, &message[..14]), true), BulkError::Closed));
    assert!(matches!(reader(4, &|k| record(k, &message[..14]), false), BulkError::Timeout));
    assert!(matches!(
        reader(5, &|k| record(k, b"neither magic nor version"), false),
        BulkError::Codec(_)
    ));
}
