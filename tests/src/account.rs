use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result, ensure};

/// More than an allocator keeps of a first move, which is no leak: 9.3 MiB of 400 threads, 6 of which
/// the third such move gave back. Leaks that are less are found by repetition, with few threads
/// (`Pair::expect_steady`).
const RESIDENT_SLACK_KIB: u64 = 32 * 1024;

/// From look to look. What an allocator scatters over its pages goes on for long, but is less.
const GROWTH_KIB: u64 = 64;

/// Whether resident memory grew from each look to the next, the same having been done before each.
pub fn is_leak(looks_kib: &[u64]) -> bool {
    looks_kib.windows(2).all(|looks| looks[1] > looks[0] + GROWTH_KIB)
}

/// What one node holds at a moment: the daemon, and the processes below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub descriptors: usize,
    pub threads: usize,
    pub descendants: usize,
    pub mounts: usize,
    pub resident_kib: u64,
}

impl Account {
    pub fn of(pid: u32) -> Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        Ok(Self {
            descriptors: entries(&proc.join("fd"))?,
            threads: entries(&proc.join("task"))?,
            descendants: descendants(pid)?.len(),
            mounts: mounts(&proc)?,
            resident_kib: status_kib(pid, "VmRSS")?,
        })
    }

    /// What is exact; memory is not.
    pub fn counts(&self) -> [usize; 4] {
        [self.descriptors, self.threads, self.descendants, self.mounts]
    }

    /// Err names what grew since `before`.
    pub fn no_more_than(&self, before: &Self) -> Result<()> {
        let counted = self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.descendants <= before.descendants
            && self.mounts <= before.mounts;
        let resident = self.resident_kib <= before.resident_kib + RESIDENT_SLACK_KIB;
        ensure!(counted && resident, "leak: before {before:?}, after {self:?}");
        Ok(())
    }
}

/// Mounts that are the daemon's: all in a namespace of its own, in ours those below its directory.
fn mounts(proc: &Path) -> Result<usize> {
    let all = fs::read_to_string(proc.join("mountinfo"))?;
    if fs::read_link(proc.join("ns/mnt"))? != fs::read_link("/proc/self/ns/mnt")? {
        return Ok(all.lines().count());
    }
    let arguments = fs::read(proc.join("cmdline"))?;
    let mut words = arguments.split(|b| *b == 0).skip_while(|word| *word != b"--ctlfs");
    let control = words.nth(1).and_then(|word| std::str::from_utf8(word).ok());
    let Some(directory) = control.and_then(|at| Path::new(at).parent()) else { return Ok(0) };
    let below =
        |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(directory));
    Ok(all.lines().filter(below).count())
}

fn entries(directory: &Path) -> Result<usize> {
    Ok(fs::read_dir(directory).with_context(|| directory.display().to_string())?.count())
}

/// A value of /proc/PID/status that is in KiB (VmRSS, VmHWM).
pub fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("{field} of {pid}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

struct Stat {
    parent: u32,
    cpu_ticks: u64,
    state: char,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold blanks and parentheses: the last one ends it.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

/// All live processes below `pid`.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Ok(other) = entry?.file_name().to_string_lossy().parse::<u32>() {
            // A process that ended since the listing has no stat.
            parents.extend(stat(other).filter(|s| s.state != 'Z').map(|s| (other, s.parent)));
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Of a process or thread that ended since it was listed there is nothing.
fn unless_gone(read: io::Result<Vec<u8>>) -> Result<Vec<u8>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(Vec::new()),
        read => Ok(read?),
    }
}

/// 'T' of one that is stopped, and so on; None once it is gone.
pub fn state(pid: u32) -> Option<char> {
    stat(pid).map(|s| s.state)
}

/// Of all threads of `pid`.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = unless_gone(fs::read(task?.path().join("children")))?;
        for child in String::from_utf8(text)?.split_whitespace() {
            all.push(child.parse()?);
        }
    }
    Ok(all)
}

/// Live processes that were started with `variable` in their environment, or are forks of such.
pub fn with_variable(variable: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Not ours, and perhaps not even root's to read.
        if pid == 1 {
            continue;
        }
        // That of a zombie is empty.
        let environment = unless_gone(fs::read(format!("/proc/{pid}/environ")))?;
        if environment.split(|b| *b == 0).any(|word| word == variable.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// User and system time of a process, in milliseconds; None once it is gone.
pub fn cpu_ms(pid: u32) -> Option<u64> {
    // USER_HZ is 100 for every process on x86-64.
    stat(pid).map(|s| s.cpu_ticks * 10)
}

/// Processor time of everything below `pid`, in milliseconds.
pub fn descendants_cpu_ms(pid: u32) -> Result<u64> {
    Ok(descendants(pid)?.into_iter().filter_map(cpu_ms).sum())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_grows_each_time_is_a_leak() {
        assert!(is_leak(&[9_000, 9_100, 9_200, 9_300, 9_400]));
        // As 400 threads were seen to have home hold.
        assert!(!is_leak(&[9_036, 10_212, 15_028, 14_992, 8_132]));
        assert!(!is_leak(&[6_708, 6_724, 6_796, 6_816, 6_824]));
    }

    #[test]
    fn a_descriptor_and_a_process_more_are_a_leak() -> Result<()> {
        // `cat` waits for its input: a process that another test cannot disturb.
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let account = Account::of(cat.id())?;
        assert!(account.no_more_than(&account).is_ok());
        let more = Account { descriptors: account.descriptors + 1, ..account.clone() };
        assert!(more.no_more_than(&account).is_err());
        let more = Account { descendants: account.descendants + 1, ..account.clone() };
        assert!(more.no_more_than(&account).is_err());
        let grown = account.resident_kib + RESIDENT_SLACK_KIB + 1;
        assert!(Account { resident_kib: grown, ..account.clone() }.no_more_than(&account).is_err());
        assert!(descendants(std::process::id())?.contains(&cat.id()));
        drop(cat.stdin.take());
        assert!(cat.wait()?.success());
        Ok(())
    }
}
