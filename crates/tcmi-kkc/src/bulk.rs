//! Bytes and messages over a stream, fast: many records are sealed into one buffer and
//! written at once; what one receive brings is opened where it lies and given out as slices.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::Serialize;
use tcmi_call::record::{
    self, DirectionKeys, HEADER_BYTES, OVERHEAD_BYTES, Opener, PLAIN_MAX_BYTES, RECORD_MAX_BYTES,
    RecordError, Sealer,
};

use crate::aead::{self, RingAead};
use crate::codec::{self, CodecError, Frame};
use crate::ktls;
use crate::limits::{
    AES_GCM_RECORDS_MAX, BULK_IDLE_TIMEOUT, BULK_MESSAGE_BYTES_MAX, BULK_RECEIVE_BYTES,
    BULK_RECORDS_AT_ONCE,
};
use crate::message::StreamKind;
use crate::socket::{recv_some, send_all};
use crate::stream::Stream;

/// After any of these but `Codec` the stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    #[error("stream: {0}")]
    Io(#[source] io::Error),
    #[error("no progress on the stream in time")]
    Timeout,
    #[error("the peer closed the stream")]
    Closed,
    #[error("the stream ends inside a record")]
    Truncated,
    #[error("bad record on the stream: {0:?}")]
    Record(RecordError),
    #[error(
        "{AES_GCM_RECORDS_MAX} records were protected with the stream's key, and no more may be"
    )]
    KeyUsedUp,
    #[error("the stream failed earlier")]
    Broken,
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<io::Error> for BulkError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(e),
        }
    }
}

impl From<RecordError> for BulkError {
    fn from(e: RecordError) -> Self {
        Self::Record(e)
    }
}

pub(crate) fn open(stream: Stream) -> (BulkWriter, BulkReader) {
    let kind = stream.kind;
    let (fd, tx, rx) = stream.into_parts();
    let fd = Arc::new(fd);
    let writer = BulkWriter {
        fd: fd.clone(),
        sealer: Some(aead::sealer(kind, &tx)),
        keys: tx,
        kind,
        buf: vec![0; BULK_RECORDS_AT_ONCE * RECORD_MAX_BYTES],
        sealed: 0,
        open: 0,
        records_left: records_left(kind, tx.seq),
        idle: BULK_IDLE_TIMEOUT,
        broken: false,
    };
    let reader = BulkReader {
        fd,
        opener: aead::opener(kind, &rx),
        buf: vec![0; BULK_RECEIVE_BYTES],
        start: 0,
        end: 0,
        plain: 0,
        skip: 0,
        records_left: records_left(kind, rx.seq),
        idle: BULK_IDLE_TIMEOUT,
        broken: false,
    };
    (writer, reader)
}

fn records_left(kind: StreamKind, seq: u64) -> u64 {
    match kind {
        StreamKind::Bulk => AES_GCM_RECORDS_MAX.saturating_sub(seq),
        StreamKind::Call => u64::MAX - seq,
    }
}

/// The sending half. Bytes are sent when the buffer is full, or by [`BulkWriter::flush`].
pub struct BulkWriter {
    fd: Arc<OwnedFd>,
    /// None: plaintext is written, and the kernel makes records of it (kTLS).
    sealer: Option<Sealer<RingAead>>,
    keys: DirectionKeys,
    buf: Vec<u8>,
    /// Finished records stand in `buf[..sealed]`.
    sealed: usize,
    /// Plaintext of the record that begins there.
    open: usize,
    kind: StreamKind,
    records_left: u64,
    idle: Duration,
    broken: bool,
}

impl BulkWriter {
    /// Longest wait without progress; [`BULK_IDLE_TIMEOUT`] at first.
    pub fn set_idle_timeout(&mut self, idle: Duration) {
        self.idle = idle;
    }

    pub fn write(&mut self, mut data: &[u8]) -> Result<(), BulkError> {
        while !data.is_empty() {
            let space = self.space()?;
            let n = space.len().min(data.len());
            space[..n].copy_from_slice(&data[..n]);
            self.commit(n)?;
            data = &data[n..];
        }
        Ok(())
    }

    /// Room of the record being filled, never empty. What was written to its start is
    /// sent after [`BulkWriter::commit`].
    pub fn space(&mut self) -> Result<&mut [u8], BulkError> {
        self.make_room()?;
        let at = self.sealed + HEADER_BYTES;
        Ok(&mut self.buf[at + self.open..at + PLAIN_MAX_BYTES])
    }

