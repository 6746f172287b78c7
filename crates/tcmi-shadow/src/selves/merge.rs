//! Lines of /proc that are partly the guest's and partly home's.

use super::Names;
use crate::mapping::MappedFiles;

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

/// The guest's mappings with the files that they are of at home: by what we know, or by what the
/// shadow has there.
pub(super) fn maps(known: &Known<'_>, ours: &str, home: &str) -> String {
    let home: Vec<Line<'_>> = home.lines().filter_map(line).filter(|l| l.inode != 0).collect();
    let mut text = String::with_capacity(ours.len());
    for whole in ours.lines() {
        match line(whole) {
            Some(l) if l.inode != 0 => text += &translated(known, &l, &home),
            _ => text += whole,
        }
        text.push('\n');
    }
    text
}

fn translated(by: &Known<'_>, l: &Line<'_>, home: &[Line<'_>]) -> String {
    let known = by.names.get(&(l.dev.0, l.dev.1, l.inode));
    let at_home = home.iter().find(|h| (h.start..h.end).contains(&l.start));
    let (offset, dev, inode, name) = if let Some((file, from)) = known {
        let dev = ((file.dev >> 32) as u32, file.dev as u32);
        (l.offset + from, dev, file.inode, file.path.as_str())
    } else if let Some(h) = at_home {
        (h.offset + (l.start - h.start), h.dev, h.inode, h.name)
    } else if let Some(file) = by.mapped.get(l.inode) {
        let dev = (libc::major(file.dev), libc::minor(file.dev));
        return shape(l, l.offset + file.offset, dev, file.ino, &file.name);
    } else {
        // The page that the guest shares with us.
        (0, (0, 0), 0, "")
    };
    shape(l, offset, dev, inode, name)
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

/// Fields are counted from behind the name. `more` is added to home's.
pub(super) fn stat(ours: &str, home: &str, is_caller: bool, more: &[(usize, u64)]) -> String {
    let is_ours = |n: usize| match n {
        0 => !is_caller,
        20 | 21 | 36 => true,
        _ => (23..=31).contains(&n) || (42..=48).contains(&n),
    };
    let parts = |text: &str| {
        let (head, rest) = text.trim_end().rsplit_once(") ")?;
        let fields = rest.split(' ').map(str::to_owned).collect::<Vec<String>>();
        Some((head.to_owned(), fields))
    };
    let (Some((head, mut fields)), Some((_, ours))) = (parts(home), parts(ours)) else {
        return home.to_owned();
    };
    for (n, field) in fields.iter_mut().enumerate() {
        if is_ours(n)
            && let Some(value) = ours.get(n)
        {
            field.clone_from(value);
        }
        if let Some((_, more)) = more.iter().find(|(at, _)| *at == n)
            && let Ok(value) = field.parse::<u64>()
        {
            *field = (value + more).to_string();
        }
    }
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
    fn fields_of_stat_are_taken_and_added_to() {
        let fields = |n: u64| (0..50).map(|i| (n + i).to_string()).collect::<Vec<_>>().join(" ");
        let home = format!("42 (a) b) {}\n", fields(100));
        let ours = format!("7 (c) {}\n", fields(500));
        let merged = stat(&ours, &home, true, &[(11, 5)]);
        let merged: Vec<&str> = merged.trim_end().split(' ').collect();
        assert_eq!(&merged[..3], ["42", "(a)", "b)"]);
        let at = |n: usize| merged[n + 3];
        assert_eq!(
            (at(0), at(1), at(11), at(20), at(21), at(22)),
            ("100", "101", "116", "520", "521", "122")
        );
    }
}
