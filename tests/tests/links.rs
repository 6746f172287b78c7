//! Who may not connect: a stranger, a wrong key, plain text, garbage, silence, a
//! flood. Each is refused and logged once, and the linked pair does not notice.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Node, Pair, Root, Victim, VictimKind, wait_until};

const ATTEMPTS: usize = 5;
/// A connection that proves nothing is closed within this.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(30);

fn socket_address(pair: &Pair) -> Result<SocketAddr> {
    pair.address.strip_prefix("tcp:").context("tcp: in an address")?.parse().context("an address")
}

fn refusals(node: &Node) -> usize {
    node.log().to_lowercase().lines().filter(|l| l.contains("refused")).count()
}

/// Sends bytes and reads until the other end closes. Err: it did not, in time.
fn say_and_be_closed(address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(HANDSHAKE_BOUND))?;
    stream.set_write_timeout(Some(HANDSHAKE_BOUND))?;
    match stream.write_all(bytes) {
        Ok(()) => {}
        // Closed before it had read all of it.
        Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            return Ok(());
        }
        Err(e) => return Err(e).context("write"),
    }
    let mut answer = Vec::new();
    match stream.take(64 * 1024).read_to_end(&mut answer) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(e).context("the link stays open"),
    }
}

/// A victim is away while `disturb` runs, and notices nothing.
fn undisturbed_by(disturb: impl FnOnce(&Pair) -> Result<()>) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("files"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    disturb(&pair)?;
    victim.check().context("while somebody disturbs")?;
    ensure!(pair.home.read("ccn/nodes/count")? == "1", "somebody else is connected");
    ensure!(refusals(&pair.home) == 1, "not logged once:\n{}", pair.home.log());
    pair.bring_home(pid)?;
    victim.check()?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

/// The connections that a process holds, as copies.
fn connections(pid: u32) -> Result<Vec<TcpStream>> {
    // SAFETY: plain call; the descriptor it returns is nobody else's.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    ensure!(process >= 0, "pidfd_open of {pid}");
    // SAFETY: as above.
    let _process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        if !fs::read_link(entry.path())?.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        // SAFETY: as above.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
        ensure!(copy >= 0, "pidfd_getfd of {number} of {pid}");
        // SAFETY: as above. Of one that is no connection no address is told.
        let stream = unsafe { TcpStream::from_raw_fd(copy as i32) };
        if stream.peer_addr().is_ok() {
            all.push(stream);
        }
    }
    Ok(all)
}

#[test]
fn a_forged_call_stream_ends_its_process_and_says_so() -> Result<()> {
    const END_MAX: Duration = Duration::from_secs(20);
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("files"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    let (_, monitor) = pair.guest_and_monitor(pid)?;
    let at_home = connections(pid)?;
    let ends = |s: &TcpStream| Ok((s.local_addr()?, s.peer_addr()?));
    let at_home = at_home.iter().map(ends).collect::<Result<Vec<_>>>()?;
    let mut forged = 0;
    for mut stream in connections(monitor)? {
        if at_home.contains(&(stream.peer_addr()?, stream.local_addr()?)) {
            stream
                .write_all(&[0x17, 0x03, 0x03, 0, 40])
                .and_then(|()| stream.write_all(&[7; 40]))?;
            forged += 1;
        }
    }
    ensure!(forged > 1, "{forged} connections of the monitor lead to the shadow");
    let at = format!("ccn/mig/migproc/{pid}/last-error");
    let why = wait_until("a reason", END_MAX, || {
        Ok(Some(pair.home.read(&at)?).filter(|why| !why.trim().is_empty()))
    });
    let why = why.with_context(|| pair.logs())?;
    ensure!(why.contains("forged or damaged record"), "last-error is {why:?}");
    let status = victim.wait(END_MAX)?;
    ensure!(status.signal() == Some(libc::SIGKILL), "it ended with {status}");
    pair.wait_forgotten(pid)?;
    pair.stop()
}

#[test]
fn a_stranger_is_refused() -> Result<()> {
    undisturbed_by(|pair| {
        let stranger = Node::start("stranger", Root::Normal)?;
        for _ in 0..ATTEMPTS {
            let request = format!("{} {}\n", pair.address, pair.home.id()?);
            let answer = stranger.write("pen/connect", request);
            ensure!(answer.is_err(), "a stranger was let in");
        }
        stranger.stop()
    })
}

#[test]
fn a_home_with_another_key_is_refused_by_the_desk() -> Result<()> {
    undisturbed_by(|pair| {
        let other = Node::start("other", Root::Normal)?;
        let desk = Node::start("second", Root::Bare)?;
        pair.home.echo("ccn/trust", &desk.id()?)?;
        let request = format!("{} {}\n", pair.address, other.id()?);
        let answer = desk.write("pen/connect", request);
        ensure!(answer.is_err(), "the desk took another home for the pinned one");
        desk.stop()?;
        other.stop()
    })
}

#[test]
fn a_key_that_was_taken_back_is_refused() -> Result<()> {
    let pair = Pair::new()?;
    let desk = Node::start("second", Root::Bare)?;
    let id = desk.id()?;
    pair.home.echo("ccn/trust", &id)?;
    pair.home.echo("ccn/trust", &format!("-{id}"))?;
    let answer = desk.write("pen/connect", format!("{} {}\n", pair.address, pair.home.id()?));
    ensure!(answer.is_err(), "a key that was taken back was let in");
    desk.stop()?;
    pair.stop()
}

#[test]
fn plain_text_is_refused() -> Result<()> {
    undisturbed_by(|pair| {
        for _ in 0..ATTEMPTS {
            say_and_be_closed(socket_address(pair)?, b"GET / HTTP/1.1\r\nHost: home\r\n\r\n")?;
        }
        Ok(())
    })
}

#[test]
fn garbage_is_refused() -> Result<()> {
    undisturbed_by(|pair| {
        let address = socket_address(pair)?;
        let noise: Vec<u8> =
            (0..1u32 << 20).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
        // A TLS record that promises more than it may; a hello that is cut short; plain noise.
        say_and_be_closed(address, &[&[0x16, 3, 1, 0xff, 0xff][..], &noise[..70000]].concat())?;
        say_and_be_closed(address, &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])?;
        say_and_be_closed(address, &noise)
    })
}

#[test]
fn silence_is_closed_and_a_flood_of_it_blocks_nobody() -> Result<()> {
    let pair = Pair::new()?;
    let address = socket_address(&pair)?;
    let before = pair.settled_accounts()?;
    let silent = (0..300).map(|_| TcpStream::connect(address)).collect::<Result<Vec<_>, _>>()?;
    let desk = Node::start("second", Root::Bare)?;
    pair.home.echo("ccn/trust", &desk.id()?)?;
    desk.echo("pen/connect", &format!("{} {}", pair.address, pair.home.id()?))?;
    desk.stop()?;
    for mut stream in silent {
        stream.set_read_timeout(Some(HANDSHAKE_BOUND))?;
        let closed = stream.read(&mut [0; 64]);
        ensure!(
            closed.as_ref().is_ok_and(|n| *n == 0)
                || closed.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
            "a silent connection stays: {closed:?}"
        );
    }
    wait_until("one node again", HANDSHAKE_BOUND, || {
        Ok((pair.home.read("ccn/nodes/count")? == "1").then_some(()))
    })?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}
