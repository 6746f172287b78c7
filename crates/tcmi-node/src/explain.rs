//! May a process move, and what would stay home?

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tcmi_ckpt::capture;
use tcmi_ckpt::copies;
use tcmi_ckpt::devices::Device;
use tcmi_ckpt::{signalfds, sysv};
use tcmi_core::command::{NOT_IN_IMAGES, Pid};
use tcmi_core::error::MigrateError;
use tcmi_core::limits::TREE_PROCESSES_MAX;
use tcmi_sys::maps::Mapping;
use tcmi_sys::proc::{self, Status};
use tcmi_sys::{Errno, maps};

use crate::config::{Rule, Rules};

const SAME: &str = "null, zero and random devices";
const READ: &str = "files that it reads";

/// A process that exists and that a caller may look at.
pub struct Examined {
    pub pid: Pid,
    pub status: Status,
    /// Each thing that stops a move.
    pub obstacles: Vec<String>,
}

/// Which processes may share memory with one that moves.
#[derive(Clone, Copy, Debug)]
pub enum Sharers<'a> {
    /// Those that move with it.
    Among(&'a [i32]),
    /// It is looked for when all of them are held.
    Later,
}

/// Looks at `pid` for a caller with `uid`. Err: no such process, or not the caller's.
pub fn examine(pid: Pid, uid: u32, away: bool, sharers: Sharers) -> Result<Examined, MigrateError> {
    let gone = |_: Errno| MigrateError::NoSuchProcess(pid);
    let status = proc::status(pid.raw()).map_err(gone)?;
    if status.tgid != pid.raw() || matches!(status.state, 'Z' | 'X') {
        return Err(MigrateError::NoSuchProcess(pid));
    }
    // With more rights than his it is not his, as for ptrace.
    let of_another = status.uid[..3].iter().any(|&owner| owner != uid);
    if uid != 0 && (of_another || proc::has_gained_rights(pid.raw()).map_err(gone)?) {
        return Err(MigrateError::NotYours(pid));
    }
    let obstacles = obstacles(pid, &status, away, sharers).map_err(gone)?;
    Ok(Examined { pid, status, obstacles })
}

fn obstacles(pid: Pid, s: &Status, away: bool, sharers: Sharers) -> Result<Vec<String>, Errno> {
    let n = pid.raw();
    let mut all: Vec<String> = Vec::new();
    if s.kernel_thread {
        return Ok(vec!["a kernel thread".to_owned()]);
    }
    if n == 1 {
        return Ok(vec!["the init of the system".to_owned()]);
    }
    if n == std::process::id() as i32 {
        return Ok(vec!["the daemon that would move it".to_owned()]);
    }
    if away {
        return Ok(all);
    }
    if s.tracer != 0 && !is_ours(s.tracer) {
        all.push(format!("traced by process {}", s.tracer));
    }
    if s.seccomp != 0 {
        all.push("a seccomp filter of its own".to_owned());
    }
    let name = proc::exe(n).map(|p| p.to_string_lossy().into_owned());
    if name.as_deref().is_ok_and(|n| n.ends_with("/tcmid")) {
        all.push("a node's daemon".to_owned());
    }
    if !proc::is_elf64(n)? {
        all.push("a 32-bit program".to_owned());
    }
    let (shared, mapped): (Vec<Mapping>, Vec<Mapping>) =
        maps::read(n)?.into_iter().partition(capture::is_shared_at_home);
    all.extend(strangers(n, &shared, sharers));
    all.extend(mapped.iter().filter_map(capture::obstacle));
    all.extend(sharers_of_files(n, &mapped, sharers)?);
    for (fd, target) in proc::descriptors(n)? {
        if let Some(what) = unmovable(&target) {
            all.push(format!("{what} (descriptor {fd})"));
        }
    }
    if let Err(tcmi_ckpt::Error::Unsupported(why)) = signalfds::of(n) {
        all.push(why);
    }
    Ok(all)
}

