//! What a process has of its system, and what of it an image cannot hold.

use crate::error::{Error, Result};
use crate::state::{Credentials, Descriptor, Open, OpenFile, Pipe, Surroundings};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use tcmi_ckpt::birth::take_descriptor;
use tcmi_ckpt::{capture, sysv};
use tcmi_sys::maps::{self, Mapping};
use tcmi_sys::proc::{self, Status};

/// Namespaces that a restarted process has of who restarts it.
const NAMESPACES: [&str; 7] = ["mnt", "pid", "user", "net", "ipc", "uts", "time"];
/// Flags of an open file that say something when it is opened only.
const AT_OPEN_ONLY: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY;

/// Each thing of a process that its image could not hold.
pub fn obstacles(pid: i32) -> Result<Vec<String>> {
    let mut all = Look::of(pid)?.reasons;
    all.extend(of_process(pid)?);
    all.extend(of_mappings(&maps::read(pid)?));
    Ok(all)
}

pub fn of_mappings(maps: &[Mapping]) -> Vec<String> {
    let obstacle = |m: &Mapping| {
        let at = format!("{:x}-{:x} {}", m.start, m.end, m.name);
        match m {
            m if sysv::is_segment(m) => Some(format!("System V memory ({at})")),
            m if capture::is_live(m) => Some(format!("a file mapped shared to be written ({at})")),
            _ => None,
        }
    };
    maps.iter().filter_map(obstacle).collect()
}

fn of_process(pid: i32) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for tid in proc::tids(pid)? {
        let path = format!("/proc/{pid}/task/{tid}/children");
        let children = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut children = children.split_ascii_whitespace().filter_map(|c| c.parse().ok());
        if let Some(child) = children.find(|child| !is_what_is_left_of_a_copy(*child)) {
            all.push(format!("a child, process {child}: trees are not saved yet"));
        }
    }
    for name in NAMESPACES {
        let theirs = link(format!("/proc/{pid}/ns/{name}"))?;
        if theirs != link(format!("/proc/self/ns/{name}"))? {
            all.push(format!("a namespace of its own ({theirs})"));
        }
    }
    let root = link(format!("/proc/{pid}/root"))?;
    if root != "/" {
        all.push(format!("a root directory of its own ({root})"));
    }
    if proc::status(pid)?.ambient_capabilities != 0 {
        all.push("ambient capabilities".to_owned());
    }
    Ok(all)
}

/// Of a [`tcmi_ckpt::snapshot::Snapshot`] whose daemon was killed: a zombie that told nobody.
fn is_what_is_left_of_a_copy(child: i32) -> bool {
    proc::status(child).is_ok_and(|s| s.state == 'Z') && proc::exit_signal(child) == Ok(0)
}

fn link(path: String) -> Result<String> {
    let target = fs::read_link(&path).map_err(Error::io(path))?;
    Ok(target.to_string_lossy().into_owned())
}

/// What only the process itself can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub death_signal: i32,
    pub is_subreaper: bool,
    pub dumpable: bool,
}

/// Of a held process. Err (unsupported) names each thing that cannot be kept.
pub fn surroundings(pid: i32, settings: Settings) -> Result<Surroundings> {
    let look = Look::of(pid)?;
    let reasons = [look.reasons, of_process(pid)?].concat();
    if !reasons.is_empty() {
        return Err(Error::Unsupported(reasons));
    }
    let status = proc::status(pid)?;
    let cwd = link(format!("/proc/{pid}/cwd"))?;
    if fs::metadata(&cwd).map(|m| (m.dev(), m.ino())).ok() != identity(&format!("/proc/{pid}/cwd"))
    {
        return Err(Error::Unsupported(vec![format!("a directory that is gone ({cwd})")]));
    }
    Ok(Surroundings {
        cwd,
        umask: status.umask,
        credentials: credentials(status, settings.dumpable),
        death_signal: settings.death_signal,
        is_subreaper: settings.is_subreaper,
        opens: look.opens,
        pipes: look.pipes.into_iter().map(|(_, pipe)| pipe).collect(),
        descriptors: look.descriptors,
    })
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).map(|m| (m.dev(), m.ino())).ok()
}

