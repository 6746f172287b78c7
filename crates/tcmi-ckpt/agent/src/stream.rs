//! A thread's call stream: frames in records, without a copy of the keys' state outside
//! the area, so that the keeper always sees it exact.

use crate::aead::ChaChaPoly;
use crate::broken::Broken;
use crate::sys::{self, PollFd};
use crate::window::idle_call;
use core::ops::Range;
use linux_raw_sys::general::{__NR_poll, __NR_read};
use tcmi_call::abi::{AgentStream, RECORD_ROOM_BYTES};
use tcmi_call::record::{
    BODY_MAX_BYTES, DirectionKeys, HEADER_BYTES, Opener, PLAIN_MAX_BYTES, RecordError, Sealer,
    body_len,
};

const _: () = assert!(HEADER_BYTES + BODY_MAX_BYTES <= RECORD_ROOM_BYTES);

/// Seals `buf[5..5 + n]` with the direction's next sequence number; the record's length.
pub fn seal(keys: &mut DirectionKeys, buf: &mut [u8], n: usize) -> Result<usize, RecordError> {
    let DirectionKeys { key, iv, seq, .. } = keys;
    let sealed = Sealer::new(ChaChaPoly { key }, *iv, *seq).seal(buf, n)?;
    *seq += 1;
    Ok(sealed)
}

fn open(
    keys: &mut DirectionKeys,
    head: &[u8; HEADER_BYTES],
    body: &mut [u8],
) -> Result<usize, RecordError> {
    let DirectionKeys { key, iv, seq, .. } = keys;
    let plain = Opener::new(ChaChaPoly { key }, *iv, *seq).open(head, body)?;
    *seq += 1;
    Ok(plain)
}

/// Reads frames.
pub struct Incoming<'a> {
    room: &'a mut [u8; RECORD_ROOM_BYTES],
    /// Received and not yet opened.
    raw: Range<usize>,
    /// Opened and not yet taken.
    plain: Range<usize>,
}

impl<'a> Incoming<'a> {
    pub fn new(room: &'a mut [u8; RECORD_ROOM_BYTES]) -> Self {
        Self { room, raw: 0..0, plain: 0..0 }
    }

    /// True when the opened record is used up. A frame ends where a record ends.
    pub fn at_record_end(&self) -> bool {
        self.plain.is_empty()
    }

    pub fn take(&mut self, stream: &mut AgentStream, mut to: &mut [u8]) -> Result<(), Broken> {
        while !to.is_empty() {
            while self.plain.is_empty() {
                self.next_record(stream)?;
            }
            let n = to.len().min(self.plain.len());
            let (now, later) = to.split_at_mut(n);
            now.copy_from_slice(&self.room[self.plain.start..self.plain.start + n]);
            self.plain.start += n;
            to = later;
        }
        Ok(())
    }

    /// Takes and forgets `n` bytes.
    pub fn skip(&mut self, stream: &mut AgentStream, mut n: usize) -> Result<(), Broken> {
        while n > 0 {
            while self.plain.is_empty() {
                self.next_record(stream)?;
            }
            let now = n.min(self.plain.len());
            self.plain.start += now;
            n -= now;
        }
        Ok(())
    }

    fn next_record(&mut self, stream: &mut AgentStream) -> Result<(), Broken> {
        self.fill(stream, HEADER_BYTES)?;
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(&self.room[self.raw.start..self.raw.start + HEADER_BYTES]);
        let body = body_len(&head)?;
        self.fill(stream, HEADER_BYTES + body)?;
        let start = self.raw.start + HEADER_BYTES;
        let n = open(&mut stream.rx, &head, &mut self.room[start..start + body])?;
        self.plain = start..start + n;
        self.raw.start = start + body;
        Ok(())
    }

    /// Receives until at least `n` raw bytes are there.
    fn fill(&mut self, stream: &AgentStream, n: usize) -> Result<(), Broken> {
        if self.raw.is_empty() {
            self.raw = 0..0;
        }
        if self.raw.start + n > self.room.len() {
            self.room.copy_within(self.raw.clone(), 0);
            self.raw = 0..self.raw.len();
        }
        while self.raw.len() < n {
            let idle = self.raw.is_empty();
            let room = &mut self.room[self.raw.end..];
            let got =
                if idle { wait_for_bytes(stream.fd, room) } else { sys::read(stream.fd, room) };
            match got {
                0 => return Err(Broken::Closed),
                1.. => self.raw.end += got as usize,
                errno => return Err(Broken::Io(errno)),
            }
        }
        Ok(())
    }
}

/// As [`sys::read`], in the idle window: signals that come meanwhile belong to no call.
fn wait_for_bytes(fd: i32, room: &mut [u8]) -> i64 {
    let read = [fd as u64, room.as_mut_ptr() as u64, room.len() as u64];
    loop {
        // SAFETY: `serve` runs with gs base at its area; the kernel writes into `room` only.
        let got = unsafe { idle_call(u64::from(__NR_read), &read) };
        if sys::would_block(got) {
            let mut poll = PollFd::readable(fd);
            let args = [(&raw mut poll) as u64, 1, u64::MAX];
            // SAFETY: one pollfd, alive over the call. Its result does not matter: the read
            // is tried again.
            unsafe { idle_call(u64::from(__NR_poll), &args) };
        } else if got != sys::INTERRUPTED {
            return got;
        }
    }
}

/// Writes one frame, which starts and ends with a record.
pub struct Outgoing<'a> {
    stream: &'a mut AgentStream,
    room: &'a mut [u8; RECORD_ROOM_BYTES],
    filled: usize,
}

impl<'a> Outgoing<'a> {
    pub fn new(stream: &'a mut AgentStream, room: &'a mut [u8; RECORD_ROOM_BYTES]) -> Self {
        Self { stream, room, filled: 0 }
    }

    pub fn put(&mut self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            if self.filled == PLAIN_MAX_BYTES {
                self.send_record()?;
            }
            let n = bytes.len().min(PLAIN_MAX_BYTES - self.filled);
            let at = HEADER_BYTES + self.filled;
            self.room[at..at + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), Broken> {
        self.send_record()
    }

    fn send_record(&mut self) -> Result<(), Broken> {
        let n = seal(&mut self.stream.tx, self.room, self.filled)?;
        self.filled = 0;
        sys::send_all(self.stream.fd, &self.room[..n]).map_err(Broken::Io)
    }
}
