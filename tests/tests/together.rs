//! Trees of processes that move at one instant: all of them or none.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::{Pair, Started, Victim, VictimKind, account, node, wait_until};

const SOON: Duration = Duration::from_secs(40);

struct Tree(Started);

impl Tree {
    fn bash(script: &str) -> Result<Self> {
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Started::by(&mut command).map(Self)
    }

    fn head(&self) -> u32 {
        self.0.pid()
    }

    /// The head first.
    fn all(&self) -> Result<Vec<u32>> {
        Ok([vec![self.head()], account::descendants(self.head())?].concat())
    }

    fn wait_for(&self, processes: usize) -> Result<Vec<u32>> {
        wait_until(&format!("{processes} processes"), SOON, || {
            let all = self.all()?;
            Ok((all.len() == processes).then_some(all))
        })
    }

    /// Its output and status.
    fn end(self) -> Result<(String, i32)> {
        let Self(mut head) = self;
        drop(head.0.stdin.take());
        let mut said = String::new();
        head.0.stdout.take().context("stdout")?.read_to_string(&mut said)?;
        let status = head.end(SOON)?;
        Ok((said, status.code().with_context(|| format!("{status}"))?))
    }
}

fn away(pair: &Pair, all: &[u32]) -> Vec<bool> {
    all.iter().map(|pid| pair.is_guest(*pid)).collect()
}

const WORKERS: &str = "
    work() { n=0; while [ $n -lt $1 ]; do n=$((n + 1)); done; echo worker $1 $n >&2; }
    { work 600001 & work 600002 & { work 600003; seq 1 4000; } | sort -rn | tail -1; wait; } 2>&1 | sort";

#[test]
fn a_shell_with_workers_and_pipelines_moves_in_the_midst_of_its_work() -> Result<()> {
    let (unmoved, _) = Tree::bash(WORKERS)?.end()?;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let tree = Tree::bash(WORKERS)?;
    let all = tree.wait_for(8)?;
    pair.try_migrate_tree(tree.head()).with_context(|| pair.logs())?;
    // Each of them is listed when the answer is there.
    ensure!(away(&pair, &all) == [true; 8], "not all away: {all:?}\n{}", pair.logs());
    for pid in &all {
        ensure!(pair.state(*pid)? == "emigrated", "{pid} at home");
    }
    pair.bring_home(tree.head())?;
    ensure!(away(&pair, &all)[1..] == [true; 7], "the others came along");
    let (moved, status) = tree.end()?;
    ensure!((moved == unmoved) && status == 0, "{status}: {moved:?}, unmoved {unmoved:?}");
    all.iter().try_for_each(|pid| pair.wait_forgotten(*pid))?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn a_ring_of_processes_goes_out_and_home_again_and_again() -> Result<()> {
    let pair = Pair::new()?;
    let mut ring = Victim::spawn(&VictimKind::with_args("ring", &["6"]))?;
    let all = [vec![ring.pid()], account::descendants(ring.pid())?].concat();
    for round in 0..4 {
        pair.try_migrate_tree(ring.pid()).with_context(|| format!("{round}\n{}", pair.logs()))?;
        ensure!(away(&pair, &all) == [true; 7], "not all away in round {round}");
        ring.check().with_context(|| format!("away in round {round}"))?;
        for pid in &all {
            pair.bring_home(*pid)?;
        }
        ring.check().with_context(|| format!("at home in round {round}"))?;
    }
    ring.end(7)?;
    pair.stop()
}

/// One that cannot move, as it is traced.
#[test]
fn one_that_cannot_move_keeps_all_at_home_and_is_named() -> Result<()> {
    let pair = Pair::new()?;
    let tree = Tree::bash("sleep 1000 & sleep 1000 & read x; kill $(jobs -p); echo ended")?;
    let all = tree.wait_for(3)?;
    let may = pair.explain_tree(tree.head())?;
    ensure!(may.contains("tree of 3 processes\nmay move to desk: yes"), "explain says {may}");
    let traced = Pid::from_raw(all[2] as i32);
    // SAFETY: no pointers; what is seized is a child's child.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, traced.as_raw(), 0, 0) };
    ensure!(seized == 0, "seize: {}", std::io::Error::last_os_error());
    let refused = pair.try_migrate_tree(tree.head()).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}\n{}", pair.logs());
    ensure!(away(&pair, &all) == [false; 3], "some are away");
    let why = pair.explain_tree(tree.head())?;
    let line = format!("stopped by: process {traced} (sleep): traced by");
    ensure!(why.contains("may move to desk: no") && why.contains(&line), "explain says {why}");
    let failed = Command::new(node::built("tcmi")?)
        .arg("--ctlfs")
        .arg(pair.home.path(""))
        .args(["migrate", "--tree", &tree.head().to_string(), "desk"])
        .output()?;
    let said = String::from_utf8(failed.stderr)?;
    ensure!(failed.status.code() == Some(1) && said.contains(&line), "tcmi says {said}");
    // The process runs on; its shell ends it.
    tree.0.0.stdin.as_ref().context("stdin")?.write_all(b"\n")?;
    let detach = || -> Result<()> {
        nix::sys::wait::waitpid(traced, Some(nix::sys::wait::WaitPidFlag::__WALL))?;
        // SAFETY: no pointers; it is stopped.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, traced.as_raw(), 0, libc::SIGTERM) };
        Ok(())
    };
    detach()?;
    ensure!(tree.end()?.0 == "ended\n", "another output");
    pair.stop()
}

