//! Files that are read (CP) and written (MV) on the node, where a rule of home's says so.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tcmi_tests::{Launch, Pair, Root, Scratch, Victim, VictimKind, wait_until};

const SOON: Duration = Duration::from_secs(60);
/// A child of a guest takes two moves.
const MIXED: Duration = Duration::from_secs(120);
const DATA_BYTES: u32 = 300_000;
const SEEDS: [u64; 3] = [1, 2, 3];

fn pair_with(rules: &str) -> Result<Pair> {
    let home = Launch::new("home", Root::Normal).config(rules);
    Pair::launch(home, Launch::new("desk", Root::Bare))
}

fn rules(copied: &Path, moved: &Path) -> String {
    format!("[resources]\ncopy = ['{}']\nmove = ['{}']\n", copied.display(), moved.display())
}

/// A directory with a file that is no repetition of itself.
fn directory(name: &str) -> Result<Scratch> {
    let dir = Scratch::new(name)?;
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
    fs::write(dir.path().join("data"), (0..DATA_BYTES).map(byte).collect::<Vec<u8>>())?;
    Ok(dir)
}

fn victim_in(dir: &Scratch) -> Result<Victim> {
    Victim::spawn(&VictimKind::with_args("rules", &[&dir.path().display().to_string()]))
}

/// Its counters, when they tell of so many calls of getppid, which it makes behind its work.
fn counted(pair: &Pair, pid: u32, rounds: u64) -> Result<String> {
    wait_until("the last counters", SOON, || {
        let stats = pair.home.read(&format!("ccn/mig/migproc/{pid}/stats"))?;
        Ok((calls(&stats, "getppid").0 >= rounds).then_some(stats))
    })
}

/// How often it called home, and how often its node answered alone, for calls of a name.
fn calls(stats: &str, name: &str) -> (u64, u64) {
    let line = stats.lines().find_map(|l| l.strip_prefix(&format!("call-{name} ")));
    let count = |name: &str| {
        let mut words = line.into_iter().flat_map(|line| line.split(' '));
        let number = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        number.map_or(0, |number| number.parse().expect("a count"))
    };
    (count("calls"), count("here"))
}

/// What the victim saw, and what it left.
fn outcome(dir: &Scratch, trace: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir.path())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == trace || !name.starts_with("trace") {
            let bytes = fs::read(dir.path().join(&name))?;
            all.insert(if name == trace { "trace".to_owned() } else { name }, bytes);
        }
    }
    Ok(all)
}

fn mix(victim: &mut Victim, dir: &Scratch, seed: u64, trace: &str) -> Result<()> {
    victim.say(&format!("mix {seed} {}", dir.path().join(trace).display()))?;
    victim.expect("MIXED", MIXED)
}

fn expect_same(
    what: &str,
    expected: &BTreeMap<String, Vec<u8>>,
    seen: &BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    ensure!(expected.keys().eq(seen.keys()), "{what}: {:?}, {:?}", expected.keys(), seen.keys());
    let text =
        |all: &BTreeMap<String, Vec<u8>>| String::from_utf8_lossy(&all["trace"]).into_owned();
    let (expected_text, seen_text) = (text(expected), text(seen));
    let pairs = expected_text.lines().zip(seen_text.lines());
    if let Some((i, (one, other))) = pairs.enumerate().find(|(_, (one, other))| one != other) {
        let before: Vec<&str> = expected_text.lines().take(i).collect();
        let before = before[before.len().saturating_sub(12)..].join("\n");
        anyhow::bail!("{what}: behind\n{before}\nexpected {one}\nseen     {other}");
    }
    for (name, bytes) in expected {
        ensure!(*bytes == seen[name], "{what}: {name} differs");
    }
    Ok(())
}

