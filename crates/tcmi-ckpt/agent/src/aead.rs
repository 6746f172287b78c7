//! ChaCha20-Poly1305 (RFC 8439) from its two halves.
//!
//! Put together here, not taken ready-made, because the keystream's first block (the
//! authenticator's key) and the next three come out of one parallel step: a small
//! record, which is nearly every call, costs one such step in place of two.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use tcmi_call::record::{Aead, TAG_BYTES};

const HEAD_BYTES: usize = 256;
const MAC_BLOCK_BYTES: usize = 64;
const HEAD_DATA_BYTES: usize = HEAD_BYTES - MAC_BLOCK_BYTES;

pub struct ChaChaPoly<'k> {
    pub key: &'k [u8; 32],
}

/// The keystream of one record: its first blocks ready, the cipher standing after them.
struct Keystream {
    head: [u8; HEAD_BYTES],
    rest: ChaCha20,
}

impl Keystream {
    fn new(key: &[u8; 32], nonce: &[u8; 12]) -> Self {
        let mut rest = ChaCha20::new(key.into(), nonce.into());
        let mut head = [0; HEAD_BYTES];
        rest.apply_keystream(&mut head);
        Self { head, rest }
    }

    fn authenticator(&self) -> Poly1305 {
        let mut key = poly1305::Key::default();
        key.copy_from_slice(&self.head[..32]);
        Poly1305::new(&key)
    }

    fn apply(&mut self, data: &mut [u8]) {
        let (first, more) = data.split_at_mut(data.len().min(HEAD_DATA_BYTES));
        xor(first, &self.head[MAC_BLOCK_BYTES..]);
        let (whole, tail) = more.split_at_mut(more.len() - more.len() % HEAD_BYTES);
        if !whole.is_empty() {
            self.rest.apply_keystream(whole);
        }
        if !tail.is_empty() {
            // The cipher would make a short tail block by block.
            let mut keystream = [0; HEAD_BYTES];
            self.rest.apply_keystream(&mut keystream);
            xor(tail, &keystream);
        }
    }
}

fn xor(data: &mut [u8], keystream: &[u8]) {
    for (d, k) in data.iter_mut().zip(keystream) {
        *d ^= k;
    }
}

fn tag(mut mac: Poly1305, aad: &[u8; 5], data: &[u8]) -> [u8; TAG_BYTES] {
    mac.update_padded(aad);
    mac.update_padded(data);
    let mut lengths = poly1305::Block::default();
    lengths[..8].copy_from_slice(&(aad.len() as u64).to_le_bytes());
    lengths[8..].copy_from_slice(&(data.len() as u64).to_le_bytes());
    mac.update(&[lengths]);
    mac.finalize().into()
}

impl Aead for ChaChaPoly<'_> {
    fn seal(&mut self, nonce: &[u8; 12], aad: &[u8; 5], data: &mut [u8]) -> [u8; TAG_BYTES] {
        let mut stream = Keystream::new(self.key, nonce);
        stream.apply(data);
        tag(stream.authenticator(), aad, data)
    }

    fn open(
        &mut self,
        nonce: &[u8; 12],
        aad: &[u8; 5],
        data: &mut [u8],
        expected: &[u8; TAG_BYTES],
    ) -> bool {
        let mut stream = Keystream::new(self.key, nonce);
        let actual = tag(stream.authenticator(), aad, data);
        // No early exit: how many bytes match must not show in the time.
        let difference = actual.iter().zip(expected).fold(0, |d, (a, e)| d | (a ^ e));
        if core::hint::black_box(difference) != 0 {
            return false;
        }
        stream.apply(data);
        true
    }
}
