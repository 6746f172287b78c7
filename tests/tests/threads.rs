//! What one thread of a process that is away does to all of them (victims/sleepers.c), while the
//! others wait at home.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Pair, Victim, VictimKind, wait_until};

const SOON: Duration = Duration::from_secs(30);

fn ends_by(command: &str) -> Result<()> {
    const STATUS: i32 = 23;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("sleepers"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check().context("away")?;
    victim.say(&format!("{command} {STATUS}"))?;
    let status = victim.wait(SOON).with_context(|| pair.logs())?;
    ensure!(status.code() == Some(STATUS), "{status}");
    pair.wait_forgotten(pid)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn exit_group_by_another_thread_than_the_first() -> Result<()> {
    ends_by("thread-ends")
}

#[test]
fn exit_group_when_the_first_thread_has_ended() -> Result<()> {
    ends_by("last-thread-ends")
}

#[test]
fn execve_by_another_thread_than_the_first() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("sleepers"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check().context("away")?;
    ensure!(victim.ask("thread-executes", "READY")? == [i64::from(pid)], "another program");
    wait_until("away again", SOON, || Ok(pair.is_away(pid).then_some(())))?;
    victim.check().context("away as another program")?;
    pair.bring_home(pid)?;
    victim.check().context("home again")?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}
