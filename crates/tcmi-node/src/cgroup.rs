//! Control groups that keep each guest within what its node's owner grants. Of both kinds of
//! hierarchy, where they are mounted and ours to divide.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::config::Grant;

/// Weight that a group has which was given none, and its value in the older kind of hierarchy.
const WEIGHT_DEFAULT: u64 = 100;
const SHARES_DEFAULT: u64 = 1024;
const SHARES_MIN: u64 = 2;
/// Threads of a guest that are none of the program's: the steward.
pub const THREADS_OF_OURS: u32 = 1;
/// Groups of one guest's pid that may be there already, from a daemon before us or another home.
const NAMESAKES_MAX: u32 = 64;
/// Where we go, as a group with groups in it may hold no process itself.
const DAEMON: &str = "tcmid";

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V1,
    V2,
}

/// Our own group in a hierarchy, by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    kind: Kind,
    dir: PathBuf,
}

/// Where guests' groups are made, and what is left of those that ended.
#[derive(Debug, Default)]
pub struct Groups {
    memory: Option<Place>,
    threads: Option<Place>,
    cpu: Option<Place>,
    /// Begins the name of each of our groups, and of no other daemon's.
    prefix: String,
    next: AtomicU32,
    left: Mutex<Vec<PathBuf>>,
}

/// The groups of one guest. Removed when dropped, or when the last process in them is gone.
pub struct Group<'a> {
    all: &'a Groups,
    made: Vec<PathBuf>,
    /// For the monitor, and what it begins.
    whole: Vec<PathBuf>,
    /// For the guest alone.
    guest: Option<PathBuf>,
    /// Tells how often the kernel killed for want of memory.
    events: Option<PathBuf>,
}

impl Groups {
    /// Looks what can be divided here. `prefix` is this daemon's alone; what a former run of it
    /// left is removed, if no process is in it.
    pub fn find(prefix: String) -> Self {
        let read = |path| {
            fs::read_to_string(path)
                .inspect_err(|e| tracing::info!("{path}: {e}"))
                .unwrap_or_default()
        };
        let places = places(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        let divided: Vec<(&str, Place)> =
            places.into_iter().filter(|(name, place)| is_ours(name, place)).collect();
        let of = |name: &str| divided.iter().find(|(n, _)| *n == name).map(|(_, p)| p.clone());
        let (memory, threads, cpu) = (of("memory"), of("pids"), of("cpu"));
        let next = AtomicU32::new(0);
        let groups = Self { memory, threads, cpu, prefix, next, left: Mutex::default() };
        groups.find_left();
        groups.sweep();
        groups
    }

    /// How each thing can be limited, for `node/features`.
    pub fn features(&self) -> [String; 3] {
        let by = |place: &Option<Place>, otherwise: &str| match place {
            Some(Place { kind: Kind::V1, .. }) => "cgroup1".to_owned(),
            Some(Place { kind: Kind::V2, .. }) => "cgroup2".to_owned(),
            None => otherwise.to_owned(),
        };
        [
            format!("limit-memory={}", by(&self.memory, "none")),
            format!("limit-threads={}", by(&self.threads, "rlimit")),
            format!("limit-cpu={}", by(&self.cpu, "none")),
        ]
    }

    pub fn limit_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// The groups of a guest, empty. Err: none is left.
    pub fn make(&self, pid: i32, grant: &Grant) -> io::Result<Group<'_>> {
        self.sweep();
        let mut group =
            Group { all: self, made: Vec::new(), whole: Vec::new(), guest: None, events: None };
        let mut dirs: Vec<(Kind, PathBuf)> = Vec::new();
        let mut at = |group: &mut Group, place: &Place| -> io::Result<PathBuf> {
            let known = dirs.iter().find(|(_, dir)| dir.parent() == Some(place.dir.as_path()));
            if let Some((_, dir)) = known {
                return Ok(dir.clone());
            }
            let dir = self.make_one(place, pid)?;
            group.made.push(dir.clone());
            dirs.push((place.kind, dir.clone()));
            Ok(dir)
        };
        if let (Some(place), Some(bytes)) = (&self.memory, grant.memory) {
            let dir = at(&mut group, place)?;
            group.events = Some(limit_memory(place.kind, &dir, bytes)?);
        }
        if let Some(place) = &self.cpu {
            let dir = at(&mut group, place)?;
            let (file, value) = weight(place.kind, grant.cpu_weight);
            put(&dir, file, value)?;
        }
        if let Some(place) = &self.threads {
            let dir = at(&mut group, place)?;
            let guest = match place.kind {
                Kind::V1 => dir,
                Kind::V2 => group.leaf(&dir, "guest")?,
            };
            put(&guest, "pids.max", u64::from(grant.threads + THREADS_OF_OURS))?;
            group.guest = Some(guest);
        }
        for (kind, dir) in dirs {
            match kind {
                Kind::V2 => {
                    let leaf = group.leaf(&dir, "monitor")?;
                    group.whole.push(leaf);
                }
                Kind::V1 if group.guest.as_ref() != Some(&dir) => group.whole.push(dir),
                Kind::V1 => {}
            }
        }
        Ok(group)
    }

