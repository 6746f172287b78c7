//! Processes that are away begin others and execute other programs: by home's kernel, with what
//! it gives them, and on the desk again behind it.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::catalogue::project;
use tcmi_tests::rights::{CAP_DAC_READ_SEARCH, granted, may_read_all, set_uid};
use tcmi_tests::{
    Launch, Pair, Root, Scratch, Started, Terminal, Victim, VictimKind, account, node, wait_until,
};

const SOON: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;

/// `tcmi run --on desk ARGV`.
fn run(pair: &Pair, argv: &[&str]) -> Result<Command> {
    let mut command = Command::new(node::built("tcmi")?);
    command.arg("--ctlfs").arg(pair.home.path("")).args(["run", "--on", "desk"]).args(argv);
    Ok(command)
}

fn wait_away(pair: &Pair, pid: u32) -> Result<()> {
    wait_until(&format!("{pid} away\n{}", pair.logs()), SOON, || {
        Ok(pair.is_guest(pid).then_some(()))
    })
}

fn status_of(process: Started) -> Result<i32> {
    let status = process.end(SOON)?;
    status.code().with_context(|| format!("{status}"))
}

#[test]
fn a_command_that_is_run_on_a_node_is_the_caller_s_own() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let scratch = Scratch::new("run")?;
    let script =
        r#"echo "$$ $PWD $1 $TESTED"; read line; echo "got $line" | tr a-z A-Z >&2; exit 7"#;
    let mut command = run(&pair, &["sh", "-c", script, "sh", "-x"])?;
    command.current_dir(scratch.path()).env("TESTED", "yes");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = Started::by(&mut command)?;
    let pid = shell.pid();
    wait_away(&pair, pid)?;
    shell.0.stdin.take().context("stdin")?.write_all(b"a line\n")?;
    let (mut out, mut err) = (String::new(), String::new());
    shell.0.stdout.take().context("stdout")?.read_to_string(&mut out)?;
    shell.0.stderr.take().context("stderr")?.read_to_string(&mut err)?;
    ensure!(out == format!("{pid} {} -x yes\n", scratch.path().display()), "said {out:?}");
    ensure!(err == "GOT A LINE\n", "said {err:?} as errors");
    ensure!(status_of(shell)? == 7, "another status");
    pair.wait_forgotten(pid)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

#[test]
fn a_command_that_cannot_be_run_says_so_and_nothing_is_armed() -> Result<()> {
    let pair = Pair::new()?;
    let status = |argv: &[&str]| -> Result<(i32, String)> {
        let done = run(&pair, argv)?.output()?;
        Ok((done.status.code().context("a status")?, String::from_utf8(done.stderr)?))
    };
    let (code, said) = status(&["/no/such/program"])?;
    ensure!(code == 127 && said.contains("/no/such/program"), "{code}: {said}");
    let (code, said) = status(&["/etc/passwd"])?;
    ensure!(code == 126 && said.contains("ermission"), "{code}: {said}");
    let mut elsewhere = Command::new(node::built("tcmi")?);
    elsewhere.arg("--ctlfs").arg(pair.home.path("")).args(["run", "--on", "nowhere", "true"]);
    ensure!(elsewhere.output()?.status.code() == Some(1), "to a node that is not there");
    wait_until("nothing armed", SOON, || {
        Ok(pair.home.read("ccn/mig/emigrate-npm")?.is_empty().then_some(()))
    })?;
    pair.stop()
}