    /// Room of many records, for a gathering read from a process: at most `max` bytes in
    /// all, at least one. Filled in order, then told by [`BulkWriter::commit`].
    pub fn spaces(&mut self, max: usize) -> Result<Vec<IoSliceMut<'_>>, BulkError> {
        self.make_room()?;
        let (mut left, mut skip) = (max, self.open);
        let slots = self.buf[self.sealed..].chunks_exact_mut(RECORD_MAX_BYTES);
        Ok(slots
            .map_while(|slot| {
                let from = HEADER_BYTES + std::mem::take(&mut skip);
                let n = left.min(HEADER_BYTES + PLAIN_MAX_BYTES - from);
                left -= n;
                (n > 0).then(|| IoSliceMut::new(&mut slot[from..from + n]))
            })
            .collect())
    }

    /// The first `n` bytes of the room that [`BulkWriter::space`] or [`BulkWriter::spaces`]
    /// last gave were written. Panics if there was less room.
    pub fn commit(&mut self, mut n: usize) -> Result<(), BulkError> {
        while n > 0 {
            let part = n.min(PLAIN_MAX_BYTES - self.open);
            self.open += part;
            n -= part;
            if self.open == PLAIN_MAX_BYTES {
                self.seal()?;
            }
        }
        Ok(())
    }

    /// Sends what was written.
    pub fn flush(&mut self) -> Result<(), BulkError> {
        if self.open > 0 {
            self.seal()?;
        }
        self.send()
    }

    pub fn send_message<T: Serialize>(&mut self, kind: u16, value: &T) -> Result<(), BulkError> {
        self.write(&codec::encode(kind, value)?)?;
        self.flush()
    }

    /// Sends what was written and tells the peer that nothing follows.
    pub fn finish(mut self) -> Result<(), BulkError> {
        self.flush()?;
        rustix::net::shutdown(&self.fd, Shutdown::Write).map_err(|e| io::Error::from(e).into())
    }

    /// From here on the kernel protects what is sent, so that a part of it can be sent by
    /// [`BulkWriter::send_with`]. The peer sees no difference. False: this kernel cannot, and
    /// nothing has changed.
    pub fn hand_to_kernel(&mut self) -> Result<bool, BulkError> {
        self.flush()?;
        let Some(sealer) = &self.sealer else { return Ok(true) };
        if self.kind != StreamKind::Bulk {
            return Ok(false);
        }
        match ktls::protect_sent(&self.fd, &self.keys, sealer.seq()) {
            Ok(()) => {
                set_socket_timeout(&self.fd, Timeout::Send, Some(self.idle))
                    .map_err(io::Error::from)?;
                self.sealer = None;
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, "the kernel does not protect this stream");
                Ok(false)
            }
        }
    }

    /// After [`BulkWriter::hand_to_kernel`]: `send` sends plaintext on the socket, in its turn
    /// after what was written, and tells how many bytes.
    pub fn send_with(
        &mut self,
        send: impl FnOnce(BorrowedFd<'_>) -> io::Result<u64>,
    ) -> Result<u64, BulkError> {
        assert!(self.sealer.is_none(), "the kernel has the keys");
        self.flush()?;
        let n = send(self.fd.as_fd()).inspect_err(|_| self.broken = true)?;
        // At most so many records; the kernel may make others than we would.
        let records = n.div_ceil(PLAIN_MAX_BYTES as u64) + 1;
        self.records_left = self.records_left.saturating_sub(records);
        Ok(n)
    }

    fn make_room(&mut self) -> Result<(), BulkError> {
        match self.sealed + RECORD_MAX_BYTES > self.buf.len() {
            true => self.send(),
            false => Ok(()),
        }
    }

    fn seal(&mut self) -> Result<(), BulkError> {
        if self.broken {
            return Err(BulkError::Broken);
        }
        if self.records_left == 0 {
            self.broken = true;
            return Err(BulkError::KeyUsedUp);
        }
        self.records_left -= 1;
        let n = std::mem::take(&mut self.open);
        let record = &mut self.buf[self.sealed..];
        match &mut self.sealer {
            Some(sealer) => self.sealed += sealer.seal(record, n)?,
            None => {
                let plain = &record[HEADER_BYTES..][..n];
                send_all(self.fd.as_fd(), plain, self.idle).inspect_err(|_| self.broken = true)?;
                // What was written behind it stays where it is until its turn.
                self.sealed += RECORD_MAX_BYTES;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), BulkError> {
        if self.broken {
            return Err(BulkError::Broken);
        }
        debug_assert_eq!(self.open, 0, "a partial record would be overwritten");
        let n = std::mem::take(&mut self.sealed);
        if self.sealer.is_none() {
            return Ok(());
        }
        send_all(self.fd.as_fd(), &self.buf[..n], self.idle).inspect_err(|_| self.broken = true)?;
        Ok(())
    }
}

/// The receiving half.
pub struct BulkReader {
    fd: Arc<OwnedFd>,
    opener: Opener<RingAead>,
    buf: Vec<u8>,
    /// `buf[start..end]`: given out next, or not yet opened.
    start: usize,
    end: usize,
    /// The first `plain` bytes of it are opened.
    plain: usize,
    /// Bytes of the opened record after its plaintext.
    skip: usize,
    records_left: u64,
    idle: Duration,
    broken: bool,
}

impl BulkReader {
    /// Longest wait without progress, and for one whole message; [`BULK_IDLE_TIMEOUT`] at first.
    pub fn set_idle_timeout(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Whether received bytes wait here: polling the descriptor does not tell of them.
    pub fn has_buffered(&self) -> bool {
        self.end > self.start
    }

    /// The next bytes, at least one; the same ones until [`BulkReader::consume`]. `Closed` where
    /// the peer finished between two records.
    pub fn fill(&mut self) -> Result<&[u8], BulkError> {
        self.fill_until(None)
    }

    /// The first `n` bytes of what [`BulkReader::fill`] gave were used. Panics if there were fewer.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.plain);
        self.start += n;
        self.plain -= n;
        if self.plain == 0 {
            self.start += std::mem::take(&mut self.skip);
        }
    }

    pub fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), BulkError> {
        while !out.is_empty() {
            let n = self.fill()?.len().min(out.len());
            let (now, rest) = out.split_at_mut(n);
            now.copy_from_slice(&self.buf[self.start..][..n]);
            self.consume(n);
            out = rest;
        }
        Ok(())
    }

    /// The next message; its body is whatever [`codec`] bounds, and decoded by [`Frame::decode`].
    pub fn recv_message(&mut self) -> Result<Frame, BulkError> {
        let until = Instant::now() + self.idle;
        let head = self.take(codec::HEADER_BYTES, until)?;
        let head = head.first_chunk().expect("as many bytes as were asked for");
        let header = codec::decode_header(head, BULK_MESSAGE_BYTES_MAX)
            .inspect_err(|_| self.broken = true)?;
        Ok(Frame { kind: header.kind, body: self.take(header.body_len, until)? })
    }

    /// Memory grows with what arrives, not with what was announced.
    fn take(&mut self, len: usize, until: Instant) -> Result<Vec<u8>, BulkError> {
        let mut bytes = Vec::with_capacity(len.min(PLAIN_MAX_BYTES));
        while bytes.len() < len {
            let got = self.fill_until(Some(until))?;
            let n = got.len().min(len - bytes.len());
            bytes.extend_from_slice(&got[..n]);
            self.consume(n);
        }
        Ok(bytes)
    }

    fn fill_until(&mut self, until: Option<Instant>) -> Result<&[u8], BulkError> {
        if self.broken {
            return Err(BulkError::Broken);
        }
        while self.plain == 0 {
            if let Err(e) = self.next_record(until) {
                self.broken = !matches!(e, BulkError::Closed);
                return Err(e);
            }
        }
        Ok(&self.buf[self.start..][..self.plain])
    }

    /// Opens one record, which may be empty.
    fn next_record(&mut self, until: Option<Instant>) -> Result<(), BulkError> {
        self.receive(HEADER_BYTES, until)?;
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(&self.buf[self.start..][..HEADER_BYTES]);
        let body = record::body_len(&head)?;
        self.receive(HEADER_BYTES + body, until)?;
        self.records_left = self.records_left.checked_sub(1).ok_or(BulkError::KeyUsedUp)?;
        self.start += HEADER_BYTES;
        self.plain = self.opener.open(&head, &mut self.buf[self.start..][..body])?;
        match self.plain {
            0 => self.start += body,
            n => self.skip = body - n,
        }
        Ok(())
    }

    /// Makes `buf[start..]` hold `need` bytes at least.
    fn receive(&mut self, need: usize, until: Option<Instant>) -> Result<(), BulkError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + need > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < need {
            let until = until.unwrap_or_else(|| Instant::now() + self.idle);
            let got = recv_some(self.fd.as_fd(), &mut self.buf[self.end..], until)?;
            self.end += got;
            match (got, self.end - self.start) {
                (0, 0) => return Err(BulkError::Closed),
                (0, _) => return Err(BulkError::Truncated),
                _ => {}
            }
        }
        Ok(())
    }
}

const _: () = assert!(BULK_RECEIVE_BYTES >= 2 * (record::BODY_MAX_BYTES + OVERHEAD_BYTES));

impl AsFd for BulkWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for BulkReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
