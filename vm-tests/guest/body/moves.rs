//! Out and home with everything well.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcmi_tests::victim::expect_counted;
use tcmi_tests::{Scratch, Victim, VictimKind, account, wait_until};

use super::pair::{Pair, TIMEOUT};
use crate::port::Port;

const ROUND_TRIPS: u32 = 10;
const SIGNALS: i64 = 200;
/// A victim that forks goes home and out for each, and emulation makes a move take half a second.
const CHECK_MAX: Duration = Duration::from_secs(120);

/// Runs `body` with a connected pair; both logs are shown when it fails.
pub fn with_pair(port: &Port, body: impl FnOnce(&Pair) -> Result<()>) -> Result<()> {
    let pair = Pair::new()?;
    port.progress("connected")?;
    match body(&pair) {
        Ok(()) => pair.stop(),
        Err(error) => {
            pair.show_logs();
            Err(error)
        }
    }
}

pub fn emigrate(port: &Port) -> Result<()> {
    with_pair(port, |pair| everything_well(port, pair))
}

pub fn everything_well(port: &Port, pair: &Pair) -> Result<()> {
    shell_loop(port, pair).context("shell")?;
    counter(port, pair).context("counter")?;
    receiver(port, pair).context("receiver")?;
    tree(port, pair).context("tree")?;
    eater(port, pair).context("eater")
}

/// By control groups of the only kind that there is here.
fn eater(port: &Port, pair: &Pair) -> Result<()> {
    let features = pair.desk.read("node/features")?;
    for limit in ["limit-memory=cgroup2", "limit-threads=cgroup2", "limit-cpu=cgroup2"] {
        ensure!(features.lines().any(|line| line == limit), "{features}");
    }
    let mut victim = Victim::spawn(&VictimKind::plain("eater"))?;
    pair.migrate(victim.pid())?;
    victim.say("eat 64")?;
    victim.expect("ATE 64", TIMEOUT)?;
    victim.say("eat 192")?;
    let file = format!("ccn/mig/migproc/{}/last-error", victim.pid());
    wait_until("why it ended", TIMEOUT, || {
        Ok(pair.home.read(&file).is_ok_and(|text| text.contains("192 MiB")).then_some(()))
    })?;
    let status = victim.wait(TIMEOUT)?;
    ensure!(status.signal() == Some(libc::SIGKILL), "status {status}");
    port.progress("a guest was held to its limit")
}

/// A program that nobody prepared: busybox's shell, which prints and ends with a status.
pub fn shell_loop(port: &Port, pair: &Pair) -> Result<()> {
    const SCRIPT: &str = "n=0; trap 'echo caught; exit 7' USR1; \
        while :; do n=$((n+1)); echo $n; done";
    let scratch = Scratch::new("shell")?;
    let (path, out) = (scratch.join("out"), fs::File::create(scratch.join("out"))?);
    let mut shell = Command::new("/bin/busybox")
        .args(["sh", "-c", SCRIPT])
        .stdin(Stdio::null())
        .stdout(out)
        .spawn()?;
    let (pid, length) = (shell.id(), || Ok::<_, anyhow::Error>(fs::metadata(&path)?.len()));
    let goes_on = |place: &str| {
        let before = length()?;
        wait_until(place, TIMEOUT, || Ok((length()? > before + 100).then_some(())))
    };
    goes_on("output at home")?;
    pair.migrate(pid)?;
    port.progress("shell is away")?;
    goes_on("output away")?;
    pair.bring_home(pid)?;
    goes_on("output at home again")?;
    pair.migrate(pid)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGUSR1)?;
    let status = wait_until("its end", TIMEOUT, || Ok(shell.try_wait()?))?;
    ensure!(status.code() == Some(7), "status {status}");
    let text = fs::read_to_string(&path)?;
    let counted = text.strip_suffix("caught\n").context("its last word")?;
    for (at, line) in counted.lines().enumerate() {
        ensure!(line == (at + 1).to_string(), "line {} is {line:?}", at + 1);
    }
    Ok(())
}

fn counter(port: &Port, pair: &Pair) -> Result<()> {
    let scratch = Scratch::new("count")?;
    let file = scratch.join("count");
    let path = file.display().to_string();
    let mut victim = Victim::spawn(&VictimKind::with_args("counter", &[&path]))?;
    let pid = victim.pid();
    for number in 1..=ROUND_TRIPS {
        pair.migrate(pid).with_context(|| format!("way out {number}"))?;
        victim.check()?;
        pair.bring_home(pid).with_context(|| format!("way home {number}"))?;
        victim.check()?;
    }
    port.progress("counter went round")?;
    victim.end(7)?;
    expect_counted(&file).map(drop)
}

