//! Every fault point, as an error and as a crash, on either node: exactly one
//! live copy is left, no step is lost or done twice, and the next migration works.
//!
//! A fault point is armed by TCMI_FAULT=Name:action:count in a daemon's
//! environment, the action being `error` or `kill`, and fires at its count-th
//! passing. `tcmid --list-faults` names them all.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use tcmi_tests::node::built;
use tcmi_tests::{Launch, Node, Pair, Root, Scratch, Victim, VictimKind, wait_until};

mod trees;

const ACTIONS: [&str; 2] = ["error", "kill"];
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Home,
    Desk,
}

fn fault_points() -> Result<Vec<String>> {
    let listed = Command::new(built("tcmid")?).arg("--list-faults").output()?;
    ensure!(listed.status.success(), "tcmid --list-faults: {}", listed.status);
    let names = String::from_utf8(listed.stdout)?
        .lines()
        .filter_map(|l| l.split_whitespace().next().map(str::to_owned))
        .collect::<Vec<_>>();
    ensure!(!names.is_empty(), "tcmid knows no fault points");
    Ok(names)
}

/// A pair with one armed fault, and a victim that would notice.
struct Scene {
    pair: Pair,
    victim: Victim,
    scratch: Scratch,
}

impl Side {
    /// Where the fault point is passed.
    fn of(fault: &str) -> Self {
        if fault.starts_with("Node") { Side::Desk } else { Side::Home }
    }
}

/// A fault that nobody passed has shown nothing.
fn expect_fault(pair: &Pair, fault: &str) -> Result<()> {
    let log = match Side::of(fault) {
        Side::Home => pair.home.log(),
        Side::Desk => pair.desk.log(),
    };
    ensure!(log.contains(&format!("fault at {fault}\n")), "{fault} was not passed");
    Ok(())
}

impl Scene {
    fn set(fault: &str, action: &str) -> Result<Self> {
        let armed = format!("{fault}:{action}:1");
        let mut home = Launch::new("home", Root::Normal);
        let mut desk = Launch::new("desk", Root::Bare);
        let launch = if Side::of(fault) == Side::Home { &mut home } else { &mut desk };
        *launch = launch.clone().env("TCMI_FAULT", &armed);
        let scratch = Scratch::new("fault")?;
        let file = scratch.join("count").display().to_string();
        let victim = Victim::spawn(&VictimKind::with_args("counter", &[&file]))?;
        Ok(Self { pair: Pair::launch(home, desk)?, victim, scratch })
    }

    fn revive(&mut self) -> Result<()> {
        revive(&mut self.pair)
    }

    fn is_away(&self) -> bool {
        self.pair.state(self.victim.pid()).is_ok_and(|state| state == "emigrated")
    }

    /// The victim answers, once, and no other process writes into its file.
    fn expect_one_copy(&mut self, when: &str) -> Result<()> {
        let pid = self.victim.pid();
        if let Some(status) = self.victim.has_ended()? {
            anyhow::bail!("{when}: no copy is left; status {status}\n{}", self.pair.logs());
        }
        self.victim.works(RECOVERY_TIMEOUT).with_context(|| when.to_owned())?;
        let [count] = self.victim.ask("count", "COUNT")?[..] else {
            anyhow::bail!("one number in a count");
        };
        // Later lines may be there already; up to its own count all must be.
        let written = self.counted()?;
        ensure!(written >= count as u64, "{when}: it counts {count}, the file has {written}");
        // A copy that is to end may still be ending.
        wait_until("one copy", RECOVERY_TIMEOUT, || {
            let expected = if self.pair.is_guest(pid) { 2 } else { 1 };
            Ok((self.copies()? <= expected).then_some(()))
        })
        .with_context(|| {
            format!("{when}: {:?} processes hold it\n{}", self.copies(), self.pair.logs())
        })
    }

    fn counted(&self) -> Result<u64> {
        let file = self.scratch.join("count");
        // A line that is being written right now is torn only to this reader.
        wait_until("whole lines", RECOVERY_TIMEOUT, || {
            let text = fs::read_to_string(&file)?;
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            for (at, line) in whole.lines().enumerate() {
                ensure!(line == (at + 1).to_string(), "line {} is {line:?}", at + 1);
            }
            Ok(Some(whole.lines().count() as u64))
        })
    }

