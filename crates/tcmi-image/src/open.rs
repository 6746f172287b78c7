//! What a process had open, opened anew.

use crate::error::{Error, Result};
use crate::kernel;
use crate::state::{Open, OpenFile, Surroundings};
use rustix::event::{EventfdFlags, epoll};
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Everything that a process is to have. Nothing of it has changed yet.
pub struct Opened {
    /// As the surroundings have them, at numbers that none of the process's descriptors has.
    pub opens: Vec<OwnedFd>,
    pub cwd: OwnedFd,
    /// Files that have grown, with the length that they had.
    grown: Vec<(OwnedFd, u64)>,
}

impl Opened {
    pub fn open(s: &Surroundings, truncate: bool) -> Result<Self> {
        let above = s.descriptors.last().map_or(0, |d| d.fd + 1).max(3);
        make_room(above as u64 + 4 * (s.opens.len() + s.pipes.len()) as u64)?;
        let mut grown = Vec::new();
        let pipes: Vec<[OwnedFd; 2]> = s.pipes.iter().map(pipe).collect::<Result<_>>()?;
        let mut opens = Vec::new();
        for open in &s.opens {
            let fd = match open {
                Open::File { file } => file_of(file, truncate, &mut grown)?,
                other => opened(other, &pipes)?,
            };
            opens.push(raise(&fd, above)?);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cwd = rustix::fs::open(&s.cwd, flags, Mode::empty()).map_err(named(&s.cwd))?;
        Ok(Self { opens, cwd: raise(&cwd, above)?, grown })
    }

    /// What other programs would miss. The process is ready to run.
    pub fn cut_back(&self) -> Result<()> {
        for (fd, size) in &self.grown {
            rustix::fs::ftruncate(fd, *size).map_err(named("cut a file back"))?;
        }
        Ok(())
    }
}

/// Descriptors beyond those that the process has.
fn make_room(descriptors: u64) -> Result<()> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    // What mapped files and the loader's own take.
    const SPARE: u64 = 1024;
    let want = descriptors + SPARE;
    if now.current.is_none_or(|current| current >= want) {
        return Ok(());
    }
    let maximum = now.maximum.map(|maximum| maximum.max(want));
    let limit = Rlimit { current: Some(want), maximum };
    rustix::process::setrlimit(Resource::Nofile, limit).map_err(named("raise the limit of files"))
}

pub fn raise(fd: &OwnedFd, above: i32) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(named("duplicate a descriptor"))
}

fn named(what: &str) -> impl FnOnce(rustix::io::Errno) -> Error {
    let what = what.to_owned();
    move |e| Error::io(what)(e.into())
}

fn by_path(path: &str, flags: i32) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(named(path))
}

fn is_a(fd: &OwnedFd, path: &str, kind: FileType) -> Result<rustix::fs::Stat> {
    let stat = rustix::fs::fstat(fd).map_err(named(path))?;
    match FileType::from_raw_mode(stat.st_mode) == kind {
        true => Ok(stat),
        false => Err(Error::Changed(format!("{path} is another kind of file than it was"))),
    }
}

fn file_of(f: &OpenFile, truncate: bool, grown: &mut Vec<(OwnedFd, u64)>) -> Result<OwnedFd> {
    let path = &f.path;
    let fd = by_path(path, f.flags)?;
    let stat = is_a(&fd, path, FileType::RegularFile)?;
    if f.flags & libc::O_PATH != 0 {
        return Ok(fd);
    }
    let (size, modified) = (stat.st_size as u64, (stat.st_mtime, stat.st_mtime_nsec as i64));
    if !f.is_written() && (size, modified) != (f.size, f.modified) {
        return Err(Error::Changed(format!("{path}, which it reads, has changed since")));
    }
    if size < f.size {
        let lacking = f.size - size;
        return Err(Error::Changed(format!("{path}, which it writes, has lost {lacking} bytes")));
    }
    if size > f.size && !truncate {
        let more = size - f.size;
        return Err(Error::Changed(format!(
            "{path}, which it writes, has grown by {more} bytes since; --truncate cuts them off"
        )));
    }
    if size > f.size {
        grown.push((raise(&fd, 3)?, f.size));
    }
    rustix::fs::seek(&fd, SeekFrom::Start(f.position)).map_err(named(path))?;
    Ok(fd)
}

