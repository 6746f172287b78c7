//! Memory that processes of a tree share stays shared: they go and come together.

use std::time::Duration;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::{Mapped, Pair, Scratch, Victim, VictimKind, account, wait_until};

const SOON: Duration = Duration::from_secs(30);
const ALL: usize = 4;
/// Where they count their turns: behind lock and condition, and the number of the next.
const SUM: usize = 40 + 48 + 8;

fn sharers() -> Result<(Victim, Vec<u32>)> {
    sharers_of(&["3"])
}

fn sharers_of(args: &[&str]) -> Result<(Victim, Vec<u32>)> {
    let (victim, all) = tree_of(args)?;
    ensure!(all.len() == ALL, "{all:?}");
    Ok((victim, all))
}

fn tree_of(args: &[&str]) -> Result<(Victim, Vec<u32>)> {
    let victim = Victim::spawn(&VictimKind::with_args("segment", args))?;
    let all = [vec![victim.pid()], account::descendants(victim.pid())?].concat();
    Ok((victim, all))
}

fn guests(pair: &Pair, all: &[u32]) -> usize {
    all.iter().filter(|pid| pair.is_guest(**pid)).count()
}

fn wait_home(pair: &Pair, all: &[u32]) -> Result<()> {
    wait_until("all at home", SOON, || Ok((guests(pair, all) == 0).then_some(())))
        .with_context(|| pair.logs())
}

/// They work on: turns are taken.
fn works(victim: &mut Victim, when: &str) -> Result<()> {
    let before = victim.ask("sum", "SUM").with_context(|| when.to_owned())?[0];
    for _ in 0..20 {
        victim.check().with_context(|| when.to_owned())?;
    }
    ensure!(victim.ask("sum", "SUM")?[0] > before, "{when}: no turn is taken");
    Ok(())
}

/// All of them, and they work there.
fn go_out(pair: &Pair, victim: &mut Victim, all: &[u32]) -> Result<()> {
    pair.try_migrate_tree(victim.pid()).with_context(|| pair.logs())?;
    ensure!(guests(pair, all) == all.len(), "not all away");
    works(victim, "away").with_context(|| pair.logs())
}

#[test]
fn those_who_share_memory_go_and_come_together() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let (mut victim, all) = sharers()?;
    for round in 0..4 {
        works(&mut victim, "at home")?;
        go_out(&pair, &mut victim, &all).with_context(|| format!("round {round}"))?;
        // Any of them, by home's wish or by the desk's.
        let one = all[round];
        match round % 2 {
            0 => pair.home.write("ccn/mig/migrate-home", format!("{one}\n"))?,
            _ => pair.desk.write("pen/mig/migrate-home", format!("{one}\n"))?,
        }
        wait_home(&pair, &all)?;
    }
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

/// Then they may go again at once.
#[test]
fn an_order_home_is_answered_when_all_of_them_are_home() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    for round in 0..16 {
        let moved = pair.try_migrate_tree(victim.pid());
        moved.with_context(|| format!("round {round}\n{}", pair.logs()))?;
        pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[round % ALL]))?;
    }
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn one_of_them_does_not_move_alone() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    let refused = pair.try_migrate(all[1]).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    // A part of the tree is not all of them.
    let refused = pair.try_migrate_tree(all[1]).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    ensure!(guests(&pair, &all) == 0, "some are away");
    let why = pair.explain(all[1])?;
    ensure!(why.contains("shared memory, which process"), "explain says {why}");
    ensure!(why.contains(&victim.pid().to_string()), "explain says {why}");
    let may = pair.explain_tree(victim.pid())?;
    ensure!(may.contains("may move to desk: yes"), "explain says {may}");
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn memory_that_nobody_else_has_moves_with_its_process() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("segment", &["0"]))?;
    for when in ["first", "second"] {
        pair.migrate(victim.pid())?;
        works(&mut victim, when)?;
        pair.bring_home(victim.pid())?;
        works(&mut victim, when)?;
    }
    victim.end(7)?;
    pair.stop()
}

