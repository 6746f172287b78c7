//! Two sessions joined under virtual time, with messages lost, late, unknown or out of order.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use tcmi_kkc::codec;
use tcmi_kkc::{
    Control, Dial, DownReason, Fate, GuestControl, Hello, Moment, PROTOCOL_VERSION, Role, Session,
    SessionEvent, SessionOptions, StreamKind,
};

const MS: Duration = Duration::from_millis(1);

fn hello(name: &str) -> Hello {
    Hello { name: name.into(), features: vec!["arch=x86_64".into()] }
}

struct End {
    session: Session,
    events: Vec<SessionEvent>,
    dials: Vec<Dial>,
}

impl End {
    fn new(role: Role, name: &str) -> Self {
        let session = Session::new(role, hello(name), SessionOptions::default(), Moment::ZERO);
        Self { session, events: Vec::new(), dials: Vec::new() }
    }

    fn gather(&mut self) {
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
        self.dials.extend(std::iter::from_fn(|| self.session.poll_dial()));
    }

    fn down(&self) -> Option<&DownReason> {
        match self.events.last() {
            Some(SessionEvent::Down(reason)) => Some(reason),
            _ => None,
        }
    }
}

/// Two ends and a wire that carries encoded messages with a delay.
struct Joined {
    now: Moment,
    ends: [End; 2],
    wire: VecDeque<(Moment, usize, Vec<u8>)>,
    delay: Duration,
    cut: bool,
}

const DESK: usize = 0;
const HOME: usize = 1;

impl Joined {
    fn new() -> Self {
        let ends = [End::new(Role::Dialer, "desk"), End::new(Role::Listener, "home")];
        Self { now: Moment::ZERO, ends, wire: VecDeque::new(), delay: 3 * MS, cut: false }
    }

    fn up() -> Self {
        let mut j = Self::new();
        j.run(10 * MS);
        assert!(j.ends.iter().all(|e| e.session.is_up()));
        j
    }

    fn transmit(&mut self) {
        for (i, end) in self.ends.iter_mut().enumerate() {
            while let Some(m) = end.session.poll_transmit() {
                if !self.cut {
                    self.wire.push_back((self.now + self.delay, 1 - i, m.encode().unwrap()));
                }
            }
            end.gather();
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.transmit();
            let arrival = self.wire.front().map(|w| w.0);
            let timeouts = self.ends.iter().filter_map(|e| e.session.poll_timeout());
            let Some(next) = timeouts.chain(arrival).min().filter(|&t| t <= end) else { break };
            self.now = self.now.max(next);
            while self.wire.front().is_some_and(|w| w.0 <= self.now) {
                let (_, to, bytes) = self.wire.pop_front().unwrap();
                self.ends[to].session.handle_bytes(&bytes, self.now);
            }
            for e in &mut self.ends {
                e.session.handle_timeout(self.now);
            }
        }
        self.now = end;
    }
}

#[test]
fn both_come_up_and_the_dialer_fills_its_pool() {
    let j = Joined::up();
    assert_eq!(j.ends[DESK].events, [SessionEvent::Up(hello("home"))]);
    assert_eq!(j.ends[HOME].events, [SessionEvent::Up(hello("desk"))]);
    let count = |kind| j.ends[DESK].dials.iter().filter(|d| d.kind == kind).count();
    assert_eq!((count(StreamKind::Bulk), count(StreamKind::Call)), (2, 4));
    assert!(j.ends[HOME].dials.is_empty());
}

#[test]
fn a_quiet_link_lives_for_days() {
    let mut j = Joined::up();
    j.run(Duration::from_secs(3 * 86_400));
    assert!(j.ends.iter().all(|e| e.session.is_up()));
}

#[test]
fn a_machine_that_stood_still_does_not_blame_its_peer() {
    let mut j = Joined::up();
    let limit = SessionOptions::default().keepalive_limit;
    // Nothing runs on either end for longer than a peer may be silent.
    j.now += 3 * limit;
    j.run(60 * MS);
    assert!(j.ends.iter().all(|e| e.session.is_up()));
    j.cut = true;
    j.run(limit + Duration::from_secs(1));
    assert!(j.ends.iter().all(|e| e.down() == Some(&DownReason::Silent(limit))));
}

