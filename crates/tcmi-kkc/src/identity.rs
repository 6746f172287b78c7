//! Who a node is: an ed25519 key pair, and public keys as people pin them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// File in the state directory: the key pair as PKCS#8, mode 0600.
pub const IDENTITY_FILE: &str = "identity.pk8";
const IDENTITY_FILE_BYTES_MAX: u64 = 4096;

const KEY_BYTES: usize = 32;
/// DER of an ed25519 SubjectPublicKeyInfo (RFC 8410) up to the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// A node's public key. As text one token: `ed25519:` and 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey([u8; KEY_BYTES]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a public key (ed25519: and 43 characters of base64url)")]
pub struct PeerKeyError;

impl PeerKey {
    pub fn from_bytes(key: [u8; KEY_BYTES]) -> Self {
        Self(key)
    }

    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Short form for people: 64 bits of the key's SHA-256, `1a2b-3c4d-5e6f-7a8b`. Never pinned.
    pub fn fingerprint(&self) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let quads = hash.as_ref().chunks(2).take(4);
        quads.map(|c| format!("{:02x}{:02x}", c[0], c[1])).collect::<Vec<_>>().join("-")
    }

    pub(crate) fn from_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }
}

const PREFIX: &str = "ed25519:";
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from(PREFIX);
        for three in self.0.chunks(3) {
            let bits = three.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b))
                << (8 * (3 - three.len()));
            for i in 0..=three.len() {
                text.push(char::from(BASE64URL[(bits >> (18 - 6 * i)) as usize & 63]));
            }
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerKey {
    type Err = PeerKeyError;
    /// One text for one key: unused bits must be zero, and nothing may stand around it.
    fn from_str(s: &str) -> Result<Self, PeerKeyError> {
        let text = s.strip_prefix(PREFIX).ok_or(PeerKeyError)?;
        if text.len() != (KEY_BYTES * 8).div_ceil(6) {
            return Err(PeerKeyError);
        }
        let (mut key, mut at, mut bits, mut have) = ([0; KEY_BYTES], 0, 0u32, 0);
        for c in text.bytes() {
            let value = BASE64URL.iter().position(|&b| b == c).ok_or(PeerKeyError)?;
            bits = bits << 6 | value as u32;
            have += 6;
            if have >= 8 {
                have -= 8;
                key[at] = (bits >> have) as u8;
                at += 1;
                bits &= (1 << have) - 1;
            }
        }
        match bits {
            0 => Ok(Self(key)),
            _ => Err(PeerKeyError),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: others may read it (mode {mode:04o}); a private key must be 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path}: belongs to user {owner}, not to user {us}")]
    Foreign { path: PathBuf, owner: u32, us: u32 },
    #[error("{path}: does not hold an ed25519 key pair")]
    Damaged { path: PathBuf },
    #[error("no randomness for a new key")]
    Random,
}

/// A node's own key pair.
#[derive(Clone)]
pub struct Identity {
    key: PeerKey,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.key).finish()
    }
}

impl Identity {
    /// The identity kept in `dir`, which must exist; makes one if there is none. Two processes
    /// that do this at once get the same one.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        if let Some(found) = Self::load(&path)? {
            return Ok(found);
        }
        create_file(dir, &path)?;
        Self::load(&path)?.ok_or_else(|| io_error(&path)(io::ErrorKind::NotFound.into()))
    }

    /// A new one that is kept nowhere.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::from_pkcs8(&new_pkcs8()?).ok_or(IdentityError::Random)
    }

    pub fn key(&self) -> PeerKey {
        self.key
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(
                (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32
            )
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(path)(e)),
        };
        check_private(&file, path)?;
        let mut der = Vec::new();
        file.take(IDENTITY_FILE_BYTES_MAX).read_to_end(&mut der).map_err(io_error(path))?;
        let found = Self::from_pkcs8(&der);
        Ok(Some(found.ok_or_else(|| IdentityError::Damaged { path: path.to_owned() })?))
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(der).ok()?;
        let key = PeerKey(pair.public_key().as_ref().try_into().ok()?);
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()));
        let signing =
            rustls::crypto::ring::default_provider().key_provider.load_private_key(private).ok()?;
        let public = CertificateDer::from(key.to_spki());
        Some(Self { key, certified: Arc::new(CertifiedKey::new(vec![public], signing)) })
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + '_ {
    move |source| IdentityError::Io { path: path.to_owned(), source }
}

