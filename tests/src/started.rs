use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account;
use crate::wait::wait_until;

/// A process that is ended with all below it, and reaped, whatever becomes of the test.
pub struct Started(pub Child);

impl Started {
    pub fn by(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }

    pub fn has_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    pub fn end(mut self, timeout: Duration) -> Result<ExitStatus> {
        wait_until("end of the process", timeout, || Ok(self.0.try_wait()?))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let below = account::descendants(self.0.id()).unwrap_or_default();
            for pid in below.into_iter().chain([self.0.id()]) {
                // It may have ended since.
                kill(Pid::from_raw(pid as i32), Signal::SIGKILL).ok();
            }
            self.0.wait().ok();
        }
    }
}
