//! An image as it stands in a file.

use crate::error::{Error, Result};
use crate::format::{FRONT_BYTES, Flaw, Kind, Section, decode_front};
use crate::state::{Origin, Surroundings, check_process, check_runs};
use crate::wire::{Field, decode};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tcmi_ckpt::image::ProcessImage;

/// Of which all but the bytes of its pages and files was read, and is whole.
pub struct Image {
    file: File,
    pub sections: Vec<Section>,
    pub origin: Origin,
    pub process: ProcessImage,
    pub surroundings: Surroundings,
    pub runs: Vec<(u64, u64)>,
}

const READING: &str = "read the image";
const CHUNK_BYTES: usize = 1 << 20;

impl Image {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the image"))?;
        let bytes = file.metadata().map_err(Error::io(READING))?.len();
        let mut front = vec![0; FRONT_BYTES.min(usize::try_from(bytes).unwrap_or(FRONT_BYTES))];
        file.read_exact_at(&mut front, 0).map_err(Error::io(READING))?;
        let sections = decode_front(&front, bytes)?;
        let origin = state(&file, &sections, Kind::Origin)?;
        let process: ProcessImage = state(&file, &sections, Kind::Process)?;
        let surroundings: Surroundings = state(&file, &sections, Kind::Surroundings)?;
        let runs: Vec<(u64, u64)> = state(&file, &sections, Kind::Runs)?;
        check_process(&process)?;
        surroundings.check()?;
        check_runs(&runs, &process.mm.vmas, section(&sections, Kind::Pages).len)?;
        let mapped = process.files.iter().try_fold(0u64, |n, f| n.checked_add(f.last - f.first));
        if mapped != Some(section(&sections, Kind::Files).len) {
            return Err(Flaw::Content("the length of its mapped files").into());
        }
        Ok(Self { file, sections, origin, process, surroundings, runs })
    }

    pub fn section(&self, kind: Kind) -> &Section {
        section(&self.sections, kind)
    }

    /// From its beginning.
    pub fn reader(&self, kind: Kind) -> SectionReader<'_> {
        SectionReader::new(&self.file, *self.section(kind))
    }

    /// Reads what was not read yet: pages and files.
    pub fn verify(&self) -> Result<()> {
        for kind in [Kind::Pages, Kind::Files] {
            self.reader(kind).finish()?;
        }
        Ok(())
    }
}

/// All kinds are there, in their order.
fn section(sections: &[Section], kind: Kind) -> &Section {
    &sections[kind as usize - 1]
}

fn state<T: Field>(file: &File, sections: &[Section], kind: Kind) -> Result<T> {
    let section = *section(sections, kind);
    let mut bytes = vec![0; section.len as usize];
    let mut r = SectionReader::new(file, section);
    r.read(&mut bytes)?;
    r.finish()?;
    Ok(decode(&bytes)?)
}

/// Reads a section from its beginning to its end. Only [`SectionReader::finish`] tells whether
/// what was read is what was written.
pub struct SectionReader<'a> {
    file: &'a File,
    section: Section,
    done: u64,
    hash: blake3::Hasher,
}

impl<'a> SectionReader<'a> {
    fn new(file: &'a File, section: Section) -> Self {
        Self { file, section, done: 0, hash: blake3::Hasher::new() }
    }

    pub fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        if buf.len() as u64 > self.section.len - self.done {
            return Err(Flaw::Content("a section that is too short").into());
        }
        let at = self.section.offset + self.done;
        self.file.read_exact_at(buf, at).map_err(Error::io(READING))?;
        self.hash.update(buf);
        self.done += buf.len() as u64;
        Ok(())
    }

    /// Reads what is left. Err (flaw): it is damaged.
    pub fn finish(mut self) -> Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.done < self.section.len {
            let n = CHUNK_BYTES.min((self.section.len - self.done) as usize);
            self.read(&mut chunk[..n])?;
        }
        match *self.hash.finalize().as_bytes() == self.section.hash {
            true => Ok(()),
            false => Err(Flaw::Checksum(self.section.kind).into()),
        }
    }
}
