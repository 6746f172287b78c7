//! What one thread of a process that is away does to all of them (victims/sleepers.c), while the
//! others wait at home.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use tcmi_tests::{
    Launch, Pair, Root, Started, Victim, VictimKind, wait_until, wait_until_it_reads,
};

const SOON: Duration = Duration::from_secs(30);

fn ends_by(command: &str) -> Result<()> {
    const STATUS: i32 = 23;
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("sleepers"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check().context("away")?;
    victim.say(&format!("{command} {STATUS}"))?;
    let status = victim.wait(SOON).with_context(|| pair.logs())?;
    ensure!(status.code() == Some(STATUS), "{status}");
    pair.wait_forgotten(pid)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn exit_group_by_another_thread_than_the_first() -> Result<()> {
    ends_by("thread-ends")
}

#[test]
fn exit_group_when_the_first_thread_has_ended() -> Result<()> {
    ends_by("last-thread-ends")
}

#[test]
fn execve_by_another_thread_than_the_first() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(&VictimKind::plain("sleepers"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check().context("away")?;
    ensure!(victim.ask("thread-executes", "READY")? == [i64::from(pid)], "another program");
    wait_until("away again", SOON, || Ok(pair.is_away(pid).then_some(())))?;
    victim.check().context("away as another program")?;
    pair.bring_home(pid)?;
    victim.check().context("home again")?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

/// For as many no stream was there when the move began.
#[test]
fn threads_that_begin_while_it_is_made_ready_go_along() -> Result<()> {
    const SCRIPT: &str = "import os, threading\n\
        go = threading.Event()\n\
        all = [threading.Thread(target=go.wait) for _ in range(30)]\n\
        input()\n\
        for t in all: t.start()\n\
        print('BEGUN', flush=True)\n\
        input()\n\
        go.set()\n\
        for t in all: t.join()\n\
        os._exit(3)\n";
    let home = Launch::new("home", Root::Normal).env("TCMI_FAULT", "HomeFilesSent:stop");
    let pair = Pair::launch(home, Launch::new("desk", Root::Bare))?;
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut started = Started::by(&mut command)?;
    let pid = started.pid();
    let mut input = started.0.stdin.take().context("stdin")?;
    let mut output = BufReader::new(started.0.stdout.take().context("stdout")?);
    wait_until_it_reads(pid, SOON)?;
    thread::scope(|scope| {
        let move_out = scope.spawn(|| pair.try_migrate(pid));
        let halted = wait_until("home halts", SOON, || pair.home.halted());
        let begun = halted.and_then(|halted| {
            let mut line = String::new();
            let said = input.write_all(b"\n").and_then(|()| output.read_line(&mut line));
            // Whatever came of it, or its move waits for ever.
            kill(halted, Signal::SIGCONT)?;
            said?;
            ensure!(line == "BEGUN\n", "it says {line:?}");
            Ok(())
        });
        let moved = move_out.join().expect("no panic");
        begun.and_then(|()| moved.with_context(|| pair.logs()))
    })?;
    ensure!(pair.is_guest(pid), "it is at home");
    input.write_all(b"\n")?;
    ensure!(started.end(SOON)?.code() == Some(3), "another status");
    pair.wait_forgotten(pid)?;
    pair.stop()
}
