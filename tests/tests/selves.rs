//! What a program sees of itself while it is away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Pair, Victim, VictimKind};

const SOON: Duration = Duration::from_secs(60);
const BURN_MS: i64 = 300;
const MS: i64 = 1_000_000;
/// Of its numbers, all but the last are times.
const TIMES: usize = 7;
/// What rounding to ticks may take, of each of two nodes and two kinds of time.
const ROUNDING: i64 = 40 * MS;

fn burn(victim: &mut Victim) -> Result<()> {
    victim.say(&format!("burn {BURN_MS}"))?;
    victim.expect("BURNT", SOON)
}

fn tell(victim: &mut Victim) -> Result<Vec<i64>> {
    victim.ask("tell", "USED")
}

/// Each time is at least so much more than before.
fn expect_more(what: &str, before: &[i64], ms: i64, now: &[i64]) -> Result<()> {
    let slack = if ms > 0 { ROUNDING } else { 0 };
    for (before, now) in before[..TIMES].iter().zip(now) {
        ensure!(*now >= before + ms * MS - slack, "{what}: {before:?} before, {now:?} now");
    }
    Ok(())
}

#[test]
fn what_was_used_on_every_node_adds_up() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("usage"))?;
    let pid = victim.pid();
    burn(&mut victim)?;
    let at_home = tell(&mut victim)?;
    pair.migrate(pid)?;
    let away = tell(&mut victim)?;
    expect_more("a move", &at_home, 0, &away)?;
    ensure!(away[TIMES] >= at_home[TIMES] / 2, "resident: {away:?}");
    burn(&mut victim)?;
    let burnt = tell(&mut victim)?;
    expect_more("work", &away, BURN_MS, &burnt)?;
    for (one, other) in [(0, 2), (1, 3), (0, 4), (1, 5), (4, 6)] {
        let apart = burnt[one] - burnt[other];
        ensure!(apart.abs() < 3 * ROUNDING, "numbers {one} and {other} differ: {burnt:?}");
    }
    // A visit at home for a fork.
    victim.say("errors")?;
    victim.expect("TRIED", SOON).with_context(|| pair.logs())?;
    victim.check()?;
    let visited = tell(&mut victim)?;
    expect_more("a visit at home", &burnt, 0, &visited)?;
    pair.bring_home(pid)?;
    // Home's kernel counts for itself.
    let back = tell(&mut victim)?;
    expect_more("home again", &at_home, 0, &back)?;
    pair.migrate(pid)?;
    expect_more("another move", &visited, 0, &tell(&mut victim)?)?;
    victim.end(7)?;
    pair.stop()
}
