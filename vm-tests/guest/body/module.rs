//! With the kernel module.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Victim, VictimKind};

use super::moves;
use super::pair::Pair;
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
            true => ["freezer=module", "ctlfs=kernel", "pages=kernel"],
            false => ["freezer=ptrace", "ctlfs=fuse", "pages=userspace"],
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
        // The rest is the same code with a module on one side as on both.
        if words.home_module && words.desk_module {
            moves::everything_well(port, pair)
        } else {
            moves::shell_loop(port, pair)
        }
    })
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