#[test]
fn lost_keepalives_end_both_ends_at_the_limit() {
    let mut j = Joined::up();
    j.run(Duration::from_secs(60));
    let limit = SessionOptions::default().keepalive_limit;
    j.cut = true;
    j.wire.clear();
    j.run(limit - Duration::from_secs(6));
    assert!(j.ends.iter().all(|e| e.session.is_up()), "too early");
    j.run(Duration::from_secs(7));
    for e in &j.ends {
        assert_eq!(e.down(), Some(&DownReason::Silent(limit)));
        assert_eq!(e.session.poll_timeout(), None);
    }
}

#[test]
fn one_lost_keepalive_is_survived() {
    let mut j = Joined::up();
    for _ in 0..5 {
        j.cut = true;
        j.run(Duration::from_secs(10));
        j.cut = false;
        j.run(Duration::from_secs(10));
    }
    assert!(j.ends.iter().all(|e| e.session.is_up()));
}

#[test]
fn no_hello_in_time_ends_the_session() {
    let mut j = Joined::new();
    j.cut = true;
    j.run(Duration::from_secs(6));
    let timeout = SessionOptions::default().hello_timeout;
    assert!(j.ends.iter().all(|e| e.down() == Some(&DownReason::NoHello(timeout))));
}

#[test]
fn another_protocol_version_is_refused_naming_both() {
    let mut end = End::new(Role::Listener, "home");
    let theirs = PROTOCOL_VERSION + 41;
    let m = Control::Hello { protocol: theirs, name: "desk".into(), features: vec![] };
    end.session.handle_message(m, MS);
    end.gather();
    let reason = DownReason::Version { theirs, ours: PROTOCOL_VERSION };
    assert_eq!(end.events, [SessionEvent::Down(reason.clone())]);
    let text = reason.to_string();
    assert!(text.contains(&theirs.to_string()) && text.contains(&PROTOCOL_VERSION.to_string()));
    assert!(matches!(end.session.poll_transmit(), Some(Control::Hello { .. })));
    assert_eq!(end.session.poll_transmit(), Some(Control::Bye { reason: text }));
}

#[test]
fn another_frame_version_is_refused_naming_both() {
    let mut end = End::new(Role::Listener, "home");
    let mut bytes = Control::Ping {}.encode().unwrap();
    bytes[4] = 9;
    end.session.handle_bytes(&bytes, MS);
    end.gather();
    assert_eq!(end.down(), Some(&DownReason::Version { theirs: 9, ours: codec::VERSION }));
}

#[test]
fn messages_out_of_order_end_the_session() {
    let early = [
        Control::Ping {},
        Control::StreamTaken { kind: StreamKind::Call, id: 1 },
        Control::Guest { migration: 1, what: GuestControl::WantHome },
    ];
    for m in early {
        let mut end = End::new(Role::Listener, "home");
        end.session.handle_message(m, MS);
        end.gather();
        assert!(matches!(end.down(), Some(DownReason::Protocol(_))), "{:?}", end.events);
    }
    let second_hello =
        Control::Hello { protocol: PROTOCOL_VERSION, name: "x".into(), features: vec![] };
    let wrong = [
        (DESK, second_hello.clone()),
        (HOME, second_hello),
        (HOME, Control::StreamsWanted { kind: StreamKind::Call, parked: 1 }),
        (HOME, Control::StreamTaken { kind: StreamKind::Call, id: 1 }),
        (DESK, Control::StreamTaken { kind: StreamKind::Call, id: 7 }),
    ];
    for (who, m) in wrong {
        let mut j = Joined::up();
        j.ends[who].session.handle_message(m, j.now);
        j.run(10 * MS);
        assert!(matches!(j.ends[who].down(), Some(DownReason::Protocol(_))));
        assert!(matches!(j.ends[1 - who].down(), Some(DownReason::ClosedByPeer(_))));
    }
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    let long = "x".repeat(65);
    for name in ["", ".", "..", "a/b", "a b", "a\nb", "12", "-x", "ä", &long] {
        assert!(hello(name).check().is_err(), "{name:?}");
        let mut end = End::new(Role::Listener, "home");
        let m = Control::Hello { protocol: PROTOCOL_VERSION, name: name.into(), features: vec![] };
        end.session.handle_message(m, MS);
        end.gather();
        assert!(matches!(end.down(), Some(DownReason::Protocol(_))));
    }
    assert_eq!(hello("desk-1.example_a").check(), Ok(()));
}

