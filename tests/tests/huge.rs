//! Huge pages of hugetlbfs: a process that has them moves. What is private has ordinary ones from
//! then on, what is shared keeps its own at home.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Pair, Victim, VictimKind};

const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// What victims/huge.c has, and one that it asks for.
const PAGES: u64 = 10;
/// Those of it that are shared.
const SHARED_BYTES: u64 = 3 * (2 << 20);

/// So many huge pages more on this machine, for as long as a test, one after the other.
struct Pool {
    had: u64,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Pool {
    fn new() -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let had: u64 = fs::read_to_string(POOL)?.trim().parse()?;
        let pool = Self { had, _turn: turn };
        fs::write(POOL, (had + PAGES).to_string())?;
        let has: u64 = fs::read_to_string(POOL)?.trim().parse()?;
        ensure!(has == had + PAGES, "no {PAGES} huge pages to be had on this machine");
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = fs::write(POOL, self.had.to_string()) {
            eprintln!("huge pages not given back: {error}");
        }
    }
}

/// In bytes.
fn of_hugetlbfs(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("HugetlbPages:"));
    let kib: u64 =
        line.and_then(|l| l.trim().strip_suffix("kB")).context("HugetlbPages")?.trim().parse()?;
    Ok(kib * 1024)
}

#[test]
fn huge_pages_go_out_and_those_that_are_private_come_home_as_ordinary_ones() -> Result<()> {
    let _pool = Pool::new()?;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("huge"))?;
    let pid = victim.pid();
    victim.check()?;
    ensure!(of_hugetlbfs(pid)? > 0, "it has no huge pages");
    ensure!(victim.ask("more", "MORE ")? == [0], "none more at home");
    let may = pair.explain(pid)?;
    ensure!(may.contains("may move to desk: yes"), "explain says {may}");
    for round in 0..2 {
        pair.migrate(pid)?;
        victim.check().with_context(|| format!("away in round {round}"))?;
        // Whatever its node has of them.
        ensure!(victim.ask("more", "MORE ")? == [i64::from(libc::ENOMEM)], "more, away");
        pair.bring_home(pid)?;
        victim.check().with_context(|| format!("at home in round {round}"))?;
        let kept = of_hugetlbfs(pid)?;
        ensure!(kept == SHARED_BYTES, "{kept} bytes of hugetlbfs at home");
    }
    ensure!(victim.ask("more", "MORE ")? == [0], "none more at home again");
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn huge_pages_that_a_tree_shares_stay_shared() -> Result<()> {
    let _pool = Pool::new()?;
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("segment", &["3", "huge"]))?;
    let pid = victim.pid();
    let refused = pair.try_migrate(pid).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    for round in 0..3 {
        pair.try_migrate_tree(pid).with_context(|| pair.logs())?;
        for _ in 0..20 {
            victim.check().with_context(|| format!("away in round {round}"))?;
        }
        pair.bring_home(pid)?;
        for _ in 0..20 {
            victim.check().with_context(|| format!("at home in round {round}"))?;
        }
        ensure!(of_hugetlbfs(pid)? > 0, "its shared memory is not of hugetlbfs any more");
    }
    victim.end(7)?;
    pair.stop()
}
