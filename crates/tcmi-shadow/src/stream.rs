//! Frames over one socket, under record protection.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use tcmi_call::engine::BadReply;
use tcmi_call::frame::{CALL_BUFFER_MAX_BYTES, OUTS_MAX, ReplyHeader};
use tcmi_call::record::{
    DirectionKeys, HEADER_BYTES, OVERHEAD_BYTES, Opener, PLAIN_MAX_BYTES, RecordError, Sealer,
    body_len,
};
use tcmi_kkc::StreamKind;
use tcmi_kkc::aead::{self, RingAead};

/// Records gathered before they are handed to the socket.
const SEND_BATCH_BYTES: usize = 256 * 1024;
/// Holds the longest record, and several of a long reply.
const RECEIVE_BYTES: usize = 64 * 1024;
/// A reply's buffer above this is given back after it.
const KEPT_BYTES: usize = 1024 * 1024;
const REPLY_MAX_BYTES: usize = CALL_BUFFER_MAX_BYTES + 4 * OUTS_MAX;

/// After any of these the stream is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("call stream: {0}")]
    Io(#[from] io::Error),
    #[error("call stream closed by home")]
    Closed,
    #[error("bad record on a call stream: {0:?}")]
    Record(RecordError),
    #[error("home's reply does not fit the call")]
    Reply,
}

impl From<RecordError> for StreamError {
    fn from(error: RecordError) -> Self {
        StreamError::Record(error)
    }
}

impl From<BadReply> for StreamError {
    fn from(_: BadReply) -> Self {
        StreamError::Reply
    }
}

/// One direction's reading half: records in, plaintext out.
pub struct Records {
    opener: Opener<RingAead>,
    /// From the socket: `raw[start..end]` is not opened yet.
    raw: Box<[u8]>,
    start: usize,
    end: usize,
    plain: Vec<u8>,
    taken: usize,
}

impl Records {
    pub fn new(keys: &DirectionKeys) -> Self {
        Records {
            opener: aead::opener(StreamKind::Call, keys),
            raw: vec![0; RECEIVE_BYTES].into(),
            start: 0,
            end: 0,
            plain: Vec::new(),
            taken: 0,
        }
    }

    /// Waits for `n` bytes of plaintext.
    pub fn take(&mut self, fd: BorrowedFd<'_>, n: usize) -> Result<&[u8], StreamError> {
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.plain.shrink_to(KEPT_BYTES);
            self.taken = 0;
        }
        while self.plain.len() - self.taken < n {
            if !self.open_record()? {
                self.fill(fd)?;
            }
        }
        self.taken += n;
        Ok(&self.plain[self.taken - n..self.taken])
    }

    /// False: the record is not complete yet.
    fn open_record(&mut self) -> Result<bool, StreamError> {
        let pending = &mut self.raw[self.start..self.end];
        let Some((head, rest)) = pending.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(false);
        };
        let len = body_len(head)?;
        let Some(body) = rest.get_mut(..len) else { return Ok(false) };
        let n = self.opener.open(head, body)?;
        self.plain.extend_from_slice(&body[..n]);
        self.start += HEADER_BYTES + len;
        Ok(true)
    }

    fn fill(&mut self, fd: BorrowedFd<'_>) -> Result<(), StreamError> {
        self.raw.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let n = loop {
            let room = &mut self.raw[self.end..];
            // SAFETY: `room` is writable for its length.
            let n = unsafe { libc::recv(fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
            if n >= 0 {
                break n as usize;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        };
        self.end += n;
        if n == 0 { Err(StreamError::Closed) } else { Ok(()) }
    }
}

/// The stream of one guest thread to its shadow thread.
pub struct CallStream {
    fd: OwnedFd,
    sealer: Sealer<RingAead>,
    records: Records,
    out: Vec<u8>,
}

impl CallStream {
    pub fn new(fd: OwnedFd, tx: &DirectionKeys, rx: &DirectionKeys) -> Self {
        CallStream {
            fd,
            sealer: aead::sealer(StreamKind::Call, tx),
            records: Records::new(rx),
            out: Vec::new(),
        }
    }

    pub fn send(&mut self, frame: [&[u8]; 2]) -> Result<(), StreamError> {
        let [mut head, mut image] = frame;
        self.out.clear();
        while !(head.is_empty() && image.is_empty()) {
            let at = self.out.len();
            let from_head = head.len().min(PLAIN_MAX_BYTES);
            let from_image = image.len().min(PLAIN_MAX_BYTES - from_head);
            let n = from_head + from_image;
            self.out.extend_from_slice(&[0; HEADER_BYTES]);
            self.out.extend_from_slice(&head[..from_head]);
            self.out.extend_from_slice(&image[..from_image]);
            self.out.resize(at + n + OVERHEAD_BYTES, 0);
            self.sealer.seal(&mut self.out[at..], n)?;
            head = &head[from_head..];
            image = &image[from_image..];
            if self.out.len() >= SEND_BATCH_BYTES {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            let fd = self.fd.as_raw_fd();
            // SAFETY: `rest` is readable for its length.
            let n = unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
            match usize::try_from(n) {
                Ok(n) => rest = &rest[n..],
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error.into());
                    }
                }
            }
        }
        self.out.clear();
        Ok(())
    }

    /// Home is on this machine.
    pub(crate) fn is_near(&self) -> io::Result<bool> {
        let tcp = TcpStream::from(self.fd.try_clone()?);
        Ok(tcp.local_addr()?.ip() == tcp.peer_addr()?.ip())
    }

    /// A second handle, by which [`crate::Calls`] ends a wait.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Waits for `n` bytes of plaintext: for the end that receives calls.
    pub fn take(&mut self, n: usize) -> Result<&[u8], StreamError> {
        self.records.take(self.fd.as_fd(), n)
    }

    /// Waits for a reply: its header and what follows it.
    pub fn receive(&mut self) -> Result<(ReplyHeader, &[u8]), StreamError> {
        let head = self.records.take(self.fd.as_fd(), ReplyHeader::BYTES)?;
        let header = ReplyHeader::from_bytes(head).ok_or(StreamError::Reply)?;
        if header.len as usize > REPLY_MAX_BYTES {
            return Err(StreamError::Reply);
        }
        let payload = self.records.take(self.fd.as_fd(), header.len as usize)?;
        Ok((header, payload))
    }
}
