#![cfg(feature = "engine")]
use tcmi_call::engine::{BAD_POINTER, Call, SliceMemory};
use tcmi_call::frame::{CallHeader, OutRange, ReplyHeader, call_flags, kind, out_rule};
use tcmi_call::table::errno::{ENAMETOOLONG, ENOSYS, ENOTTY};

const BASE: u64 = 0x10_0000;

fn nr(name: &str) -> u32 {
    tcmi_call::table::number(name).unwrap()
}

fn header(call: &Call) -> CallHeader {
    let [head, image] = call.frame();
    let h = CallHeader::from_bytes(head).unwrap();
    assert_eq!(h.len as usize, head.len() - CallHeader::BYTES + image.len());
    assert_eq!(h.in_len as usize, image.len());
    h
}

fn outs(call: &Call) -> Vec<OutRange> {
    let h = header(call);
    let at = CallHeader::BYTES + 4 * usize::from(h.fixups);
    call.frame()[0][at..]
        .chunks(OutRange::BYTES)
        .map(|b| OutRange::from_bytes(b).unwrap())
        .collect()
}

fn reply(call: &Call, ret: i64, ranges: &[&[u8]]) -> (ReplyHeader, Vec<u8>) {
    let mut payload = Vec::new();
    for r in ranges {
        payload.extend((r.len() as u32).to_le_bytes());
    }
    for r in ranges {
        payload.extend(*r);
    }
    let h = ReplyHeader {
        len: payload.len() as u32,
        kind: kind::REPLY,
        seq: header(call).seq,
        ret,
        outs: ranges.len() as u16,
        ..ReplyHeader::default()
    };
    (h, payload)
}

#[test]
fn read_asks_for_bytes_by_return_and_sends_none() {
    let mut bytes = [0u8; 64];
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("read"), &[3, BASE + 8, 16, 0, 0, 0], 7, 0, &mut mem).unwrap();
    let h = header(&call);
    assert_eq!((h.in_len, h.buf_len, h.ptr_args, h.fd_args), (0, 16, 2, 1));
    assert_eq!(outs(&call), [OutRange { off: 0, len: 16, rule: out_rule::BY_RETURN, arg: 1 }]);
    let (r, payload) = reply(&call, 5, &[b"hello"]);
    assert_eq!(call.unmarshal(&r, &payload, &mut mem), Ok(5));
    assert_eq!(&bytes[8..14], b"hello\0");
}

#[test]
fn a_reply_longer_than_asked_is_refused() {
    let mut bytes = [0u8; 64];
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("read"), &[3, BASE, 4, 0, 0, 0], 7, 0, &mut mem).unwrap();
    let (r, payload) = reply(&call, 5, &[b"hello"]);
    assert!(call.unmarshal(&r, &payload, &mut mem).is_err());
    let (mut r, payload) = reply(&call, 4, &[b"hell"]);
    r.seq += 1;
    assert!(call.unmarshal(&r, &payload, &mut mem).is_err());
    assert_eq!(bytes, [0; 64]);
}

#[test]
fn what_a_bad_page_cuts_off_ends_at_a_hole() {
    let mut bytes = *b"0123456789";
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("write"), &[1, BASE + 6, 100, 0, 0, 0], 1, 0, &mut mem).unwrap();
    let h = header(&call);
    assert_eq!((h.args[2], h.flags, h.buf_len), (100, call_flags::HOLE, 4));
    assert_eq!(call.frame()[1], b"6789");
    call.marshal(nr("write"), &[1, BASE + 100, 1, 0, 0, 0], 1, 0, &mut mem).unwrap();
    assert_eq!(header(&call).args[1], BAD_POINTER);
    assert_eq!(header(&call).ptr_args, 0);
}

#[test]
fn null_and_bad_paths_are_left_to_home_but_long_ones_are_not() {
    let mut bytes = [b'a'; 5000];
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    let mut open = |addr| {
        call.marshal(nr("open"), &[addr, 0, 0, 0, 0, 0], 1, 0, &mut mem)
            .map(|()| header(&call).args[0])
    };
    assert_eq!(open(0), Ok(0));
    assert_eq!(open(12), Ok(12));
    assert_eq!(open(1 << 63), Ok(1 << 63));
    assert_eq!(open(0x5000_0000), Ok(BAD_POINTER));
    assert_eq!(open(BASE + 4990), Ok(BAD_POINTER));
    assert_eq!(open(BASE), Err(ENAMETOOLONG));
}

