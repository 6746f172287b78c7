//! What the network or the other node does to a move.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcmi_tests::victim::expect_counted;
use tcmi_tests::{Node, Scratch, Victim, VictimKind, wait_until};
use tcmi_vm_tests::wire::Order;

use super::moves::with_pair;
use super::pair::{Pair, TIMEOUT};
use crate::port::Port;

/// With no line for so long, the counter stands still.
const STILL: Duration = Duration::from_secs(3);
/// More than a stream's patience with a silent peer.
const LOSS_TIMEOUT: Duration = Duration::from_secs(120);

fn length(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file)?.len())
}

fn grows(file: &Path, when: &str) -> Result<()> {
    let before = length(file)?;
    wait_until(when, TIMEOUT, || Ok((length(file)? > before).then_some(())))
}

fn counter(scratch: &Scratch) -> Result<Victim> {
    let path = scratch.join("count").display().to_string();
    Victim::spawn(&VictimKind::with_args("counter", &[&path]))
}

/// A cable that is out for less than the links' patience costs time and nothing else.
pub fn link_cut(port: &Port) -> Result<()> {
    with_pair(port, |pair| {
        let scratch = Scratch::new("cut")?;
        let file = scratch.join("count");
        let mut victim = counter(&scratch)?;
        pair.migrate(victim.pid())?;
        for round in 1..=3 {
            grows(&file, "with the link up")?;
            port.please(Order::Link { up: false })?;
            let (mut last, mut since) = (length(&file)?, Instant::now());
            wait_until("it waits for its home", TIMEOUT, || {
                let now = length(&file)?;
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                Ok((since.elapsed() > STILL).then_some(()))
            })?;
            port.please(Order::Link { up: true })?;
            grows(&file, "with the link up again")?;
            victim.works(TIMEOUT)?;
            port.progress(&format!("cut {round} is over"))?;
        }
        pair.bring_home(victim.pid())?;
        victim.check()?;
        victim.end(7)?;
        expect_counted(&file).map(drop)
    })
}

/// Where the desk is on the way out when its power goes. The process stays at home.
const EARLY: [&str; 4] =
    ["NodeBeginReceived", "NodePrepared", "NodeStateReceived", "NodePagesReceived"];
const LATE: [&str; 3] = ["NodeRestored", "NodeReadySent", "NodeCommitReceived"];

pub fn node_dies(port: &Port) -> Result<()> {
    let pair = Pair::new()?;
    port.progress("connected")?;
    port.please(Order::QuitDesk)?;
    survive(port, pair.home, &EARLY, By::Silence)?.stop()
}

pub fn node_dies_late(port: &Port) -> Result<()> {
    let pair = Pair::new()?;
    port.progress("connected")?;
    dies_with_a_guest(port, &pair).inspect_err(|_| pair.show_home())?;
    port.progress("the end of a guest is told")?;
    survive(port, pair.home, &LATE, By::User)?.stop()
}

/// One home and, for each fault, a new desk that dies there.
fn survive(port: &Port, mut home: Node, faults: &[&str], by: By) -> Result<Node> {
    for (number, fault) in faults.iter().enumerate() {
        // The name is the last one's for as long as home waits for it.
        if home.read("ccn/nodes/desk/state").is_ok() {
            drop_desk(&home)?;
        }
        port.please(Order::BootDesk)?;
        let armed = format!("{fault}:stop");
        let pair = Pair::with(home, &[("TCMI_FAULT", &armed)]).with_context(|| armed.clone())?;
        // Once home finds out by itself, which takes its time.
        let found = if number == 0 { by } else { By::User };
        dies_on_the_way_out(port, &pair, found).inspect_err(|_| pair.show_home()).context(armed)?;
        port.progress(&format!("{fault} is survived"))?;
        home = pair.home;
    }
    Ok(home)
}

/// How home learns that a node is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Silence,
    User,
}

fn drop_desk(home: &Node) -> Result<()> {
    home.echo("ccn/nodes/desk/kill", "1")
}

fn dies_on_the_way_out(port: &Port, pair: &Pair, found: By) -> Result<()> {
    let scratch = Scratch::new("dies")?;
    let mut victim = counter(&scratch)?;
    let pid = victim.pid();
    let answer = thread::scope(|scope| {
        let moving = scope.spawn(|| pair.try_migrate(pid));
        wait_until("the desk halts", TIMEOUT, || Ok(pair.is_halted()?.then_some(())))?;
        port.please(Order::QuitDesk)?;
        if found == By::User {
            drop_desk(&pair.home)?;
        }
        anyhow::Ok(moving.join().expect("a write does not panic"))
    })?;
    ensure!(answer.is_err(), "a move to a node that died succeeds");
    victim.works(TIMEOUT).context("the process at home")?;
    ensure!(pair.state(pid).map_or(true, |s| s == "running" || s == "gone"), "it is listed");
    victim.end(7)?;
    expect_counted(&scratch.join("count")).map(drop)
}

/// What ran there is gone: the process ends as a killed one, and its parent knows.
fn dies_with_a_guest(port: &Port, pair: &Pair) -> Result<()> {
    let scratch = Scratch::new("dies")?;
    let mut victim = counter(&scratch)?;
    pair.migrate(victim.pid())?;
    grows(&scratch.join("count"), "output away")?;
    port.please(Order::QuitDesk)?;
    let status = victim.wait(LOSS_TIMEOUT).context("the end of what was lost")?;
    ensure!(status.signal() == Some(Signal::SIGKILL as i32), "status {status}");
    expect_counted(&scratch.join("count")).map(drop)
}