#[test]
fn taken_streams_are_replaced_and_failed_dials_tried_again() {
    let mut j = Joined::up();
    let first = std::mem::take(&mut j.ends[DESK].dials);
    j.ends[HOME].session.take(first[0].kind, first[0].id);
    j.run(10 * MS);
    let second = std::mem::take(&mut j.ends[DESK].dials);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].kind, first[0].kind);
    assert!(first.iter().all(|d| d.id != second[0].id));

    let now = j.now;
    j.ends[DESK].session.stream_dialed(second[0].kind, false, now);
    j.run(Duration::from_millis(400));
    assert!(j.ends[DESK].dials.is_empty(), "not at once");
    j.run(Duration::from_millis(200));
    assert_eq!(j.ends[DESK].dials.len(), 1);
}

#[test]
fn ensure_tops_up_once_and_is_bounded() {
    let mut j = Joined::up();
    j.ends[DESK].dials.clear();
    j.ends[HOME].session.want(StreamKind::Call, 10);
    j.ends[HOME].session.want(StreamKind::Call, 10);
    j.run(10 * MS);
    assert_eq!(j.ends[DESK].dials.len(), 6);
    j.ends[HOME].session.want(StreamKind::Call, u32::MAX);
    j.run(10 * MS);
    let all = tcmi_kkc::limits::STREAMS_PARKED_MAX as usize - 4;
    assert_eq!(j.ends[DESK].dials.len(), all);
}

#[test]
fn nothing_happens_after_down() {
    let mut j = Joined::up();
    j.ends[DESK].session.close("enough");
    j.run(10 * MS);
    let counts = j.ends.iter().map(|e| e.events.len()).collect::<Vec<_>>();
    for m in [Control::Ping {}, Control::Bye { reason: "again".into() }] {
        for e in &mut j.ends {
            e.session.handle_message(m.clone(), Duration::from_secs(1));
            e.session.close("again");
            e.session.handle_lost("again".into());
        }
    }
    j.run(Duration::from_secs(100));
    assert_eq!(j.ends.iter().map(|e| e.events.len()).collect::<Vec<_>>(), counts);
}

#[test]
fn texts_of_a_peer_are_made_printable_and_short() {
    let mut end = End::new(Role::Listener, "home");
    let reason = format!("\x1b[2J\n{}", "ü".repeat(10_000));
    end.session.handle_message(Control::Bye { reason }, MS);
    end.gather();
    let Some(DownReason::ClosedByPeer(text)) = end.down() else { panic!("{:?}", end.events) };
    assert!(text.starts_with("?[2J?ü") && text.len() <= tcmi_kkc::limits::REASON_BYTES_MAX);
}

fn any_control() -> impl Strategy<Value = Control> {
    let text = "\\PC{0,40}";
    let kind = prop_oneof![Just(StreamKind::Call), Just(StreamKind::Bulk)];
    let fate = prop_oneof![
        Just(Fate::Unknown),
        Just(Fate::Pending),
        Just(Fate::Committed),
        Just(Fate::Aborted)
    ];
    let what = prop_oneof![
        Just(GuestControl::WantHome),
        text.prop_map(|reason| GuestControl::Gone { reason }),
    ];
    prop_oneof![
        (0..3u16, "[a-z]{0,5}", prop::collection::vec("[ -~]{0,20}", 0..4))
            .prop_map(|(protocol, name, features)| Control::Hello { protocol, name, features }),
        Just(Control::Ping {}),
        any::<u32>().prop_map(|load| Control::Pong { load }),
        text.prop_map(|reason| Control::Bye { reason }),
        (kind.clone(), any::<u32>())
            .prop_map(|(kind, parked)| Control::StreamsWanted { kind, parked }),
        (kind, 0..20u64).prop_map(|(kind, id)| Control::StreamTaken { kind, id }),
        (any::<u64>(), any::<u32>(), any::<i32>(), any::<u32>(), text, any::<[u64; 2]>()).prop_map(
            |(migration, epoch, pid, uid, comm, [bulk, memory])| Control::Offer {
                migration,
                epoch,
                pid,
                uid,
                comm,
                bulk,
                memory,
                threads: epoch,
            }
        ),
        (any::<u64>(), any::<i32>(), text)
            .prop_map(|(migration, errno, text)| Control::OfferAnswer { migration, errno, text }),
        (any::<u64>(), what).prop_map(|(migration, what)| Control::Guest { migration, what }),
        (any::<u64>(), any::<u32>())
            .prop_map(|(migration, epoch)| Control::MigrationStatus { migration, epoch }),
        (any::<u64>(), any::<u32>(), fate).prop_map(|(migration, epoch, fate)| {
            Control::MigrationStatusAnswer { migration, epoch, fate }
        }),
    ]
}

