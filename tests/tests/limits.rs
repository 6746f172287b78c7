//! What the node's owner grants a guest (victims/eater.c takes more), and what home allows to be
//! away at once.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tcmi_tests::{Launch, Pair, Root, Scratch, Victim, VictimKind, wait_until};

const SOON: Duration = Duration::from_secs(30);
/// A family of several dozen processes goes home for each fork.
const BOMB_TIMEOUT: Duration = Duration::from_secs(120);
const MEMORY_MIB: u64 = 64;
const THREADS: i64 = 24;
const WEIGHT: u64 = 50;
const ROOT: u32 = 0;

/// The desk sees this host, for its control groups.
fn pair(at_desk: &str) -> Result<Pair> {
    Pair::launch(
        Launch::new("home", Root::Normal),
        Launch::new("desk", Root::Normal).config(at_desk),
    )
}

fn desk_has(pair: &Pair, feature: &str) -> Result<bool> {
    Ok(pair.desk.read("node/features")?.lines().any(|line| line.starts_with(feature)))
}

fn guest(pair: &Pair, pid: u32) -> Result<u32> {
    Ok(pair.desk.read(&format!("pen/mig/migproc/{pid}/remote-pid"))?.trim().parse()?)
}

/// The directory of a process's control group, by the controller's name.
fn group(pid: u32, controller: &str) -> Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = |wanted: &str| {
        groups.lines().find_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (names, path) = line.split_once(':')?;
            names.split(',').any(|name| name == wanted).then_some(path)
        })
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let (before, behind) = line.split_once(" - ")?;
            let options = behind.split(' ').nth(2)?;
            let fits = behind.split(' ').next() == Some(kind)
                && (option.is_empty() || options.split(',').any(|o| o == option));
            let mut words = before.split(' ').skip(3);
            fits.then(|| Some((words.next()?.to_owned(), words.next()?.to_owned())))?
        })
    };
    let (root, at, path) = match path(controller) {
        Some(path) => mounted("cgroup", controller).map(|(root, at)| (root, at, path)),
        None => mounted("cgroup2", "").zip(path("")).map(|((root, at), path)| (root, at, path)),
    }
    .with_context(|| format!("no group of {controller} in {groups}"))?;
    Ok(Path::new(&at).join(Path::new(path).strip_prefix(root)?))
}

fn wait_removed(groups: &[PathBuf]) -> Result<()> {
    wait_until(&format!("{groups:?} removed"), SOON, || {
        Ok((!groups.iter().any(|group| group.exists())).then_some(()))
    })
}