    fn copies(&self) -> Result<usize> {
        copies(&self.scratch.join("count").display().to_string())
    }
}

/// Processes of this host that have the victim's argument: it, its shadow, its guest.
fn copies(argument: &str) -> Result<usize> {
    let holds = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|word| word == argument.as_bytes()))
    };
    Ok(fs::read_dir("/proc")?.filter_map(Result::ok).filter(holds).count())
}

/// Starts again what the fault killed.
fn revive(pair: &mut Pair) -> Result<()> {
    let desk_died = ended_soon(&mut pair.desk)?;
    let home_died = ended_soon(&mut pair.home)?;
    if desk_died {
        pair.desk.restart(Vec::new())?;
    }
    if home_died {
        pair.home.restart(Vec::new())?;
        pair.home.echo("ccn/trust", &pair.desk.id()?)?;
        pair.home.echo("ccn/listen", &pair.address)?;
    }
    if home_died {
        let known = || Ok((pair.desk.read("pen/nodes/count")? == "0").then_some(()));
        wait_until("the desk forgets the home that died", RECOVERY_TIMEOUT, known)?;
    }
    if desk_died || home_died {
        pair.connect()?;
    }
    pair.wait_connected()
}

/// A daemon that a fault is about to end may still be ending when the write returned.
fn ended_soon(node: &mut Node) -> Result<bool> {
    let armed_kill = node.environment().iter().any(|(_, v)| v.contains(":kill:"));
    if !armed_kill || node.read("node/name").is_ok() {
        return Ok(node.ended()?.is_some());
    }
    wait_until("end of the killed daemon", RECOVERY_TIMEOUT, || {
        Ok(node.ended()?.is_some().then_some(true))
    })
}

/// What is left when a fault has done its worst after the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The process goes on, and goes out and home again.
    Whole,
    /// What held the guest was killed, and the guest with it: the process ends by SIGKILL.
    Lost,
    /// What kept the shadow was killed: the guest goes on where it is.
    Away,
}

/// Where home's daemon dies on the way out, and the guest goes on all the same.
const DECIDED_AWAY: [&str; 3] = ["HomeDecidedAway", "HomeMemoryReleased", "HomeShadowRuns"];

fn after(fault: &str, action: &str) -> After {
    match (fault, action) {
        ("NodeReturnAsked" | "NodeGuestFrozen" | "NodePagesHalfSent", "kill") => After::Lost,
        (
            "HomeReturnFrozen"
            | "HomeReturnArmed"
            | "HomePagesHalfReceived"
            | "HomeImageReceived"
            | "HomeRebuilt",
            "kill",
        ) => After::Away,
        (out, "kill") if DECIDED_AWAY.contains(&out) => After::Away,
        _ => After::Whole,
    }
}

fn survives(fault: &str, action: &str) -> Result<()> {
    let mut scene = Scene::set(fault, action)?;
    let pid = scene.victim.pid();
    match after(fault, action) {
        After::Whole => {}
        After::Lost => return is_lost(scene, fault),
        After::Away => return stays_away(scene, fault),
    }
    // Whether a move succeeds in spite of the fault is the fault's business; what
    // is left after it is ours.
    let out = scene.pair.try_migrate(pid);
    scene.revive().context("after the way out")?;
    scene.expect_one_copy(&format!("after the way out ({out:?})"))?;
    if scene.is_away() {
        let home = scene.pair.home.write("ccn/mig/migrate-home", format!("{pid}\n"));
        scene.revive().context("after the way home")?;
        scene.expect_one_copy(&format!("after the way home ({home:?})"))?;
    }
    expect_fault(&scene.pair, fault)?;
    if scene.is_away() {
        scene.pair.bring_home(pid).context("way home after a failed one")?;
    }
    // The desk may still be ending a guest that was given up.
    scene.pair.wait_forgotten(pid)?;
    scene.pair.migrate(pid).context("next migration")?;
    scene.expect_one_copy("away by the next migration")?;
    scene.pair.bring_home(pid).context("next way home")?;
    scene.expect_one_copy("home by the next migration")?;
    let Scene { pair, victim, scratch } = scene;
    victim.end(7)?;
    tcmi_tests::victim::expect_counted(&scratch.join("count"))?;
    pair.stop()
}