#[test]
fn segments_travel_as_one() {
    let mut bytes = [0u8; 256];
    bytes[..10].copy_from_slice(b"helloworld");
    for (k, (base, len)) in [(BASE, 5u64), (BASE, 0), (BASE + 5, 5)].into_iter().enumerate() {
        bytes[64 + 16 * k..][..8].copy_from_slice(&base.to_le_bytes());
        bytes[72 + 16 * k..][..8].copy_from_slice(&len.to_le_bytes());
    }
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("writev"), &[1, BASE + 64, 3, 0, 0, 0], 1, 0, &mut mem).unwrap();
    let h = header(&call);
    assert_eq!((h.args[1], h.args[2], h.fixups), (0, 1, 1));
    assert_eq!(&call.frame()[1][16..], b"helloworld");

    call.marshal(nr("readv"), &[1, BASE + 64, 3, 0, 0, 0], 2, 0, &mut mem).unwrap();
    let (r, payload) = reply(&call, 7, &[b"ABCDEFG"]);
    assert_eq!(call.unmarshal(&r, &payload, &mut mem), Ok(7));
    assert_eq!(&bytes[..10], b"ABCDEFGrld");
}

#[test]
fn timeouts_are_shortened_by_what_has_passed() {
    let mut bytes = [0u8; 64];
    bytes[..8].copy_from_slice(&2i64.to_le_bytes());
    bytes[8..16].copy_from_slice(&100i64.to_le_bytes());
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("nanosleep"), &[BASE, 0, 0, 0, 0, 0], 1, 1_000_000_001, &mut mem).unwrap();
    assert_eq!(call.frame()[1][..8], 1i64.to_le_bytes());
    assert_eq!(call.frame()[1][8..], 99i64.to_le_bytes());
    call.marshal(nr("poll"), &[0, 0, 1000, 0, 0, 0], 1, 400_000_000, &mut mem).unwrap();
    assert_eq!(header(&call).args[2], 600);
    call.marshal(nr("poll"), &[0, 0, u64::MAX, 0, 0, 0], 1, 400_000_000, &mut mem).unwrap();
    assert_eq!(header(&call).args[2] as i32, -1);
}

#[test]
fn refusals_need_no_frame() {
    let mut mem = SliceMemory { base: BASE, bytes: &mut [] };
    let mut call = Call::new();
    assert_eq!(call.marshal(nr("io_uring_setup"), &[0; 6], 1, 0, &mut mem), Err(ENOSYS));
    assert_eq!(call.marshal(5000, &[0; 6], 1, 0, &mut mem), Err(ENOSYS));
    assert_eq!(call.marshal(nr("ioctl"), &[0, 0x1234, BASE, 0, 0, 0], 1, 0, &mut mem), Err(ENOTTY));
}

/// Says what a call costs in the engine; no bound, machines differ.
#[test]
fn cost() {
    const ROUNDS: u32 = 100_000;
    let mut bytes = [0u8; 8192];
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    let data = [1u8; 4096];
    for (name, ranges) in [("getppid", &[][..]), ("pread64", &[&data[..]][..]), ("write", &[][..])]
    {
        let args = [3, BASE, 4096, 0, 0, 0];
        call.marshal(nr(name), &args, 1, 0, &mut mem).unwrap();
        let ret = if ranges.is_empty() { 0 } else { 4096 };
        let (r, payload) = reply(&call, ret, ranges);
        let begun = std::time::Instant::now();
        for _ in 0..ROUNDS {
            call.marshal(nr_of(name), &args, 1, 0, &mut mem).unwrap();
            assert_eq!(call.unmarshal(&r, &payload, &mut mem), Ok(ret));
        }
        println!("{name}: {:?}", begun.elapsed() / ROUNDS);
    }
}

fn nr_of(name: &str) -> u32 {
    match name {
        "getppid" => 110,
        "pread64" => 17,
        _ => 1,
    }
}