#[test]
fn an_armed_process_goes_with_its_next_program_unless_it_is_disarmed() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("family"))?;
    let pid = victim.pid();
    let arm = || pair.home.echo("ccn/mig/emigrate-npm", &format!("{pid} desk"));
    arm()?;
    ensure!(pair.home.read("ccn/mig/emigrate-npm")?.starts_with(&format!("{pid} ")), "not armed");
    ensure!(pair.try_migrate(pid).is_err(), "moved while it waits for its program");
    pair.home.write("ccn/mig/migrate-home", format!("{pid}\n"))?;
    ensure!(pair.home.read("ccn/mig/emigrate-npm")?.is_empty(), "still armed");
    let here = [i64::from(pid)];
    ensure!(victim.ask("again", "READY")? == here, "another program at home");
    ensure!(!pair.is_guest(pid), "it went without being armed");
    arm()?;
    victim.check().context("armed, it begins others as ever")?;
    ensure!(victim.ask("again", "READY")? == here, "another program");
    wait_away(&pair, pid)?;
    victim.check().context("away")?;
    for again in ["again", "again-thread"] {
        ensure!(victim.ask(again, "READY")? == here, "{again} on the desk");
        wait_away(&pair, pid)?;
        ensure!(victim.ask("fork", "FORKED")? == [0], "behind {again}");
    }
    pair.bring_home(pid)?;
    victim.check().context("home again")?;
    victim.end(7)?;
    pair.stop()
}

#[test]
fn orders_wait_for_what_is_at_home_for_a_moment() -> Result<()> {
    const ROUNDS: u32 = 12;
    let pair = Pair::new()?;
    let script = "i=0; while read -t 0 x || [ $i -lt 100000 ]; do i=$((i+1)); (exit 3); done";
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap 'exit 5' TERM; {script}")]).stdin(Stdio::null());
    let shell = Started::by(&mut command)?;
    let pid = shell.pid();
    for round in 0..ROUNDS {
        pair.try_migrate(pid).with_context(|| format!("round {round}"))?;
        pair.bring_home(pid).with_context(|| format!("round {round}"))?;
    }
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
    ensure!(status_of(shell)? == 5, "another status");
    pair.stop()
}

#[test]
fn what_a_process_begins_follows_it_and_each_comes_home_by_itself() -> Result<()> {
    let pair = Pair::new()?;
    let work = "while :; do i=$((i+1)); done";
    let script =
        format!("read x; ({work}) & ({work}) & read x; kill -9 $!; wait $!; echo $?; wait");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = Started::by(&mut command)?;
    let pid = shell.pid();
    pair.migrate(pid)?;
    let mut stdin = shell.0.stdin.take().context("stdin")?;
    stdin.write_all(b"\n")?;
    let children = wait_until("two children away", SOON, || {
        let all = account::children(pid)?;
        Ok((all.len() == 2 && all.iter().all(|c| pair.is_away(*c))).then_some(all))
    })?;
    pair.bring_home(children[0])?;
    ensure!(account::state(children[0]) == Some('R'), "the first does not work at home");
    ensure!(pair.is_guest(children[1]), "the second came along");
    stdin.write_all(b"\n")?;
    let mut said = [0; 4];
    shell.0.stdout.take().context("stdout")?.read_exact(&mut said)?;
    ensure!(&said == b"137\n", "its child ended otherwise: {said:?}");
    pair.wait_forgotten(children[1])?;
    kill(Pid::from_raw(children[0] as i32), Signal::SIGTERM)?;
    ensure!(status_of(shell)? == 0, "another status");
    pair.stop()
}

/// A shell of nobody's with a script that begins as soon as it is given a line.
fn nobodys_shell(script: &str) -> Result<Started> {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("read x; {script}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    Started::by(command.uid(NOBODY).gid(NOBODY))
}

/// Away, the shell says `said`, and executes `sleep`, with which it stays at home.
fn expect_brought_home(pair: &Pair, script: &str, said: &str) -> Result<Started> {
    let mut shell = nobodys_shell(script)?;
    let pid = shell.pid();
    pair.migrate(pid)?;
    shell.0.stdin.as_ref().context("stdin")?.write_all(b"\n")?;
    let mut seen = vec![0; said.len()];
    shell.0.stdout.as_mut().context("stdout")?.read_exact(&mut seen)?;
    ensure!(seen == said.as_bytes(), "{:?} and not {said:?}", String::from_utf8_lossy(&seen));
    wait_until("at home, as another program", SOON, || {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        Ok((name == "sleep\n" && !pair.is_guest(pid)).then_some(()))
    })?;
    wait_until("why it stays", SOON, || {
        let why = pair.home.read(&format!("ccn/mig/migproc/{pid}/last-error"))?;
        Ok(why.contains("set-uid program, or one with capabilities").then_some(()))
    })?;
    Ok(shell)
}

/// What home's kernel makes of it, not the node's.
#[test]
fn a_set_uid_program_brings_the_process_home() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("set-uid")?;
    let id = granted(&scratch, "/usr/bin/id", set_uid)?;
    let sleep = granted(&scratch, "/bin/sleep", set_uid)?;
    let (id, sleep) = (id.display(), sleep.display());
    let script = format!("{id} -u; {id} -ru; exec {sleep} 60");
    let shell = expect_brought_home(&pair, &script, "0\n65534\n")?;
    shell.signal(Signal::SIGKILL)?;
    drop(shell);
    pair.stop()
}