#[test]
fn files_are_the_same_by_every_rule() -> Result<()> {
    for seed in SEEDS {
        let dir = directory("files")?;
        let mut victim = victim_in(&dir)?;
        mix(&mut victim, &dir, seed, "trace-home")?;
        victim.end(7)?;
        let expected = outcome(&dir, "trace-home")?;
        for (name, rules) in [("GR", String::new()), ("CP and MV", rules(dir.path(), dir.path()))] {
            let pair = pair_with(&rules)?;
            for entry in fs::read_dir(dir.path())? {
                let path = entry?.path();
                if !path.ends_with("data") && !path.ends_with("trace-home") {
                    fs::remove_file(path)?;
                }
            }
            let mut victim = victim_in(&dir)?;
            pair.migrate(victim.pid())?;
            mix(&mut victim, &dir, seed, "trace-away").with_context(|| pair.logs())?;
            let (_, here) = calls(&counted(&pair, victim.pid(), 1)?, "read");
            ensure!((here > 0) != rules.is_empty(), "{here} reads on the node by {name}");
            let seen = outcome(&dir, "trace-away")?;
            expect_same(&format!("seed {seed} by {name}"), &expected, &seen)?;
            pair.bring_home(victim.pid())?;
            victim.end(7)?;
            pair.stop()?;
        }
    }
    Ok(())
}

#[test]
fn what_is_read_on_the_node_is_not_read_at_home() -> Result<()> {
    const READS: u64 = 1000;
    let (dir, elsewhere) = (directory("files")?, Scratch::new("elsewhere")?);
    let pair = pair_with(&rules(dir.path(), elsewhere.path()))?;
    let mut victim = victim_in(&dir)?;
    let pid = victim.pid();
    let said = pair.explain(pid)?;
    ensure!(said.contains("copied by content (CP): files that it reads, descriptors"), "{said}");
    ensure!(said.contains("moves with it (MV): files that it makes or empties"), "{said}");
    pair.migrate(pid)?;
    let sum = victim.ask(&format!("count {READS}"), "COUNTED")?;
    // Begun at home, continued here, and there again.
    for (at, is_home) in [(1010, false), (1020, false), (1030, true), (1040, true)] {
        if is_home && pair.is_guest(pid) {
            let stats = counted(&pair, pid, 1)?;
            let (reads, here) = calls(&stats, "read");
            ensure!(reads < READS / 10 && here >= READS, "{reads} at home, {here} here");
            let (seeks, here) = calls(&stats, "lseek");
            ensure!(seeks < READS / 10 && here >= READS, "{seeks} at home, {here} here");
            let (fetched, _) = calls(&stats, "pread64");
            ensure!((1..20).contains(&fetched), "{fetched} times fetched");
            pair.bring_home(pid)?;
        }
        let seen = victim.ask("next", "NEXT")?;
        ensure!(seen == [at], "{seen:?}, not {at}");
    }
    ensure!(victim.ask(&format!("count {READS}"), "COUNTED")? == sum, "other bytes");
    victim.end(7)?;
    pair.stop()
}

#[test]
fn who_shares_an_open_file_shares_its_position() -> Result<()> {
    let (dir, elsewhere) = (directory("files")?, Scratch::new("elsewhere")?);
    let pair = pair_with(&rules(dir.path(), elsewhere.path()))?;
    let mut victim = victim_in(&dir)?;
    victim.say("share")?;
    victim.expect("SHARED", SOON)?;
    let said = pair.explain(victim.pid())?;
    ensure!(!said.contains("files that it reads, descriptors"), "{said}");
    pair.migrate(victim.pid())?;
    ensure!(victim.ask("next", "NEXT")? == [1010]);
    victim.say("theirs")?;
    victim.expect("THEIRS", SOON)?;
    ensure!(victim.ask("next", "NEXT")? == [1030]);
    victim.check()?;
    pair.bring_home(victim.pid())?;
    ensure!(victim.ask("next", "NEXT")? == [1040]);
    victim.end(7)?;
    pair.stop()
}

