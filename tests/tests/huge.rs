//! Huge pages of hugetlbfs: a process that has them moves, and has ordinary ones from then on.

use std::fs;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Pair, Victim, VictimKind};

const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// What victims/huge.c has, and one that it asks for.
const PAGES: u64 = 7;

/// So many huge pages more on this machine, for as long as the test.
struct Pool(u64);

impl Pool {
    fn new() -> Result<Self> {
        let had: u64 = fs::read_to_string(POOL)?.trim().parse()?;
        let pool = Self(had);
        fs::write(POOL, (had + PAGES).to_string())?;
        let has: u64 = fs::read_to_string(POOL)?.trim().parse()?;
        ensure!(has == had + PAGES, "no {PAGES} huge pages to be had on this machine");
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = fs::write(POOL, self.0.to_string()) {
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
fn private_huge_pages_go_out_and_come_home_as_ordinary_ones() -> Result<()> {
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
        ensure!(of_hugetlbfs(pid)? == 0, "its memory at home is of hugetlbfs");
    }
    ensure!(victim.ask("more", "MORE ")? == [0], "none more at home again");
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}
