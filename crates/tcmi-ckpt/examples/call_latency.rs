//! How long a forwarded call takes, in raw TCP round trips, all on one core.

#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../tests/agent/peer.rs"]
mod peer;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../tests/agent/shadow.rs"]
mod shadow;

use peer::Call;
use shadow::{Child, Shadow, tcp_pair};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Instant;
use tcmi_call::frame::out_rule;

const ROUNDS: u32 = 50_000;
const BLOCK_BYTES: usize = 4096;

fn pin_to_one_core() {
    // SAFETY: an empty set with one core added, for this thread and what it forks.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

/// Microseconds for one of `ROUNDS`, after some to warm up.
fn time(mut round: impl FnMut()) -> f64 {
    (0..ROUNDS / 10).for_each(|_| round());
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| round());
    start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

/// A round trip with `there` bytes out and `back` bytes home, unencrypted.
fn raw_round_trip(there: usize, back: usize) -> f64 {
    let (mut near, far) = tcp_pair();
    let fd = far.as_raw_fd();
    let _echo = Child::fork(|| {
        let mut room = [0u8; 3 * BLOCK_BYTES];
        // SAFETY: raw system calls on the child's own memory.
        unsafe {
            loop {
                let mut got = 0;
                while got < there {
                    match libc::read(fd, room.as_mut_ptr().cast(), there - got) {
                        n if n > 0 => got += n as usize,
                        _ => return,
                    }
                }
                if libc::write(fd, room.as_ptr().cast(), back) != back as isize {
                    return;
                }
            }
        }
    });
    let mut room = vec![0; there.max(back)];
    time(|| {
        near.write_all(&room[..there]).unwrap();
        near.read_exact(&mut room[..back]).unwrap();
    })
}

fn main() {
    pin_to_one_core();
    let small = raw_round_trip(110, 54);
    println!("raw TCP, 110 bytes there, 54 back: {small:.2} us");
    let mut shadow = Shadow::spawn();
    let memfd = Call::new(libc::SYS_memfd_create, &[0, 0]).buffer(0, b"bench\0", 6);
    let fd = shadow.calls.call(&memfd).header.ret as u64;
    let block = vec![5; BLOCK_BYTES];
    let len = BLOCK_BYTES as u64;
    let pread = Call::new(libc::SYS_pread64, &[fd, 0, len, 0]).fd(0).buffer(1, &[], BLOCK_BYTES);
    let calls = [
        ("getppid", Call::new(libc::SYS_getppid, &[])),
        (
            "pwrite 4 KiB",
            Call::new(libc::SYS_pwrite64, &[fd, 0, len, 0]).fd(0).buffer(1, &block, BLOCK_BYTES),
        ),
        ("pread 4 KiB", pread.out(0, BLOCK_BYTES as u32, out_rule::BY_RETURN, 1)),
    ];
    for (name, call) in calls {
        let took = time(|| {
            shadow.calls.call(&call);
        });
        println!("{name}: {took:.2} us, {:.2} raw round trips", took / small);
    }
}
