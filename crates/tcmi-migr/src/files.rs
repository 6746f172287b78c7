//! Mapped files, named by content: at home hashed and sent when asked for, on a node kept in a
//! cache under their hash.

use crate::error::{Error, Result};
use crate::messages as msg;
use crate::pages;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use tcmi_ckpt::image::FileRef;
use tcmi_ckpt::mapped::{HomeFiles, joined};
use tcmi_kkc::{BulkReader, BulkWriter};
use tcmi_sys::memory;

const CHUNK_BYTES: usize = 1 << 20;

/// What the held process has mapped of its live files, and no other brings, each behind a
/// [`msg::Live`].
pub fn send_live(files: &HomeFiles, w: &mut BulkWriter) -> Result<()> {
    let all = files.refs.iter().zip(&files.open).zip(&files.mapped).zip(0..);
    for (((r, f), mapped), index) in all {
        if !r.live {
            continue;
        }
        let m = f.metadata().map_err(Error::io("stat a mapped file"))?;
        let (size, dev, ino) = (m.size(), m.dev(), m.ino());
        msg::send(w, &msg::Live { index, size, dev, ino })?;
        let mut data = Vec::new();
        for range in joined(mapped).into_iter().filter(|_| files.is_sent(r)) {
            data_in(f, range.start..range.end.min(size), &mut data)
                .map_err(Error::io("look for data in a mapped file"))?;
        }
        pages::send_file(w, f, &data)?;
    }
    Ok(())
}

pub fn send(files: &HomeFiles, w: &mut BulkWriter, index: u32) -> Result<()> {
    let missing = Error::Protocol { want: "the index of a file", got: 0 };
    let (r, f) = match (files.refs.get(index as usize), files.open.get(index as usize)) {
        (Some(r), Some(f)) => (r, f),
        _ => return Err(missing),
    };
    let mut buf = vec![0; CHUNK_BYTES];
    for (at, n) in memory::parts(r.first..r.last, CHUNK_BYTES) {
        f.read_exact_at(&mut buf[..n], at).map_err(Error::io("read a mapped file"))?;
        w.write(&buf[..n])?;
    }
    Ok(())
}

/// Appends where a range of a file is no hole.
fn data_in(f: &File, range: Range<u64>, out: &mut Vec<Range<u64>>) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let Some(start) = seek(f, at, libc::SEEK_DATA)?.filter(|s| *s < range.end) else { break };
        let end = seek(f, start, libc::SEEK_HOLE)?.map_or(range.end, |e| e.min(range.end));
        out.push(start..end);
        at = end;
    }
    Ok(())
}

/// None: there is no more of what was looked for.
fn seek(f: &File, at: u64, whence: i32) -> std::io::Result<Option<u64>> {
    // SAFETY: plain call on an open file.
    match unsafe { libc::lseek(f.as_raw_fd(), at as i64, whence) } {
        -1 => match std::io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
        found => Ok(Some(found as u64)),
    }
}

/// Files on an execution node, by the hash of their bytes.
pub struct Cache {
    dir: OwnedFd,
}

/// Largest extent of one mapped file that a node takes, in bytes.
pub const FILE_BYTES_MAX: u64 = 8 << 30;

impl Cache {
    /// `dir` is an open directory that only this node writes to.
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }
    fn name(r: &FileRef) -> String {
        let hex: String = r.hash.iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}-{:x}", r.first)
    }
    fn open_at(&self, name: &str, flags: i32) -> std::io::Result<File> {
        let c = std::ffi::CString::new(name)?;
        let flags = flags | libc::O_CLOEXEC;
        // SAFETY: an open directory and a C string; the result is checked before it is owned.
        let fd = unsafe { libc::openat(self.dir.as_raw_fd(), c.as_ptr(), flags, 0o600) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
    /// The file, if it is here.
    pub fn open(&self, r: &FileRef) -> Option<File> {
        self.open_at(&Self::name(r), libc::O_RDONLY).ok()
    }
    /// Takes a file from the stream. It is kept only if its bytes have the hash it was named by.
    pub fn receive(&self, r: &FileRef, from: &mut BulkReader) -> Result<File> {
        if r.first > r.last || r.last > r.size || r.last - r.first > FILE_BYTES_MAX {
            return Err(tcmi_ckpt::Error::Image("extent of a mapped file").into());
        }
        let io = || Error::io("write to the file cache");
        let part = format!("part-{}", std::process::id());
        let f = self.open_at(&part, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).map_err(io())?;
        let mut h = blake3::Hasher::new();
        let mut at = r.first;
        while at < r.last {
            let bytes = from.fill()?;
            let n = bytes.len().min((r.last - at) as usize);
            f.write_all_at(&bytes[..n], at).map_err(io())?;
            h.update(&bytes[..n]);
            from.consume(n);
            at += n as u64;
        }
        if *h.finalize().as_bytes() != r.hash {
            return Err(tcmi_ckpt::Error::Image("a mapped file has other bytes than said").into());
        }
        f.set_len(r.last).map_err(io())?;
        self.rename(&part, &Self::name(r)).map_err(io())?;
        // Read-only: a shared mapping of a writable descriptor could become writable.
        self.open_at(&Self::name(r), libc::O_RDONLY).map_err(io())
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        let (from, to) = (std::ffi::CString::new(from)?, std::ffi::CString::new(to)?);
        let d = self.dir.as_fd().as_raw_fd();
        // SAFETY: an open directory and two C strings.
        match unsafe { libc::renameat(d, from.as_ptr(), d, to.as_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
