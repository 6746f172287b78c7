//! A node that leaves sends its guests home first; several guests do not mix.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Pair, Started, Victim, VictimKind, wait_until, wait_until_it_reads};

const SOON: Duration = Duration::from_secs(30);
const GUESTS: usize = 6;

fn guests(pair: &Pair, count: usize) -> Result<Vec<Victim>> {
    let kinds = ["memory", "files", "threads", "clock", "receiver", "tls"];
    kinds[..count]
        .iter()
        .map(|program| {
            let victim = Victim::spawn(&VictimKind::plain(program))?;
            pair.migrate(victim.pid())?;
            Ok(victim)
        })
        .collect()
}

fn expect_all_at_home(pair: &Pair, mut victims: Vec<Victim>) -> Result<()> {
    for victim in &victims {
        let pid = victim.pid();
        wait_until(&format!("{pid} at home\n{}", pair.logs()), SOON, || {
            Ok(pair.state(pid).map_or(true, |s| s == "running").then_some(()))
        })?;
    }
    victims.iter_mut().try_for_each(|v| v.check().context("at home again"))?;
    victims.into_iter().try_for_each(|v| v.end(7))
}

#[test]
fn several_guests_run_side_by_side() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victims = guests(&pair, GUESTS)?;
    for _ in 0..3 {
        victims.iter_mut().try_for_each(|v| v.check().context("side by side"))?;
    }
    for victim in &victims {
        pair.bring_home(victim.pid())?;
    }
    expect_all_at_home(&pair, victims)?;
    pair.expect_no_leak(&before)
}

/// Of all threads of a process: how often they have waited.
fn waits(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that ended meanwhile counts no more.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("a count")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// Its threads wait at home and for each other; nobody looks after it in vain.
#[test]
fn an_idle_guest_costs_neither_node_anything() -> Result<()> {
    costs_nothing(
        "import threading; threading.Thread(target=threading.Lock().acquire).start()\n\
         l = threading.Lock(); l.acquire(); threading.Thread(target=l.acquire).start()\n",
        "",
    )
}

/// Nor after the files that it has mapped shared, large or small, while all it has waits at home.
#[test]
fn an_idle_guest_with_live_files_costs_neither_node_anything() -> Result<()> {
    costs_nothing(
        "import mmap, tempfile\n\
         def live(size):\n f = tempfile.TemporaryFile(); f.truncate(size)\n \
         return mmap.mmap(f.fileno(), size)\n\
         a, b = live(4096), live(4 << 20)\n",
        "a[0] = 7; b[0] = 7; a[1]; b[1]\n",
    )
}

/// A python program that does `first`, waits for a line, and ends after `then`.
fn costs_nothing(first: &str, then: &str) -> Result<()> {
    const A_WHILE: Duration = Duration::from_secs(3);
    const WAKES_MAX: u64 = 9;
    let pair = Pair::new()?;
    let mut command = Command::new("python3");
    let script = format!("{first}input()\n{then}import os; os._exit(3)");
    command.args(["-c", &script]).stdin(Stdio::piped());
    let mut idle = Started::by(&mut command)?;
    let pid = idle.pid();
    wait_until_it_reads(pid, SOON)?;
    pair.migrate(pid)?;
    let (here, monitor) = pair.guest_and_monitor(pid)?;
    let count = || -> Result<u64> { Ok(waits(pid)? + waits(here)? + waits(monitor)?) };
    // Since when it was so long at rest.
    let (mut before, mut since) = (count()?, Instant::now());
    wait_until("a guest at rest", SOON, || {
        let now = count()?;
        if now > before + WAKES_MAX {
            (before, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > A_WHILE).then_some(()))
    })?;
    idle.0.stdin.take().context("stdin")?.write_all(b"\n")?;
    ensure!(idle.end(SOON)?.code() == Some(3), "another status");
    pair.stop()
}

#[test]
fn stop_of_a_node_at_home_brings_its_processes_home() -> Result<()> {
    let pair = Pair::new()?;
    let victims = guests(&pair, 3)?;
    pair.home.echo("ccn/nodes/desk/stop", "1")?;
    expect_all_at_home(&pair, victims)?;
    wait_until("no node", SOON, || Ok((pair.home.read("ccn/nodes/count")? == "0").then_some(())))
}

#[test]
fn the_owner_of_the_desk_sends_all_guests_home_and_the_link_stays() -> Result<()> {
    let pair = Pair::new()?;
    let victims = guests(&pair, 3)?;
    pair.desk.echo("pen/nodes/home/migrate-home-all", "1")?;
    expect_all_at_home(&pair, victims)?;
    ensure!(pair.home.read("ccn/nodes/count")? == "1", "the link did not stay");
    let again = guests(&pair, 1)?;
    pair.bring_home(again[0].pid())?;
    expect_all_at_home(&pair, again)
}

#[test]
fn a_desk_that_is_told_to_end_sends_its_guests_home_first() -> Result<()> {
    let pair = Pair::new()?;
    let mut victims = guests(&pair, 3)?;
    pair.desk.stop()?;
    victims.iter_mut().try_for_each(|v| v.check().context("after the desk's end"))?;
    victims.into_iter().try_for_each(|v| v.end(7))?;
    pair.home.stop()
}

#[test]
fn a_call_that_is_not_there_yet_has_an_errno_and_is_counted() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("absent"))?;
    let pid = victim.pid();
    let tried = |victim: &mut Victim| victim.ask("try", "TRIED");
    ensure!(tried(&mut victim)? == [0], "none where nothing is moved");
    pair.migrate(pid)?;
    ensure!(tried(&mut victim)? == [i64::from(libc::ENOSYS)], "asynchronous I/O of a guest");
    // The guest's node tells its counters every now and then.
    wait_until("the call counted", SOON, || {
        let stats = pair.home.read(&format!("ccn/mig/migproc/{pid}/stats"))?;
        Ok(stats.lines().any(|l| l.contains("io_setup")).then_some(()))
    })?;
    pair.bring_home(pid)?;
    ensure!(tried(&mut victim)? == [0], "none at home again");
    victim.end(7)
}
