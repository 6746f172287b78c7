//! What a checkpoint needs from /proc, parsed from bytes.

use crate::errno::{Errno, Result};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

fn bytes(pid: i32, file: &str) -> Result<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/{file}")).map_err(|e| {
        // A process that ended has no directory, or an unreadable one.
        let code = match e.raw_os_error() {
            Some(libc::ENOENT) | None => libc::ESRCH,
            Some(c) => c,
        };
        Errno::new("read /proc/PID", code)
    })
}

/// /proc/PID/stat, or that of a thread.
pub fn stat(pid: i32, tid: Option<i32>) -> Result<String> {
    let file = tid.map_or("stat".to_owned(), |tid| format!("task/{tid}/stat"));
    Ok(String::from_utf8_lossy(&bytes(pid, &file)?).into_owned())
}

/// How long a thread has run, in nanoseconds. 0 where the kernel does not count it.
pub fn schedstat(pid: i32, tid: i32) -> Result<u64> {
    match bytes(pid, &format!("task/{tid}/schedstat")) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let first = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
            first.ok_or(malformed("parse /proc/PID/schedstat"))
        }
        Err(_) => Ok(0),
    }
}

fn malformed(what: &'static str) -> Errno {
    Errno::new(what, libc::EPROTO)
}

/// This node's ids of processes and threads are below it.
pub fn pid_max() -> Result<i32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .map_err(|e| Errno::new("read pid_max", e.raw_os_error().unwrap_or(libc::EIO)))?;
    text.trim().parse().map_err(|_| malformed("pid_max"))
}

/// Thread ids of a process, as they are now: the kernel ends the list at one that goes meanwhile.
pub fn tids(pid: i32) -> Result<Vec<i32>> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|_| Errno::new("read /proc/PID/task", libc::ESRCH))?;
    let mut all = Vec::new();
    for entry in dir {
        let Ok(entry) = entry else {
            return Err(Errno::new("read /proc/PID/task", libc::ESRCH));
        };
        all.extend(entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    }
    Ok(all)
}

/// Fields of /proc/PID/status.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub name: String,
    pub state: char,
    pub tgid: i32,
    pub ppid: i32,
    pub tracer: i32,
    /// Real, effective, saved, filesystem.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    pub umask: u32,
    /// In the innermost of its pid namespaces.
    pub inner_pid: i32,
    pub threads: u32,
    pub kernel_thread: bool,
    /// It has an address space: neither a kernel thread nor on its way to be a zombie.
    pub has_memory: bool,
    pub seccomp: u32,
    pub inheritable_capabilities: u64,
    pub permitted_capabilities: u64,
    pub effective_capabilities: u64,
    pub bounding_capabilities: u64,
    pub ambient_capabilities: u64,
    pub no_new_privileges: bool,
    /// PR_SET_THP_DISABLE was not used.
    pub huge_pages: bool,
    pub sig_pending: u64,
    pub shared_pending: u64,
    pub sig_blocked: u64,
    pub sig_ignored: u64,
    pub sig_caught: u64,
    /// Resident set, in bytes.
    pub rss: u64,
    pub peak_rss: u64,
    /// Of its own, resident or swapped out, in bytes.
    pub anonymous: u64,
}

pub fn status(pid: i32) -> Result<Status> {
    read_status(pid, "status")
}

/// Of the thread `tid` of the process that `of` is a thread of.
pub fn status_of_thread(of: i32, tid: i32) -> Result<Status> {
    read_status(of, &format!("task/{tid}/status"))
}

fn read_status(pid: i32, file: &str) -> Result<Status> {
    let text = bytes(pid, file)?;
    let text = String::from_utf8_lossy(&text);
    parse_status(&text).ok_or(malformed("parse /proc/PID/status"))
}

