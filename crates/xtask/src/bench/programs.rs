//! What whole programs take as guests, with the number of calls that they forwarded: where the
//! time goes. No limits.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tcmi_tests::catalogue::{Inputs, connect, free_port, start_redis};
use tcmi_tests::{Pair, Scratch, node, wait_until};

const FILES: usize = 20_000;
const DIRECTORIES: usize = 200;
const REQUESTS: u32 = 20_000;
const CLIENTS: u32 = 4;
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize)]
pub struct Work {
    name: &'static str,
    /// Seconds, or requests a second.
    native: f64,
    guest: f64,
    unit: &'static str,
    /// Native against guest, so that 1 is as fast.
    times_slower: f64,
    forwarded_calls: u64,
}

impl Work {
    fn in_seconds(name: &'static str, native: f64, guest: f64, forwarded_calls: u64) -> Self {
        let times_slower = guest / native;
        Self { name, native, guest, unit: "s", times_slower, forwarded_calls }
    }
    pub fn print(&self) {
        let Self { name, native, guest, unit, times_slower, forwarded_calls } = self;
        println!(
            "{name:32} {times_slower:>9.2} times slower ({guest:.2} {unit}, {native:.2} at home; \
             {forwarded_calls} calls forwarded)"
        );
    }
}

fn seconds(command: &mut Command) -> Result<f64> {
    let since = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(since.elapsed().as_secs_f64())
}

/// Calls that guests which are gone have forwarded, as their node's log has it.
fn forwarded(pair: &Pair) -> u64 {
    let count = |line: &str| line.split_once(" calls=")?.1.split(' ').next()?.parse::<u64>().ok();
    pair.desk.log().lines().filter(|l| l.contains("a guest is gone")).filter_map(count).sum()
}

/// A command with its own processes: at home, then begun on the desk.
fn command(pair: &Pair, name: &'static str, argv: &[String], at: [&Path; 2]) -> Result<Work> {
    let native = seconds(Command::new(&argv[0]).args(&argv[1..]).current_dir(at[0]))?;
    let before = forwarded(pair);
    let mut away = Command::new(node::built("tcmi")?);
    away.arg("--ctlfs").arg(pair.home.path("")).args(["run", "--on", "desk"]).args(argv);
    let guest = seconds(away.current_dir(at[1]))?;
    wait_until("no guest is left", SOON, || {
        Ok((pair.desk.count("pen/mig/migproc")? == 0).then_some(()))
    })?;
    Ok(Work::in_seconds(name, native, guest, forwarded(pair) - before))
}

fn find(pair: &Pair) -> Result<Work> {
    let tree = Scratch::new("files")?;
    for directory in 0..DIRECTORIES {
        let at = tree.join(format!("{directory:03}"));
        fs::create_dir(&at)?;
        for file in 0..FILES / DIRECTORIES {
            fs::write(at.join(format!("{file:03}")), "")?;
        }
    }
    let argv = ["find", ".", "-type", "f", "-printf", "%p %s %m\\n"].map(str::to_owned);
    command(pair, "find over 20,000 files", &argv, [tree.path(); 2])
}

fn make(pair: &Pair) -> Result<Work> {
    let inputs = Inputs::make()?;
    let projects = [Scratch::new("native")?, Scratch::new("guest")?];
    for project in &projects {
        for file in fs::read_dir(inputs.path().join("project"))? {
            let file = file?;
            fs::copy(file.path(), project.join(file.file_name()))?;
        }
    }
    let argv = ["make", "-j2"].map(str::to_owned);
    command(pair, "make -j2 of 25 C files", &argv, projects.each_ref().map(Scratch::path))
}

/// Requests a second: (SET, GET).
fn requests(port: u16) -> Result<(f64, f64)> {
    let said = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-t", "set,get", "--csv"])
        .args(["-n", &REQUESTS.to_string(), "-c", &CLIENTS.to_string()])
        .output()?;
    let said = String::from_utf8(said.stdout)?;
    let rate = |test: &str| -> Result<f64> {
        let line = said.lines().find(|l| l.starts_with(&format!("\"{test}\"")));
        let rate =
            line.and_then(|l| l.split(',').nth(1)).context("redis-benchmark said nothing")?;
        Ok(rate.trim_matches('"').parse()?)
    };
    Ok((rate("SET")?, rate("GET")?))
}

fn redis(pair: &Pair) -> Result<Vec<Work>> {
    let scratch = Scratch::new("redis")?;
    let port = free_port()?;
    let server = start_redis(scratch.path(), port, &[])?;
    connect(port)?;
    let native = requests(port)?;
    pair.migrate(server.pid())?;
    let guest = requests(port)?;
    pair.bring_home(server.pid())?;
    let calls = forwarded(pair);
    let work = |name, native: f64, guest: f64| {
        let times_slower = native / guest;
        Work { name, native, guest, unit: "requests/s", times_slower, forwarded_calls: calls / 2 }
    };
    Ok(vec![
        work("redis SET, 4 clients", native.0, guest.0),
        work("redis GET, 4 clients", native.1, guest.1),
    ])
}

pub const NEEDS: &[(&str, &str)] =
    &[("make", "make"), ("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")];

pub fn all(pair: &Pair) -> Result<Vec<Work>> {
    // Its calls are all that the log has yet.
    let mut all = redis(pair)?;
    all.push(find(pair)?);
    all.push(make(pair)?);
    Ok(all)
}
