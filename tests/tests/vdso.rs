//! A guest whose node takes its vDSO for another kernel's: home's stays where it was and leads to
//! the node's.

use std::fs;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Launch, Pair, Root, Victim, VictimKind};

const VICTIMS: &[&str] =
    &["vdso", "vdso-static", "clock", "threads", "rust-threads", "itimers", "regs"];

fn pair_of_strangers() -> Result<Pair> {
    let desk = Launch::new("desk", Root::Bare).env("TCMI_FAULT", "NodeVdsoCompared:error");
    Pair::launch(Launch::new("home", Root::Normal), desk)
}

/// Where a process has the vDSO that its kernel mapped.
fn vdso_of(pid: &str) -> Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|l| l.ends_with("[vdso]")).context("a vDSO")?;
    Ok(line.split('-').next().context("an address")?.to_owned())
}

/// The victim's guest on this host: the same command line in another process.
fn guest_of(pid: u32) -> Result<String> {
    let shadow = fs::read(format!("/proc/{pid}/cmdline"))?;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let same = fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == shadow);
        if same && name != pid.to_string() && name.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(name);
        }
    }
    anyhow::bail!("no guest of {pid}")
}

#[test]
fn functions_lead_to_the_nodes_own() -> Result<()> {
    let pair = pair_of_strangers()?;
    let scratch = tcmi_tests::Scratch::new("vdso")?;
    let file = scratch.join("count").display().to_string();
    let mut victim = Victim::spawn(&VictimKind::with_args("counter", &[&file]))?;
    let pid = victim.pid();
    let at_home = vdso_of(&pid.to_string())?;
    pair.migrate(pid)?;
    ensure!(vdso_of(&guest_of(pid)?)? != at_home, "the node's vDSO stands in home's place");
    pair.bring_home(pid)?;
    ensure!(vdso_of(&pid.to_string())? == at_home, "home's vDSO has moved");
    victim.check()?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn victims_see_no_difference() -> Result<()> {
    let pair = pair_of_strangers()?;
    for name in VICTIMS {
        let mut victim = Victim::spawn(&VictimKind::plain(name))?;
        let pid = victim.pid();
        let mut there_and_back = || -> Result<()> {
            for _ in 0..5 {
                pair.migrate(pid)?;
                victim.check().context("away")?;
                pair.bring_home(pid)?;
                victim.check().context("home again")?;
            }
            Ok(())
        };
        there_and_back().context(*name)?;
        victim.end(7)?;
    }
    pair.stop()
}
