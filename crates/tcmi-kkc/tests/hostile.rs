//! Strangers at the door: refused, counted, and nobody else notices.

mod common;

use common::{LONG, Node, Pair, text, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tcmi_kkc::{ConnectError, Control, Identity, LinkEvent, Options, StreamKind};

/// The link of the pair still carries a message and a stream.
fn undisturbed(p: &Pair) {
    let m = Control::MigrationStatus { migration: 1, epoch: 2 };
    p.at_home.send(&m).unwrap();
    assert_eq!(p.desk.event(), LinkEvent::Message { link: p.at_desk.id(), message: m });
    let s = p.at_home.take_stream(StreamKind::Call, LONG).unwrap();
    assert_eq!(p.at_desk.claim_stream(s.id, LONG).unwrap().id, s.id);
    assert!(p.home.events.is_empty());
}

/// Connects, sends `bytes`, and reads until the other side closes. What it answered.
fn send_and_drain(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(LONG)).unwrap();
    tcp.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match tcp.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    answer
}

fn impatient(half_open_max: usize) -> Options {
    Options { handshake_timeout: Duration::from_millis(300), half_open_max, ..Default::default() }
}

#[test]
fn a_stranger_is_refused() {
    let p = Pair::new();
    let stranger = Node::new("stranger");
    let refused = stranger.endpoint.connect(&text(&p.listener), p.home.key());
    assert!(matches!(refused, Err(ConnectError::NotTrusted(_))), "{refused:?}");
    until("counted", || p.home.endpoint.refused() == 1);
    assert!(stranger.events.is_empty());
    undisturbed(&p);
}

#[test]
fn a_home_with_another_key_is_refused_by_the_dialer() {
    let p = Pair::new();
    let desk = Node::new("desk2");
    p.home.endpoint.trust(desk.key());
    let other = Identity::ephemeral().unwrap().key();
    let refused = desk.endpoint.connect(&text(&p.listener), other);
    assert!(matches!(refused, Err(ConnectError::WrongKey(_))), "{refused:?}");
    until("counted", || p.home.endpoint.refused() == 1);
    undisturbed(&p);
}

#[test]
fn plain_text_and_garbage_are_refused() {
    let p = Pair::new();
    let garbage: Vec<u8> =
        (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let huge_record = [22, 3, 1, 0xff, 0xff, 1, 0, 0, 0];
    let half_hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for bytes in [&b"GET / HTTP/1.1\r\nHost: home\r\n\r\n"[..], &garbage, &huge_record, b"\n"] {
        if bytes.len() > 1 {
            assert!(send_and_drain(p.listener.sockname, bytes).len() < 100);
        }
    }
    let mut tcp = TcpStream::connect(p.listener.sockname).unwrap();
    tcp.write_all(&half_hello).unwrap();
    drop(tcp);
    until("counted", || p.home.endpoint.refused() == 4);
    undisturbed(&p);
}

#[test]
fn who_says_nothing_is_closed_at_the_deadline() {
    let p = Pair::with(impatient(64), Options::default());
    let start = Instant::now();
    assert_eq!(send_and_drain(p.listener.sockname, b""), b"");
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    undisturbed(&p);
}

#[test]
fn who_drips_bytes_is_closed_at_the_deadline() {
    let p = Pair::with(impatient(64), Options::default());
    let mut tcp = TcpStream::connect(p.listener.sockname).unwrap();
    tcp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let start = Instant::now();
    // A ClientHello that never ends, one byte at a time: each byte is progress, none is enough.
    let mut bytes = [22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc].into_iter().chain(std::iter::repeat(3));
    loop {
        let alive = tcp.write_all(&[bytes.next().unwrap()]).is_ok();
        match tcp.read(&mut [0; 64]) {
            Err(e) if alive && e.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        assert!(start.elapsed() < LONG, "never closed");
    }
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    undisturbed(&p);
}

#[test]
fn a_flood_does_not_keep_a_peer_out() {
    let options = Options { half_open_max: 16, ..Default::default() };
    let p = Pair::with(options, Options::default());
    let flood: Vec<_> =
        (0..300).map(|_| TcpStream::connect(p.listener.sockname).unwrap()).collect();
    let late = Node::new("late");
    p.home.endpoint.trust(late.key());
    late.endpoint.connect(&text(&p.listener), p.home.key()).unwrap();
    assert_eq!(p.home.link_up().peer_name(), "late");
    until("the oldest are shed", || p.home.endpoint.refused() >= 300 - 16);
    undisturbed(&p);
    drop(flood);
}

#[test]
fn what_answers_and_is_no_node_is_named_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let http = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        assert!(tcp.read(&mut [0; 1024]).unwrap() > 0);
    });
    let desk = Node::new("desk");
    let refused = desk.endpoint.connect(&address, Identity::ephemeral().unwrap().key());
    assert!(matches!(refused, Err(ConnectError::NotANode { .. })), "{refused:?}");
    http.join().unwrap();
}

#[test]
fn a_home_that_never_answers_times_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let desk = Node::with("desk", impatient(64));
    let refused = desk.endpoint.connect(&address, Identity::ephemeral().unwrap().key());
    assert!(matches!(refused, Err(ConnectError::Timeout(_))), "{refused:?}");
    for nonsense in ["", "tcp:127.0.0.1", "127.0.0.1:1", "tcp:127.0.0.1:99999"] {
        let refused = desk.endpoint.connect(nonsense, desk.key());
        assert!(matches!(refused, Err(ConnectError::Address(_))), "{nonsense}");
    }
}
