//! Starting a victim, talking to it, and knowing its end.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

/// Longest that a victim may take to set its state up, or to verify it.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What makes a blocked victim look at its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing is needed: it looks by itself.
    Itself,
    /// SIGUSR1.
    Signal,
    /// A connection to the port it told at its start.
    Connection,
}

/// A victim as the tests start it.
#[derive(Clone, Debug)]
pub struct VictimKind {
    pub program: &'static str,
    pub args: Vec<String>,
    pub wake: Wake,
}

const BLOCKING_CALLS: &[(&str, Wake)] = &[
    ("nanosleep", Wake::Itself),
    ("absolute-sleep", Wake::Itself),
    ("poll", Wake::Itself),
    ("select", Wake::Itself),
    ("futex", Wake::Itself),
    ("read", Wake::Itself),
    ("epoll", Wake::Itself),
    ("sigwait", Wake::Signal),
    ("accept", Wake::Connection),
];

/// What victims/mapped.c does with a file that it has mapped shared.
const MAPPED: &[&str] = &[
    "plain",
    "two",
    "late",
    "read-only",
    "grow",
    "memfd",
    "shm",
    "deleted",
    "sparse",
    "remap",
    "beside",
    "dense",
];

const PLAIN: &[&str] = &[
    "absent",
    "alarm",
    "altstack",
    "arena",
    "avx2",
    "avx512",
    "births",
    "brk",
    "brk-no-pie",
    "brk-static",
    "brk-static-pie",
    "caller",
    "calls",
    "channels",
    "clock",
    "clone3",
    "devices",
    "dispositions",
    "family",
    "filemap",
    "files",
    "fpu",
    "gap",
    "guard",
    "handles",
    "identity",
    "itimers",
    "jit",
    "latemap",
    "locked",
    "memory",
    "memory-no-pie",
    "memory-static",
    "memory-static-pie",
    "nolibc",
    "pending",
    "personality",
    "prctl",
    "programs",
    "ptimers",
    "ptimers-no-pie",
    "ptimers-static",
    "ptimers-static-pie",
    "receiver",
    "regs",
    "regs-no-pie",
    "regs-static",
    "regs-static-pie",
    "restart",
    "ring",
    "robust",
    "rseq",
    "rust-threads",
    "selves",
    "shared",
    "signalfd",
    "sleepers",
    "sparse",
    "stack",
    "starter",
    "threads",
    "threads-no-pie",
    "threads-static",
    "threads-static-pie",
    "tls",
    "tls-no-pie",
    "tls-static",
    "tls-static-pie",
    "vdso",
    "vdso-no-pie",
    "vdso-static",
    "vdso-static-pie",
    "vmcopy",
    "waits",
    "world",
];

/// Where the victims are: in TCMI_VICTIMS, else where the build put them.
pub fn directory() -> PathBuf {
    std::env::var_os("TCMI_VICTIMS").unwrap_or_else(|| env!("VICTIMS").into()).into()
}

impl VictimKind {
    pub fn plain(program: &'static str) -> Self {
        Self { program, args: Vec::new(), wake: Wake::Itself }
    }

    pub fn with_args(program: &'static str, args: &[&str]) -> Self {
        let args = args.iter().map(|a| a.to_string()).collect();
        Self { program, args, wake: Wake::Itself }
    }

    /// A victim that sits in the named call; see victims/blocked.c.
    pub fn blocked_in(call: &str, wake: Wake) -> Self {
        Self { wake, ..Self::with_args("blocked", &[call]) }
    }

    /// Every victim that needs no particular test.
    pub fn all() -> Vec<Self> {
        PLAIN
            .iter()
            .map(|name| Self::plain(name))
            .chain(BLOCKING_CALLS.iter().map(|(call, wake)| Self::blocked_in(call, *wake)))
            .chain([
                Self::with_args("segment", &["0"]),
                Self::with_args("segment", &["0", "destroyed"]),
                Self::with_args("threads", &["400"]),
                Self::with_args("births", &["100"]),
                Self::with_args("births", &["900", "full"]),
                Self::with_args("births", &["450", "few"]),
                Self::with_args("memory", &["256"]),
            ])
            .chain(MAPPED.iter().map(|subject| Self::with_args("mapped", &[subject])))
            .collect()
    }

    pub fn name(&self) -> String {
        std::iter::once(self.program)
            .chain(self.args.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join("_")
    }

    /// Why this machine cannot run it.
    pub fn lacking(&self) -> Option<&'static str> {
        match self.program {
            "avx2" if !is_x86_feature_detected!("avx2") => Some("cpu lacks avx2"),
            "avx512" if !is_x86_feature_detected!("avx512bw") => Some("cpu lacks avx512bw"),
            _ => None,
        }
    }

    pub fn path(&self) -> PathBuf {
        directory().join(self.program)
    }
}

/// A running victim. Killed and reaped when dropped.
pub struct Victim {
    kind: VictimKind,
    /// The victim, or the command that has restarted it.
    child: Child,
    pid: u32,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    ready_word: Option<String>,
}

/// Who runs the tests in the background has had a shell ignore these for all of them. Between fork
/// and exec.
pub fn heed_the_terminal() -> std::io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the default action is no code of ours.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

impl Victim {
    /// Ok: its state is set up and it works.
    pub fn spawn(kind: &VictimKind) -> Result<Self> {
        Self::spawn_by(kind, Command::new(kind.path()))
    }