fn credentials(status: Status, dumpable: bool) -> Credentials {
    let three = |[real, effective, saved, _]: [u32; 4]| [real, effective, saved];
    Credentials {
        uids: three(status.uid),
        gids: three(status.gid),
        groups: status.groups,
        capabilities: [
            status.inheritable_capabilities,
            status.permitted_capabilities,
            status.effective_capabilities,
            status.bounding_capabilities,
        ],
        no_new_privileges: status.no_new_privileges,
        dumpable,
    }
}

/// A look at all descriptors of a process.
struct Look {
    pid: i32,
    targets: Vec<(i32, String)>,
    opens: Vec<Open>,
    /// With their inodes.
    pipes: Vec<(u64, Pipe)>,
    descriptors: Vec<Descriptor>,
    reasons: Vec<String>,
}

/// A descriptor's /proc/PID/fdinfo.
struct Info(String);

impl Info {
    fn value(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }
    fn number(&self, key: &str) -> std::result::Result<u64, String> {
        let number = self.value(key).and_then(|v| v.parse().ok());
        number.ok_or_else(|| format!("a file of which this kernel does not tell its {key}"))
    }
    fn flags(&self) -> i32 {
        self.value("flags").and_then(|v| i32::from_str_radix(v, 8).ok()).unwrap_or(0)
    }
    /// Those of the open file.
    fn open_flags(&self) -> i32 {
        self.flags() & !(libc::O_CLOEXEC | AT_OPEN_ONLY)
    }
    /// `(SECONDS, NANOSECONDS)`
    fn time(&self, key: &str) -> std::result::Result<i64, String> {
        let pair = self.value(key).and_then(|v| v.strip_prefix('(')?.strip_suffix(')'));
        let pair = pair.and_then(|v| v.split_once(','));
        let time = pair.and_then(|(s, ns)| {
            let (s, ns): (i64, i64) = (s.trim().parse().ok()?, ns.trim().parse().ok()?);
            s.checked_mul(1_000_000_000)?.checked_add(ns)
        });
        time.ok_or_else(|| "a timer of which this kernel does not tell its time".to_owned())
    }
}

impl Look {
    fn of(pid: i32) -> Result<Self> {
        let targets = proc::descriptors(pid)?;
        let (opens, pipes, descriptors, reasons) = Default::default();
        let mut look = Self { pid, targets, opens, pipes, descriptors, reasons };
        for i in 0..look.targets.len() {
            look.descriptor(i);
        }
        Ok(look)
    }