fn parse_status(text: &str) -> Option<Status> {
    let mut s = Status { state: '?', kernel_thread: true, huge_pages: true, ..Status::default() };
    for line in text.lines() {
        let (key, v) = line.split_once(':')?;
        let v = v.trim();
        let hex = || u64::from_str_radix(v, 16).ok();
        let four = || {
            let mut it = v.split_ascii_whitespace().map(str::parse);
            Some([it.next()?.ok()?, it.next()?.ok()?, it.next()?.ok()?, it.next()?.ok()?])
        };
        let kib = || v.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024);
        match key {
            "Name" => s.name = v.to_owned(),
            "State" => s.state = v.chars().next()?,
            "Tgid" => s.tgid = v.parse().ok()?,
            "PPid" => s.ppid = v.parse().ok()?,
            "TracerPid" => s.tracer = v.parse().ok()?,
            "Uid" => s.uid = four()?,
            "Gid" => s.gid = four()?,
            "Groups" => {
                s.groups =
                    v.split_ascii_whitespace().map(|g| g.parse().ok()).collect::<Option<_>>()?;
            }
            "Umask" => s.umask = u32::from_str_radix(v, 8).ok()?,
            "NSpid" => s.inner_pid = v.split_ascii_whitespace().last()?.parse().ok()?,
            "Threads" => s.threads = v.parse().ok()?,
            "THP_enabled" => s.huge_pages = v != "0",
            "Seccomp" => s.seccomp = v.parse().ok()?,
            "NoNewPrivs" => s.no_new_privileges = v == "1",
            "CapInh" => s.inheritable_capabilities = hex()?,
            "CapBnd" => s.bounding_capabilities = hex()?,
            "CapAmb" => s.ambient_capabilities = hex()?,
            "CapPrm" => s.permitted_capabilities = hex()?,
            "CapEff" => s.effective_capabilities = hex()?,
            "SigPnd" => s.sig_pending = hex()?,
            "ShdPnd" => s.shared_pending = hex()?,
            "SigBlk" => s.sig_blocked = hex()?,
            "SigIgn" => s.sig_ignored = hex()?,
            "SigCgt" => s.sig_caught = hex()?,
            // Kernel threads and zombies have no memory lines.
            "VmSize" => (s.kernel_thread, s.has_memory) = (false, true),
            "VmRSS" => s.rss = kib()?,
            "VmHWM" => s.peak_rss = kib()?,
            "RssAnon" | "RssShmem" | "VmSwap" => s.anonymous += kib()?,
            "Kthread" => s.kernel_thread = v == "1",
            _ => {}
        }
    }
    if s.state == 'Z' || s.state == 'X' {
        s.kernel_thread = false;
    }
    Some(s)
}

