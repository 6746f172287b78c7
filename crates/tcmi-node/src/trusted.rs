//! The keys that may connect, kept over restarts in STATE/trusted, one a line.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tcmi_kkc::PeerKey;

const FILE: &str = "trusted";
const NEW_FILE: &str = "trusted.new";

#[derive(Debug, thiserror::Error)]
pub enum TrustedError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: not a public key")]
    Damaged { path: PathBuf, line: usize },
}

/// The file as it was last read or written.
#[derive(Debug)]
pub struct Trusted {
    dir: PathBuf,
    keys: BTreeSet<PeerKey>,
}

impl Trusted {
    /// No file is no key. A line that is not a key is an error: whom we trusted is unknown.
    pub fn load(dir: &Path) -> Result<Self, TrustedError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(TrustedError::Io { path, source }),
        };
        let key = |(i, line): (usize, &str)| {
            line.parse().map_err(|_| TrustedError::Damaged { path: path.clone(), line: i + 1 })
        };
        let keys = text.lines().enumerate().map(key).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_owned(), keys })
    }

    pub fn keys(&self) -> &BTreeSet<PeerKey> {
        &self.keys
    }

    /// Ok: `keys` are on disk. Err: the file is as it was.
    pub fn replace(&mut self, keys: BTreeSet<PeerKey>) -> Result<(), TrustedError> {
        let path = self.dir.join(NEW_FILE);
        self.write(&path, &keys).map_err(|source| TrustedError::Io { path, source })?;
        self.keys = keys;
        Ok(())
    }

    fn write(&self, new: &Path, keys: &BTreeSet<PeerKey>) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(new)?;
        let lines: String = keys.iter().map(|key| format!("{key}\n")).collect();
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        fs::rename(new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = BTreeSet::from([1, 2].map(|n| PeerKey::from_bytes([n; 32])));
        let mut trusted = Trusted::load(dir.path()).unwrap();
        assert!(trusted.keys().is_empty());
        trusted.replace(keys.clone()).unwrap();
        assert_eq!(Trusted::load(dir.path()).unwrap().keys(), &keys);
    }

    #[test]
    fn a_damaged_file_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let key = PeerKey::from_bytes([1; 32]);
        fs::write(dir.path().join(FILE), format!("{key}\ned25519:short\n")).unwrap();
        let error = Trusted::load(dir.path()).unwrap_err();
        assert!(matches!(error, TrustedError::Damaged { line: 2, .. }), "{error}");
    }
}
