//! Control writes that are refused: the errno is the answer and nothing else happens.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tcmi_sys::ptrace::{Running, Stop, Stopped, Waited};
use tcmi_tests::account::{children, descendants, state, with_variable};
use tcmi_tests::node::Node;
use tcmi_tests::{Launch, Pair, Root, Scratch, Started, Victim, VictimKind, rights, wait_until};

const EMIGRATE: &str = "ccn/mig/emigrate-ppm-p";
const NOBODY: u32 = 65534;
const SOON: Duration = Duration::from_secs(10);

fn expect_errno(node: &Node, file: &str, value: impl Into<Vec<u8>>, errno: i32) -> Result<()> {
    let value = value.into();
    let shown = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
    let seen = node.write(file, value).err().and_then(|e| e.raw_os_error());
    ensure!(
        seen == Some(errno),
        "{shown:?} > {file}: expected {}, got {}",
        io::Error::from_raw_os_error(errno),
        seen.map_or_else(|| "success".into(), |e| io::Error::from_raw_os_error(e).to_string()),
    );
    Ok(())
}

#[test]
fn what_is_not_in_the_grammar_is_einval() -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let rubbish = |bytes: usize| (0..bytes).map(|i| (i * 131 % 251) as u8).collect::<Vec<u8>>();
    let values: Vec<Vec<u8>> = vec![
        b"\n".to_vec(),
        b"abc desk\n".to_vec(),
        b"-1 desk\n".to_vec(),
        b"0 desk\n".to_vec(),
        b"18446744073709551616 desk\n".to_vec(),
        b"99999999999999999999999999 desk\n".to_vec(),
        b"0x10 desk\n".to_vec(),
        b"10\n".to_vec(),
        b"10 desk extra\n".to_vec(),
        b"10\0 desk\n".to_vec(),
        b"10 de\xff\xfesk\n".to_vec(),
        b"10 ../desk\n".to_vec(),
        rubbish(5000),
        rubbish(1 << 20),
    ];
    for value in values {
        expect_errno(&pair.home, EMIGRATE, value.clone(), libc::EINVAL)?;
        expect_errno(
            &pair.home,
            "ccn/mig/migrate-home",
            [b"x", &value[..]].concat(),
            libc::EINVAL,
        )?;
    }
    for address in ["7770", "tcp:127.0.0.1", "tcp:127.0.0.1:70000", "udp:127.0.0.1:1", "tcp::::::"]
    {
        expect_errno(&pair.home, "ccn/listen", format!("{address}\n"), libc::EINVAL)?;
    }
    expect_errno(&pair.home, "ccn/trust", "not a key\n", libc::EINVAL)?;
    expect_errno(&pair.desk, "pen/connect", "tcp:127.0.0.1:1 nokey\n", libc::EINVAL)?;
    expect_errno(&pair.desk, "pen/connect", "tcp:127.0.0.1:1\n", libc::EINVAL)?;
    pair.expect_no_leak(&before)?;
    pair.expect_serves()
}

/// A pid that was used and is free again.
fn free_pid() -> Result<u32> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    Ok(pid)
}

#[test]
fn processes_that_cannot_move_are_refused_by_kind() -> Result<()> {
    let pair = Pair::new()?;
    let mut zombie = Command::new("true").spawn()?;
    wait_until("a zombie", SOON, || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", zombie.id()))?;
        Ok(stat.contains(") Z ").then_some(()))
    })?;
    let cases = [
        ("init", 1, libc::EOPNOTSUPP),
        ("kthreadd", 2, libc::EOPNOTSUPP),
        ("the daemon itself", pair.home.pid(), libc::EOPNOTSUPP),
        ("the other daemon", pair.desk.pid(), libc::EOPNOTSUPP),
        ("a zombie", zombie.id(), libc::ESRCH),
        ("nobody", free_pid()?, libc::ESRCH),
        ("beyond every pid", i32::MAX as u32, libc::ESRCH),
    ];
    for (what, pid, errno) in cases {
        expect_errno(&pair.home, EMIGRATE, format!("{pid} desk\n"), errno).context(what)?;
    }
    expect_errno(
        &pair.home,
        "ccn/mig/migrate-home",
        format!("{}\n", std::process::id()),
        libc::ESRCH,
    )?;
    zombie.wait()?;
    pair.expect_serves()
}

