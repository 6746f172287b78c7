//! The yardstick that a user may give: CRIU=program.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use tcmi_tests::{Scratch, wait_until};

use super::yardstick::median;

const RUNS: usize = 5;
const END_TIMEOUT: Duration = Duration::from_secs(10);

fn criu(program: &str, action: &str, images: &Path, rest: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .arg(action)
        .arg("--images-dir")
        .arg(images)
        .args(rest)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {action}: {}: {said}", output.status);
    Ok(())
}

/// Dumps and restores a small process on this machine; microseconds of the two commands.
fn once(program: &str) -> Result<f64> {
    let images = Scratch::new("criu")?;
    let mut sleep = Command::new("sleep");
    sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is a system call; nothing is allocated between fork and exec.
    unsafe { sleep.pre_exec(|| Ok(setsid().map(drop)?)) };
    let mut child = sleep.spawn()?;
    let pid = child.id().to_string();
    let start = Instant::now();
    criu(program, "dump", images.path(), &["--tree", &pid])?;
    child.wait()?;
    criu(program, "restore", images.path(), &["--restore-detached"])?;
    let took = start.elapsed();
    let restored = Pid::from_raw(pid.parse()?);
    kill(restored, Signal::SIGKILL)?;
    wait_until("end of the restored process", END_TIMEOUT, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        Ok(stat.map_or(true, |s| s.contains(") Z ")).then_some(()))
    })?;
    Ok(took.as_secs_f64() * 1e6)
}

/// None: no CRIU was given.
pub fn local_dump_restore_us() -> Result<Option<f64>> {
    let Ok(program) = std::env::var("CRIU") else { return Ok(None) };
    let times = (0..RUNS).map(|_| once(&program)).collect::<Result<Vec<_>>>()?;
    Ok(Some(median(times)))
}
