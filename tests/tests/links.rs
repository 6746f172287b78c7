//! Who may not connect: a stranger, a wrong key, plain text, garbage, silence, a
//! flood. Each is refused and logged once, and the linked pair does not notice.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
