//! What is sent to the process at home reaches the guest as it was sent.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid, write};
use tcmi_tests::{Pair, Scratch, Victim, VictimKind, account, wait_until, wait_until_it_reads};

const SOON: Duration = Duration::from_secs(10);
const EACH: usize = 200;
const NOBODY: u32 = 65534;

/// `report` of victims/receiver.c.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    plain: i64,
    queued: i64,
    to_thread: i64,
    continued: i64,
}

fn report(victim: &mut Victim) -> Result<Seen> {
    let [plain, queued, to_thread, continued] = victim.ask("report", "SEEN")?[..] else {
        anyhow::bail!("four numbers in a report");
    };
    Ok(Seen { plain, queued, to_thread, continued })
}

fn send_with_payload(pid: u32, signal: i32, payload: usize) -> Result<()> {
    let value = libc::sigval { sival_ptr: payload as *mut libc::c_void };
    // SAFETY: sigqueue takes its arguments by value; the pointer is a number to the receiver.
    let sent = unsafe { libc::sigqueue(pid as i32, signal, value) };
    ensure!(sent == 0, "sigqueue: {}", std::io::Error::last_os_error());
    Ok(())
}

fn send_to_thread(pid: u32, tid: u32, signal: i32) -> Result<()> {
    // SAFETY: tgkill takes numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    ensure!(sent == 0, "tgkill: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Its handler answers before it is back in read(2), which a signal in between would not end.
fn until_it_reads(pid: u32) -> Result<()> {
    wait_until_it_reads(pid, SOON)
}

#[test]
fn queued_signals_arrive_in_order_with_their_payload_across_moves() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    let pid = victim.pid();
    let mut sent = 0;
    let mut send_some = |victim: &mut Victim| -> Result<()> {
        for _ in 0..EACH {
            send_with_payload(pid, libc::SIGRTMIN(), sent)?;
            sent += 1;
        }
        wait_until("all queued signals", SOON, || {
            Ok((report(victim)?.queued == sent as i64).then_some(()))
        })?;
        victim.check()
    };
    send_some(&mut victim).context("at home")?;
    pair.migrate(pid)?;
    send_some(&mut victim).context("away")?;
    pair.bring_home(pid)?;
    send_some(&mut victim).context("home again")?;
    victim.end(7)
}

#[test]
fn kill_reaches_the_process_as_it_was_sent() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    pair.migrate(victim.pid())?;
    for count in 1..=50 {
        victim.signal(Signal::SIGUSR1)?;
        wait_until("it", SOON, || Ok((report(&mut victim)?.plain == count).then_some(())))?;
    }
    victim.check()?;
    victim.end(7)
}

fn one_of_each(mut victim: Victim) -> Result<()> {
    let pair = Pair::new()?;
    let (pid, second) = (victim.pid(), victim.ready_word()?);
    pair.migrate(pid)?;
    for count in 1..=50 {
        victim.signal(Signal::SIGUSR1)?;
        send_to_thread(pid, second, libc::SIGRTMIN() + 1)?;
        wait_until("one of each", SOON, || {
            let seen = report(&mut victim)?;
            Ok((seen.plain == count && seen.to_thread == count).then_some(()))
        })?;
    }
    victim.check()?;
    victim.end(7)
}

#[test]
fn tgkill_reaches_its_thread_as_it_was_sent() -> Result<()> {
    one_of_each(Victim::spawn(&VictimKind::plain("receiver"))?)
}

/// Only a process of the guest's own user can send under its name in the guest.
#[test]
fn tgkill_of_another_user_reaches_its_thread_as_a_queued_signal() -> Result<()> {
    let scratch = Scratch::new("signals")?;
    let kind = VictimKind::with_args("receiver", &["from-root"]);
    one_of_each(Victim::spawn_as(&kind, NOBODY, scratch.path())?)
}

/// A call that no worker has yet is one that the kernel ends for any signal.
fn ends_no_call(kind: &VictimKind) -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(kind)?;
    let (pid, tid) = (victim.pid(), victim.ready_word()?);
    let mut sent = 0;
    for _ in 0..3 {
        pair.migrate(pid)?;
        // Each by itself: behind the handler of the last one there are calls.
        for _ in 0..EACH {
            match sent % 2 {
                0 => send_with_payload(pid, libc::SIGRTMIN(), 0)?,
                _ => send_to_thread(pid, tid, libc::SIGRTMIN() + 1)?,
            }
            sent += 1;
            wait_until("the signal", SOON, || {
                Ok((victim.ask("report", "SEEN")? == [sent]).then_some(()))
            })?;
        }
        send_with_payload(pid, libc::SIGRTMIN(), 0)?;
        pair.bring_home(pid)?;
        sent += 1;
    }
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_signal_ends_no_call_that_does_not_wait() -> Result<()> {
    ends_no_call(&VictimKind::plain("caller"))
}

#[test]
fn a_signal_ends_no_call_of_one_of_three_threads() -> Result<()> {
    ends_no_call(&VictimKind::with_args("caller", &["threads"]))
}

