//! Files in which a program reads of itself, of other guests and of its processors: what home's kernel
//! would tell of a shadow is not what its guest is. They are opened as a file at home that has the
//! content, so that the descriptor is one of home's like any other.

use std::collections::HashMap;
use std::fs;

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EIO, Errno};
use tcmi_ckpt::image::FileRef;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::{File, Gathered};
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::usage;
use crate::visit;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

mod merge;

use merge::{Known, counted, named, placed, public, stat, status};

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

/// Ids are home's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Of a process, or of a thread of it.
    Of(i32, Option<i32>, File),
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
    let file = File::named(name)?;
    parts.next().is_none().then_some(Wanted::Of(pid, tid, file))
}

/// Whether a file is worth asking home which one it is.
fn may_be_wanted(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "cpuinfo" || CPU_LISTS.contains(&name) || File::named(name).is_some()
}

/// How a call opens what may be a file that is not home's to show. To be asked before it is
/// forwarded.
pub(crate) fn opening(shared: &Shared, notif: &Notification) -> Option<i32> {
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
    if flags & OTHERWISE != libc::O_RDONLY {
        return None;
    }
    let mut path = Vec::new();
    mem.read_string(at, &mut path).ok()?;
    path.pop();
    may_be_wanted(std::str::from_utf8(&path).ok()?).then_some(flags)
}

/// Why there is no content of ours.
enum Halt {
    /// What home has opened is right, or all there is.
    Homes,
    /// It is of one that is neither at home nor away, or this one is about to leave.
    Again,
    Errno(Errno),
    Stream(StreamError),
}

impl From<StreamError> for Halt {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// Home has opened `fd`, whose name may have led anywhere. If it is a file that is not home's to
/// show, one with the guest's content takes its place.
pub(crate) fn opened(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    flags: i32,
    fd: i64,
) -> Result<Outcome, StreamError> {
    let name = mapping::name(thread, fd as u64)?;
    let replaced = match wanted(&name) {
        Some(wanted) => content(shared, thread, notif, wanted, fd)
            .and_then(|content| replace(thread, fd, &content, flags)),
        None => Err(Halt::Homes),
    };
    match replaced {
        Ok(()) | Err(Halt::Homes) => Ok(Outcome::Answer(Answer::Value(fd))),
        Err(Halt::Again) => {
            close(thread, fd)?;
            Ok(visit::again())
        }
        Err(Halt::Errno(errno)) => {
            close(thread, fd)?;
            Ok(failed(errno))
        }
        Err(Halt::Stream(error)) => Err(error),
    }
}

fn content(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    wanted: Wanted,
    fd: i64,
) -> Result<Vec<u8>, Halt> {
    match wanted {
        Wanted::Of(pid, tid, file) => match shared.called_at_home(pid) {
            Some(here) => of_self(shared, thread, notif, (here, tid, file), fd),
            None => of_another(shared, thread, (pid, tid, file), fd),
        },
        Wanted::CpuInfo if shared.guest.processors.is_some() => {
            fs::read("/proc/cpuinfo").map_err(|_| Halt::Errno(EIO))
        }
        Wanted::Cpus(list) => {
            let processors = shared.guest.processors.as_ref().ok_or(Halt::Homes)?;
            let list = processors.0.get(list).ok_or(Halt::Errno(EIO))?;
            Ok(list.1.clone())
        }
        Wanted::CpuInfo => Err(Halt::Homes),
    }
}

/// `pid` is as the process, or the thread by which it is looked at, is called here.
fn of_self(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    (pid, tid, file): (i32, Option<i32>, File),
    fd: i64,
) -> Result<Vec<u8>, Halt> {
    let here = |tid| shared.called_at_home(tid).ok_or(Halt::Homes);
    let tid = tid.map(here).transpose()?;
    let who = tid.map_or(usage::Who::Process, usage::Who::Thread);
    let used = || usage::used(shared, thread, notif.tid, who);
    let guests = guests(shared, pid, tid, file, used).ok_or(Halt::Errno(EIO))?;
    if matches!(file, File::SmapsRollup | File::Statm) {
        return Ok(guests);
    }
    let home = read(thread, fd)?;
    Ok(merged(file, guests, &home, tid.unwrap_or(pid) == notif.tid))
}

/// Home is read behind the guest: as long as that can be, the process that was opened has not
/// ended, and the one of its number is it.
fn of_another(
    shared: &Shared,
    thread: &mut Thread,
    (pid, tid, file): (i32, Option<i32>, File),
    fd: i64,
) -> Result<Vec<u8>, Halt> {
    let guests = fetch(shared, (pid, tid, file), fd as i32)?;
    let home = read(thread, fd)?;
    Ok(merged(file, guests, &home, false))
}

/// From the node of another guest.
fn fetch(
    shared: &Shared,
    (pid, tid, file): (i32, Option<i32>, File),
    fd: i32,
) -> Result<Vec<u8>, Halt> {
    let mut gathered = Gathered::default();
    let mut rest = None;
    loop {
        let piece = match shared.hooks.reach(pid, 0, Access::Tell { file, tid, fd, rest }) {
            Found::Told(piece) => piece,
            Found::AtHome | Found::Denied | Found::Nobody => return Err(Halt::Homes),
            _ => return Err(Halt::Again),
        };
        rest = gathered.take(piece);
        if rest.is_none() {
            return Ok(gathered.into_text());
        }
    }
}

/// For another process, which calls them as home does. None: there is nothing of the kind here.
pub(crate) fn for_another(
    shared: &Shared,
    pid: i32,
    tid: Option<i32>,
    file: File,
) -> Option<Vec<u8>> {
    let pid = shared.called_at_home(pid)?;
    let tid = tid.map(|tid| shared.called_at_home(tid).ok_or(())).transpose().ok()?;
    let who = tid.map_or(usage::Who::Process, usage::Who::Thread);
    guests(shared, pid, tid, file, || usage::used_by(shared, who))
}

/// What is known here. None: it has ended.
fn guests(
    shared: &Shared,
    pid: i32,
    tid: Option<i32>,
    file: File,
    used: impl FnOnce() -> Usage,
) -> Option<Vec<u8>> {
    let text = fs::read(file.path(pid, tid)).ok()?;
    let ours = String::from_utf8_lossy(&text);
    let known = Known { names: &shared.guest.names, mapped: &shared.mapped };
    let text = match file {
        File::Maps | File::Smaps => named(&known, &ours),
        File::Stat => counted(&ours, &used())?,
        File::PublicStat => public(&counted(&ours, &used())?)?,
        File::SmapsRollup | File::Statm | File::Status => return Some(text),
    };
    Some(text.into_bytes())
}

fn merged(file: File, guests: Vec<u8>, home: &[u8], is_caller: bool) -> Vec<u8> {
    let (ours, home) = (String::from_utf8_lossy(&guests), String::from_utf8_lossy(home));
    let text = match file {
        File::Maps | File::Smaps => placed(&ours, &home),
        File::Stat | File::PublicStat => stat(&ours, &home, is_caller),
        File::Status => status(&ours, &home, is_caller),
        File::SmapsRollup | File::Statm => return guests,
    };
    text.into_bytes()
}

const HERE: u64 = libc::AT_FDCWD as u64;

/// The engine reads strings by the page.
fn path_bytes(path: &str) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.resize(PAGE_BYTES, 0);
    bytes
}

