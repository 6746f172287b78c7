//! Files that a process has mapped shared and writes to: what it stored while away is in the file
//! at home, however it ends, and nobody is left with a view of another machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::{Mapped, Pair, Scratch, Victim, VictimKind, wait_until};

const SOON: Duration = Duration::from_secs(20);
/// Where victims/mapped.c puts its last word, in bytes.
const LAST: u64 = 5 * 4096 + 512;

fn mapping(subject: &str, file: &Path) -> Result<Victim> {
    Victim::spawn(&VictimKind::with_args("mapped", &[subject, &file.display().to_string()]))
}

fn last(file: &Path) -> Result<u64> {
    let mut word = [0; 8];
    File::open(file)?.read_exact_at(&mut word, LAST)?;
    Ok(u64::from_ne_bytes(word))
}

/// The end of a victim by a command, moved or not: its status and the file.
fn ends(command: &str, pair: Option<&Pair>) -> Result<(i32, Vec<u8>)> {
    let scratch = Scratch::new("mapped")?;
    let file = scratch.join("file");
    let mut victim = mapping("still", &file)?;
    if let Some(pair) = pair {
        pair.migrate(victim.pid())?;
    }
    victim.say(&format!("{command} 77"))?;
    let status = victim.wait(SOON)?;
    if let Some(pair) = pair {
        pair.wait_forgotten(victim.pid())?;
    }
    ensure!(last(&file)? == 77, "what it stored last is lost");
    Ok((status.into_raw(), fs::read(&file)?))
}

fn ends_alike(command: &str) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let (status, file) = ends(command, None).context("unmoved")?;
    let (moved_status, moved_file) = ends(command, Some(&pair)).context("moved")?;
    ensure!(status == moved_status, "status {status:#x} unmoved, {moved_status:#x} moved");
    ensure!(file == moved_file, "the file is another one");
    pair.expect_no_leak(&before)
}

#[test]
fn a_guest_that_unmaps_and_exits_leaves_what_it_stored() -> Result<()> {
    ends_alike("put-and-exit")
}

#[test]
fn a_guest_that_dies_leaves_what_it_stored() -> Result<()> {
    ends_alike("put-and-die")
}

#[test]
fn what_a_guest_stores_is_seen_at_home_without_any_call_of_it() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("mapped")?;
    let file = scratch.join("file");
    let mut victim = mapping("still", &file)?;
    pair.migrate(victim.pid())?;
    victim.say("put-and-compute 78")?;
    victim.expect("PUT", SOON)?;
    wait_until("the stored word at home", SOON, || Ok((last(&file)? == 78).then_some(())))?;
    ensure!(pair.is_guest(victim.pid()), "it went home for that");
    victim.signal(Signal::SIGKILL)?;
    victim.wait(SOON)?;
    ensure!(last(&file)? == 78, "a kill at home took it back");
    pair.stop()
}

#[test]
fn a_file_that_another_process_has_mapped_stays_with_both() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("mapped")?;
    let file = scratch.join("file");
    let mut victim = mapping("still", &file)?;
    let pid = victim.pid();
    let ours = Mapped::of(&file)?;
    let refused = pair.try_migrate(pid).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the move said {refused:?}");
    let why = pair.explain(pid)?;
    let sharer = format!("also mapped by process {}", std::process::id());
    ensure!(why.contains(&sharer), "explain says {why}");
    drop(ours);
    let why = pair.explain(pid)?;
    ensure!(why.contains("may move to desk: yes"), "explain says {why}");
    pair.migrate(pid)?;
    victim.check()?;
    pair.bring_home(pid)?;
    victim.end(7)
}

/// They share the file then.
#[test]
fn a_guest_that_forks_goes_out_with_the_child_that_has_its_mapping() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("mapped")?;
    let mut victim = mapping("still", &scratch.join("file"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    // The parent waits until it sees a store of the child.
    let child = victim.ask("fork", "FORKED")?[0] as u32;
    wait_until("both away", SOON, || Ok((pair.is_away(pid) && pair.is_away(child)).then_some(())))
        .with_context(|| pair.logs())?;
    victim.check()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child as i32), Signal::SIGKILL)?;
    pair.wait_forgotten(child)?;
    victim.check()?;
    pair.bring_home(pid)?;
    victim.end(7)?;
    pair.stop()
}

/// A file system of 256 KiB.
struct Small(Scratch);

impl Small {
    fn new() -> Result<Self> {
        let at = Scratch::new("small")?;
        mount(Some("small"), at.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k"))?;
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if let Err(e) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("{}: not unmounted: {e}", self.0.path().display());
        }
    }
}

/// Unmoved and moved, alone or with a child that has the file mapped, too.
fn overfills_alike(with_a_child: bool) -> Result<()> {
    let pair = Pair::new()?;
    let small = Small::new()?;
    let mut full = Vec::new();
    for moved in [false, true] {
        let file = small.0.join(format!("file-{moved}"));
        let mut victim = mapping("full", &file)?;
        let mut child = None;
        if with_a_child {
            child = Some(victim.ask("fork", "FORKED")?[0] as u32);
        }
        match child {
            _ if !moved => {}
            None => pair.migrate(victim.pid())?,
            Some(child) => {
                pair.try_migrate_tree(victim.pid())?;
                ensure!(pair.is_guest(child), "its child is at home");
            }
        }
        full.push(victim.ask("overfill", "FULL").with_context(|| pair.logs())?);
        victim.end(7).with_context(|| pair.logs())?;
        if let Some(child) = child {
            let child = Pid::from_raw(child as i32);
            kill(child, Signal::SIGKILL)?;
            let has_ended = || Ok(kill(child, None).is_err().then_some(()));
            wait_until("the end of its child", SOON, has_ended)?;
        }
        fs::remove_file(file)?;
    }
    ensure!(full[0][0] > 0 && full[0] == full[1], "[page, code] unmoved and moved: {full:?}");
    pair.stop()
}

#[test]
fn what_home_s_disk_does_not_take_is_a_bus_error() -> Result<()> {
    overfills_alike(false)
}

#[test]
fn what_home_s_disk_does_not_take_of_a_tree_s_file_is_a_bus_error() -> Result<()> {
    overfills_alike(true)
}
