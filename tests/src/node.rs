//! One daemon, from its start to the removal of everything it had.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account;
use crate::bare::{self, BareRoot};
use crate::scratch::Scratch;
use crate::wait::wait_until;

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than any bound inside the daemon: a write that takes longer hangs.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(45);

/// Where a daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// This host, as we see it.
    Normal,
    /// A mount namespace with nothing in it but the program.
    Bare,
}

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct Launch {
    pub name: String,
    pub root: Root,
    pub environment: Vec<(String, String)>,
    /// Its configuration file.
    pub config: String,
}

impl Launch {
    pub fn new(name: &str, root: Root) -> Self {
        Self { name: name.to_owned(), root, environment: Vec::new(), config: String::new() }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn config(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }
}

/// A built program of ours: in TCMI_BIN_DIR, else where cargo put the caller's.
pub fn built(program: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> =
        std::env::var_os("TCMI_BIN_DIR").map(PathBuf::from).into_iter().collect();
    let exe = std::env::current_exe()?;
    let profile = exe.ancestors().skip(1).find(|d| !d.ends_with("deps"));
    if let Some(profile) = profile {
        places.push(profile.with_file_name("release"));
        places.push(profile.to_path_buf());
    }
    places.into_iter().map(|d| d.join(program)).find(|p| p.is_file()).with_context(|| {
        format!("{program} is not built: cargo build --release -p tcmi-node -p tcmi-cli")
    })
}

/// A running daemon. Ended, and unmounted if it failed to do so, when dropped.
pub struct Node {
    launch: Launch,
    child: Child,
    scratch: Scratch,
}

impl Node {
    pub fn start(name: &str, root: Root) -> Result<Self> {
        Self::launch(Launch::new(name, root))
    }

