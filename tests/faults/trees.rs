//! The same of a tree of processes that moves at once: whatever fails for one of them, all are at
//! home or all are away.

use std::fs;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::{Launch, Pair, Root, Scratch, Victim, VictimKind, account, wait_until};

use crate::{ACTIONS, DECIDED_AWAY, RECOVERY_TIMEOUT, Side, copies, expect_fault, revive};

/// Where the whole tree passes once.
pub const TOGETHER: [&str; 3] = ["HomeTreeHeld", "HomeTreeReady", "HomeTreeRuns"];
const CHILDREN: &str = "3";
const ALL: usize = 4;

/// On the way out: those of home up to the last in which it is not decided, and of the node.
fn is_on_the_way_out(fault: &str) -> bool {
    let node = [
        "NodeBeginReceived",
        "NodeVdsoCompared",
        "NodePrepared",
        "NodeStateReceived",
        "NodePagesHalfReceived",
        "NodePagesReceived",
        "NodeRestored",
        "NodeReadySent",
        "NodeCommitReceived",
    ];
    let home = [
        "HomeAttached",
        "HomeBeginSent",
        "HomeFilesSent",
        "HomeFrozen",
        "HomeCaptured",
        "HomeStreamsInstalled",
        "HomeStateSent",
        "HomePagesHalfSent",
        "HomePagesSent",
        "HomeArmed",
        "HomeReadyReceived",
        "HomeCommitSent",
        "HomeRunningReceived",
    ];
    [&node[..], &home, &TOGETHER, &DECIDED_AWAY].concat().contains(&fault)
}

struct Scene {
    pair: Pair,
    ring: Victim,
    all: Vec<u32>,
    /// Its path is an argument of all of them.
    scratch: Scratch,
}

impl Scene {
    fn set(program: &'static str, kind: &[&str], fault: &str, action: &str) -> Result<Self> {
        let passage = Self::first_passage(fault, action);
        Self::set_at(program, kind, fault, &format!("{action}:{passage}"))
    }

    fn first_passage(fault: &str, action: &str) -> usize {
        let side = Side::of(fault);
        match (action, side) {
            (_, Side::Desk) => 1,
            _ if TOGETHER.contains(&fault) || DECIDED_AWAY.contains(&fault) => 1,
            ("kill", _) if WAY_HOME.contains(&fault) && !BY_THE_LAST.contains(&fault) => 1,
            // The last: while another one gets its agent, no daemon is to be killed.
            ("kill", _) => ALL,
            _ => 2,
        }
    }

    /// `kind`: arguments before the mark.
    fn set_at(program: &'static str, kind: &[&str], fault: &str, action: &str) -> Result<Self> {
        let side = Side::of(fault);
        let armed = format!("{fault}:{action}");
        let mut home = Launch::new("home", Root::Normal);
        let mut desk = Launch::new("desk", Root::Bare);
        let launch = if side == Side::Home { &mut home } else { &mut desk };
        *launch = launch.clone().env("TCMI_FAULT", &armed);
        let scratch = Scratch::new("tree")?;
        let mark = scratch.path().display().to_string();
        let args = [&[CHILDREN], kind, &[&mark]].concat();
        let ring = Victim::spawn(&VictimKind::with_args(program, &args))?;
        let all = [vec![ring.pid()], account::descendants(ring.pid())?].concat();
        ensure!(all.len() == ALL, "{all:?}");
        Ok(Self { pair: Pair::launch(home, desk)?, ring, all, scratch })
    }

    fn guests(&self) -> usize {
        self.all.iter().filter(|pid| self.pair.is_guest(**pid)).count()
    }

    /// Each of them works, once, and all in one place: `guests` of them are away.
    fn expect_one_copy(&mut self, when: &str, guests: usize) -> Result<()> {
        self.ring
            .works(RECOVERY_TIMEOUT)
            .with_context(|| format!("{when}\n{}", self.pair.logs()))?;
        let mark = self.scratch.path().display().to_string();
        wait_until("one copy of each", RECOVERY_TIMEOUT, || {
            // A copy that is to end may still be ending.
            Ok((self.guests() == guests && copies(&mark)? == ALL + guests).then_some(()))
        })
        .with_context(|| {
            format!("{when}: {} guests of {:?} processes", self.guests(), copies(&mark))
        })?;
        self.ring.works(RECOVERY_TIMEOUT)
    }

