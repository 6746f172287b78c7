//! TLS 1.3 record protection (RFC 8446, 5.2) over keys taken from a finished
//! handshake. Only application data is spoken after it; an alert ends the stream.

/// One authenticated cipher with its key. The agent and the daemons bring
/// different implementations of the same algorithm.
pub trait Aead {
    fn seal(&mut self, nonce: &[u8; 12], aad: &[u8; 5], data: &mut [u8]) -> [u8; TAG_BYTES];
    /// False if the tag does not match; `data` is then worthless.
    fn open(
        &mut self,
        nonce: &[u8; 12],
        aad: &[u8; 5],
        data: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool;
}

pub const HEADER_BYTES: usize = 5;
pub const TAG_BYTES: usize = 16;
/// Largest plaintext in one record.
pub const PLAIN_MAX_BYTES: usize = 16 * 1024;
/// What a record adds to its plaintext: header, content type, tag.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
pub const RECORD_MAX_BYTES: usize = PLAIN_MAX_BYTES + OVERHEAD_BYTES;
/// Largest protected body that a peer may announce (RFC 8446: 2^14 + 256).
pub const BODY_MAX_BYTES: usize = PLAIN_MAX_BYTES + 256;

const APPLICATION_DATA: u8 = 23;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The peer did not send a TLS 1.3 application-data record.
    NotARecord,
    /// Longer than a record may be.
    TooLong,
    /// Forged, damaged, repeated or out of order.
    BadTag,
    /// The peer closed the stream or sent an alert.
    Alert,
    /// The sequence number is used up.
    Exhausted,
}

/// Key, IV and next sequence number of one direction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DirectionKeys {
    pub key: [u8; 32],
    pub iv: [u8; 12],
    pub pad: u32,
    pub seq: u64,
}

fn nonce(iv: &[u8; 12], seq: u64) -> [u8; 12] {
    let mut n = *iv;
    for (b, s) in n[4..].iter_mut().zip(seq.to_be_bytes()) {
        *b ^= s;
    }
    n
}

pub struct Sealer<A> {
    aead: A,
    iv: [u8; 12],
    seq: u64,
}

impl<A: Aead> Sealer<A> {
    pub fn new(aead: A, iv: [u8; 12], seq: u64) -> Self {
        Self { aead, iv, seq }
    }
    /// The number of the next record.
    pub fn seq(&self) -> u64 {
        self.seq
    }
    /// The plaintext stands at `buf[5..5 + n]`; afterwards `buf[..n + 22]` is the record.
    /// `buf` has room for it and `n` is at most [`PLAIN_MAX_BYTES`], or this panics.
    pub fn seal(&mut self, buf: &mut [u8], n: usize) -> Result<usize, RecordError> {
        assert!(n <= PLAIN_MAX_BYTES);
        let body = n + 1 + TAG_BYTES;
        let head = [APPLICATION_DATA, 3, 3, (body >> 8) as u8, body as u8];
        buf[..HEADER_BYTES].copy_from_slice(&head);
        buf[HEADER_BYTES + n] = APPLICATION_DATA;
        let nonce = nonce(&self.iv, self.seq);
        self.seq = self.seq.checked_add(1).ok_or(RecordError::Exhausted)?;
        let tag = self.aead.seal(&nonce, &head, &mut buf[HEADER_BYTES..HEADER_BYTES + n + 1]);
        buf[HEADER_BYTES + n + 1..HEADER_BYTES + body].copy_from_slice(&tag);
        Ok(HEADER_BYTES + body)
    }
}

pub struct Opener<A> {
    aead: A,
    iv: [u8; 12],
    seq: u64,
}

/// Length of the body that follows a record header.
pub fn body_len(head: &[u8; HEADER_BYTES]) -> Result<usize, RecordError> {
    if head[0] != APPLICATION_DATA || head[1] != 3 {
        return Err(RecordError::NotARecord);
    }
    let n = usize::from(head[3]) << 8 | usize::from(head[4]);
    if n > BODY_MAX_BYTES {
        return Err(RecordError::TooLong);
    }
    if n < 1 + TAG_BYTES {
        return Err(RecordError::NotARecord);
    }
    Ok(n)
}

impl<A: Aead> Opener<A> {
    pub fn new(aead: A, iv: [u8; 12], seq: u64) -> Self {
        Self { aead, iv, seq }
    }
    /// Opens `body` (of the length that [`body_len`] told) in place; returns the
    /// length of the plaintext at its start.
    pub fn open(
        &mut self,
        head: &[u8; HEADER_BYTES],
        body: &mut [u8],
    ) -> Result<usize, RecordError> {
        if body.len() < 1 + TAG_BYTES {
            return Err(RecordError::NotARecord);
        }
        let (data, tag) = body.split_at_mut(body.len() - TAG_BYTES);
        let mut t = [0; TAG_BYTES];
        t.copy_from_slice(tag);
        let nonce = nonce(&self.iv, self.seq);
        self.seq = self.seq.checked_add(1).ok_or(RecordError::Exhausted)?;
        if !self.aead.open(&nonce, head, data, &t) {
            return Err(RecordError::BadTag);
        }
        let end = data.iter().rposition(|&b| b != 0).ok_or(RecordError::NotARecord)?;
        match data[end] {
            APPLICATION_DATA => Ok(end),
            _ => Err(RecordError::Alert),
        }
    }
}