/// Whom a process shares memory with that would not move with it.
fn strangers(pid: i32, shared: &[Mapping], sharers: Sharers) -> Option<String> {
    let Sharers::Among(along) = sharers else { return None };
    if shared.is_empty() {
        return None;
    }
    if along.is_empty()
        && let Some(why) =
            shared.iter().filter(|m| sysv::is_segment(m)).find_map(|m| sysv::obstacle(pid, m))
    {
        return Some(why);
    }
    let objects: Vec<_> = shared.iter().map(Mapping::object).collect();
    let all = match maps::sharers(&objects) {
        Ok(all) => all,
        Err(e) => return Some(format!("shared memory, whose sharers are not known: {e}")),
    };
    let others = all.into_iter().filter(|p| *p != pid && !along.contains(p));
    let list: Vec<String> = others.map(|p| p.to_string()).collect();
    let list = list.join(" ");
    let why =
        format!("shared memory, which process {list} has, too: as one tree they move together");
    (!list.is_empty()).then_some(why)
}

/// The same of files that it may write to by their mappings.
fn sharers_of_files(pid: i32, mapped: &[Mapping], sharers: Sharers) -> Result<Vec<String>, Errno> {
    let Sharers::Among(along) = sharers else { return Ok(Vec::new()) };
    let mut live: Vec<_> = mapped.iter().filter(|m| capture::is_live(m)).collect();
    live.sort_by_key(|m| (m.object(), m.start));
    live.dedup_by_key(|m| m.object());
    let unknown = |_| Errno::new("who maps it", libc::EIO);
    let sharer = |m: &Mapping| capture::sharer_of(pid, m, along).map_err(unknown).transpose();
    live.into_iter().filter_map(sharer).collect()
}

/// Whether one of our threads traces it: the one that asks.
fn is_ours(tracer: i32) -> bool {
    Path::new(&format!("/proc/self/task/{tracer}")).exists()
}

fn unmovable(target: &str) -> Option<&'static str> {
    match target {
        "anon_inode:[io_uring]" => Some("an io_uring"),
        "anon_inode:[userfaultfd]" => Some("a userfaultfd"),
        "anon_inode:[perf_event]" => Some("a performance counter"),
        "anon_inode:kvm-vm" | "anon_inode:kvm-vcpu:0" => Some("a virtual machine"),
        _ => None,
    }
}

/// Features of the CPU here that a node lacks.
pub fn lacking(ours: &[String], theirs: &[String]) -> Vec<String> {
    ours.iter()
        .filter(|f| f.starts_with("cpu=") && !theirs.contains(f))
        .map(|f| format!("the node's CPU lacks {}", &f["cpu=".len()..]))
        .collect()
}

fn under(rule: Rule, what: &str) -> String {
    let text = match rule {
        Rule::Gr => "stays home (GR)",
        Rule::Cp => "copied by content (CP)",
        Rule::Mv => "moves with it (MV)",
        Rule::Rb => "the node's own (RB)",
    };
    format!("{text}: {what}\n")
}

