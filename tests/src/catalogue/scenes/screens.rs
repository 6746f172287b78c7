//! Programs at a terminal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::account;
use crate::catalogue::Moves;
use crate::terminal::Terminal;
use crate::wait::wait_until;

const SOON: Duration = Duration::from_secs(20);
/// Unchanged for so long, a screen is what its program has drawn.
const DRAWN: Duration = Duration::from_millis(400);

pub fn jobs(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let mut command = Command::new("bash");
    command.args(["--norc", "--noediting", "-i"]).current_dir(at);
    command.env("PS1", "ready> ").env("HISTFILE", "");
    let (mut terminal, shell) = Terminal::start(&mut command)?;
    terminal.hear("ready> ")?;
    moves.out(shell.pid())?;
    terminal.say("sleep 61 | cat\n")?;
    let job = wait_until("the job's programs", SOON, || {
        let all = account::children(shell.pid())?;
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm"));
        let runs =
            |text: &str| all.iter().copied().find(|pid| name(pid).is_ok_and(|n| n.trim() == text));
        Ok(runs("sleep").filter(|_| runs("cat").is_some()))
    })?;
    terminal.say("\x1a")?;
    terminal.hear("Stopped")?;
    terminal.hear("ready> ")?;
    terminal.say("bg\n")?;
    terminal.hear("ready> ")?;
    wait_until("the job in the background", SOON, || {
        Ok((account::state(job) == Some('S') && terminal.front() != job as i32).then_some(()))
    })?;
    terminal.say("fg\n")?;
    terminal.hear("sleep 61 | cat")?;
    wait_until("the job in front", SOON, || Ok((terminal.front() == job as i32).then_some(())))?;
    terminal.say("\x03")?;
    terminal.hear("ready> ")?;
    moves.home(shell.pid())?;
    terminal.say("echo status $?; sleep 62 & jobs; kill %1; wait; echo $?\n")?;
    terminal.hear("status 130")?;
    terminal.hear("Running")?;
    terminal.hear("ready> ")?;
    terminal.say("exit 3\n")?;
    Ok(shell.end(SOON)?.to_string())
}

/// A server of tmux, whose screens can be asked for.
struct Tmux {
    socket: PathBuf,
}

impl Tmux {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(["-f", "/dev/null"]).args(arguments);
        let done =
            command.env_remove("TMUX").env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    fn number(&self, arguments: &[&str]) -> Result<u32> {
        Ok(self.run(arguments)?.trim().parse()?)
    }

    /// The screen, once `text` is on it and nothing more is drawn.
    fn screen(&self, text: &str) -> Result<String> {
        let (mut screen, mut since) = (String::new(), Instant::now());
        let shown = wait_until("the text on the screen", SOON, || {
            let now = self.run(&["capture-pane", "-p"])?;
            if now != screen {
                (screen, since) = (now, Instant::now());
            }
            Ok((screen.contains(text) && since.elapsed() > DRAWN).then_some(()))
        });
        shown.with_context(|| format!("{text:?} is not in {screen:?}"))?;
        Ok(screen)
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // It ends with its last window.
        self.run(&["kill-server"]).ok();
    }
}

pub fn tmux(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    let text = at.join("text");
    let lines: String = (0..200).map(|n| format!("line {n}\n")).collect();
    fs::write(at.join("lines"), lines)?;
    // A path for a socket is short.
    let tmux = Tmux { socket: at.join("s") };
    let (there, size) = (at.display().to_string(), ["-x", "80", "-y", "24"]);
    let vim = ["vim", "-u", "NONE", "-i", "NONE", "-n", "text"];
    tmux.run(&[&["new-session", "-d", "-c", &there], &size[..], &vim[..]].concat())?;
    let server = tmux.number(&["display-message", "-p", "#{pid}"])?;
    let editor = tmux.number(&["list-panes", "-F", "#{pane_pid}"])?;
    tmux.screen("text")?;
    let mut shown = String::new();
    moves.out(server)?;
    moves.out(editor)?;
    tmux.run(&["send-keys", "i", "written away", "Enter", "second", "Escape", ":w", "Enter"])?;
    shown += &tmux.screen("written")?;
    tmux.run(&["new-window", "-c", &there, "less lines"])?;
    tmux.screen("line 0")?;
    tmux.run(&["send-keys", "/line 150", "Enter"])?;
    shown += &tmux.screen("line 150")?;
    let pager = tmux.number(&["display-message", "-p", "#{pane_pid}"])?;
    moves.home(pager)?;
    tmux.run(&["send-keys", "g"])?;
    shown += &tmux.screen("line 3")?;
    tmux.run(&["send-keys", "q"])?;
    moves.home(editor)?;
    tmux.screen("second")?;
    tmux.run(&["send-keys", "o", "written at home", "Escape", ":wq", "Enter"])?;
    wait_until("the file", SOON, || {
        Ok(fs::read_to_string(&text)?.contains("at home").then_some(()))
    })?;
    Ok(shown + &fs::read_to_string(&text)?)
}

/// What it shows differs from run to run; that it shows all, and itself, does not.
pub fn top(at: &Path, moves: &mut dyn Moves) -> Result<String> {
    const TIMES: usize = 12;
    let out = at.join("out");
    let mut command = Command::new("top");
    command.args(["-b", "-d", "0.3", "-n", &TIMES.to_string()]).env("TERM", "dumb");
    let shown = |out: &Path| -> Result<usize> {
        Ok(fs::read_to_string(out)?.lines().filter(|l| l.starts_with("top - ")).count())
    };
    let top = crate::started::Started::by(command.stdout(fs::File::create(&out)?))?;
    let pid = top.pid();
    let wait = |times: usize| {
        wait_until("a few screens", SOON, || Ok((shown(&out)? >= times).then_some(())))
    };
    wait(3)?;
    moves.out(pid)?;
    wait(7)?;
    moves.home(pid)?;
    let status = top.end(SOON)?;
    let text = fs::read_to_string(&out)?;
    let own = text.lines().filter(|l| l.split_whitespace().next() == Some(&pid.to_string()));
    Ok(format!("{status}: {} screens, itself {} times", shown(&out)?, own.count()))
}