#[test]
fn an_unknown_node_is_unreachable() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
    for node in ["nowhere", "77", "18446744073709551615"] {
        let seen = pair.home.write(EMIGRATE, format!("{} {node}\n", victim.pid()));
        let errno = seen.err().and_then(|e| e.raw_os_error());
        ensure!(matches!(errno, Some(libc::EHOSTUNREACH | libc::EINVAL)), "{node}: {errno:?}");
    }
    expect_errno(&pair.home, EMIGRATE, format!("{} nowhere\n", victim.pid()), libc::EHOSTUNREACH)?;
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_desk_that_died_is_unreachable_and_the_process_stays() -> Result<()> {
    let mut pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
    pair.desk.kill()?;
    let errno = pair.try_migrate(victim.pid()).err().and_then(|e| e.raw_os_error());
    ensure!(matches!(errno, Some(libc::EHOSTUNREACH | libc::ETIMEDOUT)), "errno {errno:?}");
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_node_that_its_user_drops_in_a_move_is_not_waited_for() -> Result<()> {
    for point in ["NodeBeginReceived", "NodePagesReceived", "NodeCommitReceived"] {
        let desk = Launch::new("desk", Root::Bare).env("TCMI_FAULT", &format!("{point}:stop"));
        let pair = Pair::launch(Launch::new("home", Root::Normal), desk)?;
        let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
        let pid = victim.pid();
        thread::scope(|scope| {
            let moving = scope.spawn(|| pair.try_migrate(pid));
            let halted = wait_until("the desk halts", SOON, || pair.desk.halted())?;
            pair.home.echo("ccn/nodes/desk/kill", "1")?;
            let ended =
                wait_until("the end of the move", SOON, || Ok(moving.is_finished().then_some(())));
            nix::sys::signal::kill(halted, Signal::SIGKILL)?;
            ended?;
            let errno = moving.join().expect("no panic").err().and_then(|e| e.raw_os_error());
            ensure!(errno == Some(libc::EHOSTUNREACH), "{point}: errno {errno:?}");
            Ok(())
        })?;
        victim.check()?;
        victim.end(7)?;
        pair.stop()?;
    }
    Ok(())
}

/// What it has begun ends with it, even where that cannot be told of its end any more.
#[test]
fn a_monitor_killed_while_it_makes_a_guest_leaves_nothing() -> Result<()> {
    monitor_killed(|_| Ok(Vec::new()))?;
    monitor_killed(begin_first)
}

/// Runs until it has begun the first process of its namespaces, of which nothing has run.
fn begin_first(midwife: i32) -> Result<Vec<Stopped>> {
    let mut running = Running::seize(midwife, libc::PTRACE_O_TRACECLONE)?;
    loop {
        let Waited::Stopped(stopped, stop) = running.wait()? else { bail!("it has ended") };
        running = match stop {
            Stop::Event(libc::PTRACE_EVENT_CLONE) => {
                let first = Running::attached_by_kernel(stopped.event_message()? as i32);
                let Waited::Stopped(first, _) = first.wait()? else { bail!("the first has ended") };
                return Ok(vec![stopped, first]);
            }
            Stop::Signal(signal) => stopped.cont(signal)?,
            _ => stopped.cont(0)?,
        };
    }
}

/// `until`: from where the process that makes the namespaces has none, to where the monitor is
/// killed. What it gives goes on behind that.
fn monitor_killed(until: fn(i32) -> Result<Vec<Stopped>>) -> Result<()> {
    let mark = format!("TCMI_TEST_MARK=bears-{}", std::process::id());
    let (name, value) = mark.split_once('=').context("a variable")?;
    let desk = Launch::new("desk", Root::Bare).env(name, value).env("TCMI_FAULT", "NodeBears:stop");
    let pair = Pair::launch(Launch::new("home", Root::Normal), desk)?;
    let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
    let pid = victim.pid();
    thread::scope(|scope| {
        let moving = scope.spawn(|| pair.try_migrate(pid));
        let midwife = wait_until("a guest is made", SOON, || {
            let all = descendants(pair.desk.pid())?;
            Ok(all.into_iter().find(|pid| state(*pid) == Some('T')))
        })?;
        let held = until(midwife as i32)?;
        let [monitor] = children(pair.desk.pid())?[..] else { bail!("one monitor") };
        nix::sys::signal::kill(Pid::from_raw(monitor as i32), Signal::SIGKILL)?;
        // The desk reaps it when what it began has let go of its socket.
        wait_until("the end of the monitor", SOON, || {
            Ok(matches!(state(monitor), None | Some('Z')).then_some(()))
        })?;
        nix::sys::signal::kill(Pid::from_raw(midwife as i32), Signal::SIGCONT)?;
        for stopped in held {
            stopped.detach(0)?;
        }
        ensure!(moving.join().expect("no panic").is_err(), "it has moved");
        Ok(())
    })?;
    victim.check()?;
    victim.end(7)?;
    ensure!(with_variable(&mark)?.contains(&pair.desk.pid()), "the mark is not seen");
    pair.stop()?;
    wait_until("nothing of the desk", SOON, || Ok(with_variable(&mark)?.is_empty().then_some(())))
        .with_context(|| format!("left: {:?}", with_variable(&mark)))
}

/// Writes a control file as another user; gives the errno of open or write.
fn write_as(user: u32, node: &Node, file: &str, value: &str) -> Result<i32> {
    let path = CString::new(node.path(file).into_os_string().into_encoded_bytes())?;
    let value = CString::new(value)?;
    let mut command = Command::new("true");
    command.uid(user).gid(user).stdin(Stdio::null());
    // SAFETY: only system calls, on memory made before the fork; the closure's error is how
    // the errno gets back to the parent.
    unsafe {
        command.pre_exec(move || {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
            if fd < 0 || libc::write(fd, value.as_ptr().cast(), value.count_bytes()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    match command.spawn() {
        Ok(mut child) => {
            child.wait()?;
            Ok(0)
        }
        Err(e) => e.raw_os_error().context("an errno from the child"),
    }
}

#[test]
fn a_user_moves_only_what_is_his() -> Result<()> {
    let pair = Pair::new()?;
    let kind = VictimKind::plain("memory");
    let mut roots = Victim::spawn(&kind)?;
    let request = format!("{} desk\n", roots.pid());
    let errno = write_as(NOBODY, &pair.home, EMIGRATE, &request)?;
    ensure!(errno == libc::EPERM, "root's process by another user: errno {errno}");
    let errno = write_as(NOBODY, &pair.home, "ccn/trust", "x\n")?;
    ensure!(matches!(errno, libc::EPERM | libc::EACCES), "trust by another user: errno {errno}");

    for grant in [rights::set_uid, rights::may_read_all] {
        let scratch = Scratch::new("gained")?;
        let sleep = rights::granted(&scratch, "/bin/sleep", grant)?;
        let gained = Started::by(Command::new(sleep).arg("60").uid(NOBODY).gid(NOBODY))?;
        let errno = write_as(NOBODY, &pair.home, EMIGRATE, &format!("{} desk\n", gained.pid()))?;
        ensure!(errno == libc::EPERM, "one with more rights than his: errno {errno}");
        drop(gained);
    }

    let mut theirs = Victim::spawn_as(&kind, NOBODY, &pair.home.path(".."))?;
    let errno = write_as(NOBODY, &pair.home, EMIGRATE, &format!("{} desk\n", theirs.pid()))?;
    ensure!(errno == 0, "his own process: errno {errno}\n{}", pair.logs());
    theirs.check()?;
    pair.bring_home(theirs.pid())?;
    roots.check()?;
    theirs.end(7)?;
    roots.end(7)
}

#[test]
fn of_two_migrations_at_once_one_is_busy() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("memory", &["512"]))?;
    let pid = victim.pid();
    let answers = thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| pair.try_migrate(pid)));
        both.map(|t| t.join().expect("a write does not panic"))
    });
    let errors: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()?.raw_os_error()).collect();
    ensure!(errors == [libc::EBUSY], "answers {answers:?}");
    expect_errno(&pair.home, EMIGRATE, format!("{pid} desk\n"), libc::EBUSY)
        .context("away already")?;
    victim.check()?;
    pair.bring_home(pid)?;
    victim.end(7)
}