#[test]
fn a_tree_of_too_many_processes_stays_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let tree = Tree::bash("for i in $(seq 130); do sleep 1000 & done; read x; kill $(jobs -p)")?;
    let all = tree.wait_for(131)?;
    let refused = pair.try_migrate_tree(tree.head()).err().and_then(|e| e.raw_os_error());
    ensure!(refused == Some(libc::EOPNOTSUPP), "the answer is {refused:?}");
    ensure!(all.iter().all(|pid| pair.state(*pid).is_err()), "some are in the books");
    let why = pair.explain_tree(tree.head())?;
    ensure!(why.contains("stopped by: it has more than 128 processes"), "explain says {why}");
    tree.end()?;
    pair.stop()
}

/// Processes that begin others all the time, by fork and by vfork.
#[test]
fn a_tree_that_begins_processes_in_a_loop_moves_whole() -> Result<()> {
    const BASH: &str = "trap 'echo $n $m; exit 5' TERM; n=0; m=0
        while :; do x=$(echo $n | cat); [ $x = $n ] || exit 9; n=$((n + 1)); (exit 3); m=$((m + $?)); done";
    const PYTHON: &str = "exec /usr/bin/python3 -c '
import signal, subprocess, sys
n = 0
def end(*_):
    print(n, 3 * n); sys.stdout.flush(); import os; os._exit(5)
signal.signal(signal.SIGTERM, end)
while True:
    s = subprocess.run([\"sh\", \"-c\", \"exit 3\"]).returncode
    if s != 3: sys.exit(9)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); n += 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
'";
    let pair = Pair::new()?;
    for script in [BASH, PYTHON] {
        let tree = Tree::bash(script)?;
        let head = tree.head();
        wait_until("its first child", SOON, || Ok((tree.all()?.len() > 1).then_some(())))?;
        for round in 0..8 {
            // One that follows its parent from the round before may be on its way.
            wait_until("no child on its way", SOON, || match pair.try_migrate_tree(head) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(None),
                moved => Ok(Some(moved?)),
            })
            .with_context(|| format!("round {round} of {script}\n{}", pair.logs()))?;
            for pid in account::descendants(head)? {
                // One that is away, or comes home, or has ended.
                pair.home.write("ccn/mig/migrate-home", format!("{pid}\n")).ok();
            }
            // It stays at home by itself if its call there takes long.
            pair.home.write("ccn/mig/migrate-home", format!("{head}\n")).ok();
            wait_until("the head at home", SOON, || {
                let away = pair.state(head).is_ok_and(|state| state != "running");
                Ok((!away && !pair.is_guest(head)).then_some(()))
            })?;
        }
        kill(Pid::from_raw(head as i32), Signal::SIGTERM)?;
        let (said, status) = tree.end().with_context(|| format!("{script}\n{}", pair.logs()))?;
        ensure!(status == 5, "status {status}, it said {said:?}");
        let counts: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [begun, sum] = counts[..] else { anyhow::bail!("said {said:?}") };
        ensure!(sum == 3 * begun || sum + 3 == 3 * begun, "{begun} begun, of which {sum} came");
    }
    pair.stop()
}

/// A process whose write waits cannot be held.
#[test]
fn the_process_that_asks_cannot_be_in_the_tree() -> Result<()> {
    let pair = Pair::new()?;
    let (tcmi, dir) = (node::built("tcmi")?, pair.home.path(""));
    let script = format!(
        "sleep 1000 & {} --ctlfs {} migrate --tree $$ desk; echo $?; kill $!",
        tcmi.display(),
        dir.display()
    );
    let tree = Tree::bash(&script)?;
    let (said, status) = tree.end()?;
    ensure!(said == "1\n" && status == 0, "{status}: said {said:?}");
    pair.stop()
}

/// Ended in the midst of the move, at moments spread over it.
#[test]
fn a_member_that_is_killed_on_the_way_is_no_member_any_more() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    for moment in 0..24u32 {
        let tree = Tree::bash("sleep 1000 & sleep 1000 & read x; kill %1; wait 2>&-; echo ended")?;
        let all = tree.wait_for(3)?;
        let moved = std::thread::scope(|scope| {
            let moving = scope.spawn(|| pair.try_migrate_tree(all[0]));
            let start = std::time::Instant::now();
            // Not a wait for something: the moments are the test's input.
            while start.elapsed() < Duration::from_millis(2) * moment {
                std::hint::spin_loop();
            }
            kill(Pid::from_raw(all[2] as i32), Signal::SIGKILL).map(|()| moving.join())
        })?;
        let moved = moved.expect("a write does not panic");
        ensure!(moved.is_ok(), "moment {moment}: {moved:?}\n{}", pair.logs());
        ensure!(away(&pair, &all)[..2] == [true; 2], "moment {moment}: at home");
        let (said, status) = tree.end()?;
        ensure!(said == "ended\n" && status == 0, "moment {moment}: {status}, {said:?}");
        all.iter().try_for_each(|pid| pair.wait_forgotten(*pid))?;
    }
    pair.expect_no_leak(&before)?;
    pair.stop()
}
