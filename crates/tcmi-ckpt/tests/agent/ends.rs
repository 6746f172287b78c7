//! How a shadow ends, and what does not end it.

use crate::peer::{Call, Peer};
use crate::shadow::Shadow;
use std::io::Write;
use tcmi_call::abi::broken;
use tcmi_call::frame::{CALL_BUFFER_MAX_BYTES, CallHeader, FIXUPS_MAX, kind, out_rule};

#[test]
fn exit_status_passes_on() {
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&Call::of_kind(kind::EXIT_GROUP, &[7]));
    let status = shadow.child.wait();
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&Call::of_kind(kind::EXIT_THREAD, &[3]));
    assert_eq!(libc::WEXITSTATUS(shadow.child.wait()), 3, "the last thread's code");
}

#[test]
fn death_by_signal_passes_on() {
    for signo in [libc::SIGTERM, libc::SIGSEGV, libc::SIGKILL, libc::SIGPIPE, libc::SIGRTMIN()] {
        let mut shadow = Shadow::spawn();
        shadow.calls.send(&Call::of_kind(kind::EXIT_SIGNAL, &[signo as u64]));
        let status = shadow.child.wait();
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signo, "{status:#x}");
        assert!(!libc::WCOREDUMP(status));
    }
}

#[test]
fn a_signal_that_does_not_kill_becomes_an_exit_status() {
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&Call::of_kind(kind::EXIT_SIGNAL, &[libc::SIGURG as u64]));
    let status = shadow.child.wait();
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 128 + libc::SIGURG));
}

/// Alive, waiting, still forwarding signals; and nothing was executed.
fn assert_broken(mut shadow: Shadow, why: u32) {
    assert_eq!(shadow.wait_broken(), why);
    shadow.wait_asleep();
    shadow.child.kill(libc::SIGTERM);
    assert_eq!(shadow.events.receive_signal().signo, libc::SIGTERM as u32);
    shadow.wait_asleep();
    assert_eq!(shadow.calls_begun(), 0);
}

#[test]
fn rubbish_leaves_the_thread_to_the_keeper() {
    let shadow = Shadow::spawn();
    shadow.calls.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_broken(shadow, broken::CLOSED);

    let raw: [(&[u8], u32); 3] = [
        (b"GET / HTTP/1.1\r\n\r\n", broken::RECORD),
        (&[23, 3, 3, 0xff, 0xff], broken::RECORD),
        (&[23, 3, 3, 0, 3], broken::RECORD),
    ];
    for (bytes, why) in raw {
        let mut shadow = Shadow::spawn();
        shadow.calls.socket.write_all(bytes).unwrap();
        assert_broken(shadow, why);
    }
}

#[test]
fn damaged_and_repeated_records_are_refused() {
    let getpid = Call::new(libc::SYS_getpid, &[]).bytes();
    let mut shadow = Shadow::spawn();
    let mut record = shadow.calls.record(&getpid);
    record[20] ^= 1;
    shadow.calls.socket.write_all(&record).unwrap();
    assert_broken(shadow, broken::RECORD);

    let mut shadow = Shadow::spawn();
    let record = shadow.calls.record(&getpid);
    shadow.calls.socket.write_all(&record).unwrap();
    shadow.calls.receive();
    shadow.calls.socket.write_all(&record).unwrap();
    assert_eq!(shadow.wait_broken(), broken::RECORD);
    assert_eq!(shadow.calls_begun(), 1);
}

#[test]
fn frames_that_break_the_rules_are_refused() {
    let call = || Call::new(libc::SYS_getpid, &[]).buffer(0, &[0; 16], 16);
    let with = |change: fn(&mut CallHeader)| {
        let mut bytes = call().bytes();
        let mut header = CallHeader::from_bytes(&bytes).unwrap();
        change(&mut header);
        bytes[..CallHeader::BYTES].copy_from_slice(header.as_bytes());
        bytes
    };
    let fixup = |at: u32, value: u64| {
        let mut call = Call::new(libc::SYS_getpid, &[]).buffer(0, &value.to_le_bytes(), 16);
        call.fixups = vec![at];
        call.bytes()
    };
    let bad = [
        with(|h| h.kind = 0),
        with(|h| h.kind = kind::REPLY),
        with(|h| h.kind = kind::EXIT_GROUP),
        with(|h| h.len += 1),
        with(|h| h.buf_len = 15),
        with(|h| h.buf_len = CALL_BUFFER_MAX_BYTES as u32 + 1),
        with(|h| h.fixups = FIXUPS_MAX as u16 + 1),
        with(|h| h.outs = 17),
        with(|h| h.args[0] = 17),
        call().out(9, 8, out_rule::ALWAYS, 0).bytes(),
        call().out(u32::MAX, 8, out_rule::ALWAYS, 0).bytes(),
        call().out(0, 8, 0, 0).bytes(),
        call().out(0, 8, 6, 0).bytes(),
        call().out(0, 8, out_rule::BY_LENGTH, 13).bytes(),
        fixup(9, 0),
        fixup(u32::MAX, 0),
        fixup(0, 17),
        [call().bytes(), vec![0]].concat(),
    ];
    for (i, bytes) in bad.iter().enumerate() {
        let mut shadow = Shadow::spawn();
        send(&mut shadow.calls, bytes);
        assert_eq!(shadow.wait_broken(), broken::PROTOCOL, "frame {i}");
        assert_broken(shadow, broken::PROTOCOL);
    }
}

fn send(peer: &mut Peer, frame: &[u8]) {
    let record = peer.record(frame);
    peer.socket.write_all(&record).unwrap();
}