#[test]
fn explain_says_why_a_process_cannot_move() -> Result<()> {
    let pair = Pair::new()?;
    let victim = Victim::spawn(&VictimKind::plain("memory"))?;
    let movable = pair.explain(victim.pid())?;
    ensure!(!movable.is_empty(), "explain of a movable process says nothing");
    pair.migrate(victim.pid())?;
    let away = pair.explained(&victim.pid().to_string())?;
    ensure!(away.contains("may move: no\nstopped by: it is away"), "explain of one away: {away}");
    ensure!(!away.contains("descriptors"), "explain tells of the shadow: {away}");
    pair.bring_home(victim.pid())?;
    let traced = Traced::start()?;
    expect_errno(&pair.home, EMIGRATE, format!("{} desk\n", traced.0.id()), libc::EOPNOTSUPP)?;
    let why = pair.explain(traced.0.id())?;
    ensure!(why.contains("trace"), "explain of a traced process: {why}");
    victim.end(7)
}

#[test]
fn a_process_with_what_cannot_be_served_from_a_shadow_stays() -> Result<()> {
    let pair = Pair::new()?;
    // signalfd4(-1, {SIGSTKFLT}, 8, 0)
    let script = r#"$m = pack("Q", 1 << 15); syscall(289, -1, $m, 8, 0) >= 0 or die; <STDIN>"#;
    let mut command = Command::new("perl");
    let process = Started::by(command.args(["-e", script]).stdin(Stdio::piped()))?;
    let pid = process.pid();
    wait_until("its signalfd", Duration::from_secs(10), || {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let has = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        Ok({ has }.any(|target| target.ends_with("anon_inode:[signalfd]")).then_some(()))
    })?;
    let explained = pair.explain(pid)?;
    ensure!(explained.contains("stopped by: a signalfd that takes SIGSTKFLT"), "{explained}");
    expect_errno(&pair.home, EMIGRATE, format!("{pid} desk\n"), libc::EOPNOTSUPP)?;
    pair.stop()
}