/// Signals of which home knows nothing.
fn its_own_end_no_call(how: &str) -> Result<()> {
    const MANY: i64 = 500;
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::with_args("caller", &[how]))?;
    for _ in 0..3 {
        pair.migrate(victim.pid())?;
        let before = victim.ask("report", "SEEN")?[0];
        wait_until("signals of its own", SOON, || {
            Ok((victim.ask("report", "SEEN")?[0] >= before + MANY).then_some(()))
        })?;
        pair.bring_home(victim.pid())?;
    }
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_timer_ends_no_call_that_does_not_wait() -> Result<()> {
    its_own_end_no_call("timer")
}

#[test]
fn another_thread_of_a_guest_ends_no_call_that_does_not_wait() -> Result<()> {
    its_own_end_no_call("tgkill")
}

/// What a shell sees of its job.
fn wait_for_job(pid: u32, flag: WaitPidFlag, is: impl Fn(&WaitStatus) -> bool) -> Result<()> {
    wait_until("a change of the job", SOON, || {
        let status = waitpid(Pid::from_raw(pid as i32), Some(flag | WaitPidFlag::WNOHANG))?;
        Ok(is(&status).then_some(()))
    })
}

/// Its parent is told so.
fn stop(victim: &Victim) -> Result<()> {
    victim.signal(Signal::SIGSTOP)?;
    wait_for_job(victim.pid(), WaitPidFlag::WUNTRACED, |s| {
        matches!(s, WaitStatus::Stopped(_, Signal::SIGSTOP))
    })
}

fn until_stopped_at_home(pid: u32) -> Result<()> {
    wait_until("stopped at home", SOON, || {
        Ok(matches!(account::state(pid), Some('T' | 't')).then_some(()))
    })
}

#[test]
fn stop_and_continue_hold_the_guest_and_are_seen_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    stop(&victim)?;
    until_stopped_at_home(pid)?;
    victim.say("report")?;
    ensure!(victim.next_line(Duration::from_secs(1)).is_err(), "a stopped guest answered");
    victim.signal(Signal::SIGCONT)?;
    wait_for_job(pid, WaitPidFlag::WCONTINUED, |s| matches!(s, WaitStatus::Continued(_)))?;
    victim.expect("SEEN 0 0 0 1", SOON)?;
    pair.bring_home(pid)?;
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_stopped_process_moves_and_stays_stopped() -> Result<()> {
    let pair = Pair::new()?;
    for kind in ["receiver", "threads"] {
        let mut victim = Victim::spawn(&VictimKind::plain(kind))?;
        let pid = victim.pid();
        stop(&victim)?;
        victim.say("check")?;
        for _ in 0..2 {
            pair.migrate(pid)?;
            until_stopped_at_home(pid)?;
            pair.bring_home(pid)?;
            until_stopped_at_home(pid)?;
        }
        pair.migrate(pid)?;
        ensure!(victim.next_line(Duration::from_secs(1)).is_err(), "a stopped guest answered");
        victim.signal(Signal::SIGCONT)?;
        wait_for_job(pid, WaitPidFlag::WCONTINUED, |s| matches!(s, WaitStatus::Continued(_)))?;
        victim.expect("OK", SOON)?;
        pair.bring_home(pid)?;
        victim.check()?;
        victim.end(7)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_stops_itself_is_a_stopped_job_at_home() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    for (times, signal) in [Signal::SIGSTOP, Signal::SIGTSTP, Signal::SIGTTIN].iter().enumerate() {
        victim.say(&format!("stop {}", *signal as i32))?;
        wait_for_job(
            pid,
            WaitPidFlag::WUNTRACED,
            |s| matches!(s, WaitStatus::Stopped(_, by) if by == signal),
        )?;
        victim.signal(Signal::SIGCONT)?;
        wait_for_job(pid, WaitPidFlag::WCONTINUED, |s| matches!(s, WaitStatus::Continued(_)))?;
        victim.expect("stopped", SOON)?;
        victim.say("report")?;
        victim.expect(&format!("SEEN 0 0 0 {}", times + 1), SOON)?;
    }
    pair.bring_home(pid)?;
    victim.check()?;
    victim.end(7)
}

#[test]
fn a_stopped_guest_is_continued_when_its_home_has_no_daemon_any_more() -> Result<()> {
    let mut pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("receiver"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    let guest = pair.desk.read(&format!("pen/mig/migproc/{pid}/remote-pid"))?;
    stop(&victim)?;
    wait_until("stopped away", SOON, || {
        // One that waits in a call stops when that is answered.
        let threads = fs::read_dir(format!("/proc/{}/task", guest.trim()))?;
        let stat = |t: fs::DirEntry| fs::read_to_string(t.path().join("stat")).ok();
        let stopped = threads.flatten().filter_map(stat).any(|s| s.contains(") T "));
        Ok(stopped.then_some(()))
    })?;
    pair.home.kill()?;
    victim.say("report")?;
    ensure!(victim.next_line(Duration::from_secs(1)).is_err(), "a stopped guest answered");
    victim.signal(Signal::SIGCONT)?;
    let line = victim.next_line(SOON)?;
    ensure!(line.starts_with("SEEN 0 0 0 "), "{line}");
    victim.check()?;
    victim.end(7)
}

fn killed_away(program: &'static str, times: u32) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    for _ in 0..times {
        let mut victim = Victim::spawn(&VictimKind::plain(program))?;
        let pid = victim.pid();
        pair.migrate(pid)?;
        victim.signal(Signal::SIGKILL)?;
        let status = victim.wait(SOON)?;
        ensure!(status.signal() == Some(libc::SIGKILL), "status {status}");
        pair.wait_forgotten(pid)?;
    }
    pair.expect_no_leak(&before)
}

#[test]
fn sigkill_at_home_ends_the_guest_too() -> Result<()> {
    killed_away("threads", 1)
}

/// While some of its threads are just beginning others.
#[test]
fn sigkill_ends_a_guest_that_begins_threads() -> Result<()> {
    killed_away("births", 20)
}

/// Each default action that terminates, with the signal that wait(2) tells.
#[test]
fn a_guest_that_dies_of_a_signal_dies_of_it_at_home() -> Result<()> {
    let pair = Pair::new()?;
    for signal in
        [Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGINT, Signal::SIGSEGV, Signal::SIGABRT]
    {
        let mut victim = Victim::spawn(&VictimKind::plain("memory"))?;
        let pid = victim.pid();
        pair.migrate(pid)?;
        victim.signal(signal)?;
        let status = victim.wait(SOON).with_context(|| format!("{signal}"))?;
        ensure!(status.signal() == Some(signal as i32), "{signal}: status {status}");
        pair.wait_forgotten(pid)?;
    }
    Ok(())
}

#[test]
fn a_blocking_read_restarts_or_ends_as_sa_restart_says() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("restart"))?;
    pair.migrate(victim.pid())?;
    for _ in 0..20 {
        until_it_reads(victim.pid())?;
        victim.signal(Signal::SIGUSR1)?;
        victim.expect("handled 10", SOON)?;
        until_it_reads(victim.pid())?;
        victim.signal(Signal::SIGUSR2)?;
        victim.expect("handled 12", SOON)?;
        victim.expect("interrupted", SOON)?;
    }
    // Had SIGUSR1 ended a read, "interrupted" would stand before this answer.
    victim.check()?;
    victim.end(7)
}

