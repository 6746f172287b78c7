//! Real programs, moved out in the middle of their work and home before its end,
//! put out the same bytes and the same status as where nothing is moved.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use tcmi_tests::account::{cpu_ms, descendants_cpu_ms};
use tcmi_tests::program::{Inputs, Program, difference, is_installed};
use tcmi_tests::{Pair, wait_until};

const RUN_TIMEOUT: Duration = Duration::from_secs(120);
/// Work done at home before the move, and on the desk before the return.
const SHARE_MS: u64 = 300;
/// The same of one that begins others, in lines of output.
const SHARE_LINES: usize = 5;

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
    if let Some(difference) = difference(&output, &moved_output) {
        anyhow::bail!("unmoved and moved: {difference}");
    }
    pair.expect_no_leak(&before)?;
    pair.stop()
}

/// Where this fails, a difference after a move says nothing about the move.
fn same_twice(program: &Program) -> Result<()> {
    let (status, output) = program.start()?.finish(RUN_TIMEOUT)?;
    let (second_status, second_output) = program.start()?.finish(RUN_TIMEOUT)?;
    ensure!(status == second_status, "status {status}, then {second_status}");
    match difference(&output, &second_output) {
        Some(difference) => anyhow::bail!("two runs: {difference}"),
        None => Ok(()),
    }
}

type Way = fn(&Program) -> Result<()>;

fn main() -> Result<()> {
    let ways: [(&str, Way); 2] = [("unmoved", same_twice), ("moved", same_as_unmoved)];
    let inputs = Inputs::make()?;
    let mut trials = Vec::new();
    for (way, run) in ways {
        for program in inputs.programs() {
            let lacking = !is_installed(&program.argv[0]);
            let trial = Trial::test(format!("{way}::{}", program.name), move || {
                let done = program.resolve().and_then(|p| run(&p));
                Ok(done.map_err(|e| format!("{e:#}"))?)
            });
            trials.push(trial.with_ignored_flag(lacking));
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    // exit() runs no destructors.
    drop(inputs);
    conclusion.exit()
}