fn is_lost(mut scene: Scene, fault: &str) -> Result<()> {
    let pid = scene.victim.pid();
    scene.pair.migrate(pid)?;
    scene.expect_one_copy("away")?;
    let home = scene.pair.home.write("ccn/mig/migrate-home", format!("{pid}\n"));
    ensure!(home.is_err(), "it came home");
    expect_fault(&scene.pair, fault)?;
    let status = scene.victim.wait(RECOVERY_TIMEOUT)?;
    ensure!(status.signal() == Some(libc::SIGKILL), "status {status}");
    nothing_is_left(scene)
}

fn stays_away(mut scene: Scene, fault: &str) -> Result<()> {
    let pid = scene.victim.pid();
    // The daemon dies before it can say that the guest runs.
    let early = DECIDED_AWAY.contains(&fault);
    let out = scene.pair.try_migrate(pid);
    ensure!(out.is_err() == early, "the way out: {out:?}");
    if !early {
        let home = scene.pair.home.write("ccn/mig/migrate-home", format!("{pid}\n"));
        ensure!(home.is_err(), "it came home");
    }
    expect_fault(&scene.pair, fault)?;
    scene.revive()?;
    for _ in 0..3 {
        scene.expect_one_copy("away, with nobody who keeps it")?;
    }
    ensure!(scene.pair.is_guest(pid), "the desk does not list it");
    scene.victim.signal(Signal::SIGKILL)?;
    scene.victim.wait(RECOVERY_TIMEOUT)?;
    nothing_is_left(scene)
}

/// The victim ended: no copy of it runs, no step was lost, and another one can move.
fn nothing_is_left(scene: Scene) -> Result<()> {
    let pid = scene.victim.pid();
    scene.pair.wait_forgotten(pid)?;
    wait_until("no copy", RECOVERY_TIMEOUT, || Ok((scene.copies()? == 0).then_some(())))?;
    tcmi_tests::victim::expect_counted(&scene.scratch.join("count"))?;
    scene.pair.expect_serves()?;
    scene.pair.stop()
}

/// Where one word decides for all threads, and where they may have gone different ways.
const DECISIONS: [&str; 8] = [
    "HomeArmed",
    "HomeCommitSent",
    "HomeDecidedAway",
    "HomeMemoryReleased",
    "HomeRebuilt",
    "HomeDecidedHome",
    "HomeFinishSent",
    "HomeRunsAgain",
];

/// A process of many threads, which pass numbers to each other, whose keeper is killed: all of
/// them go on, in the same place.
fn threads_stay_together(fault: &str) -> Result<()> {
    let mut home = Launch::new("home", Root::Normal);
    home = home.env("TCMI_FAULT", &format!("{fault}:kill:1"));
    let mut pair = Pair::launch(home, Launch::new("desk", Root::Bare))?;
    let mut victim = Victim::spawn(&VictimKind::plain("threads"))?;
    let pid = victim.pid();
    let out = pair.try_migrate(pid);
    if out.is_ok() {
        let home = pair.home.write("ccn/mig/migrate-home", format!("{pid}\n"));
        ensure!(home.is_err(), "the daemon that is to die answers");
    }
    wait_until("end of the killed daemon", RECOVERY_TIMEOUT, || {
        Ok(pair.home.ended()?.is_some().then_some(()))
    })?;
    for _ in 0..3 {
        victim.check().with_context(|| format!("its keeper is dead ({out:?})"))?;
    }
    victim.end(7)?;
    pair.wait_forgotten(pid)
}

