//! What a program sees of itself while it is away.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Launch, Pair, Root, Victim, VictimKind};

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

#[test]
fn what_children_used_on_a_node_is_their_parents() -> Result<()> {
    const EACH_MS: i64 = 500;
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("usage"))?;
    let pid = victim.pid();
    let expect = |what: &str, all: [i64; 4], seen: &[i64]| -> Result<()> {
        for (seen, ms) in seen.iter().zip(all) {
            let (least, most) = (ms * MS - ROUNDING, ms * MS + 2 * EACH_MS * MS);
            ensure!((least..most).contains(seen), "{what}: {seen} of {ms} ms\n{}", pair.logs());
        }
        Ok(())
    };
    let ms = EACH_MS;
    let ask = format!("children {EACH_MS}");
    pair.migrate(pid)?;
    expect("away", [ms, ms, 2 * ms, 2 * ms], &victim.ask(&ask, "CHILDREN")?)?;
    // Behind visits at home.
    expect("more", [ms, ms, 4 * ms, 4 * ms], &victim.ask(&ask, "CHILDREN")?)?;
    pair.bring_home(pid)?;
    let at_home = victim.ask("theirs", "CHILDREN")?;
    ensure!(at_home[2] < 4 * ms * MS, "home's kernel counts for itself: {at_home:?}");
    pair.migrate(pid)?;
    expect("again", [ms, ms, 4 * ms, 4 * ms], &victim.ask("theirs", "CHILDREN")?)?;
    victim.end(7)?;
    pair.stop()
}

/// Bytes that home's kernel has read and written for it.
fn moved_at_home(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let count = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context(text.clone())?.trim().parse()?)
    };
    Ok(count("rchar:")? + count("wchar:")?)
}

fn pair_with(rules: &str) -> Result<Pair> {
    let home = Launch::new("home", Root::Normal).config(rules);
    Pair::launch(home, Launch::new("desk", Root::Bare))
}

#[test]
fn devices_are_the_nodes_own_where_a_rule_says_so() -> Result<()> {
    const MIB: u64 = 1 << 20;
    const POURED: u64 = 8;
    for (rules, at_home, told) in [
        ("", true, "stays home (GR): null, zero and random devices"),
        ("[resources]\ndevices = 'RB'\n", false, "the node's own (RB): null, zero and random"),
    ] {
        let pair = pair_with(rules)?;
        let mut victim = Victim::spawn(&VictimKind::plain("devices"))?;
        let pid = victim.pid();
        let said = pair.explained(&pid.to_string())?;
        ensure!(said.contains(told), "{said}");
        ensure!(said.contains("stays home (GR): files"), "{said}");
        ensure!(said.contains("copied by content (CP): mapped files"), "{said}");
        pair.migrate(pid)?;
        let before = moved_at_home(pid)?;
        victim.say(&format!("pour {POURED}"))?;
        victim.expect("POURED", SOON)?;
        let moved = moved_at_home(pid)? - before;
        ensure!((moved > POURED * MIB) == at_home, "{moved} bytes at home, by {rules:?}");
        victim.check().with_context(|| format!("away, by {rules:?}"))?;
        pair.bring_home(pid)?;
        victim.check()?;
        victim.end(7)?;
        pair.stop()?;
    }
    Ok(())
}

#[test]
fn processors_are_homes_where_a_rule_says_so() -> Result<()> {
    let pair = pair_with("[resources]\nprocessors = 'GR'\n")?;
    let mut victim = Victim::spawn(&VictimKind::plain("selves"))?;
    let said = pair.explained(&victim.pid().to_string())?;
    ensure!(said.contains("stays home (GR): numbers of processors"), "{said}");
    pair.migrate(victim.pid())?;
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn a_rule_that_is_not_there_yet_is_refused() -> Result<()> {
    let refused = Launch::new("home", Root::Normal).config("[resources]\nfiles = 'MV'\n");
    let error = format!("{:#}", tcmi_tests::Node::launch(refused).err().context("it started")?);
    ensure!(error.contains("files is \"MV\": GR so far is possible"), "{error}");
    Ok(())
}