/// Until they are out again after a call at home.
fn wait_away(pair: &Pair, all: &[u32]) -> Result<()> {
    wait_until("all away", SOON, || Ok(all.iter().all(|pid| pair.is_away(*pid)).then_some(())))
        .with_context(|| pair.logs())
}

#[test]
fn after_a_fork_of_one_of_them_all_go_out_again() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    for round in 0..4 {
        ensure!(victim.ask("fork 1", "FORKED")? == [0, 1], "the child");
        wait_away(&pair, &all).with_context(|| format!("round {round}"))?;
        works(&mut victim, "away again").with_context(|| pair.logs())?;
    }
    pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[1]))?;
    wait_home(&pair, &all)?;
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn what_one_of_them_begins_goes_along() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, mut all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    for round in 0..3 {
        all.push(victim.ask("more", "MORE")?[0] as u32);
        wait_away(&pair, &all).with_context(|| format!("round {round}"))?;
        works(&mut victim, "away again").with_context(|| pair.logs())?;
    }
    // It is one of them.
    pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[ALL]))?;
    wait_home(&pair, &all)?;
    works(&mut victim, "at home")?;
    go_out(&pair, &mut victim, &all)?;
    victim.end(7)?;
    pair.stop()
}

/// Memory that was its own becomes that of both.
#[test]
fn what_a_guest_begins_that_was_alone_goes_along() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("segment", &["0"]))?;
    pair.migrate(victim.pid())?;
    let child = victim.ask("more", "MORE")?[0] as u32;
    wait_away(&pair, &[victim.pid(), child])?;
    works(&mut victim, "away again")?;
    pair.home.write("ccn/mig/migrate-home", format!("{child}\n"))?;
    wait_home(&pair, &[victim.pid(), child])?;
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

/// It shares nothing, and comes and goes by itself.
#[test]
fn another_program_that_one_of_them_begins_follows() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    let other = victim.ask("run", "RUNS")?[0] as u32;
    wait_away(&pair, &[&all[..], &[other]].concat())?;
    works(&mut victim, "away again")?;
    pair.bring_home(other)?;
    ensure!(guests(&pair, &all) == ALL, "they came home with it");
    works(&mut victim, "away")?;
    victim.end(7)?;
    pair.stop()
}

/// It has none of their memory any more.
#[test]
fn one_of_them_that_becomes_another_program_goes_alone() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    let other = victim.ask("more", "MORE")?[0] as u32;
    let with_it = [&all[..], &[other]].concat();
    wait_away(&pair, &with_it)?;
    kill(Pid::from_raw(other as i32), Signal::SIGUSR1)?;
    wait_until("another program", SOON, || {
        let name = std::fs::read_to_string(format!("/proc/{other}/comm"))?;
        Ok((name == "sleep\n").then_some(()))
    })?;
    wait_away(&pair, &with_it)?;
    pair.bring_home(other)?;
    ensure!(guests(&pair, &all) == ALL, "they came home with it");
    victim.end(7)?;
    pair.stop()
}

/// Not listed: no keeper has anything more to do with them.
fn wait_settled_at_home(pair: &Pair, all: &[u32]) -> Result<()> {
    wait_until("all at home to stay", SOON, || {
        Ok(all.iter().all(|pid| pair.state(*pid).is_err()).then_some(()))
    })
    .with_context(|| pair.logs())
}

/// Whatever they do in that moment: called again and again, they are at home for long.
#[test]
fn who_is_called_home_meanwhile_stays_with_all_of_them() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    for round in 0..6 {
        go_out(&pair, &mut victim, &all).with_context(|| format!("round {round}"))?;
        let forks = 20 * round + 1;
        victim.say(&format!("fork {forks}"))?;
        victim.expect(&format!("FORKED 0 {forks}"), SOON)?;
        let home = pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[round % ALL]));
        home.with_context(|| pair.logs())?;
        wait_settled_at_home(&pair, &all)?;
        wait_home(&pair, &all)?;
    }
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

