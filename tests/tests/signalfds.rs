//! Signals that a process reads from descriptors (victims/signalfd.c): each of them where it was
//! sent, moved or not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcmi_tests::{Pair, Victim, VictimKind};

const SOON: Duration = Duration::from_secs(20);
/// Ignored by default, so nothing but a read tells of it.
const IGNORED: Signal = Signal::SIGURG;

fn spawn() -> Result<Victim> {
    Victim::spawn(&VictimKind::plain("signalfd"))
}

fn expect_read(victim: &mut Victim, signals: &[Signal]) -> Result<()> {
    victim.say("read")?;
    // The lowest number is read first.
    for signal in signals {
        victim.expect(&format!("READ {} {}", *signal as i32, std::process::id()), SOON)?;
    }
    victim.expect("END", SOON)
}

#[test]
fn what_waits_for_a_read_is_read_away_and_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = spawn()?;
    let pid = victim.pid();
    for round in 0..3 {
        victim.signal(IGNORED)?;
        victim.signal(Signal::SIGUSR1)?;
        pair.migrate(pid)?;
        ensure!(victim.ask("ready", "READY ")? == [1], "nothing to be read in round {round}");
        expect_read(&mut victim, &[Signal::SIGUSR1, IGNORED]).context("sent before it left")?;
        victim.signal(IGNORED)?;
        victim.signal(Signal::SIGUSR1)?;
        expect_read(&mut victim, &[Signal::SIGUSR1, IGNORED]).context("sent away")?;
        ensure!(victim.ask("ready", "READY ")? == [0], "more to be read in round {round}");
        victim.signal(IGNORED)?;
        victim.signal(Signal::SIGCHLD)?;
        pair.bring_home(pid)?;
        let both = [Signal::SIGCHLD, IGNORED];
        expect_read(&mut victim, &both).context("sent away, read at home")?;
        victim.check()?;
    }
    victim.end(7)?;
    pair.stop()
}

#[test]
fn who_waits_for_one_gets_it_wherever_it_is() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = spawn()?;
    let pid = victim.pid();
    let waits = |victim: &mut Victim| {
        victim.say("wait")?;
        victim.expect("WAITING", SOON)
    };
    let got = |victim: &mut Victim| -> Result<()> {
        victim.signal(IGNORED)?;
        victim.expect(&format!("READ {} {}", IGNORED as i32, std::process::id()), SOON)
    };
    waits(&mut victim)?;
    pair.migrate(pid)?;
    got(&mut victim).context("gone while it waited")?;
    waits(&mut victim)?;
    got(&mut victim).context("away")?;
    waits(&mut victim)?;
    pair.bring_home(pid)?;
    got(&mut victim).context("come home while it waited")?;
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn a_guest_makes_one_more_and_reads_from_it() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = spawn()?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    ensure!(victim.ask("late", "LATE ")? == [0], "none made");
    for _ in 0..2 {
        victim.check()?;
        ensure!(pair.is_guest(pid), "it stayed at home\n{}", pair.logs());
        pair.bring_home(pid)?;
        victim.check()?;
        pair.migrate(pid)?;
    }
    victim.end(7)?;
    pair.stop()
}

#[test]
fn what_one_thread_lets_in_no_other_takes_home_from_before_it() -> Result<()> {
    // As victims/signalfd.c sends.
    const SENT: i64 = 300;
    let pair = Pair::new()?;
    let mut victim = spawn()?;
    pair.migrate(victim.pid())?;
    let handled = victim.ask("unblock", "HANDLED ")?;
    ensure!(handled == [SENT], "{handled:?} of {SENT} handled in time");
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}
