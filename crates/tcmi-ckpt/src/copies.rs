//! Open files that can be read where their process runs: regular ones under given places, open for
//! reading only, that nobody else has by the same open.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use tcmi_sys::{Errno, proc};

use crate::Result;

/// One that a process has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCopy {
    pub fd: i32,
    /// Of the next byte that is read.
    pub position: u64,
}

/// Whether a name lies under one of `places`, as they are written.
pub fn is_under(places: &[String], name: &str) -> bool {
    places.iter().any(|place| {
        let rest = name.strip_prefix(place.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Opened so, a file is only read, and as any other.
pub fn is_for_reading(flags: i32) -> bool {
    const OTHERWISE: i32 =
        libc::O_ACCMODE | libc::O_PATH | libc::O_DIRECTORY | libc::O_CREAT | libc::O_TRUNC;
    flags & (OTHERWISE | (libc::O_DIRECT | libc::O_TMPFILE)) == libc::O_RDONLY
}

/// Whether nobody but a process and its threads gives its descriptors their numbers.
pub fn has_own_table(pid: i32) -> Result<bool> {
    let all = proc::pids()?;
    Ok(!all.into_iter().any(|other| other != pid && proc::is_same_table(pid, other)))
}

/// Those of a process that does not run, lowest number first. One that is in a message which
/// nobody has received yet counts as the process's own.
pub fn open_in(pid: i32, places: &[String]) -> Result<Vec<OpenCopy>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let own = proc::descriptors(pid)?;
    let mut found: Vec<(OpenCopy, &str)> = Vec::new();
    for (fd, name) in own.iter().filter(|(_, name)| is_under(places, name)) {
        // What cannot be looked at is none of them.
        let Ok(file) = fs::metadata(format!("/proc/{pid}/fd/{fd}")) else { continue };
        if !file.is_file() || file.size() == 0 {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))
            .map_err(|e| Errno::from_io("read fdinfo", &e))?;
        if let Some(position) = position_of_reader(&info) {
            found.push((OpenCopy { fd: *fd, position }, name));
        }
    }
    if !found.is_empty() {
        let others = like(pid, &found)?;
        found.retain(|(copy, name)| {
            let same = |(who, fd, target): &(i32, i32, String)| {
                let is_it = (*who, *fd) == (pid, copy.fd);
                !is_it && target == name && proc::is_same_open((pid, copy.fd), (*who, *fd))
            };
            !others.iter().any(same)
        });
    }
    Ok(found.into_iter().map(|(copy, _)| copy).collect())
}

fn position_of_reader(info: &str) -> Option<u64> {
    let value = |name| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = i32::from_str_radix(value("flags:")?, 8).ok()?;
    let position = value("pos:")?.parse().ok()?;
    is_for_reading(flags & !libc::O_LARGEFILE).then_some(position)
}

/// Descriptors of all processes by the names of `found`: process, number, name.
fn like(pid: i32, found: &[(OpenCopy, &str)]) -> Result<Vec<(i32, i32, String)>> {
    let mut like = Vec::new();
    for who in proc::pids()? {
        // One that has ended meanwhile has none. Nor is one looked at that has more rights than we.
        for (fd, target) in proc::descriptors(who).unwrap_or_default() {
            if found.iter().any(|(copy, name)| *name == target && (who, fd) != (pid, copy.fd)) {
                like.push((who, fd, target));
            }
        }
    }
    Ok(like)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_place_is_not_the_beginning_of_a_name() {
        let places = ["/usr/share".to_owned(), "/opt/".to_owned()];
        for (name, is) in [
            ("/usr/share/a", true),
            ("/usr/share/a/b", true),
            ("/opt/a", true),
            ("/usr/share", false),
            ("/usr/shared/a", false),
            ("usr/share/a", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(is_under(&places, name), is, "{name}");
        }
    }

    #[test]
    fn files_that_are_read_are_found_with_their_position_unless_their_open_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap().display().to_string();
        let name = dir.path().join("file");
        let mut written = File::create(&name).unwrap();
        written.write_all(b"some bytes").unwrap();
        let mut read = File::open(&name).unwrap();
        read.read_exact(&mut [0; 4]).unwrap();
        let other = File::open(&name).unwrap();
        let copied = [other.try_clone().unwrap(), other];
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        let _empty = File::open(&empty).unwrap();
        let pid = std::process::id() as i32;
        let found = open_in(pid, std::slice::from_ref(&place)).unwrap();
        assert_eq!(found, [OpenCopy { fd: read.as_raw_fd(), position: 4 }]);
        drop(copied);
        assert_eq!(open_in(pid, &["/nowhere".to_owned()]).unwrap(), []);
        assert!(has_own_table(pid).unwrap());
    }
}