#[test]
fn a_full_disk_is_told_of_before_the_file_is_closed() -> Result<()> {
    const ROOM: &str = "size=400k";
    let at = Scratch::new("full")?;
    mount(Some("small"), at.path(), Some("tmpfs"), MsFlags::empty(), Some(ROOM))?;
    let full = Full(at);
    fs::write(full.0.path().join("data"), [7; 2000])?;
    let elsewhere = Scratch::new("elsewhere")?;
    let pair = pair_with(&rules(elsewhere.path(), full.0.path()))?;
    let mut victim = victim_in(&full.0)?;
    pair.migrate(victim.pid())?;
    for ask in ["fill 0", "fill 1"] {
        let seen = victim.ask(ask, "FULL")?;
        ensure!(seen == [i64::from(libc::ENOSPC)], "{ask}: {seen:?}");
        let name = full.0.path().join("full");
        ensure!(fs::metadata(&name)?.len() <= 400 << 10, "more than there is room for");
        fs::remove_file(name)?;
    }
    victim.end(7)?;
    pair.stop()
}

/// Unmounted when dropped.
struct Full(Scratch);

impl Drop for Full {
    fn drop(&mut self) {
        if let Err(e) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("{}: {e}", self.0.path().display());
        }
    }
}

#[test]
fn threads_read_each_byte_once() -> Result<()> {
    let (dir, elsewhere) = (directory("files")?, Scratch::new("elsewhere")?);
    let pair = pair_with(&rules(dir.path(), elsewhere.path()))?;
    let mut victim = victim_in(&dir)?;
    pair.migrate(victim.pid())?;
    for _ in 0..5 {
        let seen = victim.ask("together", "TOGETHER")?;
        ensure!(seen == [i64::from(DATA_BYTES)], "{seen:?}");
    }
    victim.end(7)?;
    pair.stop()
}

#[test]
fn what_is_written_on_the_node_is_home_before_anybody_can_learn_of_it() -> Result<()> {
    const WRITES: u64 = 1000;
    let (dir, elsewhere) = (directory("files")?, Scratch::new("elsewhere")?);
    let pair = pair_with(&rules(elsewhere.path(), dir.path()))?;
    let mut victim = victim_in(&dir)?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    let shown = || fs::read_to_string(dir.path().join("shown"));
    for _ in 0..20 {
        victim.say("show")?;
        victim.expect("SHOWN", SOON)?;
        ensure!(shown()? == "shown", "{:?}", shown());
    }
    fs::remove_file(dir.path().join("shown"))?;
    // Nobody is told, and it computes.
    victim.say("linger")?;
    wait_until("what it wrote", SOON, || {
        Ok(shown().is_ok_and(|text| text == "shown").then_some(()))
    })
    .with_context(|| pair.logs())?;
    victim.signal(Signal::SIGUSR1)?;
    victim.expect("SHOWN", SOON)?;
    victim.say(&format!("scribble {WRITES}"))?;
    victim.expect("SCRIBBLED", SOON)?;
    let scribbled = fs::read_to_string(dir.path().join("scribbled"))?;
    ensure!(scribbled == "0123456789".repeat(WRITES as usize), "{} bytes", scribbled.len());
    let (writes, here) = calls(&counted(&pair, pid, 1)?, "write");
    ensure!(writes < WRITES / 10 && here >= WRITES, "{writes} at home, {here} here");
    pair.bring_home(pid)?;
    victim.end(7)?;
    pair.stop()
}

const IMPORTS: &str = "import sys; print('ready', flush=True); sys.stdin.readline()
import asyncio, decimal, email.mime.text, http.client, json, unittest, xml.dom.minidom
import os; os.getppid()
print(len(sys.modules), sorted(sys.modules)[:9], flush=True); sys.stdin.readline()";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What it prints, and how often it called home to read its modules.
fn imports(program: &str, rules: &str) -> Result<(String, u64)> {
    let pair = pair_with(rules)?;
    let child = Command::new(program)
        .args(["-I", "-c", IMPORTS])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut python = Ended(child);
    let mut to = python.0.stdin.take().context("stdin")?;
    let mut from = BufReader::new(python.0.stdout.take().context("stdout")?);
    let mut line = String::new();
    from.read_line(&mut line)?;
    ensure!(line == "ready\n", "{line:?}");
    pair.migrate(python.0.id())?;
    to.write_all(b"\n")?;
    line.clear();
    from.read_line(&mut line)?;
    let stats = counted(&pair, python.0.id(), 1)?;
    let names = ["read", "pread64", "lseek", "fstat", "newfstatat", "ioctl", "readlinkat"];
    let forwarded = names.iter().map(|name| calls(&stats, name).0).sum();
    to.write_all(b"\n")?;
    let status = python.0.wait()?;
    ensure!(status.success(), "{status}");
    pair.stop()?;
    Ok((line, forwarded))
}

