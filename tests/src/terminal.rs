use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use nix::unistd::{self, setsid};

use crate::started::Started;
use crate::victim::heed_the_terminal;

const SOON: Duration = Duration::from_secs(20);

/// A terminal as its user sees it, with a program on the other side.
pub struct Terminal {
    master: OwnedFd,
    heard: String,
}

impl Terminal {
    /// `command` in a session of its own, whose controlling terminal this is.
    pub fn start(command: &mut Command) -> Result<(Self, Started)> {
        let OpenptyResult { master, slave } = openpty(None, None)?;
        let end = || -> Result<Stdio> { Ok(slave.try_clone()?.into()) };
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let controlling = || {
            heed_the_terminal()?;
            setsid()?;
            // SAFETY: the terminal is this process's stdin; nothing is allocated.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: signal(2), setsid(2) and ioctl(2) may be called between fork and exec.
        unsafe { command.pre_exec(controlling) };
        let started = Started::by(command)?;
        // The command keeps its copies of the other end.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok((Self { master, heard: String::new() }, started))
    }

    pub fn say(&self, text: &str) -> Result<()> {
        Ok(unistd::write(&self.master, text.as_bytes()).map(drop)?)
    }

    /// What it says, until `text` is in it.
    pub fn hear(&mut self, text: &str) -> Result<String> {
        let until = Instant::now() + SOON;
        while !self.heard.contains(text) {
            let left = until.saturating_duration_since(Instant::now()).as_millis() as i32;
            let mut fd = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let more = poll(&mut fd, PollTimeout::try_from(left)?)? > 0;
            ensure!(more, "waited for {text:?} in vain: {:?}", self.heard);
            let mut bytes = [0; 4096];
            let n = unistd::read(&self.master, &mut bytes)?;
            self.heard.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
        let end = self.heard.find(text).map_or(0, |at| at + text.len());
        Ok(self.heard.drain(..end).collect())
    }

    /// The process group in front.
    pub fn front(&self) -> i32 {
        // SAFETY: plain call on a terminal.
        unsafe { libc::tcgetpgrp(self.master.as_raw_fd()) }
    }
}
