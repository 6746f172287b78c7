//! Messages as bytes: a fixed header, then a body in bincode.
//!
//! Header, little-endian: magic u32, version u16, kind u16, body length u32. A
//! kind is never 0. Everything in the header is checked before a byte of the
//! body is received or allocated.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::BULK_MESSAGE_BYTES_MAX;

pub const MAGIC: u32 = u32::from_le_bytes(*b"TCMI");
/// Version of the framing and of the bodies' encoding.
pub const VERSION: u16 = 1;
pub const HEADER_BYTES: usize = 12;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<BULK_MESSAGE_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<BULK_MESSAGE_BYTES_MAX>();

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    #[error("not a tcmi message (magic {0:#010x})")]
    Magic(u32),
    #[error("message format version {theirs} is not spoken here, only {ours}")]
    Version { theirs: u16, ours: u16 },
    #[error("message kind {0} is unknown here")]
    Kind(u16),
    #[error("message of {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("message ends after {have} of {need} bytes")]
    Truncated { have: usize, need: usize },
    #[error("{0} bytes after the end of a message")]
    Trailing(usize),
    #[error("message of kind {kind} does not decode: {why}")]
    Body { kind: u16, why: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u16,
    pub body_len: usize,
}

/// A message whose header was checked and whose body was not yet decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u16,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        decode_body(self.kind, &self.body)
    }
}

/// The whole message. Fails if the body is larger than [`BULK_MESSAGE_BYTES_MAX`] or
/// cannot be serialized at all.
pub fn encode<T: Serialize>(kind: u16, value: &T) -> Result<Vec<u8>, CodecError> {
    if kind == 0 {
        return Err(CodecError::Kind(0));
    }
    let mut frame = vec![0; HEADER_BYTES];
    bincode::serde::encode_into_std_write(value, &mut frame, CONFIG)
        .map_err(|e| CodecError::Body { kind, why: e.to_string() })?;
    let bytes = frame.len() - HEADER_BYTES;
    let body_len = u32::try_from(bytes)
        .ok()
        .filter(|_| bytes <= BULK_MESSAGE_BYTES_MAX)
        .ok_or(CodecError::TooLarge { bytes, max: BULK_MESSAGE_BYTES_MAX })?;
    frame[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
    frame[6..8].copy_from_slice(&kind.to_le_bytes());
    frame[8..12].copy_from_slice(&body_len.to_le_bytes());
    Ok(frame)
}

/// Checks a header against the bound of its channel.
pub fn decode_header(h: &[u8; HEADER_BYTES], max: usize) -> Result<Header, CodecError> {
    let u16_at = |i: usize| u16::from_le_bytes([h[i], h[i + 1]]);
    let u32_at = |i: usize| u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
    let (magic, version, kind, bytes) = (u32_at(0), u16_at(4), u16_at(6), u32_at(8) as usize);
    if magic != MAGIC {
        return Err(CodecError::Magic(magic));
    }
    if version != VERSION {
        return Err(CodecError::Version { theirs: version, ours: VERSION });
    }
    if kind == 0 {
        return Err(CodecError::Kind(kind));
    }
    if bytes > max {
        return Err(CodecError::TooLarge { bytes, max });
    }
    Ok(Header { kind, body_len: bytes })
}

pub fn decode_body<T: DeserializeOwned>(kind: u16, body: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(body, CONFIG)
        .map_err(|e| CodecError::Body { kind, why: e.to_string() })?;
    match body.len() - used {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// One whole message that is exactly `bytes`.
pub fn decode_frame(bytes: &[u8], max: usize) -> Result<Frame, CodecError> {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(CodecError::Truncated { have: bytes.len(), need: HEADER_BYTES });
    };
    let header = decode_header(head, max)?;
    if body.len() < header.body_len {
        let need = HEADER_BYTES + header.body_len;
        return Err(CodecError::Truncated { have: bytes.len(), need });
    }
    match body.len() - header.body_len {
        0 => Ok(Frame { kind: header.kind, body: body.to_vec() }),
        rest => Err(CodecError::Trailing(rest)),
    }
}