/// The same by the node's owner, whose order may find it there, on its way home, or not at all.
#[test]
fn who_is_sent_home_meanwhile_stays_with_all_of_them() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    for round in 0..6 {
        go_out(&pair, &mut victim, &all).with_context(|| format!("round {round}"))?;
        victim.say("fork 1")?;
        wait_until("an order that finds it", SOON, || {
            match pair.desk.write("pen/mig/migrate-home", format!("{}\n", all[round % ALL])) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                sent => Ok(Some(sent?)),
            }
        })
        .with_context(|| pair.logs())?;
        victim.expect("FORKED 0 1", SOON)?;
        wait_settled_at_home(&pair, &all)?;
        wait_home(&pair, &all)?;
    }
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

/// Its forks are made at home more and more of them at a time.
#[test]
fn one_that_forks_without_end_gets_on() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    victim.say("fork 3000")?;
    victim.expect("FORKED 0 3000", 3 * SOON)?;
    wait_away(&pair, &all)?;
    works(&mut victim, "away again")?;
    victim.end(7)?;
    pair.stop()
}

/// What is left of its mapping is where it was.
#[test]
fn a_part_that_one_of_them_unmaps_away_is_gone_at_home_for_it_alone() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    ensure!(victim.ask("unmap", "UNMAPPED")? == [0], "munmap");
    pair.bring_home(victim.pid())?;
    wait_home(&pair, &all)?;
    works(&mut victim, "at home")?;
    go_out(&pair, &mut victim, &all)?;
    pair.bring_home(all[1])?;
    wait_home(&pair, &all)?;
    works(&mut victim, "home again")?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn after_one_has_moved_shared_memory_all_go_out_again() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    go_out(&pair, &mut victim, &all)?;
    for _ in 0..2 {
        victim.ask("move", "MOVED")?;
        wait_away(&pair, &all)?;
        works(&mut victim, "away again")?;
    }
    pair.bring_home(victim.pid())?;
    wait_home(&pair, &all)?;
    works(&mut victim, "at home")?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn one_that_ends_away_leaves_the_others() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    pair.try_migrate_tree(victim.pid())?;
    works(&mut victim, "away")?;
    kill(Pid::from_raw(all[2] as i32), Signal::SIGKILL)?;
    pair.wait_forgotten(all[2])?;
    pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[1]))?;
    wait_home(&pair, &all)?;
    victim.signal(Signal::SIGKILL)?;
    victim.wait(SOON)?;
    pair.stop()
}

/// Processes that share files, one of them to read only.
struct OfFiles {
    victim: Victim,
    all: Vec<u32>,
    scratch: Scratch,
}

impl OfFiles {
    fn new(kind: &str) -> Result<Self> {
        let scratch = Scratch::new("shared")?;
        let at = scratch.path().display().to_string();
        let (victim, all) = tree_of(&["3", kind, &at, "reader"])?;
        ensure!(all.len() == ALL + 1, "{all:?}");
        Ok(Self { victim, all, scratch })
    }

    fn go_out(&mut self, pair: &Pair) -> Result<()> {
        go_out(pair, &mut self.victim, &self.all)
    }

    /// All of them, by one.
    fn come_home(&mut self, pair: &Pair, one: usize) -> Result<()> {
        pair.home.write("ccn/mig/migrate-home", format!("{}\n", self.all[one]))?;
        wait_home(pair, &self.all)?;
        works(&mut self.victim, "at home")
    }

    fn file(&self) -> PathBuf {
        self.scratch.join("0")
    }
}

/// How many turns were taken, as the file has it.
fn turns_at_home(file: &Path) -> Result<u64> {
    let mut sum = [0; 8];
    File::open(file)?.read_exact_at(&mut sum, SUM as u64)?;
    Ok(u64::from_ne_bytes(sum))
}

