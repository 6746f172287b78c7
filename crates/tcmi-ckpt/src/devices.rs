//! Devices that are the same on every node.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};
use tcmi_sys::{Errno, proc};

use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    Null,
    Zero,
    Random,
}

impl Device {
    /// By the mode and the number that stat tells of a file.
    pub fn of(mode: u32, number: u64) -> Option<Self> {
        if mode & libc::S_IFMT != libc::S_IFCHR {
            return None;
        }
        match (libc::major(number), libc::minor(number)) {
            (1, 3) => Some(Self::Null),
            (1, 5) => Some(Self::Zero),
            (1, 9) => Some(Self::Random),
            _ => None,
        }
    }
}

/// One that a process has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDevice {
    pub fd: i32,
    pub device: Device,
    pub reads: bool,
    pub writes: bool,
}

impl OpenDevice {
    /// `flags` as open(2) takes them. None: it can neither be read nor written.
    pub fn new(fd: i32, device: Device, flags: i32) -> Option<Self> {
        let access = flags & libc::O_ACCMODE;
        let (reads, writes) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        (flags & libc::O_PATH == 0 && access != libc::O_ACCMODE).then_some(Self {
            fd,
            device,
            reads,
            writes,
        })
    }
}

/// Those of a process that does not run, lowest number first.
pub fn open_in(pid: i32) -> Result<Vec<OpenDevice>> {
    let mut all = Vec::new();
    for (fd, _) in proc::descriptors(pid)? {
        // What cannot be looked at is none of them.
        let Ok(file) = fs::metadata(format!("/proc/{pid}/fd/{fd}")) else { continue };
        if !file.file_type().is_char_device() {
            continue;
        }
        let Some(device) = Device::of(file.mode(), file.rdev()) else { continue };
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))
            .map_err(|e| Errno::from_io("read fdinfo", &e))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
        all.extend(flags.and_then(|flags| OpenDevice::new(fd, device, flags)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    #[test]
    fn open_devices_are_found_with_how_they_are_open() {
        let zero = fs::File::open("/dev/zero").unwrap();
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let all = open_in(std::process::id() as i32).unwrap();
        let of = |fd| all.iter().find(|d| d.fd == fd).copied();
        let zero = zero.as_raw_fd();
        let found = OpenDevice { fd: zero, device: Device::Zero, reads: true, writes: false };
        assert_eq!(of(zero), Some(found));
        let null = null.as_raw_fd();
        let found = OpenDevice { fd: null, device: Device::Null, reads: false, writes: true };
        assert_eq!(of(null), Some(found));
        assert_eq!(OpenDevice::new(3, Device::Null, libc::O_PATH), None);
    }
}
