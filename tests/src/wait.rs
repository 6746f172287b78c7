use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `condition` gives a value: the one place of the harness that waits
/// by looking. An error of the condition ends the wait; so does the timeout.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain: {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Until the first thread of a process is in a read of its standard input.
pub fn wait_until_it_reads(pid: u32, timeout: Duration) -> Result<()> {
    wait_until("in a read of its input", timeout, || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
        Ok(call.starts_with("0 0x0 ").then_some(()))
    })
}
