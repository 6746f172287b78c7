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
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::usage;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

mod merge;

use merge::{Known, maps, stat, status};

/// The longest of the names.
const PATH_BYTES_MAX: usize = 64;
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

/// Whose file; a thread as home calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Process(i32),
    Myself,
    Caller,
    Thread(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Of(Owner, Leaf),
    CpuInfo,
    Cpus(usize),
}

fn wanted(path: &str) -> Option<Wanted> {
    if let Some(name) = path.strip_prefix(CPUS) {
        return CPU_LISTS.iter().position(|list| *list == name).map(Wanted::Cpus);
    }
    let mut parts = path.strip_prefix("/proc/")?.split('/');
    let owner = match parts.next()? {
        "cpuinfo" => return parts.next().is_none().then_some(Wanted::CpuInfo),
        "self" => Owner::Myself,
        "thread-self" => Owner::Caller,
        number => Owner::Process(number.parse().ok()?),
    };
    let mut name = parts.next()?;
    let mut owner = owner;
    if name == "task" && owner != Owner::Caller {
        let tid = parts.next()?.parse().ok()?;
        // A thread of another process is home's to know.
        owner = match owner {
            Owner::Process(pid) if pid != tid => return None,
            _ => Owner::Thread(tid),
        };
        name = parts.next()?;
    }
    let leaf = match name {
        "maps" => Leaf::Maps,
        "smaps" => Leaf::Smaps,
        "smaps_rollup" => Leaf::Verbatim("smaps_rollup"),
        "statm" => Leaf::Verbatim("statm"),
        "stat" => Leaf::Stat,
        "status" => Leaf::Status,
        _ => return None,
    };
    parts.next().is_none().then_some(Wanted::Of(owner, leaf))
}

/// A file that is not home's to show.
pub(crate) struct Shown {
    path: String,
    flags: i32,
    wanted: Wanted,
    /// The thread that it is about, as it is called here; None: the process.
    tid: Option<i32>,
}

/// None: home is to open it.
pub(crate) fn shown(shared: &Shared, notif: &Notification) -> Option<Shown> {
    let (at, flags) = match i64::from(notif.nr) {
        libc::SYS_open => (notif.args[0], notif.args[1] as i32),
        libc::SYS_openat => (notif.args[1], notif.args[2] as i32),
        _ => return None,
    };
    if flags & OTHERWISE != libc::O_RDONLY {
        return None;
    }
    let path = path_at(shared, notif.tid, at)?;
    let wanted = wanted(&path)?;
    let pid = shared.guest.pid;
    if matches!(wanted, Wanted::CpuInfo | Wanted::Cpus(_)) && shared.guest.processors.is_none() {
        return None;
    }
    let tid = match wanted {
        Wanted::Of(Owner::Process(number), _) => {
            (birth::inner_tid(pid, pid) == Some(number)).then_some(None)?
        }
        Wanted::Of(Owner::Caller, _) => Some(notif.tid),
        Wanted::Of(Owner::Thread(tid), _) => Some(shared.called_at_home(tid)?),
        _ => None,
    };
    Some(Shown { path, flags, wanted, tid })
}

fn path_at(shared: &Shared, tid: i32, addr: u64) -> Option<String> {
    let mut bytes = [0; PATH_BYTES_MAX];
    let mut mem = ProcessMemory { pid: tid, writable: &shared.writable };
    // Most begin otherwise, and some end at the end of their page.
    mem.read(addr, &mut bytes[..5]).ok()?;
    if !matches!(&bytes[..5], b"/proc" | b"/sys/") {
        return None;
    }
    let read = mem.read(addr, &mut bytes).map_or_else(|fault| fault.copied, |()| PATH_BYTES_MAX);
    let end = bytes[..read].iter().position(|b| *b == 0)?;
    std::str::from_utf8(&bytes[..end]).ok().map(str::to_owned)
}

pub(crate) fn open(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    shown: &Shown,
) -> Result<Outcome, StreamError> {
    let content = match content(shared, thread, notif, shown)? {
        Ok(content) => content,
        Err(errno) => return Ok(failed(errno)),
    };
    Ok(match place(thread, &content, shown.flags)? {
        fd @ 0.. => Outcome::Answer(Answer::Value(fd)),
        error => failed(Errno(-error as i32)),
    })
}

type Content = Result<Vec<u8>, Errno>;

