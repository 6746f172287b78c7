//! `cargo xtask demo`: one real program goes out and comes home while one watches.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcmi_tests::account::{cpu_ms, descendants, descendants_cpu_ms};
use tcmi_tests::catalogue::PI_SCRIPT;
use tcmi_tests::node::{Node, Root};
use tcmi_tests::program::python;
use tcmi_tests::{Scratch, Started, wait_until};

use crate::{packages, tool};

const LINES: usize = 240;
/// Lines at which something happens: about thirds of the work, whose lines get ever slower.
const EMIGRATE_AT: usize = 110;
const SIGNAL_AT: usize = 160;
const HOME_AT: usize = 180;
/// Printed of each line that the program writes.
const SHOWN_EVERY: usize = 10;
const EXIT_STATUS: i32 = 42;
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const CPU_WINDOW: Duration = Duration::from_millis(500);

pub fn run() -> Result<()> {
    packages::install_missing(&[])?;
    say("building tcmid and tcmi");
    tool::build_release()?;
    let started = Instant::now();
    let scratch = Scratch::new("demo")?;
    let before = ours_below();
    say("a run where nothing is moved, to compare with");
    let (expected, status) = unmoved(&scratch, LINES)?;
    ensure!(status.code() == Some(EXIT_STATUS), "unmoved: {status}");
    show(&scratch, &expected)?;
    drop(scratch);
    let left: Vec<u32> = ours_below().into_iter().filter(|p| !before.contains(p)).collect();
    ensure!(left.is_empty(), "processes are left: {left:?}");
    ensure!(!mounted_here("tcmi-home"), "something is left mounted");
    say(&format!(
        "nothing is left running or mounted; {:.1} s in all",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn say(what: &str) {
    println!("\x1b[1m>>\x1b[0m {what}");
}

fn ours_below() -> Vec<u32> {
    descendants(std::process::id()).unwrap_or_default()
}

fn mounted_here(name: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| mounts.contains(name))
}

fn pi(scratch: &Scratch, file: &Path, lines: usize) -> Result<Command> {
    let script = scratch.join("pi.py");
    fs::write(&script, PI_SCRIPT)?;
    let mut command = Command::new(python()?);
    command.arg(script).arg(file).arg(lines.to_string()).stdin(Stdio::null());
    Ok(command)
}

fn unmoved(scratch: &Scratch, lines: usize) -> Result<(Vec<u8>, ExitStatus)> {
    let file = scratch.join("unmoved.txt");
    let status = pi(scratch, &file, lines)?.stdout(Stdio::null()).status()?;
    Ok((fs::read(file)?, status))
}

/// The program on a terminal of its own, and what it showed there so far.
struct OnTerminal {
    program: Started,
    lines: Arc<AtomicUsize>,
    shown: Arc<Mutex<Vec<String>>>,
    longest_gap: Arc<Mutex<Duration>>,
}

impl OnTerminal {
    fn start(mut command: Command) -> Result<Self> {
        let terminal = openpty(None, None)?;
        // Its own session's process group: our Ctrl-C is not its Ctrl-C.
        command.process_group(0);
        command
            .stdout(Stdio::from(terminal.slave.try_clone()?))
            .stderr(Stdio::from(terminal.slave));
        let program = Started::by(&mut command)?;
        // The command holds the slave's other descriptors: at its end the master reads EIO.
        drop(command);
        let started = Self {
            program,
            lines: Arc::default(),
            shown: Arc::default(),
            longest_gap: Arc::default(),
        };
        let (lines, shown, gap) =
            (started.lines.clone(), started.shown.clone(), started.longest_gap.clone());
        let master = File::from(terminal.master);
        thread::spawn(move || follow(master, &lines, &shown, &gap));
        Ok(started)
    }

    fn pid(&self) -> u32 {
        self.program.pid()
    }

    fn wait_lines(&mut self, count: usize) -> Result<()> {
        let (lines, program) = (self.lines.clone(), &mut self.program);
        wait_until(&format!("line {count}"), STEP_TIMEOUT, || {
            if lines.load(Ordering::SeqCst) < count {
                ensure!(program.has_ended()?.is_none(), "the program ended before line {count}");
                return Ok(None);
            }
            Ok(Some(()))
        })
    }

    fn wait_end(&mut self, lines: usize) -> Result<ExitStatus> {
        let status =
            wait_until("end of the program", STEP_TIMEOUT, || Ok(self.program.has_ended()?))?;
        // The follower may still have lines of the terminal to read.
        wait_until("all lines on the terminal", STEP_TIMEOUT, || {
            Ok((self.lines.load(Ordering::SeqCst) >= lines).then_some(()))
        })?;
        Ok(status)
    }

    fn wait_text(&self, text: &str) -> Result<()> {
        wait_until(text, STEP_TIMEOUT, || {
            let shown = self.shown.lock().expect("the follower does not panic");
            Ok(shown.iter().any(|l| l == text).then_some(()))
        })
    }
}

fn follow(master: File, lines: &AtomicUsize, shown: &Mutex<Vec<String>>, gap: &Mutex<Duration>) {
    let mut last = Instant::now();
    // EIO: the last process closed the terminal.
    for line in BufReader::new(master).lines().map_while(Result::ok) {
        let line = line.trim_end_matches('\r').to_owned();
        let numbered = line.split_whitespace().next().and_then(|n| n.parse::<usize>().ok());
        if numbered.is_none_or(|n| n % SHOWN_EVERY == 0) {
            println!("   | {line}");
        }
        let mut longest = gap.lock().expect("nobody panics with it");
        *longest = (*longest).max(last.elapsed());
        last = Instant::now();
        shown.lock().expect("nobody panics with it").push(line);
        if numbered.is_some() {
            lines.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn echo(node: &Node, file: &str, value: &str) -> Result<()> {
    let shown: String = value.chars().take(60).collect();
    let dots = if shown.len() < value.len() { "..." } else { "" };
    println!("   $ echo '{shown}{dots}' > {}/{file}", node.name().to_uppercase());
    node.echo(file, value)
}

/// Says how much processor time the program burnt on each node during a short window.
fn show_where(home: &Node, desk: &Node, pid: u32) -> Result<(u64, u64)> {
    let at_home = || cpu_ms(pid).unwrap_or(0) + descendants_cpu_ms(home.pid()).unwrap_or(0);
    let start = (at_home(), descendants_cpu_ms(desk.pid())?);
    let end = Instant::now() + CPU_WINDOW;
    wait_until("end of the window", STEP_TIMEOUT, || Ok((Instant::now() >= end).then_some(())))?;
    let burnt = (at_home() - start.0, descendants_cpu_ms(desk.pid())?.saturating_sub(start.1));
    let bar = |ms: u64| "#".repeat((ms * 20 / CPU_WINDOW.as_millis() as u64).min(20) as usize);
    println!("   cpu in {} ms: home {:4} ms {}", CPU_WINDOW.as_millis(), burnt.0, bar(burnt.0));
    println!("                 desk {:4} ms {}", burnt.1, bar(burnt.1));
    Ok(burnt)
}

fn linked_nodes() -> Result<(Node, Node)> {
    say("a home node, and an execution node whose root holds nothing but tcmid");
    let home = Node::start("home", Root::Normal)?;
    let desk = Node::start("desk", Root::Bare)?;
    let mut root: Vec<String> = fs::read_dir(format!("/proc/{}/root", desk.pid()))?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    root.sort();
    println!("   the desk's root: {}", root.join(" "));
    echo(&home, "ccn/trust", &desk.id()?)?;
    let address = home.listen()?;
    println!("   home listens on {address}");
    echo(&desk, "pen/connect", &format!("{address} {}", home.id()?))?;
    wait_until("the desk at home", STEP_TIMEOUT, || Ok(home.has("ccn/nodes/desk").then_some(())))?;
    Ok((home, desk))
}

fn emigrate(home: &Node, desk: &Node, pid: u32) -> Result<()> {
    let start = Instant::now();
    echo(home, "ccn/mig/emigrate-ppm-p", &format!("{pid} desk"))?;
    let took = start.elapsed();
    let state = home.read(&format!("ccn/mig/migproc/{pid}/state"))?;
    println!("   done in {:.1} ms; state: {state}", took.as_secs_f64() * 1e3);
    let (at_home, on_desk) = show_where(home, desk, pid)?;
    ensure!(on_desk > at_home, "it burns {at_home} ms at home and {on_desk} ms on the desk");
    Ok(())
}

fn bring_home(home: &Node, desk: &Node, pid: u32) -> Result<()> {
    let start = Instant::now();
    echo(home, "ccn/mig/migrate-home", &pid.to_string())?;
    println!("   done in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let (at_home, on_desk) = show_where(home, desk, pid)?;
    ensure!(at_home > on_desk, "it burns {at_home} ms at home and {on_desk} ms on the desk");
    Ok(())
}

fn show(scratch: &Scratch, expected: &[u8]) -> Result<()> {
    let (home, desk) = linked_nodes()?;
    let file = scratch.join("moved.txt");
    say("python3 computes digits of pi at home, to a file and to a terminal");
    let mut program = OnTerminal::start(pi(scratch, &file, LINES)?)?;
    let pid = program.pid();
    println!("   its pid: {pid}");
    program.wait_lines(EMIGRATE_AT)?;
    show_where(&home, &desk, pid)?;
    say("it emigrates to the desk, at this instant");
    emigrate(&home, &desk, pid)?;
    program.wait_lines(SIGNAL_AT)?;
    say("a signal to its pid at home");
    println!("   $ kill -USR1 {pid}");
    kill(Pid::from_raw(pid as i32), Signal::SIGUSR1)?;
    program.wait_text("pi.py: SIGUSR1")?;
    program.wait_lines(HOME_AT)?;
    say("it comes home");
    bring_home(&home, &desk, pid)?;
    say("it works to its end");
    let status = program.wait_end(LINES)?;
    verify(&program, status, &fs::read(file)?, expected)?;
    say("both nodes end");
    drop(program);
    desk.stop()?;
    home.stop()
}

fn verify(program: &OnTerminal, status: ExitStatus, file: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(file == expected, "the file differs from the unmoved run's");
    let shown = program.shown.lock().expect("the follower does not panic");
    let terminal: String = shown
        .iter()
        .filter_map(|line| line.trim_start().split_once(' '))
        .filter(|(number, _)| number.parse::<usize>().is_ok())
        .map(|(_, digits)| format!("{digits}\n"))
        .collect();
    ensure!(terminal.as_bytes() == expected, "the terminal differs from the unmoved run's");
    ensure!(
        status.code() == Some(EXIT_STATUS),
        "wait told {status}, not exit status {EXIT_STATUS}"
    );
    let gone = kill(Pid::from_raw(program.pid() as i32), None);
    ensure!(gone == Err(Errno::ESRCH), "something still has its pid");
    let gap = *program.longest_gap.lock().expect("the follower does not panic");
    say(&format!(
        "file and terminal are byte for byte those of the unmoved run ({} bytes)",
        file.len()
    ));
    say(&format!("wait told {status}; longest time between two lines {} ms", gap.as_millis()));
    io::stdout().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_on_a_terminal_is_followed_and_verified() -> Result<()> {
        let scratch = Scratch::new("demo-test")?;
        let (expected, _) = unmoved(&scratch, LINES)?;
        let file = scratch.join("terminal.txt");
        let mut program = OnTerminal::start(pi(&scratch, &file, LINES)?)?;
        program.wait_lines(1)?;
        kill(Pid::from_raw(program.pid() as i32), Signal::SIGUSR1)?;
        program.wait_text("pi.py: SIGUSR1")?;
        let status = program.wait_end(LINES)?;
        verify(&program, status, &fs::read(&file)?, &expected)?;
        let shorter = &expected[..expected.len() - 1];
        ensure!(
            verify(&program, status, &fs::read(file)?, shorter).is_err(),
            "a difference passed"
        );
        Ok(())
    }
}