/// Addresses and numbers from /proc/PID/stat that describe the address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// What /proc/PID/stat says after the name: `f(n)` is field n of proc(5).
fn stat_fields(pid: i32) -> Result<Vec<String>> {
    let text = bytes(pid, "stat")?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(')').ok_or(malformed("parse /proc/PID/stat"))?;
    Ok(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

fn stat_number(fields: &[String], n: usize) -> Result<u64> {
    fields.get(n - 3).and_then(|s| s.parse().ok()).ok_or(malformed("parse /proc/PID/stat"))
}

pub fn layout(pid: i32) -> Result<Layout> {
    let fields = stat_fields(pid)?;
    let f = |n| stat_number(&fields, n);
    Ok(Layout {
        start_code: f(26)?,
        end_code: f(27)?,
        start_stack: f(28)?,
        start_data: f(45)?,
        end_data: f(46)?,
        start_brk: f(47)?,
        arg_start: f(48)?,
        arg_end: f(49)?,
        env_start: f(50)?,
        env_end: f(51)?,
    })
}

/// All processes that there are now.
pub fn pids() -> Result<Vec<i32>> {
    let dir = std::fs::read_dir("/proc").map_err(|e| Errno::from_io("read /proc", &e))?;
    let mut all = Vec::new();
    for entry in dir {
        let entry = entry.map_err(|e| Errno::from_io("read /proc", &e))?;
        all.extend(entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    }
    Ok(all)
}

/// Processes below those in `roots`, as they are now, without zombies; in no order.
pub fn descendants(roots: &[i32]) -> Result<Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids()? {
        // One that has ended since it was listed is no more.
        let Ok(fields) = stat_fields(pid) else { continue };
        let is_zombie = fields.first().is_none_or(|state| state == "Z" || state == "X");
        if let Some(parent) = fields.get(1).and_then(|ppid| ppid.parse().ok())
            && !is_zombie
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut below = Vec::new();
    let mut left = roots.to_vec();
    while let Some(parent) = left.pop() {
        let new = children.remove(&parent).unwrap_or_default();
        left.extend(&new);
        below.extend(new.into_iter().filter(|pid| !roots.contains(pid)));
    }
    Ok(below)
}

/// Whether two processes have one address space. Where the kernel cannot tell: no.
pub fn share_memory(one: i32, other: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: plain call.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// Start time in clock ticks since boot: with the pid it names a process for ever.
pub fn start_time(pid: i32) -> Result<u64> {
    stat_number(&stat_fields(pid)?, 22)
}

/// The signal that its end sends to its parent, or 0.
pub fn exit_signal(pid: i32) -> Result<u64> {
    stat_number(&stat_fields(pid)?, 38)
}

pub fn auxv(pid: i32) -> Result<Vec<u8>> {
    bytes(pid, "auxv")
}

/// Whether its program was executed with more rights than the process had (AT_SECURE).
pub fn has_gained_rights(pid: i32) -> Result<bool> {
    Ok(auxv(pid)?.as_chunks::<16>().0.iter().any(|entry| {
        let (key, value) = entry.split_at(8);
        key == libc::AT_SECURE.to_le_bytes() && value.iter().any(|byte| *byte != 0)
    }))
}

/// The thread's name, as raw bytes without the newline.
pub fn comm(pid: i32, tid: i32) -> Result<Vec<u8>> {
    let mut c = bytes(pid, &format!("task/{tid}/comm"))?;
    if c.last() == Some(&b'\n') {
        c.pop();
    }
    Ok(c)
}

pub fn personality(pid: i32) -> Result<u32> {
    let text = bytes(pid, "personality")?;
    std::str::from_utf8(&text)
        .ok()
        .and_then(|t| u32::from_str_radix(t.trim(), 16).ok())
        .ok_or(malformed("parse /proc/PID/personality"))
}

pub fn exe(pid: i32) -> Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map_err(|e| Errno::from_io("read /proc/PID/exe", &e))
}

/// A POSIX timer, from /proc/PID/timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerLine {
    pub id: i32,
    pub signal: i32,
    pub value: u64,
    /// SIGEV_*, with SIGEV_THREAD_ID as `tid`.
    pub notify: i32,
    pub tid: i32,
    pub clock: i32,
}

/// Soft and hard limits by the number of the resource. prlimit(2) would need a privilege for the
/// processes of other users.
pub fn limits(pid: i32) -> Result<Vec<(u64, u64)>> {
    let text = bytes(pid, "limits")?;
    parse_limits(&String::from_utf8_lossy(&text)).ok_or(malformed("parse /proc/PID/limits"))
}

/// The soft and hard limit of one resource.
pub fn limit(pid: i32, resource: u32) -> Result<(u64, u64)> {
    let all = limits(pid)?;
    all.get(resource as usize).copied().ok_or(malformed("find a line of /proc/PID/limits"))
}

/// Names hold blanks; the kernel pads them to 25 columns, and values to 20.
fn parse_limits(text: &str) -> Option<Vec<(u64, u64)>> {
    let value = |word: &str| match word {
        "unlimited" => Some(libc::RLIM_INFINITY),
        number => number.parse().ok(),
    };
    text.lines()
        .skip(1)
        .map(|line| {
            let mut words = line.get(25..)?.split_ascii_whitespace();
            Some((value(words.next()?)?, value(words.next()?)?))
        })
        .collect()
}

/// Processor time of all threads that a process has or had, to the nanosecond.
pub fn cpu_time(pid: i32) -> Result<Duration> {
    const OF_PROCESS_BY_SCHEDULER: i32 = 2;
    let clock = !pid << 3 | OF_PROCESS_BY_SCHEDULER;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the time.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(Errno::last("the clock of a process")),
    }
}

pub fn timers(pid: i32) -> Result<Vec<TimerLine>> {
    let text = bytes(pid, "timers")?;
    parse_timers(&String::from_utf8_lossy(&text)).ok_or(malformed("parse /proc/PID/timers"))
}

fn parse_timers(text: &str) -> Option<Vec<TimerLine>> {
    let mut all: Vec<TimerLine> = Vec::new();
    for line in text.lines() {
        let (key, v) = line.split_once(':')?;
        let v = v.trim();
        if key == "ID" {
            let id = v.parse().ok()?;
            all.push(TimerLine { id, signal: 0, value: 0, notify: 0, tid: 0, clock: 0 });
            continue;
        }
        let t = all.last_mut()?;
        match key {
            "signal" => {
                // "10/0000000000000000": sival_ptr as the kernel prints a pointer.
                let (sig, value) = v.split_once('/')?;
                t.signal = sig.parse().ok()?;
                t.value = u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap_or(0);
            }
            "notify" => {
                let (how, whom) = v.split_once('/')?;
                let (kind, tid) = whom.split_once('.')?;
                t.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL,
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => return None,
                };
                if kind == "tid" {
                    t.notify |= libc::SIGEV_THREAD_ID;
                    t.tid = tid.parse().ok()?;
                }
            }
            "ClockID" => t.clock = v.parse().ok()?,
            _ => {}
        }
    }
    Some(all)
}