fn content(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    shown: &Shown,
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
        Wanted::Of(_, leaf) => leaf,
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
    let path = if leaf == Leaf::Smaps { "/proc/self/maps" } else { &shown.path };
    let home = match read_at_home(thread, path)? {
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
fn read_at_home(thread: &mut Thread, path: &str) -> Result<Content, StreamError> {
    let mut name = path_bytes(path);
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let fd = thread.ask_own(libc::SYS_openat, &[HERE, OWN_BASE, flags, 0, 0, 0], &mut name)?;
    if fd < 0 {
        return Ok(Err(Errno(-fd as i32)));
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut content = Vec::new();
    let outcome = loop {
        let args = [fd as u64, OWN_BASE, CHUNK_BYTES as u64, 0, 0, 0];
        match thread.ask_own(libc::SYS_read, &args, &mut buffer)? {
            0 => break Ok(content),
            n @ 1.. => content.extend_from_slice(&buffer[..n as usize]),
            error => break Err(Errno(-error as i32)),
        }
    };
    close(thread, fd)?;
    Ok(outcome)
}

fn close(thread: &mut Thread, fd: i64) -> Result<(), StreamError> {
    thread.ask_own(libc::SYS_close, &[fd as u64, 0, 0, 0, 0, 0], &mut []).map(drop)
}

/// A descriptor at home from which `content` is read; or an errno, negative.
fn place(thread: &mut Thread, content: &[u8], flags: i32) -> Result<i64, StreamError> {
    let cloexec = libc::MFD_CLOEXEC as u64;
    let args = [OWN_BASE, cloexec, 0, 0, 0, 0];
    let fd = thread.ask_own(libc::SYS_memfd_create, &args, &mut path_bytes("self"))?;
    if fd < 0 {
        return Ok(fd);
    }
    let mut done = 0;
    while done < content.len() {
        let mut chunk = content[done..content.len().min(done + CHUNK_BYTES)].to_vec();
        let args = [fd as u64, OWN_BASE, chunk.len() as u64, done as u64, 0, 0];
        match thread.ask_own(libc::SYS_pwrite64, &args, &mut chunk)? {
            n @ 1.. => done += n as usize,
            error => {
                close(thread, fd)?;
                return Ok(if error == 0 { EIO.ret() } else { error });
            }
        }
    }
    // A descriptor to read from, in its place.
    let mut name = path_bytes(&format!("/proc/self/fd/{fd}"));
    let how = (flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    let reader = thread.ask_own(libc::SYS_openat, &[HERE, OWN_BASE, how, 0, 0, 0], &mut name)?;
    if reader < 0 {
        close(thread, fd)?;
        return Ok(reader);
    }
    let kept = (flags & libc::O_CLOEXEC) as u64;
    let placed =
        thread.ask_own(libc::SYS_dup3, &[reader as u64, fd as u64, kept, 0, 0, 0], &mut [])?;
    close(thread, reader)?;
    if placed < 0 {
        close(thread, fd)?;
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_the_guest_is_shown() {
        let of = |owner, leaf| Some(Wanted::Of(owner, leaf));
        assert_eq!(wanted("/proc/self/maps"), of(Owner::Myself, Leaf::Maps));
        assert_eq!(wanted("/proc/42/status"), of(Owner::Process(42), Leaf::Status));
        assert_eq!(wanted("/proc/self/task/43/stat"), of(Owner::Thread(43), Leaf::Stat));
        assert_eq!(wanted("/proc/42/task/42/stat"), of(Owner::Thread(42), Leaf::Stat));
        assert_eq!(wanted("/proc/thread-self/smaps"), of(Owner::Caller, Leaf::Smaps));
        assert_eq!(wanted("/proc/cpuinfo"), Some(Wanted::CpuInfo));
        assert_eq!(wanted("/sys/devices/system/cpu/possible"), Some(Wanted::Cpus(1)));
        for path in [
            "/proc/self/cmdline",
            "/proc/self/maps/x",
            "/proc/self",
            "/proc/stat",
            "/proc/cpuinfo/",
            "/proc/x/maps",
            "/proc/42/task/43/maps",
            "/proc/self/fd/3",
            "/proc/../proc/self/maps",
            "/sys/devices/system/cpu/cpu0",
            "/etc/passwd",
            "",
        ] {
            assert_eq!(wanted(path), None, "{path}");
        }
    }

    #[test]
    fn processors_are_ranges() {
        assert_eq!(scheduled("cpu 1 2\ncpu0 1\ncpu1 1\ncpu4 1\nintr 5\n"), b"0-1,4\n");
        assert_eq!(scheduled("cpu 1\ncpu0 1\n"), b"0\n");
    }
}