/// All that it has from its position on.
fn read(thread: &mut Thread, fd: i64) -> Result<Vec<u8>, Halt> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut content = Vec::new();
    loop {
        let args = [fd as u64, OWN_BASE, CHUNK_BYTES as u64, 0, 0, 0];
        match positive(thread.ask_own(libc::SYS_read, &args, &mut buffer)?)? {
            0 => return Ok(content),
            n => content.extend_from_slice(&buffer[..n as usize]),
        }
    }
}

fn positive(ret: i64) -> Result<i64, Halt> {
    if ret < 0 { Err(Halt::Errno(Errno(-ret as i32))) } else { Ok(ret) }
}

fn close(thread: &mut Thread, fd: i64) -> Result<(), StreamError> {
    thread.ask_own(libc::SYS_close, &[fd as u64, 0, 0, 0, 0, 0], &mut []).map(drop)
}

/// Has `fd` at home be a file that has this content, to read from.
fn replace(thread: &mut Thread, fd: i64, content: &[u8], flags: i32) -> Result<(), Halt> {
    let args = [OWN_BASE, libc::MFD_CLOEXEC as u64, 0, 0, 0, 0];
    let made = thread.ask_own(libc::SYS_memfd_create, &args, &mut path_bytes("self"))?;
    let file = positive(made)?;
    let reader = fill(thread, file, content).and_then(|()| reopen(thread, file, flags));
    close(thread, file)?;
    let reader = reader?;
    let kept = (flags & libc::O_CLOEXEC) as u64;
    let args = [reader as u64, fd as u64, kept, 0, 0, 0];
    let placed = thread.ask_own(libc::SYS_dup3, &args, &mut [])?;
    close(thread, reader)?;
    positive(placed).map(drop)
}

fn reopen(thread: &mut Thread, file: i64, flags: i32) -> Result<i64, Halt> {
    let mut name = path_bytes(&format!("/proc/self/fd/{file}"));
    let how = (flags & !libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    positive(thread.ask_own(libc::SYS_openat, &[HERE, OWN_BASE, how, 0, 0, 0], &mut name)?)
}

fn fill(thread: &mut Thread, fd: i64, content: &[u8]) -> Result<(), Halt> {
    let mut done = 0;
    while done < content.len() {
        let mut chunk = content[done..content.len().min(done + CHUNK_BYTES)].to_vec();
        let args = [fd as u64, OWN_BASE, chunk.len() as u64, done as u64, 0, 0];
        match positive(thread.ask_own(libc::SYS_pwrite64, &args, &mut chunk)?)? {
            0 => return Err(Halt::Errno(EIO)),
            n => done += n as usize,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_a_process_or_processors_is_wanted() {
        let of = |tid, file| Some(Wanted::Of(42, tid, file));
        assert_eq!(wanted("/proc/42/maps"), of(None, File::Maps));
        assert_eq!(wanted("/proc/42/task/43/stat"), of(Some(43), File::Stat));
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
        for path in ["/proc/self/maps", "self/stat", "status", "../cpuinfo", "/x/online"] {
            assert!(may_be_wanted(path), "{path}");
        }
        for path in ["/etc/passwd", "maps/", "/proc/self", "libstat", ""] {
            assert!(!may_be_wanted(path), "{path}");
        }
    }

    #[test]
    fn processors_are_ranges() {
        assert_eq!(scheduled("cpu 1 2\ncpu0 1\ncpu1 1\ncpu4 1\nintr 5\n"), b"0-1,4\n");
        assert_eq!(scheduled("cpu 1\ncpu0 1\n"), b"0\n");
    }
}
