//! Real programs, moved out in the middle of their work and home before its end,
//! put out the same bytes and the same status as where nothing is moved.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use tcmi_tests::account::{cpu_ms, descendants, descendants_cpu_ms};
use tcmi_tests::catalogue::{self, Entry, Inputs, Moves, Scene, Work, table};
use tcmi_tests::program::{Program, difference, is_there};
use tcmi_tests::{Pair, Scratch, wait_until};

const RUN_TIMEOUT: Duration = Duration::from_secs(120);
/// Work done at home before the move, and on the desk before the return.
const SHARE_MS: u64 = 300;
/// The same of one that begins others, in lines of output.
const SHARE_LINES: usize = 5;
/// Set: all are run, and the README's table is written there.
const TABLE: &str = "TCMI_PROGRAMS_TABLE";

fn same_as_unmoved(program: &Program) -> Result<()> {
    let (status, output) = program.start()?.finish(RUN_TIMEOUT).context("unmoved")?;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut run = program.start()?;
    let pid = run.pid();
    wait_until("some work at home", RUN_TIMEOUT, || {
        ensure!(run.has_ended()?.is_none(), "it ended at home");
        let begun = match program.begins_others {
            true => run.lines()? >= SHARE_LINES,
            false => cpu_ms(pid).is_none_or(|ms| ms >= SHARE_MS),
        };
        Ok(begun.then_some(()))
    })?;
    // One that begins others may be at home for that when this is over.
    pair.try_migrate(pid).with_context(|| format!("emigrate\n{}", pair.logs()))?;
    let (cpu, lines) = (descendants_cpu_ms(pair.desk.pid())?, run.lines()?);
    wait_until("some work on the desk", RUN_TIMEOUT, || {
        ensure!(run.has_ended()?.is_none(), "it ended on the desk\n{}", pair.logs());
        let done = match program.begins_others {
            true => run.lines()? >= lines + SHARE_LINES,
            false => descendants_cpu_ms(pair.desk.pid())? >= cpu + SHARE_MS,
        };
        Ok(done.then_some(()))
    })?;
    pair.bring_home(pid)?;
    let (moved_status, moved_output) = run.finish(RUN_TIMEOUT).context("moved")?;
    ensure!(status == moved_status, "status {status} unmoved, {moved_status} moved");
    if let Some(first) = difference(&output, &moved_output) {
        // A program that never does the same says nothing of the move.
        let (_, again) = program.start()?.finish(RUN_TIMEOUT).context("unmoved again")?;
        match difference(&output, &again) {
            Some(second) => anyhow::bail!("unmoved twice: {second}"),
            None => anyhow::bail!("unmoved and moved: {first}"),
        }
    }
    pair.expect_no_leak(&before)?;
    pair.stop()
}

struct Unmoved;

impl Moves for Unmoved {
    fn out(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
    fn tree_out(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
    fn tree_out_again(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
    fn home(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
}

struct Between<'a>(&'a Pair);

impl Moves for Between<'_> {
    fn out(&mut self, pid: u32) -> Result<()> {
        let Self(pair) = self;
        pair.try_migrate(pid).with_context(|| format!("emigrate\n{}", pair.logs()))
    }
    fn tree_out(&mut self, pid: u32) -> Result<()> {
        let Self(pair) = self;
        pair.try_migrate_tree(pid).with_context(|| format!("emigrate\n{}", pair.logs()))?;
        let stays = descendants(pid)?.into_iter().find(|pid| !pair.is_guest(*pid));
        ensure!(stays.is_none(), "{stays:?} is not on the desk");
        Ok(())
    }
    fn tree_out_again(&mut self, pid: u32) -> Result<()> {
        let Self(pair) = self;
        wait_until("all of it on the desk", RUN_TIMEOUT, || {
            let below = descendants(pid)?;
            Ok((pair.is_away(pid) && below.iter().all(|pid| pair.is_away(*pid))).then_some(()))
        })
        .with_context(|| pair.logs())
    }
    fn home(&mut self, pid: u32) -> Result<()> {
        self.0.bring_home(pid)
    }
}

fn play(name: &str, scene: Scene, moves: &mut dyn Moves) -> Result<String> {
    let directory = Scratch::new(name)?;
    scene(directory.path(), moves)
}

fn same_scene_as_unmoved(name: &str, scene: Scene) -> Result<()> {
    let unmoved = play(name, scene, &mut Unmoved).context("unmoved")?;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let moved = play(name, scene, &mut Between(&pair));
    let moved = moved.with_context(|| format!("moved\n{}", pair.logs()))?;
    ensure!(unmoved == moved, "unmoved and moved: {unmoved:?} and {moved:?}");
    pair.expect_no_leak(&before)?;
    pair.stop()
}

fn moved(entry: &Entry) -> Result<()> {
    match &entry.work {
        Work::Batch(program) => same_as_unmoved(&program.clone().resolve()?),
        Work::Scene(scene) => same_scene_as_unmoved(entry.name, *scene),
    }
}

fn main() -> Result<()> {
    let asked_table = std::env::var_os(TABLE);
    let inputs = Inputs::make()?;
    let failed = Arc::new(Mutex::new(Vec::new()));
    let mut trials = Vec::new();
    for entry in catalogue::entries(inputs.path()) {
        let lacking = !entry.needs.iter().all(|(needed, _)| is_there(needed));
        // For the table, what is not there fails.
        let ignored = asked_table.is_none() && (lacking || !entry.quick);
        let failed = failed.clone();
        let trial = Trial::test(entry.name, move || {
            let done = moved(&entry);
            if done.is_err() {
                failed.lock().expect("no trial panics with it").push(entry.name.to_owned());
            }
            Ok(done.map_err(|e| format!("{e:#}"))?)
        });
        trials.push(trial.with_ignored_flag(ignored));
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    if let Some(path) = asked_table {
        let failed = failed.lock().expect("all trials are over");
        std::fs::write(Path::new(&path), table::text(&catalogue::entries(inputs.path()), &failed))?;
    }
    // exit() runs no destructors.
    drop(inputs);
    conclusion.exit()
}