fn pipe(p: &crate::state::Pipe) -> Result<[OwnedFd; 2]> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (read, write) = rustix::pipe::pipe_with(flags).map_err(named("make a pipe"))?;
    rustix::pipe::fcntl_setpipe_size(&write, p.capacity as usize).map_err(named("size a pipe"))?;
    match rustix::io::write(&write, &p.bytes).map_err(named("fill a pipe"))? {
        n if n == p.bytes.len() => Ok([read, write]),
        _ => Err(Error::Changed("a pipe does not hold what was in it".to_owned())),
    }
}

fn opened(open: &Open, pipes: &[[OwnedFd; 2]]) -> Result<OwnedFd> {
    match open {
        Open::File { .. } => unreachable!("files are opened where their length is looked at"),
        Open::Named { path, flags, position } => {
            let fd = by_path(path, *flags)?;
            if flags & libc::O_PATH == 0 {
                rustix::fs::seek(&fd, SeekFrom::Start(*position)).map_err(named(path))?;
            }
            Ok(fd)
        }
        Open::Device { path, flags } => {
            let fd = by_path(path, *flags)?;
            is_a(&fd, path, FileType::CharacterDevice).map(|_| fd)
        }
        Open::Standard { fd } => {
            // SAFETY: it is borrowed for the call only; a number that is not open is an error.
            let ours = unsafe { BorrowedFd::borrow_raw(*fd) };
            let what = format!("its standard stream {fd}, which is not open here");
            rustix::io::fcntl_dupfd_cloexec(ours, 3).map_err(named(&what))
        }
        Open::Pipe { pipe, flags } => {
            let is_writer = flags & libc::O_ACCMODE != libc::O_RDONLY;
            // Each an open file of its own.
            let end = pipes[*pipe as usize][usize::from(is_writer)].as_raw_fd();
            by_path(&format!("/proc/self/fd/{end}"), *flags)
        }
        Open::Event { count, semaphore, flags } => event(*count, *semaphore, *flags),
        Open::Timer { clock, flags, ticks, value, interval } => {
            let timer = timer(*clock, *flags, *value, *interval)?;
            if *ticks > 0 {
                kernel::set_ticks(&timer, *ticks)?;
            }
            Ok(timer)
        }
        Open::Signals { mask, flags } => kernel::signalfd(*mask, flags | libc::SFD_CLOEXEC),
        Open::Epoll { flags, .. } => {
            let epoll =
                epoll::create(epoll::CreateFlags::CLOEXEC).map_err(named("make an epoll"))?;
            let flags = OFlags::from_bits_retain(*flags as u32);
            rustix::fs::fcntl_setfl(&epoll, flags).map_err(named("make an epoll"))?;
            Ok(epoll)
        }
    }
}

fn event(count: u64, semaphore: bool, flags: i32) -> Result<OwnedFd> {
    let kind = if semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
    let fd = rustix::event::eventfd(0, kind | EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let fd = fd.map_err(named("make an eventfd"))?;
    rustix::io::write(&fd, &count.to_ne_bytes()).map_err(named("set an eventfd"))?;
    let flags = OFlags::from_bits_retain(flags as u32);
    rustix::fs::fcntl_setfl(&fd, flags).map_err(named("make an eventfd"))?;
    Ok(fd)
}

fn timer(clock: i32, flags: i32, value: i64, interval: i64) -> Result<OwnedFd> {
    const BILLION: i64 = 1_000_000_000;
    let clock = match clock {
        libc::CLOCK_REALTIME => TimerfdClockId::Realtime,
        libc::CLOCK_MONOTONIC => TimerfdClockId::Monotonic,
        libc::CLOCK_BOOTTIME => TimerfdClockId::Boottime,
        _ => return Err(Error::Changed(format!("a timer of clock {clock} is not made here"))),
    };
    let time = |ns: i64| Timespec { tv_sec: ns / BILLION, tv_nsec: ns % BILLION };
    let kind = match flags & libc::O_NONBLOCK {
        0 => TimerfdFlags::CLOEXEC,
        _ => TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    };
    let fd = rustix::time::timerfd_create(clock, kind).map_err(named("make a timerfd"))?;
    let spec = Itimerspec { it_interval: time(interval), it_value: time(value) };
    rustix::time::timerfd_settime(&fd, TimerfdTimerFlags::empty(), &spec)
        .map_err(named("set a timerfd"))?;
    Ok(fd)
}

/// A file of ours with nothing in it yet.
pub fn memfd(name: &str) -> Result<OwnedFd> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map_err(named("make a memfd"))
}
