//! Each forwarded call, by victims/differ.c with good, odd and bad arguments: as a guest it gives
//! the result, the errno and the memory that it gives where nothing was moved.

use std::collections::BTreeSet;
use std::os::unix::fs::chown;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_call::table::{self, Class};
use tcmi_tests::{Pair, Scratch, Victim, VictimKind};

/// One that nobody else has: `kill(-1)` is among the calls.
const USER: u32 = 54_321;
const CASE_TIMEOUT: Duration = Duration::from_secs(30);
const SHOWN_MAX: usize = 100;

/// Rows without a case, and why.
const UNTRIED: &[(&str, &str)] = &[
    ("fork", "has no arguments: tests/victims/family.c"),
    ("vfork", "has no arguments: tests/victims/family.c"),
    ("exit", "ends the caller: tests/victims/births.c"),
    ("exit_group", "ends the caller: every victim does"),
    ("sync", "writes back all that the machine has"),
];

/// Cases that cannot be the same, by the beginning of their line, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("recvfrom#1 arg5=+1 -22", "the message is lost either way; its bytes came before the errno"),
    ("recvmmsg#0 arg4=read-only", "the rest of a timeout is written where that is possible"),
    ("mmap#0 arg3=16", "of two things that are wrong home's kernel tells the other"),
    ("mmap#2 arg", "no file, and something else wrong: the other is told"),
    ("mmap#3 arg3=16", "as mmap#0"),
];

/// Those that differ in some runs only: what is known of which memory is writable may be out of date,
/// and nothing to wait for is told by zeros, where zeros stand already.
const SOMETIMES: &[&str] = &["waitid#0 arg2=read-only"];

fn cases(victim: &mut Victim, directory: &Scratch, who: &str) -> Result<Vec<String>> {
    victim.say(&format!("run {} {who}", directory.path().display()))?;
    let mut lines = Vec::new();
    loop {
        let line = victim.next_line(CASE_TIMEOUT);
        let line = line.with_context(|| format!("after {:?}", lines.last()))?;
        if line == "DONE" {
            return Ok(lines);
        }
        ensure!(!line.starts_with("FAIL"), "{line}, after {:?}", lines.last());
        lines.push(line);
    }
}

/// Message queues have one name for all.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What it says unmoved and what it says as a guest.
fn both(user: u32, who: &str) -> Result<[Vec<String>; 2]> {
    // Of another that failed, nothing is kept there.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = Scratch::new("differ-program")?;
    let directory = Scratch::new("differ")?;
    chown(directory.path(), Some(user), Some(user))?;
    let kind = VictimKind::plain("differ");
    let mut victim = Victim::spawn_as(&kind, user, programs.path())?;
    let native = cases(&mut victim, &directory, who).context("unmoved")?;
    victim.end(0)?;
    let pair = Pair::new()?;
    let mut victim = Victim::spawn_as(&kind, user, programs.path())?;
    pair.migrate(victim.pid())?;
    let guest = cases(&mut victim, &directory, who).with_context(|| pair.logs())?;
    ensure!(pair.is_away(victim.pid()), "it has come home\n{}", pair.logs());
    victim.end(0)?;
    pair.stop()?;
    Ok([native, guest])
}

fn expect_same([native, guest]: &[Vec<String>; 2]) -> Result<()> {
    let known = |line: &str| {
        let mut all = DIFFERENT.iter().map(|(case, _)| case).chain(SOMETIMES);
        all.any(|case| line.starts_with(case))
    };
    let differing: Vec<String> = native
        .iter()
        .zip(guest)
        .filter(|(n, g)| n != g && !known(n))
        .map(|(n, g)| format!("unmoved {n}\nguest   {g}\n"))
        .collect();
    ensure!(native.len() == guest.len(), "{} cases, {} as a guest", native.len(), guest.len());
    ensure!(
        differing.is_empty(),
        "{} of {} differ\n{}",
        differing.len(),
        native.len(),
        differing[..differing.len().min(SHOWN_MAX)].concat()
    );
    Ok(())
}

fn names(lines: &[String]) -> BTreeSet<&str> {
    lines.iter().filter_map(|line| Some(line.split_once('#')?.0)).collect()
}

#[test]
fn a_users_calls_do_the_same_as_a_guest() -> Result<()> {
    let both = both(USER, "")?;
    let tried = names(&both[0]);
    let served = |class| matches!(class, Class::Forward | Class::Both(_));
    let missing: Vec<&str> = table::rows()
        .filter(|(_, row)| served(row.class))
        .map(|(_, row)| row.name)
        .filter(|name| !tried.contains(name) && !UNTRIED.iter().any(|(n, _)| n == name))
        .collect();
    ensure!(missing.is_empty(), "no case for {missing:?}");
    let needless: Vec<_> = UNTRIED.iter().filter(|(name, _)| tried.contains(name)).collect();
    ensure!(needless.is_empty(), "with a case: {needless:?}");
    let differs =
        |case: &str| both[0].iter().zip(&both[1]).any(|(n, g)| n != g && n.starts_with(case));
    let same: Vec<_> = DIFFERENT.iter().filter(|(case, _)| !differs(case)).collect();
    ensure!(same.is_empty(), "no longer different: {same:?}");
    expect_same(&both)
}

#[test]
fn roots_calls_do_the_same_as_a_guest() -> Result<()> {
    expect_same(&both(0, "root")?)
}