#[test]
fn a_program_with_capabilities_brings_the_process_home() -> Result<()> {
    let pair = Pair::new()?;
    let scratch = Scratch::new("capabilities")?;
    let secret = scratch.join("secret");
    fs::write(&secret, "read\n")?;
    fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    let cat = granted(&scratch, "/bin/cat", may_read_all)?;
    let sleep = granted(&scratch, "/bin/sleep", may_read_all)?;
    let (secret, cat, sleep) = (secret.display(), cat.display(), sleep.display());
    let script = format!("cat {secret} 2>/dev/null || {cat} {secret}; exec {sleep} 60");
    let shell = expect_brought_home(&pair, &script, "read\n")?;
    let status = fs::read_to_string(format!("/proc/{}/status", shell.pid()))?;
    let effective = format!("CapEff:\t{CAP_DAC_READ_SEARCH:016x}\n");
    ensure!(status.contains(&effective), "its capabilities: {status}");
    shell.signal(Signal::SIGKILL)?;
    drop(shell);
    pair.stop()
}

/// A user moves no process of more rights than his, whatever he sent away or armed before.
#[test]
fn what_gains_rights_does_not_follow() -> Result<()> {
    let home = Launch::new("home", Root::Normal).env("TCMI_LOG", "debug");
    let pair = Pair::launch(home, Launch::new("desk", Root::Bare))?;
    let stays = |pid: u32| {
        let did_not_go = format!(
            "stays at home pid={pid} error=process {pid} cannot move: it has executed a set-uid"
        );
        wait_until(&format!("{pid} stays\n{}", pair.logs()), SOON, || {
            // It may have gone before its program was another, and is home again with that.
            let came = pair.home.read(&format!("ccn/mig/migproc/{pid}/last-error"));
            let told = came.is_ok_and(|why| why.contains("set-uid"))
                || pair.home.log().contains(&did_not_go);
            Ok((told && !pair.is_guest(pid)).then_some(()))
        })
    };
    for grant in [set_uid, may_read_all] {
        let scratch = Scratch::new("gains")?;
        let sleep = granted(&scratch, "/bin/sleep", grant)?;
        let mut shell = nobodys_shell(&format!("{} 60 & echo $!; wait", sleep.display()))?;
        pair.migrate(shell.pid())?;
        shell.0.stdin.as_ref().context("stdin")?.write_all(b"\n")?;
        let mut said = String::new();
        BufReader::new(shell.0.stdout.as_mut().context("stdout")?).read_line(&mut said)?;
        stays(said.trim().parse()?).context("what one that is away began")?;
        let shell = nobodys_shell(&format!("exec {} 60", sleep.display()))?;
        pair.home.echo("ccn/mig/emigrate-npm", &format!("{} desk", shell.pid()))?;
        shell.0.stdin.as_ref().context("stdin")?.write_all(b"\n")?;
        stays(shell.pid()).context("one that was armed")?;
    }
    pair.stop()
}

