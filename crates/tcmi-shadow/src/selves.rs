//! Files in which a program reads of itself and of its processors: what home's kernel would tell of
//! the shadow is not what the guest is. They are opened as a file at home that has the content, so
//! that the descriptor is one of home's like any other.

use std::collections::HashMap;
use std::fs;

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EIO, Errno};
use tcmi_ckpt::birth;
use tcmi_ckpt::image::FileRef;
use tcmi_ckpt::usage::TICK_NS;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::usage;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

mod merge;

use merge::{Known, maps, stat, status};

const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 256 * 1024;
const CPUS: &str = "/sys/devices/system/cpu/";
const CPU_LISTS: [&str; 3] = ["online", "possible", "present"];
/// Opened in another way, home's kernel has the answer.
const OTHERWISE: i32 =
    libc::O_ACCMODE | libc::O_PATH | libc::O_DIRECTORY | libc::O_CREAT | libc::O_TRUNC;

/// Device and inode of what is mapped here, with the file at home that it has bytes of, from an
/// offset on.
pub type Names = HashMap<(u32, u32, u64), (FileRef, u64)>;

/// Lists of processors, by the names of their files. Where there is no /sys, all that the kernel
/// schedules on.
#[derive(Clone, Debug, Default)]
pub struct Processors(Vec<(&'static str, Vec<u8>)>);

impl Processors {
    /// None: neither tells.
    pub fn look() -> Option<Self> {
        let scheduled = || fs::read_to_string("/proc/stat").map(|stat| scheduled(&stat));
        let list = |name| fs::read(format!("{CPUS}{name}")).or_else(|_| scheduled());
        let lists = CPU_LISTS.map(|name| list(name).ok().map(|list| (name, list)));
        lists.into_iter().collect::<Option<_>>().map(Self)
    }
}

/// From /proc/stat: numbers that follow each other as a range.
fn scheduled(stat: &str) -> Vec<u8> {
    let numbers = stat
        .lines()
        .filter_map(|line| line.strip_prefix("cpu")?.split(' ').next()?.parse::<u32>().ok());
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    (text.join(",") + "\n").into_bytes()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Maps,
    Smaps,
    /// As the guest's kernel has it.
    Verbatim(&'static str),
    Stat,
    Status,
}

/// Ids are home's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Of a process, or of a thread of it.
    Of(i32, Option<i32>, Leaf),
    CpuInfo,
    Cpus(usize),
}

/// By the name that home's kernel has for it.
fn wanted(path: &str) -> Option<Wanted> {
    if let Some(name) = path.strip_prefix(CPUS) {
        return CPU_LISTS.iter().position(|list| *list == name).map(Wanted::Cpus);
    }
    let mut parts = path.strip_prefix("/proc/")?.split('/');
    let first = parts.next()?;
    if first == "cpuinfo" {
        return parts.next().is_none().then_some(Wanted::CpuInfo);
    }
    let pid = first.parse().ok()?;
    let mut name = parts.next()?;
    let mut tid = None;
    if name == "task" {
        tid = Some(parts.next()?.parse().ok()?);
        name = parts.next()?;
    }
    let leaf = leaf(name)?;
    parts.next().is_none().then_some(Wanted::Of(pid, tid, leaf))
}

fn leaf(name: &str) -> Option<Leaf> {
    Some(match name {
        "maps" => Leaf::Maps,
        "smaps" => Leaf::Smaps,
        "smaps_rollup" => Leaf::Verbatim("smaps_rollup"),
        "statm" => Leaf::Verbatim("statm"),
        "stat" => Leaf::Stat,
        "status" => Leaf::Status,
        _ => return None,
    })
}

/// Whether a file of that name is worth asking home which one it is.
fn may_be_wanted(name: &str) -> bool {
    name == "cpuinfo" || CPU_LISTS.contains(&name) || leaf(name).is_some()
}

/// A call that opens a file.
pub(crate) struct Opening {
    path: String,
    flags: i32,
}

impl Opening {
    /// The last part of its name.
    pub(crate) fn leaf(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    fn may_be_wanted(&self) -> bool {
        self.flags & OTHERWISE == libc::O_RDONLY && may_be_wanted(self.leaf())
    }
}

/// To be asked of a call before it is forwarded.
pub(crate) fn opening(shared: &Shared, notif: &Notification) -> Option<Opening> {
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let (at, flags) = match i64::from(notif.nr) {
        libc::SYS_open => (notif.args[0], notif.args[1] as i32),
        libc::SYS_openat => (notif.args[1], notif.args[2] as i32),
        libc::SYS_openat2 => {
            let mut flags = [0; 8];
            mem.read(notif.args[2], &mut flags).ok()?;
            (notif.args[1], u64::from_le_bytes(flags) as i32)
        }
        _ => return None,
    };
    let mut path = Vec::new();
    mem.read_string(at, &mut path).ok()?;
    path.pop();
    Some(Opening { path: String::from_utf8(path).ok()?, flags })
}

/// Home has opened `fd`, whose name may have led anywhere. If it is a file that is not home's to
/// show, one with the guest's content takes its place.
pub(crate) fn opened(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    opening: &Opening,
    fd: i64,
) -> Result<Outcome, StreamError> {
    if !opening.may_be_wanted() {
        return Ok(Outcome::Answer(Answer::Value(fd)));
    }
    let name = mapping::name(thread, fd as u64)?;
    let Some(shown) = wanted(&name).and_then(|wanted| shown(shared, wanted)) else {
        return Ok(Outcome::Answer(Answer::Value(fd)));
    };
    let replaced = match content(shared, thread, notif, &shown, fd)? {
        Ok(content) => replace(thread, fd, &content, opening.flags)?,
        Err(errno) => Err(errno),
    };
    Ok(match replaced {
        Ok(()) => Outcome::Answer(Answer::Value(fd)),
        Err(errno) => {
            close(thread, fd)?;
            failed(errno)
        }
    })
}

/// A file that is not home's to show.
struct Shown {
    wanted: Wanted,
    /// The thread that it is about, as it is called here; None: the process.
    tid: Option<i32>,
}

/// None: it is home's.
fn shown(shared: &Shared, wanted: Wanted) -> Option<Shown> {
    let tid = match wanted {
        Wanted::Of(pid, tid, _) => {
            let own = shared.guest.pid;
            if birth::inner_tid(own, own) != Some(pid) {
                return None;
            }
            tid.map(|tid| shared.called_at_home(tid)).map_or(Some(None), |here| here.map(Some))?
        }
        _ if shared.guest.processors.is_none() => return None,
        _ => None,
    };
    Some(Shown { wanted, tid })
}

type Content = Result<Vec<u8>, Errno>;

fn content(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    shown: &Shown,
    fd: i64,
) -> Result<Content, StreamError> {
    let (pid, tid) = (shared.guest.pid, shown.tid);
    let here = |name: &str| {
        let file = tid.map_or(name.to_owned(), |tid| format!("task/{tid}/{name}"));
        fs::read(format!("/proc/{pid}/{file}")).map_err(|_| EIO)
    };
    let leaf = match shown.wanted {
        Wanted::CpuInfo => return Ok(fs::read("/proc/cpuinfo").map_err(|_| EIO)),
        Wanted::Cpus(list) => {
            let lists = shared.guest.processors.as_ref();
            let text = lists.and_then(|lists| lists.0.get(list)).map(|(_, text)| text.clone());
            return Ok(text.ok_or(EIO));
        }
        Wanted::Of(_, _, leaf) => leaf,
    };
    let (name, needs_home) = match leaf {
        Leaf::Maps => ("maps", true),
        Leaf::Smaps => ("smaps", true),
        Leaf::Stat => ("stat", true),
        Leaf::Status => ("status", true),
        Leaf::Verbatim(name) => (name, false),
    };
    let ours = match here(name) {
        Ok(text) => text,
        Err(errno) => return Ok(Err(errno)),
    };
    if !needs_home {
        return Ok(Ok(ours));
    }
    let home = match leaf {
        Leaf::Smaps => read_by_name(thread, "/proc/self/maps")?,
        _ => read(thread, fd)?,
    };
    let home = match home {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(errno) => return Ok(Err(errno)),
    };
    let ours = String::from_utf8_lossy(&ours);
    let known = Known { names: &shared.guest.names, mapped: &shared.mapped };
    let is_caller = tid.unwrap_or(pid) == notif.tid;
    let text = match leaf {
        Leaf::Maps | Leaf::Smaps => maps(&known, &ours, &home),
        Leaf::Status => status(&ours, &home, is_caller),
        _ => {
            let who = tid.map_or(usage::Who::Process, usage::Who::Thread);
            let used = usage::used(shared, thread, notif.tid, who);
            stat(
                &ours,
                &home,
                is_caller,
                &[
                    (7, used.minor_faults),
                    (9, used.major_faults),
                    (11, used.user / TICK_NS),
                    (12, used.system / TICK_NS),
                ],
            )
        }
    };
    Ok(Ok(text.into_bytes()))
}

const HERE: u64 = libc::AT_FDCWD as u64;

/// The engine reads strings by the page.
fn path_bytes(path: &str) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.resize(PAGE_BYTES, 0);
    bytes
}

/// By the shadow.
fn read_by_name(thread: &mut Thread, path: &str) -> Result<Content, StreamError> {
    let mut name = path_bytes(path);
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let fd = thread.ask_own(libc::SYS_openat, &[HERE, OWN_BASE, flags, 0, 0, 0], &mut name)?;
    if fd < 0 {
        return Ok(Err(Errno(-fd as i32)));
    }
    let content = read(thread, fd)?;
    close(thread, fd)?;
    Ok(content)
}

/// All that it has from its position on.
fn read(thread: &mut Thread, fd: i64) -> Result<Content, StreamError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut content = Vec::new();
    loop {
        let args = [fd as u64, OWN_BASE, CHUNK_BYTES as u64, 0, 0, 0];
        match thread.ask_own(libc::SYS_read, &args, &mut buffer)? {
            0 => return Ok(Ok(content)),
            n @ 1.. => content.extend_from_slice(&buffer[..n as usize]),
            error => return Ok(Err(Errno(-error as i32))),
        }
    }
}

fn close(thread: &mut Thread, fd: i64) -> Result<(), StreamError> {
    thread.ask_own(libc::SYS_close, &[fd as u64, 0, 0, 0, 0, 0], &mut []).map(drop)
}

/// Has `fd` at home be a file that has this content, to read from.
fn replace(
    thread: &mut Thread,
    fd: i64,
    content: &[u8],
    flags: i32,
) -> Result<Result<(), Errno>, StreamError> {
    let args = [OWN_BASE, libc::MFD_CLOEXEC as u64, 0, 0, 0, 0];
    let file = thread.ask_own(libc::SYS_memfd_create, &args, &mut path_bytes("self"))?;
    if file < 0 {
        return Ok(Err(Errno(-file as i32)));
    }
    let filled = fill(thread, file, content)?;
    let reader = match filled {
        Ok(()) => {
            let mut name = path_bytes(&format!("/proc/self/fd/{file}"));
            let how = (flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
            thread.ask_own(libc::SYS_openat, &[HERE, OWN_BASE, how, 0, 0, 0], &mut name)?
        }
        Err(errno) => errno.ret(),
    };
    close(thread, file)?;
    if reader < 0 {
        return Ok(Err(Errno(-reader as i32)));
    }
    let kept = (flags & libc::O_CLOEXEC) as u64;
    let args = [reader as u64, fd as u64, kept, 0, 0, 0];
    let placed = thread.ask_own(libc::SYS_dup3, &args, &mut [])?;
    close(thread, reader)?;
    Ok(if placed < 0 { Err(Errno(-placed as i32)) } else { Ok(()) })
}

fn fill(thread: &mut Thread, fd: i64, content: &[u8]) -> Result<Result<(), Errno>, StreamError> {
    let mut done = 0;
    while done < content.len() {
        let mut chunk = content[done..content.len().min(done + CHUNK_BYTES)].to_vec();
        let args = [fd as u64, OWN_BASE, chunk.len() as u64, done as u64, 0, 0];
        match thread.ask_own(libc::SYS_pwrite64, &args, &mut chunk)? {
            n @ 1.. => done += n as usize,
            0 => return Ok(Err(EIO)),
            error => return Ok(Err(Errno(-error as i32))),
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_a_process_or_processors_is_wanted() {
        let of = |tid, leaf| Some(Wanted::Of(42, tid, leaf));
        assert_eq!(wanted("/proc/42/maps"), of(None, Leaf::Maps));
        assert_eq!(wanted("/proc/42/task/43/stat"), of(Some(43), Leaf::Stat));
        assert_eq!(wanted("/proc/cpuinfo"), Some(Wanted::CpuInfo));
        assert_eq!(wanted("/sys/devices/system/cpu/possible"), Some(Wanted::Cpus(1)));
        for path in [
            "/proc/42/cmdline",
            "/proc/42/maps/x",
            "/proc/42",
            "/proc/stat",
            "/proc/cpuinfo/",
            "/proc/x/maps",
            "/proc/42/fd/3",
            "/tmp/proc/42/maps",
            "/sys/devices/system/cpu/cpu0",
            "/etc/status",
            "",
        ] {
            assert_eq!(wanted(path), None, "{path}");
        }
    }

    #[test]
    fn home_is_asked_only_for_names_that_these_files_have() {
        let opening = |path: &str| Opening { path: path.to_owned(), flags: libc::O_RDONLY };
        for path in ["/proc/self/maps", "self/stat", "status", "../cpuinfo", "/x/online"] {
            assert!(opening(path).may_be_wanted(), "{path}");
        }
        for path in ["/etc/passwd", "maps/", "/proc/self", "libstat", ""] {
            assert!(!opening(path).may_be_wanted(), "{path}");
        }
    }

    #[test]
    fn processors_are_ranges() {
        assert_eq!(scheduled("cpu 1 2\ncpu0 1\ncpu1 1\ncpu4 1\nintr 5\n"), b"0-1,4\n");
        assert_eq!(scheduled("cpu 1\ncpu0 1\n"), b"0\n");
    }
}