#[test]
fn files_that_a_tree_shares_go_and_come_with_it() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    for kind in ["file", "deleted", "large"] {
        let mut all = OfFiles::new(kind)?;
        for round in 0..4 {
            all.go_out(&pair).with_context(|| format!("{kind}, {round}"))?;
            all.come_home(&pair, round).with_context(|| format!("{kind}, {round}"))?;
        }
        all.victim.end(7)?;
    }
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn what_they_store_in_a_file_is_seen_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let mut all = OfFiles::new("file")?;
    all.go_out(&pair)?;
    let told = all.victim.ask("sum", "SUM")?[0] as u64;
    let there = turns_at_home(&all.file())?;
    ensure!(there >= told, "{there} turns are in the file, it told of {told}");
    ensure!(guests(&pair, &all.all) == all.all.len(), "they came home for that");
    let told = all.victim.ask("sum", "SUM")?[0] as u64;
    let (file, ids) = (all.file(), all.all.clone());
    all.victim.end(7)?;
    wait_until("the end of all", SOON, || {
        Ok(ids.iter().all(|pid| pair.state(*pid).is_err()).then_some(()))
    })?;
    let there = turns_at_home(&file)?;
    ensure!(there >= told, "{there} turns are in the file, it told of {told}");
    pair.stop()
}

/// Each has to know, so all are at home for that.
#[test]
fn after_a_call_that_alters_their_file_all_go_out_again() -> Result<()> {
    let pair = Pair::new()?;
    let mut all = OfFiles::new("file")?;
    all.go_out(&pair)?;
    for round in 0..2 {
        all.victim.say("alter")?;
        all.victim.expect("ALTERED", SOON).with_context(|| pair.logs())?;
        wait_away(&pair, &all.all).with_context(|| format!("round {round}"))?;
        works(&mut all.victim, "away again")?;
    }
    all.come_home(&pair, 1)?;
    all.victim.end(7)?;
    pair.stop()
}

#[test]
fn a_child_that_has_their_files_goes_along() -> Result<()> {
    let pair = Pair::new()?;
    let mut all = OfFiles::new("file")?;
    all.go_out(&pair)?;
    let child = all.victim.ask("more", "MORE")?[0] as u32;
    all.all.push(child);
    wait_away(&pair, &all.all)?;
    works(&mut all.victim, "away again").with_context(|| pair.logs())?;
    all.come_home(&pair, ALL + 1)?;
    all.go_out(&pair)?;
    all.victim.end(7)?;
    pair.stop()
}

#[test]
fn a_file_that_others_have_mapped_keeps_its_tree_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let mut all = OfFiles::new("file")?;
    let ours = Mapped::of(&all.file())?;
    let refused = pair.try_migrate_tree(all.victim.pid()).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    ensure!(guests(&pair, &all.all) == 0, "some are away");
    let why = pair.explain_tree(all.victim.pid())?;
    let sharer = format!("also mapped by process {}", std::process::id());
    ensure!(why.contains(&sharer), "explain says {why}");
    works(&mut all.victim, "at home")?;
    drop(ours);
    all.go_out(&pair)?;
    all.victim.end(7)?;
    pair.stop()
}

/// A monitor that dies takes its guest with it, and nothing from the others or the file.
#[test]
fn a_guest_that_is_lost_leaves_the_files_to_the_others() -> Result<()> {
    let pair = Pair::new()?;
    let mut all = OfFiles::new("file")?;
    all.go_out(&pair)?;
    let told = all.victim.ask("sum", "SUM")?[0] as u64;
    let lost = all.all[ALL];
    let (_, monitor) = pair.guest_and_monitor(lost)?;
    kill(Pid::from_raw(monitor as i32), Signal::SIGKILL)?;
    pair.wait_forgotten(lost)?;
    all.all.pop();
    let there = turns_at_home(&all.file())?;
    ensure!(there >= told, "{there} turns are in the file, it told of {told}");
    pair.home.write("ccn/mig/migrate-home", format!("{}\n", all.all[1]))?;
    wait_home(&pair, &all.all)?;
    let sum = all.victim.ask("sum", "SUM")?[0];
    wait_until("turns at home", SOON, || {
        Ok((all.victim.ask("sum", "SUM")?[0] > sum).then_some(()))
    })?;
    all.victim.signal(Signal::SIGKILL)?;
    all.victim.wait(SOON)?;
    pair.stop()
}