    fn make_one(&self, place: &Place, pid: i32) -> io::Result<PathBuf> {
        for _ in 0..NAMESAKES_MAX {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let dir = place.dir.join(format!("{}{pid}-{n}", self.prefix));
            match fs::create_dir(&dir) {
                Ok(()) if place.kind == Kind::V1 => return Ok(dir),
                Ok(()) => {
                    // Of the controllers that are here; the limit itself is written later.
                    let on = fs::read_to_string(dir.join("cgroup.controllers"))?;
                    let pids = on.split_whitespace().any(|c| c == "pids");
                    if pids {
                        fs::write(dir.join("cgroup.subtree_control"), "+pids")?;
                    }
                    return Ok(dir);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(of(&dir, e)),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// What a run of this daemon before us left.
    fn find_left(&self) {
        let mut left = self.left.lock();
        for place in [&self.memory, &self.threads, &self.cpu].into_iter().flatten() {
            // One that cannot be listed has nothing of ours.
            for entry in fs::read_dir(&place.dir).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&self.prefix) {
                    left.push(entry.path());
                }
            }
        }
        left.sort();
        left.dedup();
    }

    /// Removes what is left and has no process any more.
    pub fn sweep(&self) {
        self.left.lock().retain(|dir| !is_removed(dir));
    }
}

impl Group<'_> {
    fn leaf(&mut self, dir: &Path, name: &str) -> io::Result<PathBuf> {
        let leaf = dir.join(name);
        fs::create_dir(&leaf).map_err(|e| of(&leaf, e))?;
        Ok(leaf)
    }

    /// Puts a process in, with what it will begin.
    pub fn hold(&self, pid: u32) -> io::Result<()> {
        self.whole.iter().try_for_each(|dir| put(dir, "cgroup.procs", u64::from(pid)))
    }

    /// Where the guest's own process is to be written to.
    pub fn guest(&self) -> io::Result<Option<File>> {
        let procs = self.guest.as_ref().map(|dir| dir.join("cgroup.procs"));
        procs.map(|path| OpenOptions::new().write(true).open(path)).transpose()
    }

    /// Where the kernel counts whom it killed for want of memory.
    pub fn events(&self) -> io::Result<Option<File>> {
        self.events.as_ref().map(File::open).transpose()
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let left = self.made.drain(..).filter(|dir| !is_removed(dir));
        // The last processes are on their way out.
        self.all.left.lock().extend(left);
    }
}

/// A group with its groups. One with a process in it stays.
fn is_removed(dir: &Path) -> bool {
    for leaf in ["guest", "monitor"] {
        // The group itself says what is left.
        fs::remove_dir(dir.join(leaf)).ok();
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn of(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn put(dir: &Path, file: &str, value: u64) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value.to_string()).map_err(|e| of(&path, e))
}

fn weight(kind: Kind, weight: u64) -> (&'static str, u64) {
    match kind {
        Kind::V1 => ("cpu.shares", (weight * SHARES_DEFAULT / WEIGHT_DEFAULT).max(SHARES_MIN)),
        Kind::V2 => ("cpu.weight", weight),
    }
}

/// Memory is what stands in it: no swap beside it. Gives the file that counts kills.
fn limit_memory(kind: Kind, dir: &Path, bytes: u64) -> io::Result<PathBuf> {
    let (limit, swap, swap_bytes, events) = match kind {
        Kind::V1 => {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes, "memory.oom_control")
        }
        Kind::V2 => ("memory.max", "memory.swap.max", 0, "memory.events"),
    };
    put(dir, limit, bytes)?;
    // Not on every kernel.
    if dir.join(swap).exists() {
        put(dir, swap, swap_bytes)?;
    }
    Ok(dir.join(events))
}

/// Our own group of each controller that is somewhere mounted. From /proc/self/{cgroup,mountinfo}.
fn places(own: &str, mounts: &str) -> Vec<(&'static str, Place)> {
    let own = |controller: &str| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            names.split(',').any(|name| name == controller).then_some(path)
        })
    };
    let mounted = mounts.lines().filter_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, at) = (before.next()?, before.next()?);
        let mut behind = behind.split(' ');
        Some((root, at, behind.next()?, behind.nth(1)?))
    });
    let mut found = Vec::new();
    for (root, at, kind, options) in mounted {
        // What the mount does not show is not to be reached by it.
        let dir = |path: &str| {
            let below = Path::new(path).strip_prefix(root).ok()?;
            Some(Path::new(at).join(below).components().collect::<PathBuf>())
        };
        for name in CONTROLLERS {
            let place = match kind {
                "cgroup" if options.split(',').any(|option| option == name) => {
                    own(name).and_then(dir).map(|dir| Place { kind: Kind::V1, dir })
                }
                "cgroup2" => own("").and_then(dir).map(|dir| Place { kind: Kind::V2, dir }),
                _ => None,
            };
            found.extend(place.map(|place| (name, place)));
        }
    }
    found
}

