//! An image file: header, table of sections, sections. `docs/checkpoint-format.md` has it byte by
//! byte. Pure: of bytes, not of files.

/// PNG's idea: what mangles line ends or the eighth bit shows here.
pub const MAGIC: [u8; 8] = *b"\x89TCMI\r\n\x1a";
/// Goes up with every change that another version cannot read.
pub const VERSION: u32 = 1;
/// EM_X86_64.
pub const MACHINE: u32 = 62;
pub const HEADER_BYTES: usize = 64;
pub const ENTRY_BYTES: usize = 64;
/// Longest section that is decoded as a whole.
pub const STATE_BYTES_MAX: u64 = 64 << 20;

/// Where the header has the hash of itself and the table.
const HASH_AT: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("it is no image of a process")]
    Foreign,
    #[error("its format is version {theirs}, and version {VERSION} is what is read here")]
    Version { theirs: u32 },
    #[error("it is of another kind of machine (ELF machine {0}, here it is {MACHINE})")]
    Machine(u32),
    #[error("it is cut off: it has {have} of {need} bytes")]
    Truncated { have: u64, need: u64 },
    #[error("it has {0} bytes more than it says")]
    TooLong(u64),
    #[error("its header is damaged ({0})")]
    Header(&'static str),
    #[error("its section \"{0}\" is damaged: the checksum is wrong")]
    Checksum(Kind),
    #[error("it is damaged: {0}")]
    Content(&'static str),
}

type Result<T> = std::result::Result<T, Flaw>;

/// The sections, in the order that they have in a file. Each is there once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Where and when it was made.
    Origin = 1,
    /// The process: [`tcmi_ckpt::image::ProcessImage`].
    Process = 2,
    /// What it has of its system: [`crate::state::Surroundings`].
    Surroundings = 3,
    /// Which memory follows: (start, end) after (start, end).
    Runs = 4,
    /// The bytes of these runs.
    Pages = 5,
    /// The mapped bytes of the process's files, one file after the other.
    Files = 6,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Origin, Self::Process, Self::Surroundings, Self::Runs, Self::Pages, Self::Files];
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Origin => "origin",
            Self::Process => "process",
            Self::Surroundings => "surroundings",
            Self::Runs => "runs",
            Self::Pages => "pages",
            Self::Files => "files",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    pub kind: Kind,
    pub offset: u64,
    pub len: u64,
    /// BLAKE3.
    pub hash: [u8; 32],
}

/// Bytes in front of the first section.
pub const FRONT_BYTES: usize = HEADER_BYTES + Kind::ALL.len() * ENTRY_BYTES;

/// Header and table. `sections` are all of them, in their order.
pub fn encode_front(sections: &[Section]) -> Vec<u8> {
    let file_bytes = sections.last().map_or(0, |s| s.offset + s.len);
    let mut out = Vec::with_capacity(FRONT_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&MACHINE.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&file_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 32]);
    for s in sections {
        out.extend_from_slice(&(s.kind as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&s.offset.to_le_bytes());
        out.extend_from_slice(&s.len.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&s.hash);
    }
    seal(&mut out);
    out
}

/// Puts the checksum of a front into it. At least as long as its header.
pub fn seal(front: &mut [u8]) {
    let hash = front_hash(front);
    front[HASH_AT..HEADER_BYTES].copy_from_slice(&hash);
}

fn front_hash(front: &[u8]) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    h.update(&front[..HASH_AT]).update(&front[HEADER_BYTES..]);
    *h.finalize().as_bytes()
}