    fn bring_home(&self) -> Result<()> {
        self.all.iter().try_for_each(|pid| self.pair.bring_home(*pid))
    }
}

fn survives(fault: &str, action: &str) -> Result<()> {
    let mut scene = Scene::set("ring", &[], fault, action)?;
    let head = scene.ring.pid();
    let out = scene.pair.try_migrate_tree(head);
    revive(&mut scene.pair).context("after the way out")?;
    let when = format!("after the way out ({out:?})");
    expect_fault(&scene.pair, fault)?;
    if DECIDED_AWAY.contains(&fault) && action == "kill" {
        scene.expect_one_copy(&when, ALL)?;
        scene.ring.signal(Signal::SIGKILL)?;
        scene.ring.wait(RECOVERY_TIMEOUT)?;
        let mark = scene.scratch.path().display().to_string();
        return wait_until("the end of all", RECOVERY_TIMEOUT, || {
            Ok((copies(&mark)? == 0).then_some(()))
        });
    }
    scene.expect_one_copy(&when, if out.is_ok() { ALL } else { 0 })?;
    if out.is_ok() {
        scene.bring_home().context("way home")?;
    }
    scene.pair.try_migrate_tree(head).with_context(|| format!("next\n{}", scene.pair.logs()))?;
    scene.expect_one_copy("away by the next migration", ALL)?;
    scene.bring_home().context("next way home")?;
    scene.expect_one_copy("home by the next migration", 0)?;
    scene.ring.end(7)?;
    scene.pair.stop()
}

/// Where processes that share memory come home; they do so together.
const WAY_HOME: [&str; 12] = [
    "NodeReturnAsked",
    "NodeGuestFrozen",
    "NodePagesHalfSent",
    "NodeImageSent",
    "HomeReturnFrozen",
    "HomeReturnArmed",
    "HomePagesHalfReceived",
    "HomeImageReceived",
    "HomeRebuilt",
    "HomeDecidedHome",
    "HomeFinishSent",
    "HomeRunsAgain",
];
const BY_THE_LAST: [&str; 2] = ["HomeRebuilt", "HomeRunsAgain"];
const DECIDED_HOME: [&str; 3] = ["HomeDecidedHome", "HomeFinishSent", "HomeRunsAgain"];

fn survives_home(kind: &[&str], fault: &str, action: &str) -> Result<()> {
    let mut scene = Scene::set("segment", kind, fault, action)?;
    let head = scene.ring.pid();
    scene.pair.try_migrate_tree(head).with_context(|| scene.pair.logs())?;
    scene.expect_one_copy("away", ALL)?;
    let order = format!("{}\n", scene.all[1]);
    let home = scene.pair.home.write("ccn/mig/migrate-home", order);
    revive(&mut scene.pair).context("after the way home")?;
    expect_fault(&scene.pair, fault)?;
    // What the node says behind the image may come too late to stop it.
    let is_home = DECIDED_HOME.contains(&fault) || home.is_ok();
    let when = format!("after the way home ({home:?})");
    scene.expect_one_copy(&when, if is_home { 0 } else { ALL })?;
    if action == "kill" && !is_home {
        let mark = scene.scratch.path().display().to_string();
        for pid in scene.all.iter().rev() {
            kill(Pid::from_raw(*pid as i32), Signal::SIGKILL)?;
        }
        scene.ring.wait(RECOVERY_TIMEOUT)?;
        return wait_until("the end of all", RECOVERY_TIMEOUT, || {
            Ok((copies(&mark)? == 0).then_some(()))
        });
    }
    if !is_home {
        scene.pair.home.write("ccn/mig/migrate-home", format!("{head}\n")).context("next")?;
    }
    scene.expect_one_copy("home", 0)?;
    scene.pair.try_migrate_tree(head).with_context(|| format!("out\n{}", scene.pair.logs()))?;
    scene.expect_one_copy("away by the next migration", ALL)?;
    scene.pair.home.write("ccn/mig/migrate-home", format!("{head}\n"))?;
    scene.expect_one_copy("home by the next migration", 0)?;
    scene.ring.end(7)?;
    scene.pair.stop()
}

/// Where processes that share memory, and were home for a call, go out again.
pub const AGAIN: &str = "HomeGoesAgain";