/// A process that is traced by this one.
struct Traced(Child);

impl Traced {
    fn start() -> Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("1000");
        // SAFETY: PTRACE_TRACEME takes no pointers; nothing is allocated.
        unsafe {
            command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        for done in [self.0.kill(), self.0.wait().map(drop)] {
            if let Err(e) = done {
                eprintln!("traced process: {e}");
            }
        }
    }
}

#[test]
fn a_process_killed_during_a_move_ends_cleanly() -> Result<()> {
    killed_during_moves(&VictimKind::with_args("memory", &["64"]))
}

#[test]
fn a_process_with_threads_killed_during_a_move_ends_cleanly() -> Result<()> {
    killed_during_moves(&VictimKind::with_args("threads", &["50"]))
}

fn killed_during_moves(kind: &VictimKind) -> Result<()> {
    let killed = |status: ExitStatus| status.signal() == Some(libc::SIGKILL);
    let step = Duration::from_micros(500);
    ends_during_moves(kind, step, |victim| victim.signal(Signal::SIGKILL), killed)
}

#[test]
fn a_process_that_exits_during_a_move_keeps_its_status() -> Result<()> {
    let exited = |status: ExitStatus| status.code() == Some(11);
    let (kind, step) = (VictimKind::plain("memory"), Duration::from_micros(300));
    ends_during_moves(&kind, step, |victim| victim.say("end 11"), exited)
}