    /// Ok: it said that it is ready.
    pub fn launch(launch: Launch) -> Result<Self> {
        let scratch = Scratch::new(&launch.name)?;
        for directory in ["state", "ctl", "root", "pen"] {
            fs::create_dir(scratch.join(directory))?;
        }
        let child = spawn(&launch, &scratch)?;
        let mut node = Self { launch, child, scratch };
        node.wait_ready()?;
        Ok(node)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let stdout = self.child.stdout.take().context("stdout is piped")?;
        if let Err(e) = read_until_ready(stdout) {
            let log = self.log();
            return Err(e.context(format!("{} does not start; it says:\n{log}", self.name())));
        }
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// What was added to its environment.
    pub fn environment(&self) -> &[(String, String)] {
        &self.launch.environment
    }

    /// The daemon, or a monitor of its, where a fault point has stopped one.
    pub fn halted(&self) -> Result<Option<Pid>> {
        for pid in account::children(self.pid())?.into_iter().chain([self.pid()]) {
            if account::state(pid) == Some('T') {
                return Ok(Some(Pid::from_raw(pid as i32)));
            }
        }
        Ok(None)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_else(|e| format!("no log: {e}"))
    }

    /// A control file as we see it from outside.
    pub fn path(&self, file: &str) -> PathBuf {
        match self.launch.root {
            Root::Normal => self.scratch.join("ctl").join(file),
            Root::Bare => Path::new(&format!("/proc/{}/root{}", self.pid(), bare::CTL)).join(file),
        }
    }

    pub fn has(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// How many entries a directory of the control filesystem has.
    pub fn count(&self, directory: &str) -> io::Result<usize> {
        Ok(fs::read_dir(self.path(directory))?.count())
    }

    /// Content of a control file without its last newline.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let mut text = fs::read_to_string(self.path(file))?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// One write(2) of a whole value; the error is the daemon's answer. A write
    /// that hangs is TimedOut without an errno.
    pub fn write(&self, file: &str, value: impl Into<Vec<u8>>) -> io::Result<()> {
        let (path, value) = (self.path(file), value.into());
        let (answer, answered) = channel();
        thread::spawn(move || {
            let done = OpenOptions::new().write(true).open(path).and_then(|mut file| {
                let written = file.write(&value)?;
                if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            });
            // Nobody listens any more when the time was up.
            answer.send(done).ok();
        });
        answered
            .recv_timeout(CONTROL_TIMEOUT)
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// As `echo VALUE > FILE`.
    pub fn echo(&self, file: &str, value: &str) -> Result<()> {
        self.write(file, format!("{value}\n")).map_err(|e| {
            anyhow!("{}: echo {value:?} > {file}: {e}\nits log:\n{}", self.name(), self.log())
        })
    }

    pub fn id(&self) -> Result<String> {
        self.read("node/id").with_context(|| format!("id of {}", self.name()))
    }

    /// Opens a listening address on a free loopback port and gives it, as tcp:ADDR:PORT.
    pub fn listen(&self) -> Result<String> {
        self.echo("ccn/listen", "tcp:127.0.0.1:0")?;
        let newest = fs::read_dir(self.path("ccn/listening-on"))?
            .map(|e| Ok(e?.file_name().to_string_lossy().parse::<u32>()?))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .max()
            .context("a listening address")?;
        Ok(self.read(&format!("ccn/listening-on/{newest}/sockname"))?)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it if it lives and starts it anew on the same state, with another environment.
    pub fn restart(&mut self, environment: Vec<(String, String)>) -> Result<()> {
        self.kill()?;
        self.launch.environment = environment;
        self.child = spawn(&self.launch, &self.scratch)?;
        self.wait_ready()
    }

    /// SIGKILL, as a crash of it; what it left mounted is unmounted.
    pub fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        self.unmount()
    }

    /// Asks it to end, as a service manager does, and expects that it ends well and tidily.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}; its log:\n{}", self.name(), self.log());
        ensure!(!self.is_mounted()?, "{} left its control filesystem mounted", self.name());
        Ok(())
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let name = self.name().to_owned();
        wait_until(&format!("end of {name}"), STOP_TIMEOUT, || Ok(self.child.try_wait()?))
            .with_context(|| format!("its log:\n{}", self.log()))?;
        Ok(())
    }

    fn is_mounted(&self) -> Result<bool> {
        let ctl = self.scratch.join("ctl");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mounts.lines().any(|l| l.split(' ').nth(4).is_some_and(|at| Path::new(at) == ctl)))
    }

    fn unmount(&self) -> Result<()> {
        if self.is_mounted()? {
            umount2(&self.scratch.join("ctl"), MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of {}:\n{}", self.name(), self.log());
        }
        if let Err(e) = self.terminate() {
            eprintln!("{e:#}; killing it");
        }
        if let Err(e) = self.kill() {
            eprintln!("{} is not cleaned up: {e:#}", self.name());
        }
    }
}

fn spawn(launch: &Launch, scratch: &Scratch) -> Result<Child> {
    let program = built("tcmid")?;
    let log = OpenOptions::new().create(true).append(true).open(scratch.join("log"))?;
    let at = |name: &str| scratch.join(name).into_os_string();
    const CONFIG: &str = "tcmid.toml";
    fs::write(scratch.join("state").join(CONFIG), &launch.config)?;
    let (exe, state, ctl, pen) = match launch.root {
        Root::Normal => (program.clone().into_os_string(), at("state"), at("ctl"), at("pen")),
        Root::Bare => {
            (bare::PROGRAM.into(), bare::STATE.into(), bare::CTL.into(), bare::PEN_ROOT.into())
        }
    };
    let config = Path::new(&state).join(CONFIG);
    let mut command = Command::new(exe);
    command
        .arg("--name")
        .arg(&launch.name)
        .arg("--state")
        .arg(state)
        .arg("--ctlfs")
        .arg(ctl)
        .arg("--pen-root")
        .arg(pen)
        .arg("--config")
        .arg(config)
        .envs(launch.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let bare_root = match launch.root {
        Root::Normal => None,
        Root::Bare => {
            Some(BareRoot::plan(&scratch.join("root"), &program, &scratch.join("state"))?)
        }
    };
    // SAFETY: the closure only makes system calls, on memory that was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            // A test that is killed takes its daemons with it.
            set_pdeathsig(Signal::SIGTERM)?;
            bare_root.as_ref().map_or(Ok(()), BareRoot::enter)
        });
    }
    command.spawn().with_context(|| format!("{}", program.display()))
}

/// Reads standard output to the line that says it is ready, and drains the rest in the background.
fn read_until_ready(stdout: ChildStdout) -> Result<()> {
    let (ready, is_ready) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.starts_with("tcmid: ready") {
                // The receiver is gone when the time was up.
                ready.send(()).ok();
            }
        }
    });
    match is_ready.recv_timeout(READY_TIMEOUT) {
        Ok(()) => Ok(()),
        Err(RecvTimeoutError::Timeout) => bail!("not ready after {READY_TIMEOUT:?}"),
        Err(RecvTimeoutError::Disconnected) => bail!("ended before it was ready"),
    }
}