/// The call is made, and all are at home.
fn survives_again(fault: &str, action: &str) -> Result<()> {
    // The tree has passed it on its first way.
    let passage = if fault == AGAIN { ALL } else { 2 };
    let mut scene = Scene::set_at("segment", &[], fault, &format!("{action}:{passage}"))?;
    let head = scene.ring.pid();
    scene.pair.try_migrate_tree(head).with_context(|| scene.pair.logs())?;
    ensure!(scene.ring.ask("fork 1", "FORKED")? == [0, 1], "the call");
    wait_until("a fault", RECOVERY_TIMEOUT, || Ok(expect_fault(&scene.pair, fault).ok()))?;
    revive(&mut scene.pair)?;
    scene.expect_one_copy("behind the call", 0)?;
    if action == "error" {
        for pid in &scene.all {
            let file = format!("ccn/mig/migproc/{pid}/last-error");
            wait_until("why it stays", RECOVERY_TIMEOUT, || {
                let why = scene.pair.home.read(&file)?;
                Ok(why.contains(fault).then_some(()))
            })?;
        }
    }
    scene.pair.try_migrate_tree(head).with_context(|| format!("next\n{}", scene.pair.logs()))?;
    scene.expect_one_copy("away by the next migration", ALL)?;
    ensure!(scene.ring.ask("fork 1", "FORKED")? == [0, 1], "the next call");
    scene.expect_one_copy("away again", ALL)?;
    scene.ring.end(7)?;
    scene.pair.stop()
}

/// Home's daemon stands still when the first of them is to be held again. Meanwhile another is
/// killed: the others go without it.
fn one_is_killed_at_home() -> Result<()> {
    let mut scene = Scene::set_at("segment", &[], AGAIN, "stop:1")?;
    scene.pair.try_migrate_tree(scene.ring.pid()).with_context(|| scene.pair.logs())?;
    scene.ring.say("fork 1")?;
    let daemon = scene.pair.home.pid();
    wait_until("a daemon that stands still", RECOVERY_TIMEOUT, || {
        let status = fs::read_to_string(format!("/proc/{daemon}/status"))?;
        Ok(status.contains("State:\tT").then_some(()))
    })?;
    let killed = scene.all.remove(2);
    kill(Pid::from_raw(killed as i32), Signal::SIGKILL)?;
    kill(Pid::from_raw(daemon as i32), Signal::SIGCONT)?;
    scene.ring.expect("FORKED 0 1", RECOVERY_TIMEOUT).with_context(|| scene.pair.logs())?;
    wait_until("the others away", RECOVERY_TIMEOUT, || {
        Ok((scene.guests() == ALL - 1).then_some(()))
    })
    .with_context(|| scene.pair.logs())?;
    ensure!(!scene.pair.is_guest(killed), "it is away");
    scene.pair.home.write("ccn/mig/migrate-home", format!("{}\n", scene.all[1]))?;
    wait_until("all at home", RECOVERY_TIMEOUT, || Ok((scene.guests() == 0).then_some(())))?;
    scene.ring.signal(Signal::SIGKILL)?;
    scene.ring.wait(RECOVERY_TIMEOUT)?;
    scene.pair.stop()
}

pub fn trials(faults: &[String]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for fault in [&TOGETHER[..], &[AGAIN]].concat() {
        for action in ACTIONS {
            trials.push(Trial::test(format!("again::{fault}::{action}"), move || {
                Ok(survives_again(fault, action).map_err(|e| format!("{e:#}"))?)
            }));
        }
    }
    trials.push(Trial::test(format!("again::{AGAIN}::stop"), || {
        Ok(one_is_killed_at_home().map_err(|e| format!("{e:#}"))?)
    }));
    for fault in faults.iter().filter(|f| WAY_HOME.contains(&f.as_str())) {
        let side = Side::of(fault);
        // A monitor that is killed takes its guest along.
        for action in ACTIONS.into_iter().filter(|a| side == Side::Home || *a == "error") {
            for (what, kind) in [("shared", &[][..]), ("files", &["file"])] {
                let (name, fault) = (format!("{what}::{fault}::{action}"), fault.clone());
                trials.push(Trial::test(name, move || {
                    Ok(survives_home(kind, &fault, action).map_err(|e| format!("{e:#}"))?)
                }));
            }
        }
    }
    for fault in faults.iter().filter(|f| is_on_the_way_out(f)) {
        for action in ACTIONS {
            let (name, fault) = (format!("tree::{fault}::{action}"), fault.clone());
            trials.push(Trial::test(name, move || {
                Ok(survives(&fault, action).map_err(|e| format!("{e:#}"))?)
            }));
        }
    }
    trials
}