/// Whether the process is 32-bit, by its ELF class.
pub fn is_elf64(pid: i32) -> Result<bool> {
    use std::io::Read;
    let mut head = [0u8; 5];
    std::fs::File::open(format!("/proc/{pid}/exe"))
        .and_then(|mut f| f.read_exact(&mut head))
        .map_err(|e| Errno::from_io("read /proc/PID/exe", &e))?;
    Ok(&head[..4] == b"\x7fELF" && head[4] == 2)
}

/// Targets of the open descriptors: (number, link text).
pub fn descriptors(pid: i32) -> Result<Vec<(i32, String)>> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|e| Errno::from_io("read /proc/PID/fd", &e))?;
    let mut all = Vec::new();
    for entry in dir.flatten() {
        let Some(n) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // A descriptor closed between the two reads is no longer there to tell of.
        if let Ok(target) = std::fs::read_link(entry.path()) {
            all.push((n, target.to_string_lossy().into_owned()));
        }
    }
    all.sort();
    Ok(all)
}

/// Which file a descriptor is of, and how it was opened. Told by the kernel alone: what serves the
/// file, as another process may, is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    pid: i32,
    flags: i32,
    mount: u32,
    inode: u64,
}

impl OpenFile {
    /// Whether both are of one file. Numbers of inodes mean something on one device only, which may
    /// be mounted more than once, as for a service with a view of its own.
    pub fn is_of(&self, other: &Self) -> bool {
        let device = |file: &Self| mount_device(file.pid, file.mount).ok();
        self.inode == other.inode
            && (self.mount == other.mount
                || device(self).is_some_and(|own| device(other) == Some(own)))
    }

    /// Who has it was let read the file.
    pub fn is_to_read(&self) -> bool {
        self.flags & libc::O_PATH == 0 && self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }
}

pub fn open_file(pid: i32, fd: i32) -> Result<OpenFile> {
    let info = bytes(pid, &format!("fdinfo/{fd}"))?;
    let info = String::from_utf8_lossy(&info);
    parse_open_file(pid, &info).ok_or(malformed("parse /proc/PID/fdinfo"))
}

fn parse_open_file(pid: i32, info: &str) -> Option<OpenFile> {
    let field = |name: &str| {
        let found = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.map(str::trim)
    };
    Some(OpenFile {
        pid,
        flags: i32::from_str_radix(field("flags")?, 8).ok()?,
        mount: field("mnt_id")?.parse().ok()?,
        inode: field("ino")?.parse().ok()?,
    })
}

/// "MAJOR:MINOR" of a mount that the process sees.
fn mount_device(pid: i32, mount: u32) -> Result<String> {
    let mounts = bytes(pid, "mountinfo")?;
    let device = String::from_utf8_lossy(&mounts).lines().find_map(|line| {
        let mut words = line.split(' ');
        let is_it = words.next()?.parse() == Ok(mount);
        is_it.then(|| words.nth(1).map(str::to_owned))?
    });
    device.ok_or(malformed("find a line of /proc/PID/mountinfo"))
}

/// Whether two descriptors, each (process, number), are one open file: by dup, fork or a message.
/// True where the kernel does not tell.
pub fn is_same_open(one: (i32, i32), other: (i32, i32)) -> bool {
    const KCMP_FILE: i32 = 0;
    is_same(KCMP_FILE, one, other)
}

/// Whether two processes have one table of descriptors. True where the kernel does not tell.
pub fn is_same_table(one: i32, other: i32) -> bool {
    const KCMP_FILES: i32 = 2;
    is_same(KCMP_FILES, (one, 0), (other, 0))
}