/// Its visit is over for who sees the new program, and for its keeper a little later.
#[test]
fn who_stays_at_home_after_a_visit_can_be_sent_away_at_once() -> Result<()> {
    const ROUNDS: u32 = 8;
    let pair = Pair::new()?;
    let scratch = Scratch::new("set-uid")?;
    let cat = granted(&scratch, "/bin/cat", set_uid)?;
    let script = format!("read x; exec {}", cat.display());
    for round in 0..ROUNDS {
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut shell = Started::by(command.uid(NOBODY).gid(NOBODY))?;
        let pid = shell.pid();
        pair.migrate(pid)?;
        shell.0.stdin.as_ref().context("stdin")?.write_all(b"\n")?;
        wait_until("another program", SOON, || {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
            Ok((name == "cat\n" && !pair.is_guest(pid)).then_some(()))
        })?;
        pair.migrate(pid).with_context(|| format!("round {round}"))?;
        drop(shell.0.stdin.take());
        ensure!(status_of(shell)? == 0, "another status");
    }
    pair.stop()
}

/// A shell at a terminal: jobs are stopped, brought forward and interrupted from there.
#[test]
fn job_control_from_the_terminal_reaches_jobs_of_a_shell_that_is_away() -> Result<()> {
    let pair = Pair::new()?;
    let mut command = run(&pair, &["bash", "--norc", "--noediting", "-i"])?;
    command.env("PS1", "ready> ").env("HISTFILE", "");
    let (mut terminal, shell) = Terminal::start(&mut command)?;
    terminal.hear("ready> ")?;
    wait_away(&pair, shell.pid())?;
    terminal.say("sleep 61\n")?;
    let job = wait_until("the job away", SOON, || {
        let all = account::children(shell.pid())?;
        let executed = |job: &u32| {
            fs::read_to_string(format!("/proc/{job}/comm")).is_ok_and(|name| name == "sleep\n")
        };
        Ok(all.first().copied().filter(|job| executed(job) && pair.is_guest(*job)))
    })?;
    terminal.say("\x1a")?;
    terminal.hear("Stopped")?;
    ensure!(account::state(job) != Some('S'), "the job sleeps on");
    terminal.hear("ready> ")?;
    terminal.say("fg\n")?;
    terminal.hear("sleep 61")?;
    wait_until("the job in front", SOON, || {
        Ok((terminal.front() == job as i32 && account::state(job) == Some('S')).then_some(()))
    })?;
    terminal.say("\x03")?;
    terminal.hear("ready> ")?;
    terminal.say("echo status $?\n")?;
    terminal.hear("status 130")?;
    terminal.hear("ready> ")?;
    terminal.say("exit 3\n")?;
    ensure!(status_of(shell)? == 3, "another status");
    pair.stop()
}

/// Its compilers go with it, and what it makes is what it makes at home.
#[test]
fn a_build_that_is_moved_in_its_midst_makes_what_it_makes_at_home() -> Result<()> {
    let (moved, unmoved) = (Scratch::new("moved")?, Scratch::new("unmoved")?);
    project(moved.path())?;
    project(unmoved.path())?;
    let make = |at: &Scratch| {
        let mut command = Command::new("make");
        command.arg("-j2").current_dir(at.path()).stdout(Stdio::null());
        command
    };
    ensure!(make(&unmoved).status()?.success(), "unmoved");
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let build = Started::by(&mut make(&moved))?;
    let pid = build.pid();
    wait_until("its first compiler", SOON, || {
        Ok((!account::descendants(pid)?.is_empty()).then_some(()))
    })?;
    pair.try_migrate(pid)?;
    wait_until("a compiler away", SOON, || {
        let all = account::descendants(pid)?;
        if all.is_empty() && account::state(pid) == Some('Z') {
            bail!("it was over too soon");
        }
        Ok(all.iter().any(|p| pair.is_guest(*p)).then_some(()))
    })?;
    ensure!(status_of(build)? == 0, "moved\n{}", pair.logs());
    for name in ["prog", "main.o", "f0.o", "f5.o"] {
        ensure!(fs::read(moved.join(name))? == fs::read(unmoved.join(name))?, "{name} differs");
    }
    let said = Command::new(moved.join("prog")).output()?;
    ensure!(said.stdout == Command::new(unmoved.join("prog")).output()?.stdout, "what it says");
    pair.expect_no_leak(&before)?;
    pair.stop()
}
