//! Texts of /proc that are partly the guest's and partly home's: what its node makes ready of them,
//! and what comes of that where it is shown.

use tcmi_ckpt::usage::{TICK_NS, Usage};

use super::Names;
use crate::mapping::MappedFiles;

/// Before a line of maps whose file is what home has mapped there, if it has.
const OPEN: char = '?';
/// In stat, from behind the name: what home counts, too.
const COUNTED: [usize; 4] = [7, 9, 11, 12];

/// What is mapped in the guest.
pub(super) struct Known<'a> {
    pub(super) names: &'a Names,
    pub(super) mapped: &'a MappedFiles,
}

/// One line of maps: addresses, rights, offset, device, inode, and what is behind that.
struct Line<'a> {
    start: u64,
    end: u64,
    rights: &'a str,
    offset: u64,
    dev: (u32, u32),
    inode: u64,
    name: &'a str,
}

fn line(text: &str) -> Option<Line<'_>> {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut words = text.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let (rights, offset) = (words.next()?, words.next()?);
    let (major, minor) = words.next()?.split_once(':')?;
    let dev = (hex(major)? as u32, hex(minor)? as u32);
    let inode = words.next()?.parse().ok()?;
    let name = words.next().unwrap_or_default().trim_start();
    Some(Line {
        start: hex(start)?,
        end: hex(end)?,
        rights,
        offset: hex(offset)?,
        dev,
        inode,
        name,
    })
}

/// The guest's mappings, with the files at home that we know them to be of.
pub(super) fn named(known: &Known<'_>, text: &str) -> String {
    each_line(text, |whole| match line(whole) {
        Some(l) if l.inode != 0 => Some(known.name(&l)),
        _ => None,
    })
}

/// Those with the files that the shadow has there.
pub(super) fn placed(guests: &str, home: &str) -> String {
    let home: Vec<Line<'_>> = home.lines().filter_map(line).filter(|l| l.inode != 0).collect();
    each_line(guests, |whole| {
        let whole = whole.strip_prefix(OPEN)?;
        let at_home = line(whole).and_then(|l| {
            let h = home.iter().find(|h| (h.start..h.end).contains(&l.start))?;
            Some(shape(&l, h.offset + (l.start - h.start), h.dev, h.inode, h.name))
        });
        Some(at_home.unwrap_or_else(|| whole.to_owned()))
    })
}

/// None: the line stays as it is.
fn each_line(text: &str, other: impl Fn(&str) -> Option<String>) -> String {
    let mut all = String::with_capacity(text.len());
    for line in text.lines() {
        match other(line) {
            Some(other) => all += &other,
            None => all += line,
        }
        all.push('\n');
    }
    all
}

impl Known<'_> {
    fn name(&self, l: &Line<'_>) -> String {
        if let Some((file, from)) = self.names.get(&(l.dev.0, l.dev.1, l.inode)) {
            let dev = ((file.dev >> 32) as u32, file.dev as u32);
            return shape(l, l.offset + from, dev, file.inode, &file.path);
        }
        let named = match self.mapped.get(l.inode) {
            Some(file) => {
                let dev = (libc::major(file.dev), libc::minor(file.dev));
                shape(l, l.offset + file.offset, dev, file.ino, &file.name)
            }
            // The page that the guest shares with us.
            None => shape(l, 0, (0, 0), 0, ""),
        };
        format!("{OPEN}{named}")
    }
}

/// As the kernel pads it.
fn shape(l: &Line<'_>, offset: u64, (major, minor): (u32, u32), inode: u64, name: &str) -> String {
    let Line { start, end, rights, .. } = l;
    let head =
        format!("{start:08x}-{end:08x} {rights} {offset:08x} {major:02x}:{minor:02x} {inode}");
    if name.is_empty() { head + " " } else { format!("{head:<72} {name}") }
}

/// Memory, signals and processors are the guest's.
pub(super) fn status(ours: &str, home: &str, is_caller: bool) -> String {
    const OURS: [&str; 9] =
        ["Vm", "Rss", "Hugetlb", "SigPnd", "SigBlk", "SigIgn", "SigCgt", "ShdPnd", "Cpus_allowed"];
    let is_ours = |line: &&str| OURS.iter().any(|name| line.starts_with(name));
    let of = |key: &str| ours.lines().find(|l| l.split(':').next() == Some(key));
    let mut text = String::with_capacity(home.len());
    for line in home.lines() {
        let key = line.split(':').next().unwrap_or_default();
        let line = match key {
            // Our own.
            "TracerPid" => "TracerPid:\t0",
            "State" if !is_caller => of(key).unwrap_or(line),
            _ if is_ours(&line) => of(key).unwrap_or(line),
            _ => line,
        };
        text += line;
        text.push('\n');
    }
    text
}

/// The name, and what is behind it.
fn fields(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (head, rest) = stat.trim_end().rsplit_once(") ")?;
    Some((head, rest.split(' ').collect()))
}

/// The guest's stat, with what it has used in place of what its kernel counts.
pub(super) fn counted(text: &str, used: &Usage) -> Option<String> {
    let (head, fields) = fields(text)?;
    let used = [used.minor_faults, used.major_faults, used.user / TICK_NS, used.system / TICK_NS];
    let mut fields: Vec<String> = fields.into_iter().map(str::to_owned).collect();
    for (at, used) in COUNTED.into_iter().zip(used) {
        *fields.get_mut(at)? = used.to_string();
    }
    Some(format!("{head}) {}\n", fields.join(" ")))
}