    fn descriptor(&mut self, i: usize) {
        let (fd, target) = self.targets[i].clone();
        // One that a running process has closed meanwhile is none.
        let Ok(info) = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.pid)) else {
            return;
        };
        let info = Info(info);
        let same = self.descriptors.iter().find(|d| {
            let known = self.targets.iter().any(|(n, t)| *n == d.fd && *t == target);
            known && proc::is_same_open((self.pid, d.fd), (self.pid, fd))
        });
        let open = match same.map(|d| d.open) {
            Some(open) => open,
            None => match self.open(fd, &target, &info) {
                Ok(open) => {
                    self.opens.push(open);
                    self.opens.len() as u32 - 1
                }
                Err(why) => return self.reasons.push(format!("{why} (descriptor {fd})")),
            },
        };
        let close_on_exec = info.flags() & libc::O_CLOEXEC != 0;
        self.descriptors.push(Descriptor { fd, open, close_on_exec });
    }

    /// Err: why it cannot be kept.
    fn open(&mut self, fd: i32, target: &str, info: &Info) -> std::result::Result<Open, String> {
        let file = fs::metadata(format!("/proc/{}/fd/{fd}", self.pid));
        let file = file.map_err(|e| format!("{target}, which cannot be looked at: {e}"))?;
        let kind = file.file_type();
        let flags = info.open_flags();
        if info.value("lock").is_some() {
            return Err(format!("a lock on {target}"));
        }
        if kind.is_fifo() {
            return self.pipe(fd, target, &file, flags);
        }
        if kind.is_socket() {
            return self.standard(fd, "a socket");
        }
        if kind.is_char_device() {
            return self.device(fd, target, &file, flags);
        }
        if let Some(object) = target.strip_prefix("anon_inode:") {
            return object_of(object, info);
        }
        if identity(target) != Some((file.dev(), file.ino())) {
            return Err(format!("a file that its name does not lead to any more, {target}"));
        }
        let is_of_kernel = target.starts_with("/proc/") || target.starts_with("/sys/");
        let is_of_process = target.starts_with(&format!("/proc/{}/", self.pid));
        let is_read = flags & libc::O_ACCMODE == libc::O_RDONLY;
        if is_of_process || (is_of_kernel && !is_read) {
            return Err(format!("a file of the kernel, {target}"));
        }
        let (path, position) = (target.to_owned(), info.number("pos")?);
        if kind.is_dir() || is_of_kernel {
            return Ok(Open::Named { path, flags, position });
        }
        if !kind.is_file() {
            return Err(format!("a device, {target}"));
        }
        let modified = (file.mtime(), file.mtime_nsec());
        Ok(Open::File { file: OpenFile { path, flags, position, size: file.size(), modified } })
    }

    fn standard(&self, fd: i32, what: &str) -> std::result::Result<Open, String> {
        match fd {
            0..3 => Ok(Open::Standard { fd }),
            _ => Err(what.to_owned()),
        }
    }

    fn device(
        &self,
        fd: i32,
        target: &str,
        file: &Metadata,
        flags: i32,
    ) -> std::result::Result<Open, String> {
        const TTY: (u32, u32) = (5, 0);
        let number = |file: &Metadata| (libc::major(file.rdev()), libc::minor(file.rdev()));
        match number(file) {
            (1, 3 | 5 | 7 | 8 | 9) => Ok(Open::Device { path: target.to_owned(), flags }),
            it @ (4 | 5 | 136..144, _) => {
                // Of several opens of one terminal each becomes that of who restarts it.
                let is_it = |n: &i32| {
                    let other = fs::metadata(format!("/proc/{}/fd/{n}", self.pid));
                    other.is_ok_and(|f| {
                        let is_terminal = matches!(number(&f).0, 4 | 136..144);
                        f.file_type().is_char_device()
                            && is_terminal
                            && (it == TTY || number(&f) == it)
                    })
                };
                match (0..3).find(is_it) {
                    Some(fd) => Ok(Open::Standard { fd }),
                    None => self.standard(fd, &format!("a terminal, {target}")),
                }
            }
            _ => Err(format!("a device, {target}")),
        }
    }

    fn pipe(
        &mut self,
        fd: i32,
        target: &str,
        file: &Metadata,
        flags: i32,
    ) -> std::result::Result<Open, String> {
        let inode = file.ino();
        if !target.starts_with("pipe:") {
            return self.standard(fd, &format!("a named pipe, {target}"));
        }
        if let Some(pipe) = self.pipes.iter().position(|(known, _)| *known == inode) {
            return Ok(Open::Pipe { pipe: pipe as u32, flags });
        }
        if let Some(other) = self.holder_beside(target)? {
            return self.standard(fd, &format!("a pipe to process {other}"));
        }
        if flags & libc::O_DIRECT != 0 {
            return Err("a pipe of packets".to_owned());
        }
        let content = self.content(target).map_err(|e| format!("a pipe: {e}"))?;
        self.pipes.push((inode, content));
        Ok(Open::Pipe { pipe: self.pipes.len() as u32 - 1, flags })
    }

    fn holder_beside(&self, target: &str) -> std::result::Result<Option<i32>, String> {
        let all =
            proc::pids().map_err(|e| format!("a pipe of which nobody can tell who has it: {e}"))?;
        let has = |pid: &i32| {
            // One that has ended meanwhile has none.
            proc::descriptors(*pid).is_ok_and(|all| all.iter().any(|(_, t)| t == target))
        };
        Ok(all.into_iter().filter(|pid| *pid != self.pid).find(has))
    }

    /// What is in a pipe stays there. Without an end to read there is nothing in it to be read.
    fn content(&self, target: &str) -> Result<Pipe> {
        let io = |e: rustix::io::Errno| Error::io("look into a pipe")(e.into());
        let ends = self.targets.iter().filter(|(_, t)| t == target);
        let (mut capacity, mut bytes) = (0, Vec::new());
        for (fd, _) in ends {
            let end = take_descriptor(self.pid, *fd)?;
            capacity = rustix::pipe::fcntl_getpipe_size(&end).map_err(io)?;
            let flags = rustix::fs::fcntl_getfl(&end).map_err(io)?;
            if flags & rustix::fs::OFlags::RWMODE != rustix::fs::OFlags::RDONLY {
                continue;
            }
            let (ours, copy) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
            rustix::pipe::fcntl_setpipe_size(&copy, capacity).map_err(io)?;
            match rustix::pipe::tee(&end, &copy, capacity, SpliceFlags::NONBLOCK) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(e) => return Err(io(e)),
            }
            drop(copy);
            fs::File::from(ours).read_to_end(&mut bytes).map_err(Error::io("read a pipe"))?;
            break;
        }
        Ok(Pipe { capacity: capacity as u32, bytes })
    }
}