/// System V memory of the victim, removed at the end of a test.
struct Removed(i32);

impl Drop for Removed {
    fn drop(&mut self) {
        // SAFETY: no pointer. It fails only where the segment is gone.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// How many turns were taken, as the segment has it.
fn turns_in(segment: i32) -> Result<u64> {
    // SAFETY: attached for reading, wherever there is room; the word is inside of it.
    unsafe {
        let at = libc::shmat(segment, std::ptr::null(), libc::SHM_RDONLY);
        ensure!(at.addr() != usize::MAX, "shmat: {}", std::io::Error::last_os_error());
        let sum = at.byte_add(SUM).cast::<u64>().read_volatile();
        ensure!(libc::shmdt(at) == 0, "shmdt: {}", std::io::Error::last_os_error());
        Ok(sum)
    }
}

#[test]
fn system_v_memory_of_a_tree_goes_and_comes_with_it() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    for kind in ["destroyed", "lasting"] {
        let (mut victim, all) = sharers_of(&["3", kind])?;
        let _removed = Removed(victim.ready_word()? as i32);
        let alone = pair.explain(victim.pid())?;
        ensure!(alone.contains("it moves with --tree"), "explain says {alone}");
        for round in 0..3 {
            go_out(&pair, &mut victim, &all).with_context(|| format!("{kind}, {round}"))?;
            pair.home.write("ccn/mig/migrate-home", format!("{}\n", all[round]))?;
            wait_home(&pair, &all)?;
            works(&mut victim, "at home")?;
        }
        victim.end(7)?;
    }
    pair.expect_no_leak(&before)?;
    pair.stop()
}

/// Who attaches the segment after its processes have ended away finds what they stored last.
#[test]
fn system_v_memory_that_lasts_has_what_was_stored_away() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers_of(&["3", "lasting"])?;
    let segment = victim.ready_word()? as i32;
    let _removed = Removed(segment);
    go_out(&pair, &mut victim, &all)?;
    let told = victim.ask("sum", "SUM")?[0] as u64;
    victim.end(7)?;
    wait_until("the end of all", SOON, || {
        Ok((guests(&pair, &all) == 0 && all.iter().all(|pid| pair.state(*pid).is_err()))
            .then_some(()))
    })?;
    ensure!(
        turns_in(segment)? >= told,
        "{} turns are in it, it told of {told}",
        turns_in(segment)?
    );
    pair.stop()
}

/// A process outside the tree has it, too.
#[test]
fn system_v_memory_that_others_have_keeps_its_tree_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers_of(&["3", "lasting"])?;
    let segment = victim.ready_word()? as i32;
    let _removed = Removed(segment);
    // SAFETY: attached wherever there is room, and not used.
    let at = unsafe { libc::shmat(segment, std::ptr::null(), 0) };
    ensure!(at.addr() != usize::MAX, "shmat: {}", std::io::Error::last_os_error());
    let refused = pair.try_migrate_tree(victim.pid()).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    ensure!(guests(&pair, &all) == 0, "some are away");
    // SAFETY: nobody uses it.
    ensure!(unsafe { libc::shmdt(at) } == 0, "shmdt");
    pair.try_migrate_tree(victim.pid()).with_context(|| pair.logs())?;
    works(&mut victim, "away")?;
    victim.end(7)?;
    pair.stop()
}

/// Attached by a call at home.
#[test]
fn a_guest_that_attaches_system_v_memory_goes_out_again() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("segment", &["0", "destroyed"]))?;
    pair.migrate(victim.pid())?;
    for _ in 0..2 {
        victim.say("attach")?;
        victim.expect("ATTACHED", SOON)?;
        wait_away(&pair, &[victim.pid()])?;
        victim.check()?;
    }
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}
