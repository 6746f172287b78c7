//! Forwarded calls without signals.

use crate::peer::{Call, Reply};
use crate::shadow::{RESERVED_FIRST, RESERVED_LAST, Shadow};
use tcmi_call::frame::out_rule;

fn memfd(shadow: &mut Shadow) -> u64 {
    let call = Call::new(libc::SYS_memfd_create, &[0, 0]).buffer(0, b"test\0", 5);
    shadow.calls.call(&call).header.ret as u64
}

fn ret(reply: &Reply) -> i64 {
    reply.header.ret
}

#[test]
fn returns_what_the_kernel_returns() {
    let mut shadow = Shadow::spawn();
    assert_eq!(shadow.calls_begun(), 0);
    let reply = shadow.calls.call(&Call::new(libc::SYS_getpid, &[]).seq(41));
    assert_eq!(ret(&reply), i64::from(shadow.child.pid));
    assert_eq!((reply.header.flags, reply.header.signals, reply.outs.len()), (0, 0, 0));
    let reply = shadow.calls.call(&Call::new(libc::SYS_close, &[77]).seq(42));
    assert_eq!(ret(&reply), -i64::from(libc::EBADF));
    assert_eq!(shadow.calls_begun(), 2);
}

#[test]
fn carries_buffers_both_ways() {
    let mut shadow = Shadow::spawn();
    let fd = memfd(&mut shadow);
    let data: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    let write = Call::new(libc::SYS_write, &[fd, 0, data.len() as u64]).fd(0);
    assert_eq!(ret(&shadow.calls.call(&write.buffer(1, &data, data.len()))), 5000);
    let read = Call::new(libc::SYS_pread64, &[fd, 0, 8192, 1000]).fd(0);
    let read = read.buffer(1, &[], 8192).out(0, 8192, out_rule::BY_RETURN, 1);
    let reply = shadow.calls.call(&read);
    assert_eq!(ret(&reply), 4000);
    assert_eq!(reply.outs, [data[1000..].to_vec()]);
}

#[test]
fn makes_pointers_inside_the_buffer() {
    let mut shadow = Shadow::spawn();
    let fd = memfd(&mut shadow);
    let write = Call::new(libc::SYS_write, &[fd, 0, 8]).buffer(1, b"abcdefgh", 8);
    shadow.calls.call(&write);
    shadow.calls.call(&Call::new(libc::SYS_lseek, &[fd, 0, 0]));
    let iovecs = [32u64, 3, 48, 100].map(u64::to_le_bytes).concat();
    let mut read = Call::new(libc::SYS_readv, &[fd, 0, 2]).buffer(1, &iovecs, 200);
    read.fixups = vec![0, 16];
    let reply = shadow.calls.call(&read.out(32, 3, out_rule::ALWAYS, 0).out(
        48,
        100,
        out_rule::BY_RETURN,
        1,
    ));
    assert_eq!(ret(&reply), 8);
    assert_eq!(reply.outs, [b"abc".to_vec(), b"defgh\0\0\0".to_vec()]);
}

#[test]
fn large_transfers_use_a_temporary_buffer() {
    let mut shadow = Shadow::spawn();
    let fd = memfd(&mut shadow);
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    let write = Call::new(libc::SYS_pwrite64, &[fd, 0, data.len() as u64, 0]);
    let reply = shadow.calls.call(&write.buffer(1, &data, data.len()));
    assert_eq!(ret(&reply), 1 << 20);
    let mapped = maps_when_idle(&mut shadow);
    let read = Call::new(libc::SYS_pread64, &[fd, 0, 1 << 20, 0]);
    let read = read.buffer(1, &[], 1 << 20).out(0, 1 << 20, out_rule::BY_RETURN, 1);
    let reply = shadow.calls.call(&read);
    assert_eq!(ret(&reply), 1 << 20);
    assert!(reply.outs[0] == data);
    assert!(maps_when_idle(&mut shadow) == mapped);
}

/// The mappings when the buffers of earlier calls are gone.
fn maps_when_idle(shadow: &mut Shadow) -> String {
    shadow.calls.call(&Call::new(libc::SYS_getpid, &[]));
    std::fs::read_to_string(format!("/proc/{}/maps", shadow.child.pid)).unwrap()
}

#[test]
fn out_rules_say_what_comes_back() {
    let mut shadow = Shadow::spawn();
    let all_rules = |call: Call| {
        call.out(0, 8, out_rule::ALWAYS, 0)
            .out(0, 8, out_rule::ON_SUCCESS, 0)
            .out(0, 8, out_rule::BY_RETURN, 3)
            .out(0, 8, out_rule::BY_LENGTH, 16)
            .out(0, 8, out_rule::ON_SUCCESS_OR_EINTR, 0)
    };
    let image = [[7u8; 16].as_slice(), &[5, 0, 0, 0]].concat();
    let lens = |reply: Reply| reply.outs.iter().map(Vec::len).collect::<Vec<_>>();
    let dup = shadow.calls.call(&Call::new(libc::SYS_dup, &[RESERVED_LAST as u64 + 1]));
    assert_eq!(ret(&dup), -i64::from(libc::EBADF));
    // umask returns the old mask, here 2 after it was set to that.
    shadow.calls.call(&Call::new(libc::SYS_umask, &[2]));
    let succeeds = Call::new(libc::SYS_umask, &[0]).buffer(5, &image, 20);
    let reply = shadow.calls.call(&all_rules(succeeds));
    assert_eq!((ret(&reply), lens(reply)), (2, vec![8, 8, 6, 5, 8]));
    let fails = Call::new(libc::SYS_close, &[77]).buffer(5, &image, 20);
    let reply = shadow.calls.call(&all_rules(fails));
    assert_eq!((ret(&reply), lens(reply)), (-9, vec![8, 0, 0, 0, 0]));
}