/// Home's kernel gives the signal to the main thread, the guest's to the one that does not block it.
#[test]
fn a_signal_ends_the_read_of_the_thread_that_takes_it() -> Result<()> {
    let pair = Pair::new()?;
    let mut victim = Victim::spawn(&VictimKind::plain("reader"))?;
    pair.migrate(victim.pid())?;
    victim.say("block")?;
    victim.expect("blocked", SOON)?;
    let fd = victim.ready_word()?;
    for _ in 0..20 {
        wait_until("a thread in read", SOON, || in_read_of(victim.pid(), fd))?;
        victim.signal(Signal::SIGUSR2)?;
        victim.expect("interrupted", SOON)?;
    }
    victim.check()?;
    victim.end(7)
}

/// Some when a thread of the process waits in read(2) of a descriptor.
fn in_read_of(pid: u32, fd: u32) -> Result<Option<()>> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let call = fs::read_to_string(entry?.path().join("syscall"))?;
        if call.starts_with(&format!("0 {fd:#x} ")) {
            return Ok(Some(()));
        }
    }
    Ok(None)
}

/// A victim on a terminal of its own, whose foreground job it is.
fn on_a_terminal(kind: &VictimKind) -> Result<(Victim, OwnedFd)> {
    let terminal = openpty(None, None)?;
    let slave = terminal.slave.try_clone()?;
    let mut command = Command::new(kind.path());
    command.stderr(Stdio::from(slave.try_clone()?));
    // SAFETY: setsid and ioctl are system calls on an open descriptor; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            let taken = libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&slave), libc::TIOCSCTTY, 0);
            if taken == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    Ok((Victim::spawn_by(kind, command)?, terminal.master))
}

#[test]
fn ctrl_c_at_home_interrupts_the_guest() -> Result<()> {
    let pair = Pair::new()?;
    let (mut victim, terminal) = on_a_terminal(&VictimKind::plain("clock"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check()?;
    write(terminal.as_fd(), b"\x03")?;
    let status = victim.wait(SOON)?;
    ensure!(status.signal() == Some(libc::SIGINT), "status {status}");
    pair.wait_forgotten(pid)
}

#[test]
fn ctrl_c_interrupts_where_nothing_is_moved() -> Result<()> {
    let (mut victim, terminal) = on_a_terminal(&VictimKind::plain("clock"))?;
    victim.check()?;
    write(terminal.as_fd(), b"\x03")?;
    let status = victim.wait(SOON)?;
    ensure!(status.signal() == Some(libc::SIGINT), "status {status}");
    Ok(())
}