/// What the kernel shows of a stat to those who may not look into the process.
pub(super) fn public(text: &str) -> Option<String> {
    let (head, mut fields) = fields(text)?;
    for (at, field) in fields.iter_mut().enumerate() {
        match at {
            23 | 24 => *field = "1",
            25..=27 | 42.. => *field = "0",
            _ => {}
        }
    }
    Some(format!("{head}) {}\n", fields.join(" ")))
}

/// Memory, signals and the processor are the guest's, what is counted is added up.
pub(super) fn stat(ours: &str, home: &str, is_caller: bool) -> String {
    let is_ours = |n: usize| match n {
        0 => !is_caller,
        20 | 21 | 36 => true,
        _ => (23..=31).contains(&n) || (42..=48).contains(&n),
    };
    let (Some((head, home_has)), Some((_, ours))) = (fields(home), fields(ours)) else {
        return home.to_owned();
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let fields: Vec<String> = home_has
        .into_iter()
        .enumerate()
        .map(|(n, home)| match ours.get(n) {
            Some(ours) if is_ours(n) => (*ours).to_owned(),
            Some(ours) if COUNTED.contains(&n) => {
                let sum =
                    number(home).zip(number(ours)).map(|(home, ours)| home.saturating_add(ours));
                sum.map_or_else(|| home.to_owned(), |sum| sum.to_string())
            }
            _ => home.to_owned(),
        })
        .collect();
    format!("{head}) {}\n", fields.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_and_written_as_the_kernel_does() {
        let file = "7f00-8f00 r-xp 00002000 fe:00 247774";
        let padded = format!("{file:<72} /usr/bin/a b");
        let l = line(&padded).unwrap();
        assert_eq!((l.start, l.end, l.offset, l.dev), (0x7f00, 0x8f00, 0x2000, (0xfe, 0)));
        assert_eq!((l.inode, l.name), (247774, "/usr/bin/a b"));
        let again = shape(&l, l.offset, l.dev, l.inode, l.name);
        let head = "00007f00-00008f00 r-xp 00002000 fe:00 247774";
        assert_eq!(again, format!("{head:<72} /usr/bin/a b"));
        assert!(line("Rss:                 4 kB").is_none());
        assert!(line("VmFlags: rd mr mw me dw ac").is_none());
    }

    #[test]
    fn memory_is_the_guests_and_identity_is_homes() {
        let home =
            "Name:\ta\nState:\tS (sleeping)\nTracerPid:\t9\nUid:\t0\nVmRSS:\t 1 kB\nSigBlk:\tff\n";
        let ours = "Name:\tb\nState:\tR (running)\nTracerPid:\t0\nUid:\t65534\nVmRSS:\t 7 kB\nSigBlk:\t00\n";
        let merged = status(ours, home, false);
        assert_eq!(
            merged,
            "Name:\ta\nState:\tR (running)\nTracerPid:\t0\nUid:\t0\nVmRSS:\t 7 kB\nSigBlk:\t00\n"
        );
        assert!(status(ours, home, true).contains("State:\tS"));
    }

    #[test]
    fn a_mapping_has_the_file_that_we_know_or_home_has_there() {
        let known = Known { names: &Names::default(), mapped: &MappedFiles::default() };
        let ours = "1000-3000 r--p 00001000 00:05 77 /memfd:x (deleted)\n\
                    5000-6000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\n\
                    7000-8000 rw-s 00000000 00:05 78 /memfd:y (deleted)\n";
        let home = "00000000-00004000 r--p 00002000 fe:00 9 /a\n5000-6000 rw-p 0 fe:00 9 /a\n";
        let shown = placed(&named(&known, ours), home);
        let of_a = format!("{:<72} /a", "00001000-00003000 r--p 00003000 fe:00 9");
        let rest = "5000-6000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\n\
                    00007000-00008000 rw-s 00000000 00:00 0 \n";
        assert_eq!(shown, format!("{of_a}\n{rest}"));
    }

    fn of_stat(name: &str, first: u64) -> String {
        let fields: Vec<String> = (first..first + 50).map(|n| n.to_string()).collect();
        format!("{name} {}\n", fields.join(" "))
    }

    #[test]
    fn fields_of_stat_are_taken_and_added_to() {
        let used = Usage { user: 5 * TICK_NS, minor_faults: 3, ..Usage::default() };
        let ours = counted(&of_stat("7 (c)", 500), &used).unwrap();
        let merged = stat(&ours, &of_stat("42 (a) b)", 100), true);
        let (head, of) = fields(&merged).unwrap();
        assert_eq!(head, "42 (a) b");
        assert_eq!(
            [0, 1, 7, 11, 20, 21, 22].map(|n| of[n]),
            ["100", "101", "110", "116", "520", "521", "122"]
        );
    }

    #[test]
    fn addresses_are_for_those_who_may_look_into_the_process() {
        let shown = public(&of_stat("7 (c)", 500)).unwrap();
        let (_, of) = fields(&shown).unwrap();
        assert_eq!(
            [20, 21, 23, 24, 25, 28, 42, 48, 49].map(|n| of[n]),
            ["520", "521", "1", "1", "0", "528", "0", "0", "0"]
        );
    }
}
