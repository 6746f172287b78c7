//! Out and home a thousand times, and nothing is held more than after the first few.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tcmi_tests::{Pair, Scratch, Victim, VictimKind};

const WARM_UP: usize = 10;
/// 1000 in all.
const ROUND_TRIPS_A_LOOK: usize = 200;
const CHECK_EVERY: usize = 50;
/// For thread ids: others on the machine take some, too.
const ATTEMPTS: usize = 100;

fn round_trip(pair: &Pair, pid: u32, number: usize) -> Result<()> {
    pair.migrate(pid).with_context(|| format!("way out {number}"))?;
    // The two wishes to come home take turns.
    let home = if number.is_multiple_of(2) { pair.bring_home(pid) } else { pair.send_home(pid) };
    home.with_context(|| format!("way home {number}"))
}

#[test]
fn a_thousand_round_trips_leak_nothing_and_lose_no_step() -> Result<()> {
    let scratch = Scratch::new("roundtrips")?;
    let file = scratch.join("count");
    let pair = Pair::new()?;
    let idle = pair.settled_accounts()?;
    let path = file.display().to_string();
    let mut victim = Victim::spawn(&VictimKind::with_args("counter", &[&path]))?;
    let pid = victim.pid();
    for number in 0..WARM_UP {
        round_trip(&pair, pid, number)?;
    }
    let warm = pair.settled_accounts()?;
    pair.expect_steady(ROUND_TRIPS_A_LOOK, |number| {
        round_trip(&pair, pid, number)?;
        if number % CHECK_EVERY == 0 {
            victim.check().with_context(|| format!("after round trip {number}"))?;
        }
        Ok(())
    })?;
    pair.expect_no_leak(&warm)?;
    victim.end(7)?;
    tcmi_tests::victim::expect_counted(&file)?;
    pair.expect_no_leak(&idle)?;
    pair.stop()
}

#[test]
fn fifty_threads_go_out_and_home_fifty_times() -> Result<()> {
    fifty_times("threads")
}

#[test]
fn threads_that_begin_threads_go_out_and_home_fifty_times() -> Result<()> {
    fifty_times("births")
}

fn fifty_times(program: &'static str) -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain(program))?;
    let pid = victim.pid();
    let before = pair.settled_accounts()?;
    pair.expect_steady(10, |number| {
        round_trip(&pair, pid, number)?;
        if number % 10 == 9 {
            victim.check()?;
        }
        Ok(())
    })?;
    pair.expect_no_leak(&before)?;
    victim.end(7)
}

/// 50 threads, one of which has the highest id that this machine gives.
fn threads_up_to_the_limit() -> Result<Victim> {
    let limit: u32 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    for _ in 0..ATTEMPTS {
        fs::write("/proc/sys/kernel/ns_last_pid", (limit - 30).to_string())?;
        let victim = Victim::spawn(&VictimKind::plain("threads"))?;
        if Path::new(&format!("/proc/{}/task/{}", victim.pid(), limit - 1)).exists() {
            return Ok(victim);
        }
        victim.end(7)?;
    }
    anyhow::bail!("no thread got the id {}", limit - 1)
}

/// The steward, a thread more in the guest, has to keep off their ids.
#[test]
fn a_thread_may_have_the_highest_id() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = threads_up_to_the_limit()?;
    for number in 0..2 {
        round_trip(&pair, victim.pid(), number)?;
    }
    victim.check()?;
    victim.end(7)
}