proptest! {
    #[test]
    fn a_message_is_what_it_was(m in any_control()) {
        let bytes = m.encode().unwrap();
        prop_assert_eq!(tcmi_kkc::decode_control(&bytes).unwrap(), m);
    }

    #[test]
    fn every_cut_of_a_message_is_refused(m in any_control(), cut in any::<prop::sample::Index>()) {
        let bytes = m.encode().unwrap();
        prop_assert!(tcmi_kkc::decode_control(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn what_follows_a_message_is_refused(m in any_control(), more in 1..20usize) {
        let mut bytes = m.encode().unwrap();
        bytes.resize(bytes.len() + more, 0);
        prop_assert_eq!(tcmi_kkc::decode_control(&bytes), Err(codec::CodecError::Trailing(more)));
    }

    #[test]
    fn damaged_messages_decode_to_an_error_or_a_message(m in any_control(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = m.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(other) = tcmi_kkc::decode_control(&bytes) {
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..30u16) {
        prop_assert!(tcmi_kkc::decode_control(&bytes).is_err());
        let mut framed = Control::Ping {}.encode().unwrap();
        framed[6..8].copy_from_slice(&kind.to_le_bytes());
        framed[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend(&bytes);
        if let Ok(m) = tcmi_kkc::decode_control(&framed) {
            prop_assert_eq!(m.encode().unwrap(), framed);
        }
    }

    /// Any sequence at all: the session goes down once, says so last, and never sends after Bye.
    #[test]
    fn any_sequence_of_messages_is_survived(
        role in prop_oneof![Just(Role::Dialer), Just(Role::Listener)],
        greeted in any::<bool>(),
        steps in prop::collection::vec((any_control(), 0..8_000u64), 0..40),
    ) {
        let mut end = End::new(role, "node");
        if greeted {
            let m = Control::Hello { protocol: PROTOCOL_VERSION, name: "peer".into(), features: vec![] };
            end.session.handle_message(m, Moment::ZERO);
        }
        let mut now = Moment::ZERO;
        let mut sent = Vec::new();
        for (m, pause) in steps {
            now += Duration::from_millis(pause);
            end.session.handle_timeout(now);
            end.session.handle_bytes(&m.encode().unwrap(), now);
            sent.extend(std::iter::from_fn(|| end.session.poll_transmit()));
            end.gather();
        }
        let downs = end.events.iter().filter(|e| matches!(e, SessionEvent::Down(_))).count();
        prop_assert!(downs <= 1);
        prop_assert_eq!(downs == 1, end.down().is_some());
        let bye = sent.iter().position(|m| matches!(m, Control::Bye { .. }));
        prop_assert!(bye.is_none_or(|at| at + 1 == sent.len()));
        prop_assert!(end.dials.len() <= 2 * tcmi_kkc::limits::STREAMS_PARKED_MAX as usize + 40);
    }
}

#[test]
fn bytes_on_the_wire_stay_what_they_are() {
    let golden = [
        (Control::Ping {}, "54434d490100020000000000"),
        (Control::Pong { load: 1250 }, "54434d490100030004000000e2040000"),
        (
            Control::StreamTaken { kind: StreamKind::Bulk, id: 5 },
            "54434d49010009000a00000002000500000000000000",
        ),
        (
            Control::Guest { migration: 1, what: GuestControl::WantHome },
            "54434d490100120012000000010000000000000001000000000000000000",
        ),
        (
            Control::MigrationStatusAnswer { migration: 2, epoch: 3, fate: Fate::Committed },
            "54434d49010014000e0000000200000000000000030000000300",
        ),
    ];
    for (m, hex) in golden {
        let bytes: String = m.encode().unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, hex, "{m:?}");
    }
}
