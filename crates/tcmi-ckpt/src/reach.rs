//! What one process reaches for in another, where either may be away: its memory, and the files of
//! /proc that tell of it.

use std::fs;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use tcmi_sys::memory;

use crate::memory_files::{ENTRY_BYTES, hide_places};
use crate::texts::{File, Piece, Rest};
use crate::{Error, Result};

/// Most bytes of one access.
pub const PIECE_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// None: where is it?
    Find,
    Read {
        addr: u64,
        len: u32,
    },
    Write {
        addr: u64,
        bytes: Vec<u8>,
    },
    /// Bytes of its `pagemap`, whole entries.
    Map {
        at: u64,
        len: u32,
    },
    /// What its kernel tells of it, or of a thread of it: a new text, or the rest of one.
    Tell {
        file: File,
        tid: Option<i32>,
        /// As which the asker's shadow has that file open.
        fd: i32,
        rest: Option<Rest>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Or nowhere: home's kernel knows.
    AtHome,
    /// When the process began, which tells it from the next of its number.
    Away {
        began: u64,
    },
    /// It is neither here nor there, or has ended meanwhile: to be asked again.
    Moves,
    Denied,
    /// There is nobody at home to say.
    Nobody,
    /// What could be read, up to the first bad page.
    Read(Vec<u8>),
    /// So many bytes, up to the first bad page.
    Written(u32),
    Told(Piece),
}

impl Access {
    /// Whether it may be made. Before memory is taken for it.
    pub fn check(&self) -> Result<()> {
        let len = match self {
            Self::Find | Self::Tell { .. } => 0,
            Self::Map { at, len } if !(at | u64::from(*len)).is_multiple_of(ENTRY_BYTES) => {
                return Err(Error::Image("a part of an entry of a page map"));
            }
            Self::Read { len, .. } | Self::Map { len, .. } => *len as usize,
            Self::Write { bytes, .. } => bytes.len(),
        };
        bounded(len)
    }

    /// Makes one to memory in `pid`, as far as its pages can be reached.
    pub fn make(&self, pid: i32) -> Found {
        match self {
            Self::Find | Self::Tell { .. } => Found::Moves,
            Self::Read { addr, len } => {
                let mut bytes = vec![0; *len as usize];
                let rooms = &mut [IoSliceMut::new(&mut bytes)];
                let read = memory::gather(pid, *addr, rooms).unwrap_or(0);
                bytes.truncate(read);
                Found::Read(bytes)
            }
            Self::Map { at, len } => {
                let mut bytes = vec![0; *len as usize];
                let map = fs::File::open(format!("/proc/{pid}/pagemap"));
                let read = map.and_then(|map| map.read_at(&mut bytes, *at)).unwrap_or(0);
                bytes.truncate(read);
                hide_places(&mut bytes);
                Found::Read(bytes)
            }
            Self::Write { addr, bytes } => {
                Found::Written(memory::write_some(pid, *addr, bytes).unwrap_or(0) as u32)
            }
        }
    }
}

impl Found {
    /// Whether an access can have found it.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Read(bytes) | Self::Told(Piece { bytes, .. }) => bounded(bytes.len()),
            _ => Ok(()),
        }
    }
}

fn bounded(len: usize) -> Result<()> {
    match len <= PIECE_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::Image("too large an access to a process")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_a_piece_is_refused() {
        let len = PIECE_BYTES_MAX as u32;
        assert!(Access::Read { addr: 0, len }.check().is_ok());
        assert!(Access::Read { addr: 0, len: len + 1 }.check().is_err());
        assert!(Access::Map { at: 8, len }.check().is_ok());
        assert!(Access::Map { at: 8, len: len + 8 }.check().is_err());
        assert!(Access::Map { at: 4, len }.check().is_err());
        assert!(Access::Map { at: 8, len: 12 }.check().is_err());
        let bytes = vec![0; PIECE_BYTES_MAX + 1];
        assert!(Access::Write { addr: 0, bytes: bytes.clone() }.check().is_err());
        assert!(Found::Read(bytes.clone()).check().is_err());
        assert!(Found::Told(Piece { text: [0; 32], len: 1 << 20, bytes }).check().is_err());
    }

    #[test]
    fn a_bad_page_ends_an_access() {
        let me = std::process::id() as i32;
        let text = *b"what is there";
        let len = text.len() as u32;
        let addr = text.as_ptr().addr() as u64;
        assert_eq!(Access::Read { addr, len }.make(me), Found::Read(text.to_vec()));
        assert_eq!(Access::Read { addr: 16, len }.make(me), Found::Read(Vec::new()));
        let bytes = text.to_vec();
        assert_eq!(Access::Write { addr: 16, bytes }.make(me), Found::Written(0));
    }
}