#[test]
fn a_program_that_reads_its_modules_calls_home_less() -> Result<()> {
    let ask = "import os, sys; print(sys.executable); print(os.path.dirname(os.__file__))";
    let told = match Command::new("python3").args(["-c", ask]).output() {
        Ok(output) => String::from_utf8(output.stdout)?,
        Err(e) => {
            eprintln!("skipped: no python3: {e}");
            return Ok(());
        }
    };
    let (program, place) = told.trim().split_once('\n').context(told.clone())?;
    let (expected, by_reference) = imports(program, "")?;
    let (seen, by_content) = imports(program, &format!("[resources]\ncopy = ['{place}']\n"))?;
    ensure!(!expected.is_empty() && seen == expected, "{expected:?}, {seen:?}");
    ensure!(by_content < by_reference * 3 / 4, "{by_content}, not far fewer than {by_reference}");
    Ok(())
}

/// Files are sorted by way of others, packed, compiled; in the directory "work".
const WORK: &str = "read line; cd work; export TMPDIR=$PWD LC_ALL=C
seq 1 60000 | sed 's/.*/& & &/' | tee numbers | sort -r -S 200k -T $PWD -o sorted
head -c 300000 sorted > part; cat part part > twice; tail -c 1000 twice > end
tar cf all.tar --mtime=@0 --sort=name numbers part; gzip -n all.tar
printf '#include <stdio.h>\\nint main(void) { return printf(\"%%d\\\\n\", 7) < 0; }\\n' > main.c
if command -v gcc; then gcc -O2 main.c -o main && ./main > told; fi
{ echo one; echo two; } > both; echo three >> both; ls; echo done";

fn work(rules: Option<&str>) -> Result<BTreeMap<String, Vec<u8>>> {
    let dir = Scratch::new("work")?;
    let place = dir.path().join("work");
    fs::create_dir(&place)?;
    let pair = match rules {
        Some(rules) => Some(pair_with(&rules.replace("PLACE", &place.display().to_string()))?),
        None => None,
    };
    let child = Command::new("sh")
        .args(["-c", WORK])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut shell = Ended(child);
    let mut to = shell.0.stdin.take().context("stdin")?;
    if let Some(pair) = &pair {
        pair.migrate(shell.0.id())?;
    }
    to.write_all(b"\n")?;
    let mut told = Vec::new();
    shell.0.stdout.take().context("stdout")?.read_to_end(&mut told)?;
    let status = shell.0.wait()?;
    let logs = pair.as_ref().map(Pair::logs).unwrap_or_default();
    ensure!(status.success() && told.ends_with(b"done\n"), "{status}\n{logs}");
    let mut all = BTreeMap::from([("stdout".to_owned(), told)]);
    for entry in fs::read_dir(&place)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        all.insert(name, fs::read(path)?);
    }
    pair.map_or(Ok(()), Pair::stop)?;
    Ok(all)
}

#[test]
fn real_programs_read_and_write_the_same_by_every_rule() -> Result<()> {
    let expected = work(None)?;
    let rules = "[resources]\ncopy = ['/usr', '/etc', 'PLACE']\nmove = ['PLACE']\n";
    let seen = work(Some(rules))?;
    ensure!(expected.keys().eq(seen.keys()), "{:?}, {:?}", expected.keys(), seen.keys());
    for (name, bytes) in &expected {
        ensure!(*bytes == seen[name], "{name} differs");
    }
    Ok(())
}
