//! The two ciphers of streams, over ring.

use ring::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use tcmi_call::record::{Aead, DirectionKeys, Opener, Sealer, TAG_BYTES};

use crate::message::StreamKind;

pub struct RingAead(LessSafeKey);

impl RingAead {
    pub fn new(kind: StreamKind, keys: &DirectionKeys) -> Self {
        let algorithm = match kind {
            StreamKind::Call => &CHACHA20_POLY1305,
            StreamKind::Bulk => &AES_128_GCM,
        };
        let key = UnboundKey::new(algorithm, &keys.key[..algorithm.key_len()])
            .expect("the slice has the algorithm's key length");
        Self(LessSafeKey::new(key))
    }
}

impl Aead for RingAead {
    fn seal(&mut self, nonce: &[u8; 12], aad: &[u8; 5], data: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
            .expect("a record is far below the ciphers' length limit");
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    fn open(
        &mut self,
        nonce: &[u8; 12],
        aad: &[u8; 5],
        data: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), data, 0..).is_ok()
    }
}

pub fn sealer(kind: StreamKind, keys: &DirectionKeys) -> Sealer<RingAead> {
    Sealer::new(RingAead::new(kind, keys), keys.iv, keys.seq)
}

pub fn opener(kind: StreamKind, keys: &DirectionKeys) -> Opener<RingAead> {
    Opener::new(RingAead::new(kind, keys), keys.iv, keys.seq)
}
