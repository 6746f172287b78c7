//! Files in which a program reads of itself, of other guests and of its processors: what home's kernel
//! would tell of a shadow is not what its guest is. They are opened as a file at home that has the
//! content, so that the descriptor is one of home's like any other.

use std::collections::HashMap;
use std::fs;

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EIO, Errno};
use tcmi_ckpt::birth;
use tcmi_ckpt::image::FileRef;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::{About, File, Gathered};
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::mapping;
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::usage::{self, Who};
use crate::worker::{Halt, OWN_BASE, Outcome, Thread};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Ids are home's.
    Of(About),
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
    parts.next().is_none().then_some(Wanted::Of(About { pid, tid, file }))
}

/// Whether a file of that name is worth asking home which one it is.
fn may_be_wanted(name: &str) -> bool {
    name == "cpuinfo" || CPU_LISTS.contains(&name) || File::named(name).is_some()
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
    let homes = Ok(Outcome::Answer(Answer::Value(fd)));
    if !opening.may_be_wanted() {
        return homes;
    }
    let name = mapping::name(thread, fd as u64)?;
    let Some(wanted) = wanted(&name) else { return homes };
    let replaced = match content(shared, thread, notif, wanted, fd) {
        Ok(Some(content)) => replace(thread, fd, &content, opening.flags),
        Ok(None) => Ok(()),
        Err(halt) => Err(halt),
    };
    match replaced {
        Ok(()) => homes,
        Err(Halt::Stream(error)) => Err(error),
        Err(halt) => {
            close(thread, fd)?;
            halt.outcome()
        }
    }
}

/// None: what home has opened is right, or all there is.
fn content(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    wanted: Wanted,
    fd: i64,
) -> Result<Option<Vec<u8>>, Halt> {
    let about = match (wanted, &shared.guest.processors) {
        (Wanted::Of(about), _) => about,
        (_, None) => return Ok(None),
        (Wanted::CpuInfo, Some(_)) => {
            return fs::read("/proc/cpuinfo").map(Some).map_err(|_| Halt::Errno(EIO));
        }
        (Wanted::Cpus(list), Some(processors)) => {
            let list = processors.0.get(list).ok_or(Halt::Errno(EIO))?;
            return Ok(Some(list.1.clone()));
        }
    };
    if process_here(shared, about.pid).is_none() {
        return of_another(shared, thread, about, fd);
    }
    match called_here(shared, about) {
        Some(about) => of_self(shared, thread, notif, about, fd).map(Some),
        None => Ok(None),
    }
}

/// None: there is no such process or thread here.
fn called_here(shared: &Shared, about: About) -> Option<About> {
    let pid = process_here(shared, about.pid)?;
    let tid = match about.tid {
        Some(tid) => Some(shared.called_at_home(tid)?),
        None => None,
    };
    Some(About { pid, tid, ..about })
}

/// By any of its threads; by the first also when that has ended.
fn process_here(shared: &Shared, pid: i32) -> Option<i32> {
    let own = shared.guest.pid;
    match birth::inner_tid(own, own) == Some(pid) {
        true => Some(own),
        false => shared.called_at_home(pid),
    }
}

/// `about` is as it is called here.
fn of_self(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    about: About,
    fd: i64,
) -> Result<Vec<u8>, Halt> {
    let used = |who| usage::used(shared, thread, notif.tid, who);
    let guests = guests(shared, about, used).ok_or(Halt::Errno(EIO))?;
    if matches!(about.file, File::SmapsRollup | File::Statm) {
        return Ok(guests);
    }
    let is_caller = about.tid.unwrap_or(about.pid) == notif.tid;
    Ok(merged(about.file, guests, &read(thread, fd)?, is_caller))
}

/// None: it is at home, or may not be looked at where it is.
fn of_another(
    shared: &Shared,
    thread: &mut Thread,
    about: About,
    fd: i64,
) -> Result<Option<Vec<u8>>, Halt> {
    let Some(guests) = fetch(shared, about, fd as i32)? else { return Ok(None) };
    // Behind the guest: as long as it can be read, the process that was opened has not ended, and
    // the one of its number is it.
    let home = read(thread, fd)?;
    Ok(Some(merged(about.file, guests, &home, false)))
}

/// From the node of another guest.
fn fetch(shared: &Shared, about: About, fd: i32) -> Result<Option<Vec<u8>>, Halt> {
    let About { pid, tid, file } = about;
    let mut gathered = Gathered::default();
    let mut rest = None;
    loop {
        let piece = match shared.hooks.reach(pid, 0, Access::Tell { file, tid, fd, rest }) {
            Found::Told(piece) => piece,
            Found::AtHome | Found::Denied | Found::Nobody => return Ok(None),
            _ => return Err(Halt::Again),
        };
        rest = gathered.take(piece);
        if rest.is_none() {
            return Ok(Some(gathered.into_text()));
        }
    }
}

/// For another process. None: there is nothing of the kind here.
pub(crate) fn for_another(shared: &Shared, about: About) -> Option<Vec<u8>> {
    guests(shared, called_here(shared, about)?, |who| usage::used_by(shared, who))
}

/// What is known here. None: it has ended.
fn guests(shared: &Shared, about: About, used: impl FnOnce(Who) -> Usage) -> Option<Vec<u8>> {
    let text = fs::read(about.path()).ok()?;
    let ours = String::from_utf8_lossy(&text);
    let known = Known { names: &shared.guest.names, mapped: &shared.mapped };
    let who = about.tid.map_or(Who::Process, Who::Thread);
    let text = match about.file {
        File::Maps | File::Smaps => named(&known, &ours),
        File::Stat => counted(&ours, &used(who))?,
        File::PublicStat => public(&counted(&ours, &used(who))?)?,
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
        let of = |tid, file| Some(Wanted::Of(About { pid: 42, tid, file }));
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