fn new_pkcs8() -> Result<Vec<u8>, IdentityError> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new());
    Ok(pkcs8.map_err(|_| IdentityError::Random)?.as_ref().to_vec())
}

fn check_private(file: &File, path: &Path) -> Result<(), IdentityError> {
    let meta = file.metadata().map_err(io_error(path))?;
    if !meta.is_file() {
        return Err(IdentityError::Damaged { path: path.to_owned() });
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return Err(IdentityError::Foreign { path: path.to_owned(), owner: meta.uid(), us });
    }
    match meta.mode() & 0o7777 {
        mode if mode & 0o077 != 0 => Err(IdentityError::Exposed { path: path.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// Linked into place when it is whole, and never over one that is there already.
fn create_file(dir: &Path, path: &Path) -> Result<(), IdentityError> {
    let pkcs8 = new_pkcs8()?;
    let tmp = dir.join(format!(".{IDENTITY_FILE}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&tmp)
        .and_then(|mut file| file.write_all(&pkcs8).and_then(|()| file.sync_all()))
        .and_then(|()| match fs::hard_link(&tmp, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    let removed = fs::remove_file(&tmp);
    written.and(removed).and_then(|()| File::open(dir)?.sync_all()).map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(what: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tcmi-kkc-{what}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            if let Err(e) = fs::remove_dir_all(&self.0) {
                eprintln!("{}: {e}", self.0.display());
            }
        }
    }

    #[test]
    fn the_same_identity_comes_back() {
        let dir = Scratch::new("same");
        let made = Identity::load_or_create(&dir.0).unwrap();
        let mode = fs::metadata(dir.0.join(IDENTITY_FILE)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(Identity::load_or_create(&dir.0).unwrap().key(), made.key());
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = Scratch::new("exposed");
        Identity::load_or_create(&dir.0).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            let file = dir.0.join(IDENTITY_FILE);
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let err = Identity::load_or_create(&dir.0).unwrap_err();
            assert!(matches!(err, IdentityError::Exposed { mode: m, .. } if m == mode), "{err}");
        }
    }

    #[test]
    fn a_damaged_key_is_kept_and_refused() {
        let dir = Scratch::new("damaged");
        Identity::load_or_create(&dir.0).unwrap();
        let file = dir.0.join(IDENTITY_FILE);
        fs::write(&file, b"short").unwrap();
        assert!(matches!(Identity::load_or_create(&dir.0), Err(IdentityError::Damaged { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"short");
    }

    #[test]
    fn key_text_is_one_token_and_canonical() {
        let key = PeerKey::from_bytes(std::array::from_fn(|i| (i * 37 + 200) as u8));
        let text = key.to_string();
        assert_eq!(text.len(), 51);
        assert_eq!(text.parse(), Ok(key));
        let zero = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(zero.parse(), Ok(PeerKey::from_bytes([0; 32])));
        let unused_bit = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB";
        let padded = format!("{zero}=");
        let short = &zero[..50];
        for bad in ["", "ed25519:", unused_bit, &padded, short, &zero[8..], &zero.replace('A', "+")]
        {
            assert_eq!(bad.parse::<PeerKey>(), Err(PeerKeyError), "{bad}");
        }
    }

    #[test]
    fn spki_holds_exactly_one_key() {
        let key = PeerKey::from_bytes([7; 32]);
        let mut der = key.to_spki();
        assert_eq!(PeerKey::from_spki(&der), Some(key));
        der.push(0);
        assert_eq!(PeerKey::from_spki(&der), None);
        assert_eq!(PeerKey::from_spki(&der[..40]), None);
    }
}