    /// As `spawn`, by a command that a test prepared (another user, a terminal).
    pub fn spawn_by(kind: &VictimKind, mut command: Command) -> Result<Self> {
        command.args(&kind.args).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: signal(2) may be called between fork and exec; nothing is allocated.
        unsafe { command.pre_exec(heed_the_terminal) };
        let mut victim = Self::with_child(kind, command)?;
        let line = victim.next_line(ANSWER_TIMEOUT)?;
        let mut words = line.split(' ');
        ensure!(words.next() == Some("READY"), "{} says at its start: {line}", kind.name());
        ensure!(words.next() == Some(&victim.pid.to_string()), "pid in: {line}");
        victim.ready_word = words.next().map(str::to_owned);
        Ok(victim)
    }

    /// One that has been ready before, under the process id `pid`: `command` makes it go on.
    pub fn restart_by(kind: &VictimKind, mut command: Command, pid: u32) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut victim = Self::with_child(kind, command)?;
        victim.pid = pid;
        Ok(victim)
    }

    fn with_child(kind: &VictimKind, mut command: Command) -> Result<Self> {
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (to, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let (pid, kind) = (child.id(), kind.clone());
        Ok(Self { kind, child, pid, stdin, lines, ready_word: None })
    }

    /// As `spawn`, with a user's and a group's id, by a copy of the program in `dir`: the build
    /// directory need not be open to others.
    pub fn spawn_as(kind: &VictimKind, user: u32, dir: &Path) -> Result<Self> {
        let program = dir.join(kind.name());
        // By another process: a fork that a test beside us makes meanwhile would have the copy
        // open for writing, and what somebody may write is not executed.
        let copied = Command::new("cp").arg(kind.path()).arg(&program).status()?;
        ensure!(copied.success(), "cp to {}: {copied}", program.display());
        let mut command = Command::new(&program);
        command.uid(user).gid(user);
        Self::spawn_by(kind, command)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.pid as i32)
    }

    /// What stood after the pid in READY: a port or a thread's id.
    pub fn ready_word(&self) -> Result<u32> {
        self.ready_word.as_deref().context("a word after READY")?.parse().context("as a number")
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin was closed")?;
        // In one write: who reads it in two takes its end for the beginning of the next.
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("{line:?} to {}", self.kind.name()))?;
        match self.kind.wake {
            Wake::Itself => {}
            Wake::Signal => self.signal(Signal::SIGUSR1)?,
            Wake::Connection => {
                TcpStream::connect(("127.0.0.1", u16::try_from(self.ready_word()?)?))?;
            }
        }
        Ok(())
    }

    pub fn next_line(&mut self, timeout: Duration) -> Result<String> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {timeout:?}", self.kind.name())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.try_wait()?;
                bail!("{} closed its output; status {status:?}", self.kind.name())
            }
        }
    }

    pub fn expect(&mut self, expected: &str, timeout: Duration) -> Result<()> {
        let line = self.next_line(timeout)?;
        ensure!(line == expected, "{}: expected {expected:?}, it said {line:?}", self.kind.name());
        Ok(())
    }

    /// Has it verify everything.
    pub fn check(&mut self) -> Result<()> {
        self.check_within(ANSWER_TIMEOUT)
    }

    pub fn check_within(&mut self, timeout: Duration) -> Result<()> {
        self.say("check")?;
        self.expect("OK", timeout)
    }

    /// Sends a command and gives the numbers of the answer, which begins with `word`.
    pub fn ask(&mut self, command: &str, word: &str) -> Result<Vec<i64>> {
        self.say(command)?;
        let line = self.next_line(ANSWER_TIMEOUT)?;
        let rest = line.strip_prefix(word).with_context(|| format!("{word} in {line:?}"))?;
        rest.split_whitespace().map(|n| n.parse().with_context(|| line.clone())).collect()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.nix_pid(), signal).with_context(|| format!("{signal} to {}", self.kind.name()))
    }

    /// Has it exit with a status, and verifies that wait(2) tells that status.
    pub fn end(mut self, status: u8) -> Result<()> {
        self.say(&format!("end {status}"))?;
        let seen = self.wait(ANSWER_TIMEOUT)?;
        ensure!(seen.code() == Some(i32::from(status)), "expected exit {status}: {seen}");
        Ok(())
    }

    /// Its status, once it ended.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let name = self.kind.name();
        wait_until(&format!("end of {name}"), timeout, || Ok(self.child.try_wait()?))
    }

    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Until it answers again, up to `timeout`: progress, whatever it says.
    pub fn works(&mut self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        self.say("check")?;
        self.expect("OK", timeout.saturating_sub(start.elapsed()))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Err(e) = self.child.kill() {
                eprintln!("{}: not killed: {e}", self.kind.name());
            }
            if let Err(e) = self.wait(ANSWER_TIMEOUT) {
                eprintln!("{}: not reaped: {e}", self.kind.name());
            }
        }
    }
}

/// The file of victims/counter.c: Err if a step was lost, doubled or torn. Ok: how many there are.
pub fn expect_counted(file: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    let mut expected = 0;
    for line in text.lines() {
        expected += 1;
        ensure!(line == expected.to_string(), "line {expected} is {line:?}");
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_doubled_and_a_torn_step_are_seen() -> Result<()> {
        let scratch = crate::Scratch::new("counted")?;
        let file = scratch.join("count");
        for (text, good) in
            [("1\n2\n3\n", true), ("1\n3\n", false), ("1\n1\n2\n", false), ("1\n2", false)]
        {
            std::fs::write(&file, text)?;
            assert_eq!(expect_counted(&file).is_ok(), good, "{text:?}");
        }
        Ok(())
    }

    #[test]
    fn every_victim_was_built() {
        let missing: Vec<_> =
            VictimKind::all().into_iter().filter(|k| !k.path().is_file()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