/// Whether we may make groups there that have the controller.
fn is_ours(controller: &str, place: &Place) -> bool {
    let tried = match place.kind {
        Kind::V1 => try_out(&place.dir),
        Kind::V2 => hand_down(controller, &place.dir).and_then(|()| try_out(&place.dir)),
    };
    if let Err(error) = &tried {
        tracing::debug!(controller, dir = %place.dir.display(), %error, "groups of guests");
    }
    tried.is_ok()
}

fn try_out(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!("tcmi-probe-{}", std::process::id()));
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

/// Has the groups below ours have the controller. We leave ours for that if we are alone in it.
fn hand_down(controller: &str, dir: &Path) -> io::Result<()> {
    let has = |file: &str| -> io::Result<bool> {
        let names = fs::read_to_string(dir.join(file))?;
        Ok(names.split_whitespace().any(|name| name == controller))
    };
    if !has("cgroup.controllers")? {
        return Err(io::ErrorKind::NotFound.into());
    }
    if has("cgroup.subtree_control")? {
        return Ok(());
    }
    let (hand, on) = (dir.join("cgroup.subtree_control"), format!("+{controller}"));
    if fs::write(&hand, &on).is_ok() {
        return Ok(());
    }
    let (leaf, us) = (dir.join(DAEMON), u64::from(std::process::id()));
    match fs::create_dir(&leaf) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => put(&leaf, "cgroup.procs", us)?,
    }
    fs::write(&hand, &on).or_else(|e| {
        put(dir, "cgroup.procs", us)?;
        fs::remove_dir(&leaf)?;
        Err(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /outer /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /tmp rw - tmpfs tmpfs rw,size=8k
";

    fn place(kind: Kind, dir: &str) -> Place {
        Place { kind, dir: dir.into() }
    }

    #[test]
    fn our_own_group_is_found_in_each_hierarchy() {
        let own = "5:cpu,cpuacct:/a\n4:memory:/outer/b\n8:pids:/\n0::/c/d\n";
        let found = places(own, MOUNTS);
        let v1 = |name, dir| (name, place(Kind::V1, dir));
        assert_eq!(found[0], v1("cpu", "/sys/fs/cgroup/cpu,cpuacct/a"));
        assert_eq!(found[1], v1("memory", "/sys/fs/cgroup/memory/b"));
        let rest: Vec<_> = found[2..].iter().map(|(name, p)| (*name, p.clone())).collect();
        let unified = || place(Kind::V2, "/sys/fs/cgroup/unified/c/d");
        assert_eq!(rest, CONTROLLERS.map(|name| (name, unified())));
    }

    #[test]
    fn a_group_that_its_mount_does_not_show_is_none() {
        assert_eq!(places("4:memory:/elsewhere\n", MOUNTS), []);
    }

    #[test]
    fn weights_are_those_of_the_kind() {
        assert_eq!(weight(Kind::V2, 20), ("cpu.weight", 20));
        assert_eq!(weight(Kind::V1, 100), ("cpu.shares", 1024));
        assert_eq!(weight(Kind::V1, 20), ("cpu.shares", 204));
        assert_eq!(weight(Kind::V1, 0), ("cpu.shares", SHARES_MIN));
    }
}
