//! With the kernel module.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use tcmi_tests::{Victim, VictimKind, wait_until};
use tcmi_vm_tests::wire::Order as HostOrder;

use super::moves;
use super::pair::{Pair, TIMEOUT};
use crate::port::Port;
use crate::remote::Order;
use crate::system::{CommandLine, TCMI_MODULE};

/// A program of `tests` in the initramfs; what it says goes to the console.
fn passes(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(format!("/tests/{program}"))
        .args(arguments)
        .envs(environment.iter().copied())
        .status()?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

pub fn load() -> Result<()> {
    passes("kmod-load", &[TCMI_MODULE], &[])
}

/// Another run each time: the token is its seed.
pub fn fuzz(words: &CommandLine) -> Result<()> {
    let seed = u64::from_str_radix(&words.token, 16)?.to_string();
    println!("seed {seed}");
    passes("kmod-fuzz", &[&words.fuzz_seconds, &seed, TCMI_MODULE], &[])
}

pub fn cost(port: &Port) -> Result<()> {
    let out = Command::new("/tests/kmod-bench").arg(TCMI_MODULE).output()?;
    let text = String::from_utf8(out.stdout)?;
    text.lines().try_for_each(|line| port.progress(line))?;
    ensure!(out.status.success(), "kmod-bench: {}", out.status);
    Ok(())
}

pub fn freezers(port: &Port) -> Result<()> {
    passes("freezers", &[], &[])?;
    port.progress("both freezers hold")?;
    passes("kmod-freezer", &[], &[])?;
    port.progress("what only the module's does")?;
    passes("kmod-send", &[], &[])
}

/// The tests of the FUSE server as they are: once against it, once against the kernel's tree.
pub fn ctlfs(port: &Port) -> Result<()> {
    for kernel in [&[][..], &[("TCMI_CTLFS_KERNEL", "1")]] {
        for program in ["ctlfs-conformance", "ctlfs-server"] {
            // One daemon at a time serves the kernel's.
            passes(program, &["--test-threads=1"], kernel)?;
            port.progress(program)?;
        }
    }
    passes("kmod-ctlfs", &[], &[])
}

/// Each node takes the module where it is, and says so to the other.
pub fn pair(port: &Port, words: &CommandLine) -> Result<()> {
    moves::with_pair(port, |pair| {
        let says = |module| match module {
            true => ["freezer=module", "ctlfs=kernel", "pages=kernel", "beat=kernel"],
            false => ["freezer=ptrace", "ctlfs=fuse", "pages=userspace", "beat=none"],
        };
        for (text, module) in [
            (pair.home.read("node/features")?, words.home_module),
            (pair.desk.read("pen/nodes/home/features")?, words.home_module),
            (pair.desk.read("node/features")?, words.desk_module),
            (pair.home.read("ccn/nodes/desk/features")?, words.desk_module),
        ] {
            for line in says(module) {
                ensure!(text.lines().any(|l| l == line), "not {line}: {text}");
            }
        }
        port.progress("served as it should be")?;
        memory(pair, words)?;
        port.progress("memory arrived")?;
        used_away(pair, words.home_module)?;
        port.progress("what was used away is counted as it should be")?;
        // The rest is the same code with a module on one side as on both.
        if words.home_module && words.desk_module {
            moves::everything_well(port, pair)
        } else {
            moves::shell_loop(port, pair)
        }
    })
}

const DAEMON_THERE: &str = "lost: its daemon is there, the link failed";
const DAEMON_GONE: &str = "lost: its machine answers, its daemon is gone";
const NO_SIGN: &str = "lost: its machine gives no sign";

/// What home says of a desk whose link is lost, and the desk of its home.
pub fn beat(port: &Port) -> Result<()> {
    passes("kmod-peer", &[], &[])?;
    port.progress("answers who has the keys, and nobody else")?;
    moves::with_pair(port, |pair| {
        wait_beat(pair)?;
        port.progress("both answer")?;
        pair.desk.order(&Order::Kill)?;
        wait_state(pair, DAEMON_GONE)?;
        let refused = pair.try_migrate(1).map_err(|e| e.raw_os_error());
        ensure!(refused == Err(Some(libc::EHOSTUNREACH)), "a move to a lost node: {refused:?}");
        port.progress("a dead daemon is told from a dead machine")?;
        pair.desk.order(&Order::Reload)?;
        wait_state(pair, NO_SIGN)?;
        port.progress("a kernel that has forgotten is silent")?;

        restart(pair)?;
        port.please(HostOrder::Link { up: false })?;
        let silent = wait_state(pair, NO_SIGN);
        port.please(HostOrder::Link { up: true })?;
        silent?;
        wait_state(pair, DAEMON_THERE)?;
        wait_until("the desk is told of home", TIMEOUT, || {
            Ok((pair.desk.read("pen/nodes/home/state")? == DAEMON_THERE).then_some(()))
        })?;
        port.progress("a dead link is told from a dead machine")?;
        pair.connect()?;
        ensure!(pair.home.read("ccn/nodes/count")? == "1", "the lost link is still listed");
        Ok(())
    })
}

fn restart(pair: &Pair) -> Result<()> {
    pair.desk.order(&Order::Restart)?;
    pair.connect()?;
    wait_beat(pair)
}

fn wait_state(pair: &Pair, state: &str) -> Result<()> {
    wait_until(state, TIMEOUT, || {
        Ok((pair.home.read("ccn/nodes/desk/state")? == state).then_some(()))
    })
}

/// Of the link that is up, by the end of each log.
fn wait_beat(pair: &Pair) -> Result<()> {
    let told = |log: String| {
        let last_up = log.rfind("link is up").unwrap_or(log.len());
        log[last_up..].contains("answers for it")
    };
    wait_until("both kernels answer", TIMEOUT, || {
        let both = told(pair.home.log()) && told(pair.desk.order(&Order::Log)?);
        Ok(both.then_some(()))
    })
}

/// What this process's children have used that it has waited for.
fn children_used() -> Result<Duration> {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let all = used.user_time() + used.system_time();
    Ok(Duration::from_micros(u64::try_from(all.num_microseconds())?))
}

fn burn(victim: &mut Victim, ms: i64) -> Result<()> {
    victim.say(&format!("burn {ms}"))?;
    victim.expect("BURNT", TIMEOUT)
}

/// A parent that never left home has it in the wait for one that has been away, if home's kernel
/// counts it: by the module.
fn used_away(pair: &Pair, counted: bool) -> Result<()> {
    // Most of what they use, so that twice as much would show.
    const BURNT_MS: i64 = 3000;
    for killed in [false, true] {
        let before = children_used()?;
        let mut victim = Victim::spawn(&VictimKind::plain("usage"))?;
        let pid = victim.pid();
        for _ in 0..2 {
            pair.migrate(pid)?;
            burn(&mut victim, BURNT_MS / 3)?;
            pair.bring_home(pid)?;
        }
        let at_home = victim.ask("tell", "USED")?;
        let home = Duration::from_nanos(at_home[0].try_into()?);
        let twice = Duration::from_millis(BURNT_MS as u64 * 2 / 3);
        ensure!((home >= twice) == counted, "home again it has used {home:?}");
        pair.migrate(pid)?;
        burn(&mut victim, BURNT_MS / 3)?;
        let away = victim.ask("tell", "USED")?;
        if killed {
            victim.signal(Signal::SIGKILL)?;
            victim.wait(TIMEOUT)?;
        } else {
            victim.end(7)?;
        }
        let used = children_used()? - before;
        let all = Duration::from_nanos(away[0].try_into()?);
        ensure!((used >= all) == counted, "{used:?} in the wait, {all:?} by itself ({killed})");
        ensure!(used < all + twice, "{used:?} in the wait, {all:?} by itself ({killed})");
    }
    Ok(())
}

/// Sent by the module of who sends, where there is one, and the same either way.
fn memory(pair: &Pair, words: &CommandLine) -> Result<()> {
    const BYTES: u64 = 16 << 20;
    let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
    let pid = victim.pid();
    for _ in 0..3 {
        pair.migrate(pid)?;
        let stats = pair.home.read(&format!("ccn/mig/migproc/{pid}/stats"))?;
        let bytes = stats.lines().find_map(|l| l.strip_prefix("bytes-by-module "));
        let bytes: u64 = bytes.context("bytes in stats")?.parse()?;
        ensure!((bytes >= BYTES) == words.home_module, "the module sent {bytes} bytes");
        victim.check().context("away")?;
        pair.bring_home(pid)?;
        victim.check().context("home again")?;
    }
    let log = pair.desk.order(&Order::Log)?;
    let home_by_module = log.matches("pages sent home by the module").count();
    let expected = if words.desk_module { 3 } else { 0 };
    ensure!(home_by_module == expected, "{home_by_module} of 3 times home by the module:\n{log}");
    victim.end(7)
}