#[test]
fn reserved_descriptors_are_out_of_reach() {
    let mut shadow = Shadow::spawn();
    let begun = shadow.calls_begun();
    for fd in [RESERVED_FIRST, RESERVED_LAST] {
        let close = Call::new(libc::SYS_close, &[fd as u64 | 1 << 40]).fd(0);
        assert_eq!(ret(&shadow.calls.call(&close)), -i64::from(libc::EBADF));
    }
    assert_eq!(shadow.calls_begun(), begun, "not executed");
    let below = memfd(&mut shadow);
    let above = RESERVED_LAST as u64 + 1;
    assert_eq!(ret(&shadow.calls.call(&Call::new(libc::SYS_dup2, &[below, above]))), above as i64);
    let all = Call::new(libc::SYS_close_range, &[3, u64::from(u32::MAX), 0]);
    assert_eq!(ret(&shadow.calls.call(&all)), 0);
    for fd in [below, above] {
        let flags = Call::new(libc::SYS_fcntl, &[fd, libc::F_GETFD as u64]);
        assert_eq!(ret(&shadow.calls.call(&flags)), -i64::from(libc::EBADF));
    }
}

#[test]
fn reserved_descriptors_are_closed_to_poll() {
    let mut shadow = Shadow::spawn();
    let open = memfd(&mut shadow) as i32;
    let entries: Vec<u8> = [RESERVED_FIRST, open, -1, RESERVED_LAST]
        .iter()
        .flat_map(|fd| [fd.to_le_bytes(), i32::from(libc::POLLIN).to_le_bytes()].concat())
        .collect();
    let poll = Call::new(libc::SYS_poll, &[0, 4, u64::MAX]).buffer(0, &entries, 32);
    let reply = shadow.calls.call(&poll.out(0, 32, out_rule::ON_SUCCESS, 0));
    assert_eq!(ret(&reply), 3);
    let seen = |k: usize| {
        let e: [u8; 8] = reply.outs[0][8 * k..][..8].try_into().unwrap();
        (i32::from_le_bytes([e[0], e[1], e[2], e[3]]), i16::from_le_bytes([e[6], e[7]]))
    };
    assert_eq!(seen(0), (RESERVED_FIRST, libc::POLLNVAL));
    assert_eq!(seen(1), (open, libc::POLLIN));
    assert_eq!(seen(2), (-1, 0));
    assert_eq!(seen(3), (RESERVED_LAST, libc::POLLNVAL));
}

#[test]
fn reserved_descriptors_cannot_be_sent_away() {
    let mut shadow = Shadow::spawn();
    let pair = Call::new(libc::SYS_socketpair, &[1, 1, 0]).buffer(3, &[0; 8], 8);
    let reply = shadow.calls.call(&pair.out(0, 8, out_rule::ON_SUCCESS, 0));
    assert_eq!(ret(&reply), 0);
    let socket = u64::from(u32::from_le_bytes(reply.outs[0][..4].try_into().unwrap()));
    let open = memfd(&mut shadow) as i32;
    for (nr, fds, want) in [
        (libc::SYS_sendmsg, [open, RESERVED_LAST], -i64::from(libc::EBADF)),
        (libc::SYS_sendmmsg, [RESERVED_FIRST, open], -i64::from(libc::EBADF)),
        (libc::SYS_sendmsg, [open, open], 1),
    ] {
        // msghdr (and the length that mmsghdr adds), iovec, the byte it points to, control data.
        let mut image =
            [0u64, 0, 64, 1, 88, 24 + 24, 0, 0, 80, 1, 0].map(u64::to_le_bytes).concat();
        // The first control message is harmless; the second one counts.
        for pair in [[open, open], fds] {
            image.extend(24u64.to_le_bytes());
            image.extend([1u32, 1].map(u32::to_le_bytes).concat());
            image.extend(pair.map(i32::to_le_bytes).concat());
        }
        let mut send = Call::new(nr, &[socket, 0, u64::from(nr == libc::SYS_sendmmsg)]);
        send = send.buffer(1, &image, image.len()).fd(0);
        send.fixups = vec![16, 32, 64];
        assert_eq!(ret(&shadow.calls.call(&send)), want, "call {nr} with {fds:?}");
    }
}

#[test]
fn frames_may_come_in_any_pieces() {
    let mut shadow = Shadow::spawn();
    let fd = memfd(&mut shadow);
    let data = [3u8; 300];
    let write = Call::new(libc::SYS_write, &[fd, 0, 300]).buffer(1, &data, 300).seq(5);
    shadow.calls.send_records(&write.bytes(), 10);
    assert_eq!(ret(&shadow.calls.receive()), 300);
    // Two frames with one write, and one byte by byte.
    let getpid = Call::new(libc::SYS_getpid, &[]).bytes();
    let two = [shadow.calls.record(&getpid), shadow.calls.record(&getpid)].concat();
    use std::io::Write;
    shadow.calls.socket.write_all(&two).unwrap();
    for byte in shadow.calls.record(&getpid) {
        shadow.calls.socket.write_all(&[byte]).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(ret(&shadow.calls.receive()), i64::from(shadow.child.pid));
    }
}