#[test]
fn room_that_cannot_be_written_is_bad_at_home_too() {
    let mut bytes = [0u8; 4096];
    let end = BASE + 4096;
    let mut call = Call::new();
    let mut made = |name: &str, args: [u64; 6], bytes: &mut [u8]| {
        let mut mem = SliceMemory { base: BASE, bytes };
        call.marshal(nr(name), &args, 1, 0, &mut mem).unwrap();
        (header(&call), outs(&call).len(), call.frame()[1].to_vec())
    };
    let (h, outs, _) = made("read", [0, end, 100, 0, 0, 0], &mut bytes);
    assert_eq!((h.args[1], h.args[2], h.ptr_args, outs), (BAD_POINTER, 100, 0, 0));
    let (h, outs, _) = made("read", [0, end - 10, 100, 0, 0, 0], &mut bytes);
    assert_eq!((h.args[2], h.ptr_args, outs), (100, 2, 1));
    assert_eq!((h.flags, h.buf_len), (call_flags::HOLE, 10));
    let (h, outs, _) = made("fstat", [0, end, 0, 0, 0, 0], &mut bytes);
    assert_eq!((h.args[1], outs), (BAD_POINTER, 0));
    // Two that are cut off: there is one end.
    let socket = [3, 0, 0, end - 4, end - 2, 0];
    let (h, _, _) = made("getxattr", [BASE, BASE, end - 4, 100, 0, 0], &mut bytes);
    assert_eq!((h.flags, h.buf_len % 8), (call_flags::HOLE, 4));
    let (h, _, _) = made("getsockopt", socket, &mut bytes);
    assert_eq!((h.args[3], h.args[4]), (BAD_POINTER, BAD_POINTER));
    // Segments: up to the first that is bad, and none if that is the first.
    let mut segments = |first: u64| {
        let iovecs = [first, 8, end, 8, BASE, 8].map(u64::to_le_bytes).concat();
        bytes[64..64 + 48].copy_from_slice(&iovecs);
        let (_, outs, image) = made("readv", [0, BASE + 64, 3, 0, 0, 0], &mut bytes);
        let iovec = &image[image.len() - 16..];
        (outs, u64::from_le_bytes(iovec[8..].try_into().unwrap()))
    };
    assert_eq!(segments(BASE + 512), (1, 24));
    assert_eq!(segments(end).0, 0);
}

/// A length that only the guest's memory bears out: home's kernel would go on behind its buffer.
#[test]
fn no_length_is_longer_than_homes_buffer() {
    let mut bytes = [1u8; 4096];
    let mut call = Call::new();
    for len in [1 << 47, i64::MAX as u64] {
        for (name, args) in [
            ("recvfrom", [3, BASE, len, 0, 0, 0]),
            ("sendto", [3, BASE, len, 0, 0, 0]),
            ("msgrcv", [3, BASE, len, 0, 0, 0]),
            ("msgsnd", [3, BASE, len, 0, 0, 0]),
            ("getcwd", [BASE, len, 0, 0, 0, 0]),
            ("read", [3, BASE, len, 0, 0, 0]),
            ("getxattr", [BASE + 4095, BASE + 4095, BASE, len, 0, 0]),
        ] {
            let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
            call.marshal(nr(name), &args, 1, 0, &mut mem).unwrap();
            let h = header(&call);
            assert!(h.ptr_args == 0 || h.flags == call_flags::HOLE, "{name} {len:x}");
        }
    }
}

#[test]
fn a_message_of_several_brings_all_its_bytes() {
    let mut bytes = [0u8; 512];
    let iovec = [BASE + 256, 100].map(u64::to_le_bytes).concat();
    bytes[128..144].copy_from_slice(&iovec);
    bytes[16..24].copy_from_slice(&(BASE + 128).to_le_bytes());
    bytes[24] = 1;
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("recvmmsg"), &[3, BASE, 5, 0, 0, 0], 1, 0, &mut mem).unwrap();
    let data = outs(&call)[0];
    assert_eq!((data.len, data.rule), (100, out_rule::BY_LENGTH));
    let mut header = [0; 64];
    header[56] = 7;
    let (r, payload) = reply(&call, 1, &[b"message", &header]);
    assert_eq!(call.unmarshal(&r, &payload, &mut mem), Ok(1));
    assert_eq!((&bytes[256..264], bytes[56]), (&b"message\0"[..], 7));
}

/// The agent answers so where it has not begun: the call names a descriptor that is ours.
#[test]
fn a_call_that_was_not_made_brings_nothing() {
    let mut bytes = [3u8; 200];
    let mut mem = SliceMemory { base: BASE, bytes: &mut bytes };
    let mut call = Call::new();
    call.marshal(nr("fstat"), &[3, BASE, 0, 0, 0, 0], 1, 0, &mut mem).unwrap();
    let (r, payload) = reply(&call, -9, &[]);
    assert_eq!(call.unmarshal(&r, &payload, &mut mem), Ok(-9));
    let (r, payload) = reply(&call, 0, &[]);
    assert!(call.unmarshal(&r, &payload, &mut mem).is_err());
    assert_eq!(bytes, [3; 200]);
}