/// What stands behind `anon_inode:`.
fn object_of(object: &str, info: &Info) -> std::result::Result<Open, String> {
    let flags = info.open_flags() & libc::O_NONBLOCK;
    match object {
        "[eventfd]" => {
            let count = info.value("eventfd-count");
            let count = count.and_then(|v| u64::from_str_radix(v, 16).ok());
            let count = count.ok_or("an eventfd of which this kernel does not tell its count")?;
            let semaphore = info.number("eventfd-semaphore")? != 0;
            Ok(Open::Event { count, semaphore, flags })
        }
        "[timerfd]" => Ok(Open::Timer {
            clock: info.number("clockid")? as i32,
            flags,
            ticks: info.number("ticks")?,
            value: info.time("it_value")?,
            interval: info.time("it_interval")?,
        }),
        "[signalfd]" => {
            let mask = info.value("sigmask").and_then(|v| u64::from_str_radix(v, 16).ok());
            let mask = mask.ok_or("a signalfd of which this kernel does not tell its mask")?;
            Ok(Open::Signals { mask, flags })
        }
        "[eventpoll]" => {
            let lines = info.0.lines().filter(|l| l.starts_with("tfd:"));
            let watches: Option<_> = lines.map(watch).collect();
            let watches = watches.ok_or("an epoll of which this kernel does not tell all")?;
            Ok(Open::Epoll { flags, watches })
        }
        other => Err(format!("a kernel object, {other}")),
    }
}

/// `tfd: 4 events: 19 data: 4 pos:0 ino:61 sdev:9`
fn watch(line: &str) -> Option<(i32, u32, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        ["tfd:", fd, "events:", events, "data:", data, ..] => Some((
            fd.parse().ok()?,
            u32::from_str_radix(events, 16).ok()?,
            u64::from_str_radix(data, 16).ok()?,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_objects_is_read() {
        let line = "tfd:        4 events:       19 data:         beef  pos:0 ino:61 sdev:9";
        assert_eq!(watch(line), Some((4, 0x19, 0xbeef)));
        assert_eq!(watch("tfd: 4"), None);
        let info = Info("flags:\t02000002\nit_value: (1, 500)\nit_interval: (0, 0)\n".to_owned());
        assert_eq!((info.time("it_value"), info.time("it_interval")), (Ok(1_000_000_500), Ok(0)));
        assert_eq!((info.flags(), info.open_flags()), (0o2000002, libc::O_RDWR));
        let event = Info("flags: 04002\neventfd-count:                2\n".to_owned());
        assert!(object_of("[eventfd]", &event).is_err(), "an older kernel tells less");
    }
}
