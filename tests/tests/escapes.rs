//! A guest that wants out (victims/escape.c) reaches nothing of its node, and what it breaks is
//! its own.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcmi_tests::account::descendants;
use tcmi_tests::{Pair, Scratch, Victim, VictimKind};

const USER: u32 = 54_322;
const TRY_TIMEOUT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(20);
const NAMESPACES: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "time"];

fn away(pair: &Pair, user: u32, programs: &Scratch) -> Result<Victim> {
    let victim = Victim::spawn_as(&VictimKind::plain("escape"), user, programs.path())?;
    pair.migrate(victim.pid())?;
    Ok(victim)
}

/// The guest as its node numbers it.
fn guest(pair: &Pair, victim: &Victim) -> Result<u32> {
    let file = format!("pen/mig/migproc/{}/remote-pid", victim.pid());
    Ok(pair.desk.read(&file)?.trim().parse()?)
}

fn status(pid: u32, field: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{field} in {text}"))?.trim().to_owned())
}

/// What the node's kernel gives it, seen from outside.
fn expect_shut_in(pair: &Pair, pid: u32) -> Result<()> {
    let proc = |file: &str| format!("/proc/{pid}/{file}");
    ensure!(fs::read_dir(proc("fd"))?.next().is_none(), "it holds descriptors of the node");
    ensure!(fs::read_dir(proc("root"))?.next().is_none(), "there is something in its root");
    for name in NAMESPACES {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}"));
        ensure!(of(pid)? != of(pair.desk.pid())?, "it shares the node's {name} namespace");
    }
    let interfaces = fs::read_to_string(proc("net/dev"))?;
    ensure!(interfaces.lines().skip(2).all(|l| l.trim().starts_with("lo:")), "{interfaces}");
    for id in status(pid, "Uid")?.split_whitespace() {
        ensure!(id == "65534", "its user on the node is {id}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(u64::from_str_radix(&status(pid, set)?, 16)? == 0, "it has capabilities: {set}");
    }
    ensure!(status(pid, "NoNewPrivs")? == "1" && status(pid, "Seccomp")? == "2", "no filter");
    Ok(())
}

fn tries(user: u32) -> Result<()> {
    let programs = Scratch::new("escape")?;
    let pair = Pair::new()?;
    let mut victim = away(&pair, user, &programs)?;
    expect_shut_in(&pair, guest(&pair, &victim)?)?;
    for what in ["try", "gate"] {
        victim.say(&format!("{what} {}", pair.desk.pid()))?;
        victim.expect("TRIED", TRY_TIMEOUT).with_context(|| pair.logs())?;
        victim.check().with_context(|| what.to_owned())?;
    }
    pair.bring_home(victim.pid())?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn a_users_guest_gets_nowhere() -> Result<()> {
    tries(USER)
}

#[test]
fn roots_guest_gets_nowhere() -> Result<()> {
    tries(0)
}

#[test]
fn a_call_of_the_32_bit_kind_ends_the_guest() -> Result<()> {
    let programs = Scratch::new("escape")?;
    let pair = Pair::new()?;
    let mut victim = away(&pair, USER, &programs)?;
    victim.say("int80")?;
    let status = victim.wait(END_TIMEOUT)?;
    ensure!(status.signal() == Some(libc::SIGSYS), "it ended with {status}");
    pair.wait_forgotten(victim.pid())?;
    pair.expect_serves()?;
    pair.stop()
}

/// Nobody in it does any more what its monitor asks.
fn without_steward(how: &str, said: &str) -> Result<()> {
    let programs = Scratch::new("escape")?;
    let pair = Pair::new()?;
    let before = descendants(pair.desk.pid())?.len();
    let mut victim = away(&pair, USER, &programs)?;
    let pid = victim.pid();
    victim.say(how)?;
    victim.expect(said, TRY_TIMEOUT)?;
    victim.signal(Signal::SIGUSR1)?;
    pair.expect_serves()?;
    // Either it goes home as it is, or it is lost by its own doing: in bounded time.
    if let Err(e) = pair.desk.write("pen/mig/migrate-home", format!("{pid}\n")) {
        ensure!(e.raw_os_error().is_some(), "nobody answers: {e}\n{}", pair.logs());
    }
    pair.expect_serves()?;
    victim.signal(Signal::SIGKILL)?;
    victim.wait(END_TIMEOUT)?;
    pair.wait_forgotten(pid)?;
    tcmi_tests::wait_until("no process of it on the node", END_TIMEOUT, || {
        Ok((descendants(pair.desk.pid())?.len() <= before).then_some(()))
    })?;
    pair.stop()
}

#[test]
fn a_guest_that_smashes_its_steward_hurts_itself_alone() -> Result<()> {
    without_steward("smash", "SMASHED")
}

#[test]
fn a_guest_whose_steward_never_answers_hurts_itself_alone() -> Result<()> {
    without_steward("hush", "HUSHED")
}