#[test]
fn a_guest_that_eats_memory_is_ended_and_nothing_else() -> Result<()> {
    let pair = pair(&format!("[guests]\nmemory-mib = {MEMORY_MIB}\n"))?;
    if !desk_has(&pair, "limit-memory=cgroup")? {
        eprintln!("skipped: no control group of memory is ours to divide");
        return pair.stop();
    }
    let mut other = Victim::spawn(&VictimKind::plain("memory"))?;
    pair.migrate(other.pid())?;
    let mut victim = Victim::spawn(&VictimKind::plain("eater"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    let its = group(guest(&pair, pid)?, "memory")?;
    ensure!(its != group(pair.desk.pid(), "memory")?, "it is in the daemon's group");
    ensure!(its != group(guest(&pair, other.pid())?, "memory")?, "two guests in one group");
    victim.say(&format!("eat {}", MEMORY_MIB / 2))?;
    victim.expect(&format!("ATE {}", MEMORY_MIB / 2), SOON)?;
    victim.say(&format!("eat {MEMORY_MIB}"))?;
    // It is a zombie, and its files are there, until we wait for it.
    let said = wait_until("why it ended", SOON, || {
        let text = pair.home.read(&format!("ccn/mig/migproc/{pid}/last-error"));
        Ok(text.ok().filter(|text| !text.is_empty()))
    })
    .with_context(|| pair.logs())?;
    let limit = format!("more than the {MEMORY_MIB} MiB of memory");
    ensure!(said.contains(&limit) && said.contains("desk"), "{said}");
    let status = victim.wait(SOON)?;
    ensure!(status.signal() == Some(libc::SIGKILL), "it ended with {status}");
    pair.wait_forgotten(pid)?;
    wait_removed(&[its])?;
    other.check().context("the guest beside it")?;
    pair.bring_home(other.pid())?;
    other.end(7)?;
    pair.expect_serves()?;
    pair.stop()
}

#[test]
fn a_process_that_has_more_than_a_guest_may_stays() -> Result<()> {
    let grants = format!("[guests]\nmemory-mib = {MEMORY_MIB}\nthreads = {THREADS}\n");
    let pair = pair(&grants)?;
    let before = pair.settled_accounts()?;
    let mut fat = Victim::spawn(&VictimKind::plain("eater"))?;
    fat.say(&format!("eat {}", 2 * MEMORY_MIB))?;
    fat.expect(&format!("ATE {}", 2 * MEMORY_MIB), SOON)?;
    let many = Victim::spawn(&VictimKind::with_args("threads", &["40"]))?;
    let refused = |victim: &Victim, why: &str| -> Result<()> {
        let error = pair.try_migrate(victim.pid()).expect_err("it has gone");
        ensure!(error.raw_os_error() == Some(libc::EOPNOTSUPP), "{error}");
        let said = pair.home.read(&format!("ccn/mig/migproc/{}/last-error", victim.pid()))?;
        ensure!(said.contains(why), "{said}");
        Ok(())
    };
    refused(&fat, &format!("guests here {MEMORY_MIB}"))?;
    refused(&many, &format!("guests here at most {THREADS}"))?;
    fat.check()?;
    fat.end(7)?;
    many.end(7)?;
    // What is left of them goes when somebody looks.
    ensure!(fs::read_dir(pair.home.path("ccn/mig/migproc"))?.next().is_none(), "still listed");
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn no_more_guests_come_than_may_be_there_at_once() -> Result<()> {
    let pair = pair("[guests]\nat-once = 2\n")?;
    let mut first = Victim::spawn(&VictimKind::plain("usage"))?;
    let second = Victim::spawn(&VictimKind::plain("memory"))?;
    let mut third = Victim::spawn(&VictimKind::plain("memory"))?;
    pair.migrate(first.pid())?;
    pair.migrate(second.pid())?;
    pair.try_migrate(third.pid()).expect_err("it has gone");
    let said = pair.home.read(&format!("ccn/mig/migproc/{}/last-error", third.pid()))?;
    ensure!(said.contains("2 guests are here") && said.contains("desk"), "{said}");
    third.check()?;
    // It goes home for a fork, and comes again: its place is its own.
    first.say("errors")?;
    first.expect("TRIED", SOON)?;
    ensure!(pair.is_guest(first.pid()), "it lost its place\n{}", pair.logs());
    pair.bring_home(second.pid())?;
    // Its monitor may be there yet.
    wait_until("room for another", SOON, || Ok(pair.try_migrate(third.pid()).ok()))?;
    third.check()?;
    for victim in [first, second, third] {
        victim.end(7)?;
    }
    pair.stop()
}

/// By whatever the desk has to limit them.
fn begins_threads(pair: &Pair, user: u32, programs: &Scratch) -> Result<()> {
    let mut victim = Victim::spawn_as(&VictimKind::plain("eater"), user, programs.path())?;
    pair.migrate(victim.pid())?;
    for _ in 0..2 {
        let seen = victim.ask("crowd", "CROWD")?;
        // One that has been waited for may not have left yet.
        let full = (THREADS - 3..THREADS).contains(&seen[0]);
        ensure!(full && seen[1] == i64::from(libc::EAGAIN), "{seen:?}\n{}", pair.logs());
    }
    victim.check()?;
    pair.bring_home(victim.pid())?;
    let seen = victim.ask("crowd", "CROWD")?;
    ensure!(seen[0] > THREADS, "its limit came home: {seen:?}");
    victim.end(7)
}

#[test]
fn a_guest_begins_no_more_threads_than_it_may() -> Result<()> {
    let programs = Scratch::new("crowd")?;
    let pair = pair(&format!("[guests]\nthreads = {THREADS}\n"))?;
    begins_threads(&pair, ROOT, &programs)?;
    pair.expect_serves()?;
    pair.stop()
}

#[test]
fn threads_are_limited_where_there_are_no_groups() -> Result<()> {
    const USER: u32 = 54_323;
    let programs = Scratch::new("crowd")?;
    let grants = format!("[guests]\nthreads = {THREADS}\nmemory-mib = {MEMORY_MIB}\n");
    let desk = Launch::new("desk", Root::Bare).config(&grants);
    let pair = Pair::launch(Launch::new("home", Root::Normal), desk)?;
    for feature in ["limit-threads=rlimit", "limit-memory=none", "limit-cpu=none"] {
        ensure!(desk_has(&pair, feature)?, "{}", pair.desk.read("node/features")?);
    }
    begins_threads(&pair, ROOT, &programs)?;
    begins_threads(&pair, USER, &programs)?;
    pair.stop()
}

#[test]
fn a_guest_has_its_weight_and_goes_first_when_memory_is_short() -> Result<()> {
    let mut pair = pair(&format!("[guests]\ncpu-weight = {WEIGHT}\n"))?;
    let victim = Victim::spawn(&VictimKind::plain("memory"))?;
    pair.migrate(victim.pid())?;
    let its = guest(&pair, victim.pid())?;
    let adjusted = fs::read_to_string(format!("/proc/{its}/oom_score_adj"))?;
    ensure!(adjusted.trim() == "1000", "{adjusted}");
    let at_home = fs::read_to_string(format!("/proc/{}/oom_score_adj", victim.pid()))?;
    ensure!(at_home == fs::read_to_string("/proc/self/oom_score_adj")?, "{at_home}");
    let groups = if desk_has(&pair, "limit-cpu=cgroup1")? {
        let its = group(its, "cpu")?;
        let shares = fs::read_to_string(its.join("cpu.shares"))?;
        ensure!(shares.trim() == (WEIGHT * 1024 / 100).to_string(), "{shares}");
        vec![its, group(guest(&pair, victim.pid())?, "pids")?]
    } else if desk_has(&pair, "limit-cpu=cgroup2")? {
        let its = group(its, "cpu")?.parent().context("its group")?.to_owned();
        let weight = fs::read_to_string(its.join("cpu.weight"))?;
        ensure!(weight.trim() == WEIGHT.to_string(), "{weight}");
        vec![its]
    } else {
        eprintln!("skipped: no control group of cpu is ours to divide");
        Vec::new()
    };
    // A daemon that was killed leaves them to its guests, and the next one removes them.
    pair.desk.kill()?;
    ensure!(groups.iter().all(|group| group.exists()), "gone with the daemon: {groups:?}");
    pair.desk.restart(Vec::new())?;
    ensure!(groups.iter().all(|group| group.exists()), "gone with a guest in them: {groups:?}");
    victim.end(7)?;
    wait_removed(&groups)?;
    pair.stop()
}

fn count_guests(pair: &Pair) -> Result<usize> {
    Ok(fs::read_dir(pair.desk.path("pen/mig/migproc"))?.count())
}

#[test]
fn a_bomb_of_processes_hurts_neither_node() -> Result<()> {
    const FAMILY: usize = 4;
    const PROCESSES: i64 = 24;
    const USER: u32 = 54_324;
    let programs = Scratch::new("bomb")?;
    let home = Launch::new("home", Root::Normal).config(&format!("family-processes = {FAMILY}\n"));
    let pair = Pair::launch(home, Launch::new("desk", Root::Bare))?;
    let before = pair.settled_accounts()?;
    let kind = VictimKind::with_args("eater", &[&PROCESSES.to_string()]);
    let mut victim = Victim::spawn_as(&kind, USER, programs.path())?;
    pair.migrate(victim.pid())?;
    victim.say("bomb")?;
    let mut most = 0;
    let line = wait_until("no room for more processes", BOMB_TIMEOUT, || {
        most = most.max(count_guests(&pair)?);
        match victim.next_line(Duration::from_millis(1)) {
            Ok(line) => Ok(Some(line)),
            Err(_) if victim.has_ended()?.is_none() => Ok(None),
            Err(e) => bail!("{e:#}\n{}", pair.logs()),
        }
    })?;
    ensure!(line.starts_with(&format!("FULL {} ", libc::EAGAIN)), "{line}");
    pair.expect_serves().context("with all of them there")?;
    most = most.max(count_guests(&pair)?);
    ensure!((2..=FAMILY).contains(&most), "{most} were away at once");
    victim.say("on")?;
    let line = victim.next_line(BOMB_TIMEOUT)?;
    // Its shadow has threads that count, too.
    let made: i64 = line.strip_prefix("BOMB ").context(line.clone())?.parse()?;
    ensure!((FAMILY as i64..=PROCESSES).contains(&made), "{line}");
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.expect_serves()?;
    pair.stop()
}