/// `end` is done while a process is being moved, at moments spread over the whole move.
fn ends_during_moves(
    kind: &VictimKind,
    step: Duration,
    end: impl Fn(&mut Victim) -> Result<()>,
    is_right: impl Fn(ExitStatus) -> bool,
) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    for moment in 0..40u32 {
        let mut victim = Victim::spawn(kind)?;
        let pid = victim.pid();
        let answer = migrate_and(&pair, pid, step * moment, || end(&mut victim))?;
        let errno = answer.err().map(|e| e.raw_os_error());
        ensure!(
            matches!(errno, None | Some(Some(libc::ESRCH))),
            "moment {moment}: {errno:?}\n{}",
            pair.logs()
        );
        let status = victim.wait(SOON)?;
        ensure!(is_right(status), "moment {moment}: status {status}");
        pair.wait_forgotten(pid)?;
    }
    pair.expect_no_leak(&before)?;
    pair.expect_serves()
}

/// A shell that replaces itself by `sleep`, at moments spread over the whole move:
/// it sleeps at home, or was told on the desk that there is no exec there.
#[test]
fn a_process_that_execs_during_a_move_is_one_or_the_other() -> Result<()> {
    const NOT_EXECUTABLE: i32 = 126;
    let pair = Pair::new()?;
    for moment in 0..20u32 {
        let mut shell = Command::new("bash")
            .args(["-c", "read -r line; exec sleep 1000"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = shell.id();
        let mut stdin = shell.stdin.take().context("stdin is piped")?;
        let tell = || Ok(io::Write::write_all(&mut stdin, b"now\n")?);
        let answer = migrate_and(&pair, pid, Duration::from_millis(1) * moment, tell)?;
        let settled = wait_until("exec, or its refusal", SOON, || {
            if let Some(status) = shell.try_wait()? {
                ensure!(status.code() == Some(NOT_EXECUTABLE), "moment {moment}: {status}");
                return Ok(Some(()));
            }
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
            // One that was a sleep before the move began is a sleep on the desk.
            let is_settled = answer.is_ok() || !pair.is_guest(pid);
            Ok((name == "sleep\n" && is_settled).then_some(()))
        });
        shell.kill()?;
        shell.wait()?;
        settled.with_context(|| format!("moment {moment}, the move said {answer:?}"))?;
        pair.wait_forgotten(pid)?;
    }
    pair.expect_serves()
}

/// The answer of a move of `pid`, so long after whose beginning `act` is done.
fn migrate_and(
    pair: &Pair,
    pid: u32,
    after: Duration,
    act: impl FnOnce() -> Result<()>,
) -> Result<io::Result<()>> {
    thread::scope(|scope| {
        let moving = scope.spawn(|| pair.try_migrate(pid));
        let start = Instant::now();
        // Not a wait for something: the moments are the test's input.
        while start.elapsed() < after {
            std::hint::spin_loop();
        }
        act()?;
        Ok(moving.join().expect("a write does not panic"))
    })
}

#[test]
fn a_second_daemon_cannot_take_the_same_control_directory() -> Result<()> {
    let home = Node::launch(Launch::new("home", Root::Normal))?;
    let ctl = home.path("");
    let second = Command::new(tcmi_tests::node::built("tcmid")?)
        .args(["--name", "second", "--state"])
        .arg(home.path("../state"))
        .arg("--ctlfs")
        .arg(&ctl)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut second = second?;
    let ended = wait_until("end of the second daemon", SOON, || Ok(second.try_wait()?));
    if ended.is_err() {
        second.kill()?;
        second.wait()?;
    }
    ensure!(!ended?.success(), "a second daemon on the same state ended well");
    ensure!(home.read("node/name")? == "home", "the first one is disturbed");
    home.stop()
}
