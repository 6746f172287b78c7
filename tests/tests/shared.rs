//! Memory that processes of a tree share stays shared: they go and come together.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::{Pair, Scratch, Victim, VictimKind, account, wait_until};

const SOON: Duration = Duration::from_secs(30);
const ALL: usize = 4;

fn sharers() -> Result<(Victim, Vec<u32>)> {
    let victim = Victim::spawn(&VictimKind::with_args("segment", &["3"]))?;
    let all = [vec![victim.pid()], account::descendants(victim.pid())?].concat();
    ensure!(all.len() == ALL, "{all:?}");
    Ok((victim, all))
}

fn guests(pair: &Pair, all: &[u32]) -> usize {
    all.iter().filter(|pid| pair.is_guest(**pid)).count()
}

fn wait_home(pair: &Pair, all: &[u32]) -> Result<()> {
    wait_until(&format!("all at home\n{}", pair.logs()), SOON, || {
        Ok((guests(pair, all) == 0).then_some(()))
    })
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

#[test]
fn those_who_share_memory_go_and_come_together() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let (mut victim, all) = sharers()?;
    for round in 0..4 {
        works(&mut victim, "at home")?;
        let moved = pair.try_migrate_tree(victim.pid());
        moved.with_context(|| format!("round {round}\n{}", pair.logs()))?;
        ensure!(guests(&pair, &all) == ALL, "not all away in round {round}");
        works(&mut victim, "away").with_context(|| pair.logs())?;
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
    pair.home.echo("ccn/mig/explain", &format!("{} desk tree", victim.pid()))?;
    let may = pair.home.read("ccn/mig/explain")?;
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

#[test]
fn a_fork_of_one_of_them_brings_all_home() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, all) = sharers()?;
    for _ in 0..2 {
        pair.try_migrate_tree(victim.pid()).with_context(|| pair.logs())?;
        works(&mut victim, "away")?;
        ensure!(victim.ask("fork", "FORKED")? == [0, 1], "the child");
        wait_home(&pair, &all)?;
        works(&mut victim, "at home")?;
    }
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

/// A server with two workers under load, which share zones and a mutex.
#[test]
fn a_server_with_workers_goes_and_comes_under_load() -> Result<()> {
    let pair = Pair::new()?;
    let at = Scratch::new("nginx")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let body: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    fs::write(at.join("page"), &body)?;
    let place = at.path().display();
    let configuration = format!(
        "daemon off; user root; worker_processes 2; pid {place}/pid;
         events {{ worker_connections 64; }}
         http {{ access_log {place}/access; limit_req_zone $uri zone=z:1m rate=100000r/s;
         server {{ listen 127.0.0.1:{port}; root {place}; limit_req zone=z burst=100000 nodelay; }} }}"
    );
    fs::write(at.join("conf"), configuration)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(at.join("conf")).arg("-e").arg(at.join("errors"));
    let mut server = Server(command.spawn().context("nginx")?);
    let head = server.0.id();
    let url = format!("http://127.0.0.1:{port}/page");
    let get = || -> Result<bool> {
        let got = Command::new("curl").args(["-s", "--max-time", "5", &url]).output()?;
        Ok(got.stdout == body.as_bytes())
    };
    wait_until("it serves", SOON, || Ok(get()?.then_some(())))?;
    let mut load = Command::new("wrk");
    load.args(["-t1", "-c4", "-d4", &url]).stdout(Stdio::piped());
    let load = load.spawn().context("wrk")?;
    let all = [vec![head], account::descendants(head)?].concat();
    ensure!(all.len() == 3, "{all:?}");
    for round in 0..2 {
        pair.try_migrate_tree(head).with_context(|| format!("round {round}\n{}", pair.logs()))?;
        ensure!(guests(&pair, &all) == 3, "not all away");
        ensure!(get()?, "away it serves something else");
        pair.home.write("ccn/mig/migrate-home", format!("{head}\n"))?;
        wait_home(&pair, &all)?;
        ensure!(get()?, "at home it serves something else");
    }
    let said = String::from_utf8(load.wait_with_output()?.stdout)?;
    ensure!(said.contains("requests in"), "wrk says {said}");
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk says {said}");
    kill(Pid::from_raw(head as i32), Signal::SIGTERM)?;
    let status = wait_until("its end", SOON, || Ok(server.0.try_wait()?))?;
    ensure!(status.success(), "{status}: {}", fs::read_to_string(at.join("errors"))?);
    pair.stop()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Its workers end with it.
            kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).ok();
            self.0.wait().ok();
        }
    }
}