fn receiver(port: &Port, pair: &Pair) -> Result<()> {
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    pair.migrate(victim.pid())?;
    for count in 1..=SIGNALS {
        victim.signal(Signal::SIGUSR1)?;
        wait_until("a signal", TIMEOUT, || {
            Ok((victim.ask("report", "SEEN")?[0] == count).then_some(()))
        })
        .with_context(|| format!("signal {count}"))
        .inspect_err(|_| pair.show_logs())?;
    }
    port.progress("signals arrived")?;
    pair.bring_home(victim.pid())?;
    victim.check()?;
    victim.signal(Signal::SIGKILL)?;
    victim.wait(TIMEOUT).map(drop)
}

/// Processes that share memory, at one instant.
fn tree(port: &Port, pair: &Pair) -> Result<()> {
    const CHILDREN: &str = "3";
    let scratch = Scratch::new("tree")?;
    let mark = scratch.path().display().to_string();
    let mut head = Victim::spawn(&VictimKind::with_args("segment", &[CHILDREN, &mark]))?;
    let pid = head.pid();
    let all = [vec![pid], account::descendants(pid)?].concat();
    for _ in 0..2 {
        let order = format!("{pid} desk tree\n");
        pair.home.write("ccn/mig/emigrate-ppm-p", order).context("way out")?;
        let away = all.iter().filter(|pid| pair.is_guest(**pid)).count();
        ensure!(away == all.len() && away > 1, "{away} of {all:?} are away");
        head.works(TIMEOUT).context("away")?;
        pair.home.write("ccn/mig/migrate-home", format!("{pid}\n")).context("way home")?;
        wait_until("none of them away", TIMEOUT, || {
            Ok((!all.iter().any(|pid| pair.is_guest(*pid))).then_some(()))
        })?;
        head.works(TIMEOUT).context("home again")?;
    }
    port.progress("a tree went round")?;
    head.end(7)
}

pub fn threads(port: &Port) -> Result<()> {
    with_pair(port, |pair| {
        let mut victim = Victim::spawn(&VictimKind::plain("threads"))?;
        let pid = victim.pid();
        for number in 1..=ROUND_TRIPS / 2 {
            pair.migrate(pid).with_context(|| format!("way out {number}"))?;
            victim.check().with_context(|| format!("away {number}"))?;
            pair.bring_home(pid).with_context(|| format!("way home {number}"))?;
            victim.check().with_context(|| format!("home {number}"))?;
        }
        victim.end(9)
    })
}

/// Each victim of the end-to-end tests that this machine can run, out and home.
pub fn victims(port: &Port) -> Result<()> {
    with_pair(port, |pair| {
        let mut failed = Vec::new();
        for kind in VictimKind::all() {
            let name = kind.name();
            // How a program is linked matters to no kernel but by what is left.
            if name.ends_with("-no-pie") || name.ends_with("-static-pie") {
                continue;
            }
            // What these do at each step is home's, and takes a minute here.
            let is_long = ["arena", "programs"].contains(&kind.program);
            if is_long || kind.args.iter().any(|a| a.parse::<u32>().is_ok()) {
                println!("case: {name} is sized for machines that are not emulated");
                continue;
            }
            if let Some(reason) = kind.lacking() {
                println!("case: {name} is skipped: {reason}");
                continue;
            }
            port.progress(&name)?;
            let begun = Instant::now();
            let outcome = out_and_home(pair, &kind);
            println!("case: {name} took {:.1} s", begun.elapsed().as_secs_f32());
            if let Err(error) = outcome {
                failed.push(format!("{name}: {error:#}"));
            }
        }
        ensure!(failed.is_empty(), "{} victims failed:\n{}", failed.len(), failed.join("\n"));
        Ok(())
    })
}

fn out_and_home(pair: &Pair, kind: &VictimKind) -> Result<()> {
    let mut victim = Victim::spawn(kind)?;
    let pid = victim.pid();
    let mut there_and_back = || {
        pair.migrate(pid)?;
        victim.check_within(CHECK_MAX).context("away")?;
        pair.bring_home(pid)?;
        victim.check_within(CHECK_MAX).context("home again")
    };
    // While it lives: a thread that hangs shows where.
    there_and_back().inspect_err(|_| pair.show_logs())?;
    victim.end(7)
}
