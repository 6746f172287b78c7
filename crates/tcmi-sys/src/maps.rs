//! /proc/PID/smaps as a list of mappings.

use crate::errno::{Errno, Result};
use crate::proc;

/// Device, as (major, minor), and inode of what a mapping shows, and whether that is System V memory:
/// of it the kernel shows another number in place of the inode.
pub type Object = ((u32, u32), u64, bool);
const SYSTEM_V: &str = "/SYSV";

/// One mapping as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
    pub shared: bool,
    pub offset: u64,
    /// st_dev of the file as (major, minor); (0, 0) for none.
    pub dev: (u32, u32),
    pub inode: u64,
    /// Path, or a kernel name such as `[heap]`; may end in ` (deleted)`.
    pub name: String,
    /// Two-letter flags of smaps' VmFlags.
    pub flags: Vec<[u8; 2]>,
    /// Resident bytes.
    pub rss: u64,
}

impl Mapping {
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
    pub fn prot(&self) -> i32 {
        let bit = |on: bool, b: i32| if on { b } else { 0 };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.exec, libc::PROT_EXEC)
    }
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
    pub fn object(&self) -> Object {
        (self.dev, self.inode, self.is_system_v())
    }
    /// Made by `shmat`.
    pub fn is_system_v(&self) -> bool {
        self.shared && self.name.starts_with(SYSTEM_V)
    }
}

/// Mappings of `pid`, lowest first, with VmFlags and resident sizes.
pub fn read(pid: i32) -> Result<Vec<Mapping>> {
    let text = std::fs::read(format!("/proc/{pid}/smaps"))
        .map_err(|e| Errno::from_io("read smaps", &e))?;
    parse(&text).ok_or(Errno::new("parse smaps", libc::EPROTO))
}

/// Mappings of `pid`, lowest first, without what only smaps tells: a tenth of the time.
pub fn read_short(pid: i32) -> Result<Vec<Mapping>> {
    let text =
        std::fs::read(format!("/proc/{pid}/maps")).map_err(|e| Errno::from_io("read maps", &e))?;
    parse(&text).ok_or(Errno::new("parse maps", libc::EPROTO))
}

/// Processes that have one of these mapped shared, as far as they can be looked at.
pub fn sharers(objects: &[Object]) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for pid in proc::pids()? {
        // One that has ended, or has no memory, maps nothing.
        let Ok(text) = std::fs::read(format!("/proc/{pid}/maps")) else { continue };
        let text = String::from_utf8_lossy(&text);
        if text.lines().filter_map(shared_object).any(|shared| objects.contains(&shared)) {
            all.push(pid);
        }
    }
    Ok(all)
}

/// All processes' maps are long: of a line of them only what is asked for.
fn shared_object(line: &str) -> Option<Object> {
    let mut fields = line.split(' ').skip(1);
    fields.next().filter(|perms| perms.ends_with('s'))?;
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let hex = |s| u32::from_str_radix(s, 16).ok();
    let inode = fields.next()?.parse().ok()?;
    let is_system_v = fields.find(|f| !f.is_empty()).is_some_and(|name| name.starts_with(SYSTEM_V));
    Some(((hex(major)?, hex(minor)?), inode, is_system_v))
}

/// Parses smaps (or maps, then without flags). None if it is not that.
pub fn parse(text: &[u8]) -> Option<Vec<Mapping>> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let first = line.split(|&b| b == b' ').next()?;
        if first.ends_with(b":") {
            let m = all.last_mut()?;
            let rest = std::str::from_utf8(&line[first.len()..]).ok()?;
            match first {
                b"VmFlags:" => {
                    m.flags = rest
                        .split_ascii_whitespace()
                        .map(|f| f.as_bytes().try_into().ok())
                        .collect::<Option<_>>()?;
                }
                b"Rss:" => {
                    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
                    m.rss = kib * 1024;
                }
                _ => {}
            }
        } else {
            all.push(header(line)?);
        }
    }
    Some(all)
}

fn header(line: &[u8]) -> Option<Mapping> {
    // "start-end perms offset major:minor inode      name"
    let line = String::from_utf8_lossy(line);
    let mut rest: &str = &line;
    let mut field = || {
        let t = rest.trim_start_matches(' ');
        let (f, r) = t.split_once(' ').unwrap_or((t, ""));
        rest = r;
        f
    };
    let (start, end) = field().split_once('-')?;
    let perms = field().as_bytes();
    let offset = field();
    let (major, minor) = field().split_once(':')?;
    let inode = field();
    let name = rest.trim_start_matches(' ').replace("\\012", "\n");
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        read: perms.first() == Some(&b'r'),
        write: perms.get(1) == Some(&b'w'),
        exec: perms.get(2) == Some(&b'x'),
        shared: perms.get(3) == Some(&b's'),
        offset: hex(offset)?,
        dev: (hex(major)? as u32, hex(minor)? as u32),
        inode: inode.parse().ok()?,
        name,
        flags: Vec::new(),
        rss: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_smaps_parse_and_cover_this_function() {
        let all = read(std::process::id() as i32).expect("own smaps");
        let here = own_smaps_parse_and_cover_this_function as *const () as u64;
        let m = all.iter().find(|m| m.start <= here && here < m.end).expect("code is mapped");
        assert!(m.exec && !m.write && m.has(b"ex"), "{m:?}");
        assert!(all.iter().any(|m| m.name == "[stack]" && m.has(b"gd")));
        assert!(all.windows(2).all(|w| w[0].end <= w[1].start));
    }

    #[test]
    fn names_with_blanks_and_rubbish() {
        let m = parse(b"1000-2000 r-xp 00001000 fe:02 77   /a b (deleted)\n").expect("a line");
        assert_eq!(m[0].name, "/a b (deleted)");
        assert_eq!((m[0].dev, m[0].inode, m[0].offset), ((0xfe, 2), 77, 0x1000));
        let file = shared_object("1000-2000 rw-s 00001000 fe:02 77   /a b");
        assert_eq!(file, Some(((0xfe, 2), 77, false)));
        let segment = shared_object("1000-2000 rw-s 00000000 00:01 77   /SYSV00000000 (deleted)");
        assert_eq!(segment, Some(((0, 1), 77, true)));
        assert_eq!(shared_object("1000-2000 rw-p 00001000 fe:02 77   /a b"), None);
        assert_eq!(parse(b"zz-2000 r-xp 0 0:0 0\n"), None);
        assert_eq!(parse(b"Rss: 3 kB\n"), None);
    }
}
