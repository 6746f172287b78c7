//! Processes that read and write each other's memory, and look at each other in /proc, wherever each of
//! them is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Launch, Node, Pair, Root, Scratch, Victim, VictimKind, wait_until};

const NOBODY: u32 = 65534;
const SOON: Duration = Duration::from_secs(20);

fn family() -> Result<(Victim, u32)> {
    let victim = Victim::spawn(&VictimKind::plain("reach"))?;
    let child = victim.ready_word()?;
    Ok((victim, child))
}

/// Neither moves meanwhile: what a process reads of itself on its way is with our agent.
fn expect_known(victim: &mut Victim) -> Result<()> {
    victim.say("know")?;
    victim.expect("KNOWN", SOON)?;
    victim.check()
}

#[test]
fn a_parent_and_its_child_reach_each_other_wherever_they_are() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let (mut victim, child) = family()?;
    let pids = [victim.pid(), child];
    expect_known(&mut victim).context("at home")?;
    pair.try_migrate_tree(victim.pid()).with_context(|| pair.logs())?;
    for _ in 0..3 {
        expect_known(&mut victim).with_context(|| format!("both away\n{}", pair.logs()))?;
        ensure!(victim.ask("back", "BACK ")? == [1], "the other way\n{}", pair.logs());
    }
    pair.bring_home(child)?;
    expect_known(&mut victim).with_context(|| format!("the child at home\n{}", pair.logs()))?;
    pair.bring_home(victim.pid())?;
    victim.check().context("both home again")?;
    pair.migrate(child)?;
    pair.migrate(victim.pid())?;
    expect_known(&mut victim).context("both away again")?;
    victim.end(7)?;
    pids.iter().try_for_each(|pid| pair.wait_forgotten(*pid))?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn guests_of_two_nodes_reach_each_other() -> Result<()> {
    let pair = Pair::new()?;
    let attic = Node::launch(Launch::new("attic", Root::Bare))?;
    pair.home.echo("ccn/trust", &attic.id()?)?;
    attic.echo("pen/connect", &format!("{} {}", pair.address, pair.home.id()?))?;
    wait_until("the attic connected", SOON, || {
        let state = pair.home.read("ccn/nodes/attic/state");
        Ok(state.is_ok_and(|state| state == "connected").then_some(()))
    })?;
    let (mut victim, child) = family()?;
    pair.home.write("ccn/mig/emigrate-ppm-p", format!("{child} attic\n"))?;
    pair.migrate(victim.pid())?;
    ensure!(attic.has(&format!("pen/mig/migproc/{child}")), "the child is not in the attic");
    expect_known(&mut victim).with_context(|| pair.logs())?;
    victim.end(7)?;
    attic.stop()?;
    pair.stop()
}

/// Who reaches for one that moves waits until it has moved.
#[test]
fn one_that_moves_meanwhile_is_reached() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, child) = family()?;
    pair.migrate(victim.pid())?;
    let has_moved = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let moves = scope.spawn(|| {
            let moved = (0..6).try_for_each(|_| {
                pair.migrate(child)?;
                pair.bring_home(child)
            });
            has_moved.store(true, Ordering::Release);
            moved
        });
        while !has_moved.load(Ordering::Acquire) {
            victim.check().with_context(|| pair.logs())?;
        }
        moves.join().expect("it does not panic")
    })?;
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}

/// Each has a node's answer for the other on its way, in pieces, while it asks for one.
#[test]
fn two_that_look_at_each_other_do_not_wait_for_each_other() -> Result<()> {
    const LOOKS_OF_BOTH: i64 = 80;
    let pair = Pair::new()?;
    let (mut victim, _) = family()?;
    pair.try_migrate_tree(victim.pid()).with_context(|| pair.logs())?;
    let seen = victim.ask("stare", "STARED ").with_context(|| pair.logs())?;
    ensure!(seen == [LOOKS_OF_BOTH], "{seen:?}\n{}", pair.logs());
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn who_may_not_reach_a_process_at_home_may_not_when_both_are_away() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("reach")?;
    let mut user = Victim::spawn_as(&VictimKind::plain("reach"), NOBODY, scratch.path())?;
    let (mut root, _) = family()?;
    let pids = [user.pid(), root.pid()];
    let mut expect = |when: &str| -> Result<()> {
        let [of_user, of_root] = pids.map(|pid| format!("peek {pid}"));
        ensure!(user.ask(&of_root, "PEEKED ")? == [i64::from(libc::EPERM)], "a user's, {when}");
        // It may, whatever memory there is at its own address.
        ensure!(root.ask(&of_user, "PEEKED ")? != [i64::from(libc::EPERM)], "root's, {when}");
        let [[_, resident, begin], of_root, of_user] = [
            root.ask(&format!("look {}", pids[1]), "LOOKED ")?,
            user.ask(&format!("look {}", pids[1]), "LOOKED ")?,
            root.ask(&format!("look {}", pids[0]), "LOOKED ")?,
        ]
        .map(|seen| <[i64; 3]>::try_from(seen).unwrap_or_default());
        // Its size is everybody's to see, its addresses are not.
        let [denied, seen, addresses] = of_root;
        let is_public = denied == i64::from(libc::EACCES) && begin > 1 && addresses == 1;
        ensure!(is_public && (seen - resident).abs() < 64, "{of_root:?} of {resident}, {when}");
        ensure!(of_user[0] == 0 && of_user[2] > 1, "{of_user:?} by root, {when}");
        Ok(())
    };
    expect("at home")?;
    for pid in pids {
        pair.migrate(pid)?;
        expect("away")?;
    }
    for victim in [user, root] {
        victim.end(7)?;
    }
    pair.stop()
}
