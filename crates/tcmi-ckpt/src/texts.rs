//! Files of /proc that tell of a guest, on their way to another process: by pieces, of one moment.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::reach::{Found, PIECE_BYTES_MAX};

/// Longest text. Mappings are 65530 where nobody set more, and smaps has 700 bytes of each.
pub const TEXT_BYTES_MAX: u64 = 64 << 20;
/// A text of which nobody has asked for more for so long makes room for another.
const KEPT: Duration = Duration::from_secs(2);

/// Those of a process that a guest's kernel knows more of than home's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum File {
    Maps,
    Smaps,
    SmapsRollup,
    Stat,
    /// As who may not look into the process sees it.
    PublicStat,
    Statm,
    Status,
}

impl File {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "maps" => Self::Maps,
            "smaps" => Self::Smaps,
            "smaps_rollup" => Self::SmapsRollup,
            "stat" => Self::Stat,
            "statm" => Self::Statm,
            "status" => Self::Status,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Smaps => "smaps",
            Self::SmapsRollup => "smaps_rollup",
            Self::Stat | Self::PublicStat => "stat",
            Self::Statm => "statm",
            Self::Status => "status",
        }
    }

    /// What it has for those who may not look into the process.
    pub fn public(self) -> Option<Self> {
        match self {
            Self::Maps | Self::Smaps | Self::SmapsRollup => None,
            Self::Stat | Self::PublicStat => Some(Self::PublicStat),
            Self::Statm | Self::Status => Some(self),
        }
    }
}

/// A file of a process, or of a thread of it, by ids of whoever looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    pub pid: i32,
    pub tid: Option<i32>,
    pub file: File,
}

impl About {
    pub fn path(&self) -> String {
        let (pid, name) = (self.pid, self.file.name());
        match self.tid {
            Some(tid) => format!("/proc/{pid}/task/{tid}/{name}"),
            None => format!("/proc/{pid}/{name}"),
        }
    }
}

type Hash = [u8; 32];

/// A part of a text, which its BLAKE3 tells from those of other moments and nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub text: Hash,
    /// Of the whole text, in bytes.
    pub len: u64,
    pub bytes: Vec<u8>,
}

/// From byte `from` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    pub text: Hash,
    pub from: u64,
}

/// At the guest: the one text that does not fit into a piece and is being fetched.
#[derive(Default)]
pub struct Texts(Option<Kept>);

struct Kept {
    file: File,
    hash: Hash,
    text: Vec<u8>,
    asked: Instant,
}

impl Texts {
    /// The beginning of a text. Moves: another one is being fetched.
    pub fn begin(&mut self, file: File, text: Vec<u8>) -> Found {
        if text.len() as u64 > TEXT_BYTES_MAX {
            return Found::Denied;
        }
        let hash = *blake3::hash(&text).as_bytes();
        if text.len() <= PIECE_BYTES_MAX {
            return Found::Told(Piece { text: hash, len: text.len() as u64, bytes: text });
        }
        if self.0.as_ref().is_some_and(|kept| kept.asked.elapsed() < KEPT) {
            return Found::Moves;
        }
        self.0 = Some(Kept { file, hash, text, asked: Instant::now() });
        self.go_on(file, &Rest { text: hash, from: 0 })
    }

    /// Moves: that text is not here any more.
    pub fn go_on(&mut self, file: File, rest: &Rest) -> Found {
        let asked = (file, rest.text);
        let Some(kept) = self.0.as_mut().filter(|kept| (kept.file, kept.hash) == asked) else {
            return Found::Moves;
        };
        let left = usize::try_from(rest.from).ok().and_then(|from| kept.text.get(from..));
        let Some(left) = left else { return Found::Moves };
        let bytes = left[..left.len().min(PIECE_BYTES_MAX)].to_vec();
        let is_last = bytes.len() == left.len();
        let piece = Piece { text: kept.hash, len: kept.text.len() as u64, bytes };
        kept.asked = Instant::now();
        if is_last {
            self.0 = None;
        }
        Found::Told(piece)
    }
}

/// At the asker: what has come of a text.
#[derive(Default)]
pub struct Gathered(Vec<u8>);

impl Gathered {
    /// Returns what to ask for next. None: the text is whole, or the node tells what cannot be.
    pub fn take(&mut self, piece: Piece) -> Option<Rest> {
        let Piece { text, len, bytes } = piece;
        self.0.extend_from_slice(&bytes);
        let from = self.0.len() as u64;
        let goes_on = !bytes.is_empty() && from < len && len <= TEXT_BYTES_MAX;
        goes_on.then_some(Rest { text, from })
    }

    pub fn into_text(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(byte: u8) -> Vec<u8> {
        let len = 3 * PIECE_BYTES_MAX + 5;
        (0..len).map(|n| (n / 1000) as u8 ^ byte).collect()
    }

    fn told(found: Found) -> Piece {
        match found {
            Found::Told(piece) => piece,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_text_comes_whole_and_another_waits_for_it() {
        let mut texts = Texts::default();
        let mut gathered = Gathered::default();
        let mut rest = gathered.take(told(texts.begin(File::Maps, long(0))));
        while let Some(wanted) = rest {
            assert_eq!(texts.begin(File::Maps, long(1)), Found::Moves);
            assert_eq!(told(texts.begin(File::Maps, b"short".to_vec())).bytes, b"short");
            rest = gathered.take(told(texts.go_on(File::Maps, &wanted)));
        }
        assert!(gathered.into_text() == long(0));
        told(texts.begin(File::Maps, long(1)));
    }

    #[test]
    fn the_rest_of_another_text_is_not_told() {
        let mut texts = Texts::default();
        let first = told(texts.begin(File::Maps, long(0)));
        for rest in [
            Rest { text: [7; 32], from: 0 },
            Rest { text: first.text, from: first.len + 1 },
            Rest { text: first.text, from: u64::MAX },
        ] {
            assert_eq!(texts.go_on(File::Maps, &rest), Found::Moves);
        }
        let rest = Rest { text: first.text, from: first.bytes.len() as u64 };
        assert_eq!(texts.go_on(File::Stat, &rest), Found::Moves);
        assert_eq!(
            told(texts.go_on(File::Maps, &Rest { text: first.text, from: first.len })).bytes,
            b""
        );
    }

    #[test]
    fn a_node_that_tells_what_cannot_be_is_asked_no_more() {
        for (len, bytes) in [(TEXT_BYTES_MAX + 1, vec![1]), (9, Vec::new()), (2, vec![1; 3])] {
            let piece = Piece { text: [0; 32], len, bytes };
            assert_eq!(Gathered::default().take(piece), None);
        }
    }
}