/// Lines for people about `head` and all processes below it.
pub fn tree_text(
    head: Examined,
    node: Option<(&str, Vec<String>)>,
    uid: u32,
    is_away: &dyn Fn(Pid) -> bool,
) -> Result<String, MigrateError> {
    let head_pid = head.pid.raw();
    let below =
        proc::descendants(&[head.pid.raw()]).map_err(|_| MigrateError::NoSuchProcess(head.pid))?;
    let title = head.title();
    let mut all = Vec::new();
    let along = [vec![head_pid], below].concat();
    let sharers = Sharers::Among(&along);
    for pid in along.iter().copied().filter_map(Pid::new) {
        match examine(pid, uid, is_away(pid), sharers) {
            Ok(mut examined) => {
                if is_away(pid) {
                    examined.obstacles.push("it is away already".to_owned());
                }
                all.push(examined);
            }
            Err(MigrateError::NoSuchProcess(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let too_many = all.len() > TREE_PROCESSES_MAX;
    let too_many = too_many.then(|| format!("it has more than {TREE_PROCESSES_MAX} processes"));
    let (name, lacking) =
        node.map_or((String::new(), Vec::new()), |(n, l)| (format!(" to {n}"), l));
    let stops: Vec<String> = all
        .iter()
        .flat_map(|e| {
            let who = format!("process {} ({})", e.pid, e.status.name);
            e.obstacles.iter().map(move |o| format!("{who}: {o}"))
        })
        .chain(lacking)
        .chain(too_many)
        .collect();
    let may = if stops.is_empty() { "yes" } else { "no" };
    let mut text = format!("{title}tree of {} processes\nmay move{name}: {may}\n", all.len());
    stops.iter().for_each(|o| text += &format!("stopped by: {o}\n"));
    let rss: u64 = all.iter().map(|e| e.status.rss).sum();
    text += &format!("memory to send: at most {} KiB\n", rss / 1024);
    Ok(text)
}

impl Examined {
    pub fn refusal(self) -> Result<Self, MigrateError> {
        match self.obstacles.is_empty() {
            true => Ok(self),
            false => Err(MigrateError::Unsupported { pid: self.pid, reasons: self.obstacles }),
        }
    }

    /// Lines for people.
    pub fn text(&self, node: Option<(&str, Vec<String>)>, rules: &Rules) -> String {
        let mut text = self.title();
        let lacking = node.as_ref().map_or(&[][..], |(_, l)| l);
        let whereto = node.as_ref().map_or(String::new(), |(n, _)| format!(" to {n}"));
        let stops: Vec<&String> = self.obstacles.iter().chain(lacking).collect();
        if stops.is_empty() {
            text += &format!("may move{whereto}: yes\n");
        } else {
            text += &format!("may move{whereto}: no\n");
            stops.iter().for_each(|o| text += &format!("stopped by: {o}\n"));
        }
        text += &format!("memory to send: at most {} KiB\n", self.status.rss / 1024);
        text +=
            "stays home: its pid, parent, children, session, terminal, credentials, cwd, umask\n";
        for (kind, numbers) in self.descriptors(&rules.copied) {
            let list: Vec<String> = numbers.iter().map(i32::to_string).collect();
            let rule = match kind {
                SAME => rules.devices,
                READ => Rule::Cp,
                _ => rules.files,
            };
            text += &under(rule, &format!("{kind}, descriptors {}", list.join(" ")));
        }
        for (rule, what, places) in [
            (Rule::Cp, "files that it opens to read", &rules.copied),
            (Rule::Mv, "files that it makes or empties to write", &rules.moved),
        ] {
            if !places.is_empty() {
                text += &under(rule, &format!("{what} in {}", places.join(" ")));
            }
        }
        text += &under(rules.mapped_files, "mapped files");
        text += &under(rules.processors, "numbers of processors");
        text += "comes home for a moment: fork, exec\n";
        let others = tcmi_image::look::obstacles(self.pid.raw());
        let others = others.unwrap_or_else(|error| vec![error.to_string()]);
        let reasons = self.obstacles.iter().chain(&others);
        text + &reasons.map(|why| format!("{NOT_IN_IMAGES}{why}\n")).collect::<String>()
    }

    pub fn text_of_away(&self) -> String {
        self.title() + "may move: no\nstopped by: it is away; it has to come home first\n"
    }

    fn title(&self) -> String {
        let Status { name, threads, .. } = &self.status;
        format!("process {} ({name}), {threads} threads\n", self.pid)
    }

    fn is_same_everywhere(&self, fd: i32) -> bool {
        let file = fs::metadata(format!("/proc/{}/fd/{fd}", self.pid));
        file.is_ok_and(|file| Device::of(file.mode(), file.rdev()).is_some())
    }

    fn descriptors(&self, copied: &[String]) -> BTreeMap<&'static str, Vec<i32>> {
        let read = copies::open_in(self.pid.raw(), copied).unwrap_or_default();
        let is_read = |fd| read.iter().any(|copy| copy.fd == fd);
        let mut kinds: BTreeMap<&'static str, Vec<i32>> = BTreeMap::new();
        // A process that ended meanwhile has none.
        for (fd, target) in proc::descriptors(self.pid.raw()).unwrap_or_else(|_| Vec::new()) {
            let kind = match target.split_once(':') {
                Some(("socket", _)) => "sockets",
                Some(("pipe", _)) => "pipes",
                Some(("anon_inode", _)) => "kernel objects",
                _ if self.is_same_everywhere(fd) => SAME,
                _ if is_read(fd) => READ,
                _ if target.starts_with("/dev/pts/") || target == "/dev/tty" => "terminals",
                _ if target.starts_with("/dev/") => "devices",
                _ => "files",
            };
            kinds.entry(kind).or_default().push(fd);
        }
        kinds
    }
}
