//! Running cargo and other tools, with a bound on their time.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tcmi_tests::wait_until;

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask is two levels down")
}

pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository());
    // What cargo told us of our own package: build scripts that look at it would run again each
    // time that cargo is called by us and by hand in turn.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Where cargo puts the release binaries of the workspace's target.
pub fn release_directory() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let profile = exe.parent().context("xtask lies in a directory")?;
    Ok(profile.with_file_name("release"))
}

pub fn build_release() -> Result<()> {
    let status = cargo()
        .args(["build", "--release", "--package", "tcmi-node", "--package", "tcmi-cli"])
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    // Before any other thread reads the environment: the harness finds the programs by it.
    // SAFETY: called at the start of a task, while this process has one thread.
    unsafe { std::env::set_var("TCMI_BIN_DIR", release_directory()?) };
    Ok(())
}

/// Runs to the end, giving each line of standard output to `line`. When the time
/// is up the tool's process group is killed, and that is an error.
pub fn watch(
    command: &mut Command,
    timeout: Duration,
    line: impl Fn(&str) + Sync,
) -> Result<ExitStatus> {
    let shown = format!("{command:?}");
    let mut child =
        command.stdout(Stdio::piped()).process_group(0).spawn().with_context(|| shown.clone())?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| lines(stdout, &line));
        let ended = end_of(&mut child, timeout);
        if ended.is_err() {
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
            child.wait()?;
        }
        reader.join().expect("a reader does not panic");
        match ended {
            Ok(status) => Ok(status),
            Err(_) => bail!("not done after {} s: {shown}", timeout.as_secs()),
        }
    })
}

fn end_of(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    wait_until("end of a tool", timeout, || Ok(child.try_wait()?))
}

fn lines(stream: impl Read, line: &(impl Fn(&str) + Sync)) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
}
