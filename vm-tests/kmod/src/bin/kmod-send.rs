//! A frozen process's memory through sockets, plain and with kTLS. Needs the loopback up.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::process::ExitCode;
use tcmi_kmod_tests::{
    Case, Outcome, Shared, Victim, ensure, pause_for_ever, run, system, wait_until,
};
use tcmi_sys::kmod::{Extent, Frozen, Session};

const BYTES: usize = 8 << 20;
/// Never touched, so that it has no page.
const HOLE: std::ops::Range<usize> = (3 << 20)..(4 << 20);

fn word(at: usize) -> u64 {
    if HOLE.contains(&at) { 0 } else { (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

/// Memory with [`word`]s, the first page not writable, the last not readable.
fn fill() -> u64 {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping of BYTES, written inside of it and protected after that.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = libc::mmap(std::ptr::null_mut(), BYTES, prot, flags, -1, 0).cast::<u8>();
        for at in (0..BYTES).step_by(8).filter(|at| !HOLE.contains(at)) {
            base.add(at).cast::<u64>().write(word(at));
        }
        libc::mprotect(base.cast(), 4096, libc::PROT_READ);
        libc::mprotect(base.add(BYTES - 4096).cast(), 4096, libc::PROT_NONE);
        base as u64
    }
}

fn victim(shared: &Shared) -> Result<(Victim, u64), String> {
    let mine = shared.clone();
    let victim = Victim::start(move || {
        mine.set(0, fill());
        pause_for_ever();
    })?;
    wait_until("victim", || shared.get(0) != 0)?;
    Ok((victim, shared.get(0)))
}

/// Connects, reads BYTES + 1 of nothing more, and says in word 1 whether they were right.
fn reader(port: u16, shared: &Shared, prepare: fn(RawFd) -> Outcome) -> Result<Victim, String> {
    let mine = shared.clone();
    Victim::start(move || {
        let right = TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
            let mut all = vec![0; BYTES];
            let prepared = prepare(stream.as_raw_fd());
            mine.set(2, 1);
            prepared.is_ok()
                && stream.read_exact(&mut all).is_ok()
                && all
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .enumerate()
                    .all(|(i, bytes)| u64::from_le_bytes(*bytes) == word(i * 8))
                && matches!(stream.read(&mut [0]), Ok(0))
        });
        mine.set(1, if right { 1 } else { 2 });
    })
}

fn send_all(frozen: &Frozen, pid: i32, base: u64, stream: &TcpStream) -> Outcome {
    // Odd pieces: neither their start nor their end is a page's.
    let mut at = 0;
    while at < BYTES as u64 {
        let end = (at + 1_000_003).min(BYTES as u64);
        let sent = frozen.send(pid, base + at..base + end, stream.as_fd());
        let sent = sent.map_err(|e| format!("at {at}: {e}"))?;
        ensure(sent > 0 && sent <= end - at, || format!("sent {sent}"))?;
        at += sent;
    }
    Ok(())
}

fn through(prepare_out: fn(RawFd) -> Outcome, prepare_in: fn(RawFd) -> Outcome) -> Outcome {
    let shared = Shared::new()?;
    let (victim, base) = victim(&shared)?;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    let mut reader = reader(port, &shared, prepare_in)?;
    let (stream, _) = listener.accept().map_err(|e| e.to_string())?;
    prepare_out(stream.as_raw_fd())?;
    wait_until("reader", || shared.get(2) == 1)?;
    let session = Session::open().map_err(|e| e.to_string())?;
    let frozen = session.freeze(victim.pid, Extent::Process, 5000);
    let frozen = frozen.map_err(|(_, e)| e.to_string())?;
    send_all(&frozen, victim.pid, base, &stream)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(|e| e.to_string())?;
    reader.wait()?;
    ensure(shared.get(1) == 1, || "what arrived is not what was there".to_owned())?;
    frozen.thaw().map(drop).map_err(|e| e.to_string())
}

fn plain() -> Outcome {
    through(|_| Ok(()), |_| Ok(()))
}

const TCP_ULP: i32 = 31;
const SOL_TLS: i32 = 282;
const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;

fn set_tls(fd: RawFd, direction: i32) -> Outcome {
    // struct tls12_crypto_info_aes_gcm_128: TLS 1.3, cipher 51, then iv, key, salt, sequence.
    let mut info = [0x5a_u8; 40];
    info[..4].copy_from_slice(&[0x04, 0x03, 51, 0]);
    info[32..].fill(0);
    // SAFETY: a socket, and buffers of the lengths given.
    unsafe {
        let ret = libc::setsockopt(fd, libc::IPPROTO_TCP, TCP_ULP, c"tls".as_ptr().cast(), 3);
        system("TCP_ULP", ret.into())?;
        let ret = libc::setsockopt(fd, SOL_TLS, direction, info.as_ptr().cast(), 40);
        system("TLS keys", ret.into()).map(drop)
    }
}

fn ktls() -> Outcome {
    through(|fd| set_tls(fd, TLS_TX), |fd| set_tls(fd, TLS_RX))
}

fn what_cannot_be_sent() -> Outcome {
    let shared = Shared::new()?;
    let (victim, base) = victim(&shared)?;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
    let session = Session::open().map_err(|e| e.to_string())?;
    let frozen = session.freeze(victim.pid, Extent::Process, 5000);
    let frozen = frozen.map_err(|(_, e)| e.to_string())?;
    let expect = |pid, range, errno| {
        let got = frozen.send(pid, range, stream.as_fd()).map_err(|e| e.code);
        ensure(got == Err(errno), || format!("{got:?}, not {errno}"))
    };
    expect(1, base..base + 1, libc::ESRCH)?;
    expect(victim.pid, 0..1, libc::EFAULT)?;
    expect(victim.pid, base..base, libc::EINVAL)?;
    expect(victim.pid, u64::MAX - 1..u64::MAX, libc::EINVAL)?;
    expect(victim.pid, 0xffff_8880_0000_0000..0xffff_8880_0000_1000, libc::EINVAL)?;
    let null = std::fs::File::open("/dev/null").map_err(|e| e.to_string())?;
    let got = frozen.send(victim.pid, base..base + 1, null.as_fd()).map_err(|e| e.code);
    ensure(got == Err(libc::ENOTSOCK), || format!("{got:?}"))?;
    drop(listener);
    // The peer is gone: an error or a part, never a signal.
    for _ in 0..4 {
        frozen.send(victim.pid, base..base + BYTES as u64, stream.as_fd()).ok();
    }
    frozen.thaw().map(drop).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    const CASES: &[Case] =
        &[("plain", plain), ("ktls", ktls), ("what-cannot-be-sent", what_cannot_be_sent)];
    run(CASES)
}