/// Home's daemon is killed after so many words with a guest that always begins threads: it goes
/// on, with those that it has.
fn threads_begin(words: u32) -> Result<()> {
    let mut pair =
        Pair::launch(Launch::new("home", Root::Normal), Launch::new("desk", Root::Bare))?;
    let mut victim = Victim::spawn(&VictimKind::plain("starter"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    for _ in 0..words {
        victim.check()?;
    }
    pair.home.kill()?;
    for _ in 0..3 {
        victim.check().context("home's daemon is dead")?;
    }
    victim.end(7)?;
    pair.wait_forgotten(pid)
}

/// Where a process is at home for a call of one of its threads.
const VISITS: [&str; 2] = ["HomeVisits", "HomeVisited"];

/// A process whose visit at home fails has made its call, once, and runs at home.
fn visit_fails(fault: &str, action: &str) -> Result<()> {
    let mut home = Launch::new("home", Root::Normal);
    home = home.env("TCMI_FAULT", &format!("{fault}:{action}:1"));
    let mut pair = Pair::launch(home, Launch::new("desk", Root::Bare))?;
    let mut victim = Victim::spawn(&VictimKind::plain("family"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    ensure!(victim.ask("fork", "FORKED")? == [0], "the call");
    pair.wait_forgotten(pid)?;
    victim.check().context("at home")?;
    if action == "error" {
        ensure!(pair.state(pid)? == "running", "its state");
        pair.migrate(pid).context("next migration")?;
        ensure!(victim.ask("fork", "FORKED")? == [0], "the next call");
        return victim.end(7);
    }
    wait_until("end of the killed daemon", RECOVERY_TIMEOUT, || {
        Ok(pair.home.ended()?.is_some().then_some(()))
    })?;
    victim.end(7)
}

/// Home's daemon is killed when a process that begins another is in this state: it has begun it,
/// or hears that it cannot.
fn killed_while_it_begins_another(state: &str) -> Result<()> {
    let mut pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("family"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.say("fork")?;
    wait_until("the state to be killed in", RECOVERY_TIMEOUT, || {
        let now = pair.state(pid)?;
        // It may have been too short to be seen.
        Ok((now == state || now == "emigrated").then_some(()))
    })?;
    pair.home.kill()?;
    let may_be = |said: i64| said == 0 || said == i64::from(libc::EAGAIN);
    let line = victim.next_line(RECOVERY_TIMEOUT)?;
    let said = line.strip_prefix("FORKED ").context("an answer")?.parse()?;
    ensure!(may_be(said), "its fork: {said}");
    for _ in 0..2 {
        let said = victim.ask("fork", "FORKED")?[0];
        ensure!(may_be(said), "its next fork: {said}");
    }
    victim.end(7)?;
    pair.wait_forgotten(pid)
}

fn main() {
    let faults = fault_points();
    let mut trials = vec![Trial::test("fault_points_are_listed", {
        let listed = faults.as_ref().map(Vec::len).map_err(|e| format!("{e:#}"));
        move || Ok(listed.map(drop)?)
    })];
    // Without a list there is the one test that says so.
    trials.extend(trees::trials(faults.as_deref().unwrap_or(&[])));
    let elsewhere = [&VISITS[..], &trees::TOGETHER, &[trees::AGAIN]].concat();
    for fault in faults.into_iter().flatten().filter(|f| !elsewhere.contains(&f.as_str())) {
        for action in ACTIONS {
            let (name, fault) = (format!("{fault}::{action}"), fault.clone());
            trials.push(Trial::test(name, move || {
                Ok(survives(&fault, action).map_err(|e| format!("{e:#}"))?)
            }));
        }
    }
    for fault in DECISIONS {
        trials.push(Trial::test(format!("{fault}::kill_with_threads"), move || {
            Ok(threads_stay_together(fault).map_err(|e| format!("{e:#}"))?)
        }));
    }
    for fault in VISITS {
        for action in ACTIONS {
            trials.push(Trial::test(format!("{fault}::{action}"), move || {
                Ok(visit_fails(fault, action).map_err(|e| format!("{e:#}"))?)
            }));
        }
    }
    for state in ["emigrated", "returning", "running", "preparing", "transferring", "committing"] {
        trials.push(Trial::test(format!("begins_another::kill_when_{state}"), move || {
            Ok(killed_while_it_begins_another(state).map_err(|e| format!("{e:#}"))?)
        }));
    }
    for words in 0..10 {
        trials.push(Trial::test(format!("threads_begin::kill_after_{words}"), move || {
            Ok(threads_begin(words).map_err(|e| format!("{e:#}"))?)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
