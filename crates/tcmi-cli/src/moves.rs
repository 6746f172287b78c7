//! Sending a process away and bringing it home.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tcmi_core::command::{NodeRef, Pid};
use tcmi_core::error::Errno;
use tcmi_core::stats;

use crate::failure::{Failure, in_words, is_daemon_gone};
use crate::node::{Node, Role};
use crate::show::NODE_GONE;

/// How often a transfer's numbers are read.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A move that is over by then shows no bar.
const BAR_AFTER: Duration = Duration::from_millis(300);

/// Ok: it runs on `target`, with all processes below it if `tree`. Err: it runs where it ran, which
/// the text says.
pub fn migrate(node: &Node, pid: Pid, target: &NodeRef, tree: bool) -> Result<(), Failure> {
    let whole = if tree { " tree" } else { "" };
    let command = format!("{pid} {target}{whole}");
    let result = watched(node, Role::Ccn, pid, "ccn/mig/emigrate-ppm-p", &command);
    result.map_err(|error| refusal(node, pid, Some((target, tree)), error))
}

/// Becomes `command`, which goes to `target` with its first instruction. Returns why it did not.
pub fn run(node: &Node, target: &NodeRef, command: &[OsString]) -> Failure {
    let (program, args) = command.split_first().expect("the command line has at least one word");
    let me = Pid::new(std::process::id() as i32).expect("a process has a number");
    if let Err(error) = node.command("ccn/mig/emigrate-npm", &format!("{me} {target}")) {
        return match is_daemon_gone(&error) {
            true => Failure::NoDaemon { dir: node.root().to_owned(), source: error },
            false => Failure::Refused {
                text: format!("{} not started: {}", program.display(), in_words(&error)),
                errno: error.raw_os_error(),
            },
        };
    }
    let source = Command::new(program).args(args).exec();
    Failure::Command { program: program.clone(), source }
}

/// Ok: it runs at home. Err: it runs where it ran, which the text says.
pub fn home(node: &Node, pid: Pid) -> Result<(), Failure> {
    let role = node.find(pid)?.map_or(Role::Ccn, |process| process.role);
    let file = match role {
        Role::Ccn => "ccn/mig/migrate-home",
        Role::Pen => "pen/mig/migrate-home",
    };
    watched(node, role, pid, file, &pid.to_string())
        .map_err(|error| refusal(node, pid, None, error))
}

/// The write waits in its own thread, so that this one can show how far it is.
fn watched(node: &Node, role: Role, pid: Pid, file: &str, text: &str) -> io::Result<()> {
    if !io::stderr().is_terminal() {
        return node.command(file, text);
    }
    let (done, end) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let result = node.command(file, text);
            done.send(result).expect("the receiver outlives this thread");
        });
        let mut bar = Bar::new();
        loop {
            match end.recv_timeout(POLL_INTERVAL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => bar.show(node, role, pid),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the writing thread panicked"));
                }
            }
        }
    })
}

struct Bar {
    since: Instant,
    shown: Option<ProgressBar>,
}

impl Bar {
    fn new() -> Self {
        Self { since: Instant::now(), shown: None }
    }

    /// What cannot be read now is not shown now: the write's errno is what counts.
    fn show(&mut self, node: &Node, role: Role, pid: Pid) {
        if self.since.elapsed() < BAR_AFTER {
            return;
        }
        let Ok(stats) = node.stats(role, pid) else { return };
        let total = stats::number(&stats, stats::BYTES_TOTAL);
        let sent = stats::number(&stats, stats::BYTES_SENT);
        let (Some(total), Some(sent)) = (total, sent) else { return };
        let bar = self.shown.get_or_insert_with(transfer_bar);
        bar.set_length(total);
        bar.set_position(sent);
        if let Ok(Some(process)) = node.find(pid) {
            bar.set_message(process.state);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn transfer_bar() -> ProgressBar {
    let style = "{msg:13} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(style).expect("a constant template");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

/// The errno in words, the node's own reason, and where the process is now.
fn refusal(node: &Node, pid: Pid, target: Option<(&NodeRef, bool)>, error: io::Error) -> Failure {
    if is_daemon_gone(&error) {
        return Failure::NoDaemon { dir: node.root().to_owned(), source: error };
    }
    let errno = error.raw_os_error();
    if errno == Some(Errno::NoProcess.raw()) {
        let text = match target {
            Some(_) => format!("there is no process {pid}"),
            None => format!("process {pid} is not away and not a guest here"),
        };
        return Failure::Refused { text, errno };
    }
    let reason = reason(node, pid, target, errno).unwrap_or_else(|| in_words(&error));
    let text = format!("process {pid} {}: {reason}", whereabouts(node, pid));
    Failure::Refused { text, errno }
}

/// Its last error; or, if it never began to move, what `explain` says.
fn reason(
    node: &Node,
    pid: Pid,
    target: Option<(&NodeRef, bool)>,
    errno: Option<i32>,
) -> Option<String> {
    let last_error = node.find(pid).ok().flatten().map(|process| process.last_error);
    if let Some(text) = last_error.filter(|text| !text.is_empty()) {
        return Some(text);
    }
    if errno != Some(Errno::NotSupported.raw()) {
        return None;
    }
    let (target, tree) = target.map_or((None, false), |(target, tree)| (Some(target), tree));
    let answer = node.explain(pid, target, tree).ok()?;
    let lines: Vec<&str> = answer.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

fn whereabouts(node: &Node, pid: Pid) -> String {
    match node.find(pid) {
        Ok(Some(process)) if process.role == Role::Pen => {
            format!("is still a guest here ({})", process.state)
        }
        Ok(Some(process)) if process.state == "emigrated" => {
            format!("still runs on {}", process.node.as_deref().unwrap_or(NODE_GONE))
        }
        Ok(Some(process)) => format!("is at home ({})", process.state),
        Ok(None) => "still runs at home".to_owned(),
        Err(_) => "is where it was".to_owned(),
    }
}
