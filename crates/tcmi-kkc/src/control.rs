//! The control connection's bytes: frames in records, both ways.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tcmi_call::record::{
    self, DirectionKeys, HEADER_BYTES, Opener, PLAIN_MAX_BYTES, RECORD_MAX_BYTES, RecordError,
    Sealer,
};

use crate::aead::{self, RingAead};
use crate::codec::{self, CodecError, Frame};
use crate::message::StreamKind;
use crate::socket::send_all;

/// Control connections use the cipher that the processor has instructions for.
pub(crate) const CONTROL_CIPHER: StreamKind = StreamKind::Bulk;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("closed by the peer")]
    Closed,
    #[error("bad record: {0:?}")]
    Record(RecordError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<RecordError> for ControlError {
    fn from(e: RecordError) -> Self {
        Self::Record(e)
    }
}

pub(crate) struct ControlReader {
    opener: Opener<RingAead>,
    sealed: Vec<u8>,
    /// Opened bytes that are not yet a whole frame.
    plain: Vec<u8>,
}

impl ControlReader {
    pub fn new(keys: &DirectionKeys) -> Self {
        Self { opener: aead::opener(CONTROL_CIPHER, keys), sealed: Vec::new(), plain: Vec::new() }
    }

    /// Takes what has arrived, at most one receive of it, without waiting.
    pub fn receive(&mut self, tcp: &TcpStream) -> Result<(), ControlError> {
        let have = self.sealed.len();
        self.sealed.resize(have + RECORD_MAX_BYTES, 0);
        let got = recv(tcp, &mut self.sealed[have..], RecvFlags::DONTWAIT);
        self.sealed.truncate(have + got.as_ref().map_or(0, |&(n, _)| n));
        match got {
            Ok((0, _)) => return Err(ControlError::Closed),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(e) => return Err(io::Error::from(e).into()),
        }
        let mut at = 0;
        while let Some(used) = self.open_record(at)? {
            at += used;
        }
        self.sealed.drain(..at);
        Ok(())
    }

    /// Length of the record at `at` if it is whole; its plaintext is then in `plain`.
    fn open_record(&mut self, at: usize) -> Result<Option<usize>, ControlError> {
        let Some((head, rest)) = self.sealed[at..].split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = record::body_len(head)?;
        let Some(body) = rest.get_mut(..len) else {
            return Ok(None);
        };
        let n = self.opener.open(head, body)?;
        self.plain.extend_from_slice(&body[..n]);
        Ok(Some(HEADER_BYTES + len))
    }

    /// The next whole frame of at most `max` bytes of body.
    pub fn next_frame(&mut self, max: usize) -> Result<Option<Frame>, ControlError> {
        let Some(head) = self.plain.first_chunk() else {
            return Ok(None);
        };
        let header = codec::decode_header(head, max)?;
        let end = codec::HEADER_BYTES + header.body_len;
        if self.plain.len() < end {
            return Ok(None);
        }
        let body = self.plain[codec::HEADER_BYTES..end].to_vec();
        self.plain.drain(..end);
        Ok(Some(Frame { kind: header.kind, body }))
    }
}

pub(crate) struct ControlWriter {
    sealer: Sealer<RingAead>,
    sealed: Vec<u8>,
}

impl ControlWriter {
    pub fn new(keys: &DirectionKeys) -> Self {
        Self { sealer: aead::sealer(CONTROL_CIPHER, keys), sealed: Vec::new() }
    }

    pub fn send(
        &mut self,
        tcp: &TcpStream,
        frame: &[u8],
        idle: Duration,
    ) -> Result<(), ControlError> {
        for part in frame.chunks(PLAIN_MAX_BYTES) {
            self.sealed.resize(part.len() + record::OVERHEAD_BYTES, 0);
            self.sealed[HEADER_BYTES..][..part.len()].copy_from_slice(part);
            let len = self.sealer.seal(&mut self.sealed, part.len())?;
            send_all(tcp, &self.sealed[..len], idle)?;
        }
        Ok(())
    }
}
