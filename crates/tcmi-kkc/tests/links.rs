//! What a link does between two nodes that trust each other.

mod common;

use common::{LONG, Node, Pair, text, until};
use std::time::Duration;
use tcmi_kkc::{
    BulkError, ConnectError, Control, DownReason, GuestControl, LinkEvent, Options, Role,
    SendError, SessionOptions, StreamError, StreamKind,
};

#[test]
fn both_ends_know_each_other() {
    let p = Pair::new();
    assert_eq!((p.at_home.role(), p.at_desk.role()), (Role::Listener, Role::Dialer));
    assert_eq!((p.at_home.peer_name(), p.at_desk.peer_name()), ("desk", "home"));
    assert_eq!((p.at_home.peer_key(), p.at_desk.peer_key()), (p.desk.key(), p.home.key()));
    assert_eq!(p.at_home.peer_features(), ["arch=x86_64", "node=desk"]);
    assert_eq!(p.at_desk.peer_address(), p.listener.sockname);
}

#[test]
fn each_link_has_keys_of_its_own_for_each_direction() {
    let keys = || {
        let p = Pair::new();
        let (home, desk) = (p.at_home.exported_keys(), p.at_desk.exported_keys());
        assert_eq!((home.sent, home.received), (desk.received, desk.sent));
        assert_eq!(p.at_home.local_address(), p.at_desk.peer_address());
        assert_eq!(p.at_desk.local_address(), p.at_home.peer_address());
        [home.sent, home.received]
    };
    let [a, b] = [keys(), keys()];
    assert!(a[0] != a[1] && b[0] != b[1]);
    assert!(!a.iter().any(|key| b.contains(key)));
}

#[test]
fn messages_arrive_in_order_both_ways() {
    let p = Pair::new();
    let offer = |n: u64| Control::Offer {
        migration: n,
        epoch: 1,
        pid: 77,
        uid: 1000,
        comm: "python3".into(),
        bulk: n,
        memory: 1 << 20,
        threads: 3,
    };
    for n in 0..500 {
        p.at_home.send(&offer(n)).unwrap();
    }
    let gone =
        Control::Guest { migration: 5, what: GuestControl::Gone { reason: "killed".into() } };
    p.at_desk.send(&gone).unwrap();
    for n in 0..500 {
        assert_eq!(p.desk.event(), LinkEvent::Message { link: p.at_desk.id(), message: offer(n) });
    }
    assert_eq!(p.home.event(), LinkEvent::Message { link: p.at_home.id(), message: gone });
}

#[test]
fn a_message_that_spans_many_records_arrives() {
    let p = Pair::new();
    let text = "x".repeat(1_000_000);
    let answer = Control::OfferAnswer { migration: 1, errno: 95, text };
    p.at_desk.send(&answer).unwrap();
    assert_eq!(p.home.event(), LinkEvent::Message { link: p.at_home.id(), message: answer });
    let huge = Control::OfferAnswer { migration: 1, errno: 95, text: "x".repeat(5_000_000) };
    assert!(matches!(p.at_desk.send(&huge), Err(SendError::TooLarge { .. })));
    assert_eq!(p.at_desk.send(&Control::Ping {}), Err(SendError::Reserved("Ping")));
}

#[test]
fn close_tells_the_reason() {
    let p = Pair::new();
    p.at_desk.close("going home");
    assert_eq!(p.desk.down(p.at_desk.id()), DownReason::ClosedHere("going home".into()));
    assert_eq!(p.home.down(p.at_home.id()), DownReason::ClosedByPeer("going home".into()));
    assert_eq!(
        p.at_home.send(&Control::MigrationStatus { migration: 1, epoch: 1 }),
        Err(SendError::Down)
    );
    assert!(matches!(p.at_home.take_stream(StreamKind::Call, LONG), Err(StreamError::Down(_))));
    assert!(p.home.endpoint.link(p.at_home.id()).is_none());
}