fn is_same(kind: i32, one: (i32, i32), other: (i32, i32)) -> bool {
    // SAFETY: plain call, of numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, kind, one.1, other.1) };
    match ret {
        0.. => ret == 0,
        // One of them is gone, or has none, and so shares it with nobody; nor does one with more
        // rights than we have, which it got by executing a program.
        _ => !matches!(Errno::last("kcmp").code, libc::ESRCH | libc::EBADF | libc::EPERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    #[test]
    fn limits_are_read_in_the_order_of_their_numbers() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            1024                 524288               files     \n";
        let unlimited = libc::RLIM_INFINITY;
        assert_eq!(parse_limits(text), Some(vec![(unlimited, unlimited), (1024, 524288)]));
        let own = limits(std::process::id() as i32).unwrap();
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live rlimit.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut files) };
        assert_eq!(own[libc::RLIMIT_NOFILE as usize], (files.rlim_cur, files.rlim_max));
        let one = limit(std::process::id() as i32, libc::RLIMIT_NOFILE);
        assert_eq!(one, Ok((files.rlim_cur, files.rlim_max)));
        assert!(limit(std::process::id() as i32, 99).is_err());
    }

    #[test]
    fn own_status_and_layout() {
        let pid = std::process::id() as i32;
        let s = status(pid).expect("status");
        assert_eq!(s.tgid, pid);
        assert!(!s.kernel_thread && s.rss > 0 && s.threads >= 1);
        assert_eq!(s.inner_pid, pid);
        assert_eq!(exit_signal(pid), Ok(libc::SIGCHLD as u64));
        let l = layout(pid).expect("layout");
        assert!(l.arg_start < l.arg_end && l.start_stack > l.start_brk);
        assert!(status(2).map_or(true, |s| s.kernel_thread || s.tgid != 2 || s.rss > 0));
    }

    #[test]
    fn a_thread_is_found_by_any_of_its_process() {
        let look = || {
            // SAFETY: plain call.
            let own = unsafe { libc::gettid() };
            let by = [own, std::process::id() as i32];
            by.map(|of| status_of_thread(of, own).expect("status").inner_pid == own)
        };
        assert_eq!(std::thread::spawn(look).join().unwrap(), [true, true]);
    }

    #[test]
    fn status_parses() {
        let text =
            "State:\tS (sleeping)\nUmask:\t0027\nGroups:\t4 20 \nNSpid:\t900\t3\nCapAmb:\t10\n";
        let s = parse_status(text).expect("parses");
        assert_eq!((s.state, s.umask, s.groups, s.inner_pid), ('S', 0o27, vec![4, 20], 3));
        assert_eq!(s.ambient_capabilities, 0x10);
        assert!(parse_status("Groups:\tmany\n").is_none());
    }

    #[test]
    fn an_open_file_is_told_from_others_and_from_a_mere_path() {
        let open = |name: &str, flags: i32| {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(name).unwrap();
            open_file(std::process::id() as i32, file.as_raw_fd()).unwrap()
        };
        let [one, again, other] =
            ["/proc/self/maps", "/proc/self/task/../maps", "/proc/self/status"].map(|n| open(n, 0));
        assert!(one.is_of(&again) && !one.is_of(&other));
        let path = open("/proc/self/maps", libc::O_PATH);
        assert!(one.is_of(&path) && one.is_to_read() && !path.is_to_read());
        let dev = std::fs::metadata("/proc/self/maps").unwrap().dev();
        let device = format!("{}:{}", libc::major(dev), libc::minor(dev));
        assert_eq!(mount_device(one.pid, one.mount), Ok(device));
        let [here, elsewhere] = [open("/dev/null", 0).mount, u32::MAX];
        assert!(!OpenFile { mount: here, ..one }.is_of(&one), "the number of another device");
        assert!(!OpenFile { mount: elsewhere, ..one }.is_of(&one));
    }

    #[test]
    fn timers_parse() {
        let text = "ID: 3\nsignal: 10/00007ffe0000beef\nnotify: signal/tid.77\nClockID: 1\n\
                    ID: 4\nsignal: 0/0\nnotify: none/pid.5\nClockID: -6\n";
        let t = parse_timers(text).expect("parses");
        assert_eq!(t[0].notify, libc::SIGEV_SIGNAL | libc::SIGEV_THREAD_ID);
        assert_eq!((t[0].id, t[0].tid, t[0].value), (3, 77, 0x7ffe_0000_beef));
        assert_eq!((t[1].notify, t[1].clock), (libc::SIGEV_NONE, -6));
        assert!(parse_timers("signal: 3/0\n").is_none());
    }
}