/// The sections of a file of `file_bytes` whose first bytes, as many as there are up to
/// [`FRONT_BYTES`], are `front`. What it is of is said before what is wrong with it.
pub fn decode_front(front: &[u8], file_bytes: u64) -> Result<Vec<Section>> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*front.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*front.get(at..)?.first_chunk()?));
    if !front.starts_with(&MAGIC) {
        return Err(Flaw::Foreign);
    }
    let short = Flaw::Truncated { have: file_bytes, need: FRONT_BYTES as u64 };
    match u32_at(8).ok_or(short.clone())? {
        VERSION => {}
        theirs => return Err(Flaw::Version { theirs }),
    }
    match u32_at(12).ok_or(short.clone())? {
        MACHINE => {}
        theirs => return Err(Flaw::Machine(theirs)),
    }
    let front = front.get(..FRONT_BYTES).ok_or(short)?;
    if front_hash(front) != front[HASH_AT..HEADER_BYTES] {
        return Err(Flaw::Header("the checksum is wrong"));
    }
    if u32_at(16) != Some(Kind::ALL.len() as u32) || u32_at(20) != Some(0) {
        return Err(Flaw::Header("another number of sections"));
    }
    let sections = sections(front)?;
    let need = sections.last().map_or(0, |s| s.offset + s.len);
    if u64_at(24) != Some(need) {
        return Err(Flaw::Header("another length than that of its sections"));
    }
    match file_bytes {
        have if have < need => Err(Flaw::Truncated { have, need }),
        have if have > need => Err(Flaw::TooLong(have - need)),
        _ => Ok(sections),
    }
}

/// Each begins where the one before it ends.
fn sections(front: &[u8]) -> Result<Vec<Section>> {
    let mut at = FRONT_BYTES as u64;
    let entries = front[HEADER_BYTES..].as_chunks::<ENTRY_BYTES>().0;
    let mut all = Vec::with_capacity(Kind::ALL.len());
    for (kind, entry) in Kind::ALL.into_iter().zip(entries) {
        let word = |i: usize| entry[i * 8..].first_chunk().map(|w| u64::from_le_bytes(*w));
        let is_it = word(0) == Some(kind as u64) && word(1) == Some(at) && word(3) == Some(0);
        let len = word(2).filter(|_| is_it).ok_or(Flaw::Header("its table"))?;
        let hash = *entry.last_chunk().ok_or(Flaw::Header("its table"))?;
        all.push(Section { kind, offset: at, len, hash });
        at = at.checked_add(len).ok_or(Flaw::Header("the length of a section"))?;
        let is_state = !matches!(kind, Kind::Pages | Kind::Files);
        if is_state && len > STATE_BYTES_MAX {
            return Err(Flaw::Header("the length of a section"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front() -> (Vec<u8>, u64) {
        let mut offset = FRONT_BYTES as u64;
        let sections = Kind::ALL.map(|kind| {
            let len = 10 * kind as u64;
            offset += len;
            Section { kind, offset: offset - len, len, hash: [kind as u8; 32] }
        });
        (encode_front(&sections), offset)
    }

    #[test]
    fn a_front_comes_back() {
        let (front, bytes) = front();
        assert_eq!(front.len(), FRONT_BYTES);
        let sections = decode_front(&front, bytes).unwrap();
        assert_eq!(encode_front(&sections), front);
    }

    #[test]
    fn every_changed_byte_is_seen_and_named() {
        let (front, bytes) = front();
        for at in 0..front.len() {
            let mut bad = front.clone();
            bad[at] ^= 0x20;
            let flaw = decode_front(&bad, bytes).unwrap_err();
            let expected = match at {
                0..8 => matches!(flaw, Flaw::Foreign),
                8..12 => matches!(flaw, Flaw::Version { .. }),
                12..16 => matches!(flaw, Flaw::Machine(_)),
                _ => matches!(flaw, Flaw::Header(_)),
            };
            assert!(expected, "byte {at}: {flaw}");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_the_file_are_told() {
        let (front, bytes) = front();
        assert_eq!(decode_front(&front, bytes + 3), Err(Flaw::TooLong(3)));
        let cut = Flaw::Truncated { have: bytes - 1, need: bytes };
        assert_eq!(decode_front(&front, bytes - 1), Err(cut));
        for n in 0..FRONT_BYTES {
            let flaw = decode_front(&front[..n], n as u64).unwrap_err();
            let expected = match n {
                0..8 => Flaw::Foreign,
                _ => Flaw::Truncated { have: n as u64, need: FRONT_BYTES as u64 },
            };
            assert_eq!(flaw, expected, "{n} bytes");
        }
    }
}