#[test]
fn streams_carry_bytes_and_messages_both_ways() {
    let p = Pair::new();
    for kind in StreamKind::ALL {
        let home = p.at_home.take_stream(kind, LONG).unwrap();
        let desk = p.at_desk.claim_stream(home.id, LONG).unwrap();
        assert_eq!((desk.kind, desk.id), (kind, home.id));
        let (mut hw, mut hr) = home.into_bulk();
        let (mut dw, mut dr) = desk.into_bulk();
        hw.send_message(7, &("memory", 3u32)).unwrap();
        hw.write(b"body").unwrap();
        hw.flush().unwrap();
        let frame = dr.recv_message().unwrap();
        assert_eq!(frame.kind, 7);
        assert_eq!(frame.decode::<(String, u32)>().unwrap(), ("memory".to_owned(), 3));
        let mut body = [0; 4];
        dr.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"body");
        dw.send_message(8, &1u64).unwrap();
        assert_eq!(hr.recv_message().unwrap().decode::<u64>().unwrap(), 1);
        dw.finish().unwrap();
        assert!(matches!(hr.fill(), Err(BulkError::Closed)));
    }
}

#[test]
fn bytes_of_any_lengths_come_out_as_they_went_in() {
    let p = Pair::new();
    let home = p.at_home.take_stream(StreamKind::Bulk, LONG).unwrap();
    let desk = p.at_desk.claim_stream(home.id, LONG).unwrap();
    let data: Vec<u8> =
        (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let lengths = [1usize, 16_383, 16_384, 16_385, 7, 600_000, 49_152, 3];
    let sent = data.clone();
    let sender = std::thread::spawn(move || {
        let (mut w, _r) = home.into_bulk();
        let mut at = 0;
        for (i, len) in lengths.iter().cycle().enumerate() {
            let len = (*len).min(sent.len() - at);
            match i % 3 {
                0 => w.write(&sent[at..at + len]).unwrap(),
                1 => gather(&mut w, &sent[at..at + len]),
                _ => {
                    w.write(&sent[at..at + len]).unwrap();
                    w.flush().unwrap();
                }
            }
            at += len;
            if at == sent.len() {
                break;
            }
        }
        w.finish().unwrap();
    });
    let (_w, mut r) = desk.into_bulk();
    let mut got = Vec::new();
    loop {
        match r.fill() {
            Ok(bytes) => {
                let n = bytes.len().div_ceil(2);
                got.extend_from_slice(&bytes[..n]);
                r.consume(n);
            }
            Err(BulkError::Closed) => break,
            Err(e) => panic!("{e}"),
        }
    }
    sender.join().unwrap();
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
}

fn gather(w: &mut tcmi_kkc::BulkWriter, mut data: &[u8]) {
    while !data.is_empty() {
        let mut n = 0;
        for mut room in w.spaces(data.len()).unwrap() {
            let len = room.len();
            room.copy_from_slice(&data[n..n + len]);
            n += len;
        }
        w.commit(n).unwrap();
        data = &data[n..];
    }
}

#[test]
fn the_pool_is_kept_full_and_grows_when_asked() {
    let p = Pair::new();
    until("default pool", || {
        p.at_home.parked(StreamKind::Call) == 4 && p.at_home.parked(StreamKind::Bulk) == 2
    });
    p.at_home.ensure(StreamKind::Call, 40);
    let taken: Vec<_> =
        (0..60).map(|_| p.at_home.take_stream(StreamKind::Call, LONG).unwrap()).collect();
    let mut ids: Vec<_> = taken.iter().map(|s| s.id).collect();
    for id in &ids {
        assert_eq!(p.at_desk.claim_stream(*id, LONG).unwrap().id, *id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 60);
    until("pool refilled", || p.at_home.parked(StreamKind::Call) == 4);
    until("dialer agrees", || p.at_desk.parked(StreamKind::Call) == 4);
}

#[test]
fn a_stream_that_is_taken_and_dropped_unclaimed_leaves_nothing() {
    let p = Pair::new();
    for _ in 0..20 {
        drop(p.at_home.take_stream(StreamKind::Call, LONG).unwrap());
    }
    until("unclaimed streams gone", || {
        // Each taking makes the dialer look for those that are gone.
        drop(p.at_home.take_stream(StreamKind::Call, LONG).unwrap());
        p.at_desk.parked(StreamKind::Call) <= 6
    });
}

#[test]
fn roles_do_not_mix() {
    let p = Pair::new();
    assert!(matches!(p.at_desk.take_stream(StreamKind::Call, LONG), Err(StreamError::WrongRole)));
    assert!(matches!(p.at_home.claim_stream(1, LONG), Err(StreamError::WrongRole)));
    let wait = Duration::from_millis(20);
    assert!(matches!(p.at_desk.claim_stream(u64::MAX, wait), Err(StreamError::Timeout(_))));
}

#[test]
fn untrusting_a_key_ends_its_link() {
    let p = Pair::new();
    assert_eq!(p.home.endpoint.trusted(), [p.desk.key()]);
    assert!(p.home.endpoint.untrust(&p.desk.key()));
    assert!(matches!(p.home.down(p.at_home.id()), DownReason::ClosedHere(_)));
    assert!(matches!(p.desk.down(p.at_desk.id()), DownReason::ClosedByPeer(_)));
    let again = p.desk.endpoint.connect(&text(&p.listener), p.home.key());
    assert!(matches!(again, Err(ConnectError::NotTrusted(_))), "{again:?}");
}

#[test]
fn a_second_connect_is_refused() {
    let p = Pair::new();
    let again = p.desk.endpoint.connect(&text(&p.listener), p.home.key());
    assert!(matches!(again, Err(ConnectError::AlreadyConnected(id)) if id == p.at_desk.id()));
}

#[test]
fn listening_stops_and_links_stay() {
    let p = Pair::new();
    assert_eq!(p.home.endpoint.listeners(), std::slice::from_ref(&p.listener));
    assert!(p.home.endpoint.stop_listening(p.listener.id));
    assert!(!p.home.endpoint.stop_listening(p.listener.id));
    let other = Node::new("other");
    let refused = other.endpoint.connect(&text(&p.listener), p.home.key());
    assert!(matches!(refused, Err(ConnectError::Tcp { .. })), "{refused:?}");
    p.at_home.send(&Control::MigrationStatus { migration: 1, epoch: 1 }).unwrap();
    assert!(matches!(p.desk.event(), LinkEvent::Message { .. }));
}

#[test]
fn v6_and_names_work() {
    for address in ["tcp:[::1]:0", "tcp:localhost:0"] {
        let (home, desk) = (Node::new("home"), Node::new("desk"));
        home.endpoint.trust(desk.key());
        let listener = home.endpoint.listen(address).unwrap();
        let port = listener.sockname.port();
        desk.endpoint.connect(&address.replace(":0", &format!(":{port}")), home.key()).unwrap();
        assert_eq!(home.link_up().peer_name(), "desk");
    }
}

#[test]
fn loads_travel_with_keepalive() {
    let fast =
        SessionOptions { keepalive_interval: Duration::from_millis(20), ..Default::default() };
    let options = Options { session: fast, ..Default::default() };
    let p = Pair::with(options, options);
    p.desk.endpoint.set_load(1250);
    until("load known", || p.at_home.peer_load() == 1250);
}

#[test]
fn a_dropped_endpoint_says_goodbye() {
    let Pair { home, desk, at_home, .. } = Pair::new();
    drop(desk);
    assert_eq!(home.down(at_home.id()), DownReason::ClosedByPeer("the node is going down".into()));
}

#[test]
fn links_leave_no_descriptors_or_threads() {
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let (home, desk) = (Node::new("home"), Node::new("desk"));
    home.endpoint.trust(desk.key());
    let listener = home.endpoint.listen("tcp:127.0.0.1:0").unwrap();
    let cycle = || {
        let id = desk.endpoint.connect(&text(&listener), home.key()).unwrap();
        let (at_home, at_desk) = (home.link_up(), desk.link_up());
        let s = at_home.take_stream(StreamKind::Bulk, LONG).unwrap();
        at_desk.claim_stream(s.id, LONG).unwrap();
        at_desk.close("next");
        desk.down(id);
        home.down(at_home.id());
    };
    cycle();
    // Other tests run in this process unless each has its own: what counts is growth per cycle.
    let before = (count("fd"), count("task"));
    (0..50).for_each(|_| cycle());
    until("back to where it was", || count("fd") < before.0 + 40 && count("task") < before.1 + 40);
}
