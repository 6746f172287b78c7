//! A real program that runs from its start to its end, and what it puts out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::scratch::Scratch;
use crate::started::Started;

/// A program and its arguments. It runs in a directory of its own; what is in
/// there at its end is its output.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    /// A shell's line that is run to its end in the directory beforehand.
    pub setup: Option<String>,
    pub argv: Vec<String>,
    /// The output holds measured numbers: only its shape is compared.
    pub measures: bool,
    /// Others do its work: how far it is, its output tells.
    pub begins_others: bool,
}

/// Everything a run put out, by file name.
pub type Output = BTreeMap<String, Vec<u8>>;

pub struct Run {
    program: Started,
    directory: Scratch,
    measures: bool,
}

impl Program {
    pub fn start(&self) -> Result<Run> {
        let directory = Scratch::new(self.name)?;
        if let Some(line) = &self.setup {
            let mut shell = Command::new("sh");
            let done = shell.args(["-ec", line]).current_dir(directory.path()).output()?;
            ensure!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        }
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .current_dir(directory.path())
            .env("LC_ALL", "C")
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(directory.join("stdout"))?)
            .stderr(File::create(directory.join("stderr"))?);
        Ok(Run { program: Started::by(&mut command)?, directory, measures: self.measures })
    }

    /// The real program behind a name that may be a script (a version chooser).
    pub fn resolve(mut self) -> Result<Self> {
        if self.argv[0] == "python3" {
            self.argv[0] = python()?;
        }
        Ok(self)
    }
}

/// The interpreter itself: `python3` may be a script that chooses one.
pub fn python() -> Result<String> {
    let asked =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output()?;
    ensure!(asked.status.success(), "python3: {}", asked.status);
    Ok(String::from_utf8(asked.stdout)?.trim().to_owned())
}

impl Run {
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    pub fn has_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.program.has_ended()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whole lines of its output.
    pub fn lines(&self) -> io::Result<usize> {
        let out = fs::read(self.directory.join("stdout"))?;
        Ok(out.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Its status and output, once it ended.
    pub fn finish(self, timeout: Duration) -> Result<(ExitStatus, Output)> {
        let status = self.program.end(timeout)?;
        let mut output = Output::new();
        for entry in fs::read_dir(self.directory.path())? {
            let entry = entry?;
            let bytes = fs::read(entry.path())?;
            let bytes = if self.measures { shape(&bytes) } else { bytes };
            output.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
        }
        Ok((status, output))
    }
}

/// Measured text with each number made `#` and blanks joined.
fn shape(text: &[u8]) -> Vec<u8> {
    let mut shape: Vec<u8> = Vec::new();
    for &byte in text {
        let class = match byte {
            b'0'..=b'9' | b'.' => b'#',
            b' ' | b'\t' => b' ',
            other => other,
        };
        if !(matches!(class, b'#' | b' ') && shape.last() == Some(&class)) {
            shape.push(class);
        }
    }
    shape
}

/// Where the first difference of two outputs is, for a message.
pub fn difference(expected: &Output, seen: &Output) -> Option<String> {
    if expected.keys().ne(seen.keys()) {
        return Some(format!("files {:?} and {:?}", expected.keys(), seen.keys()));
    }
    expected.iter().zip(seen.values()).find(|((_, e), s)| e != s).map(|((name, e), s)| {
        let at = e.iter().zip(s).take_while(|(a, b)| a == b).count();
        let from = at.saturating_sub(40);
        let around = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[from.min(bytes.len())..(at + 40).min(bytes.len())])
                .into_owned()
        };
        format!(
            "{name} differs at byte {at} ({} and {} bytes): {:?} and {:?}",
            e.len(),
            s.len(),
            around(e),
            around(s)
        )
    })
}

/// Whether `program` is in a directory of PATH.
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory: PathBuf| directory.join(program).is_file())
    })
}

/// Whether a program is installed, or a file is there.
pub fn is_there(needed: &str) -> bool {
    if needed.starts_with('/') { Path::new(needed).exists() } else { is_installed(needed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_text_keeps_its_shape_and_nothing_else() {
        assert_eq!(shape(b"sha256  123.45k\n"), shape(b"sha1 9k\n"));
        assert_ne!(shape(b"sha256 123k"), shape(b"md5 123k"));
        assert_ne!(shape(b"one 1\n"), shape(b"one 1\ntwo 2\n"));
    }

    #[test]
    fn a_difference_says_where() {
        let output = |text: &str| Output::from([("stdout".to_owned(), text.as_bytes().to_vec())]);
        assert_eq!(difference(&output("same"), &output("same")), None);
        let told = difference(&output("abcdef"), &output("abcxef")).expect("they differ");
        assert!(told.contains("stdout differs at byte 3"), "{told}");
        let told = difference(&output("abc"), &output("abcd")).expect("one is longer");
        assert!(told.contains("3 and 4 bytes"), "{told}");
        assert!(difference(&output(""), &Output::new()).is_some());
    }
}
