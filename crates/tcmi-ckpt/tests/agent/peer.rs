//! The monitor's end of the streams: frames in records, with another implementation of the
//! cipher than the agent's.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use std::io::{Read, Write};
use std::net::TcpStream;
use tcmi_call::abi::{AgentStream, RECORD_ROOM_BYTES};
use tcmi_call::frame::{CallHeader, OutRange, ReplyHeader, SignalFrame, kind};
use tcmi_call::record::{
    Aead, DirectionKeys, HEADER_BYTES, Opener, PLAIN_MAX_BYTES, Sealer, TAG_BYTES, body_len,
};

pub struct RingAead(LessSafeKey);

impl RingAead {
    fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap()))
    }
}

impl Aead for RingAead {
    fn seal(&mut self, nonce: &[u8; 12], aad: &[u8; 5], data: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), data).unwrap();
        tag.as_ref().try_into().unwrap()
    }
    fn open(
        &mut self,
        nonce: &[u8; 12],
        aad: &[u8; 5],
        data: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = Tag::from(*tag);
        self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, data, 0..).is_ok()
    }
}

fn direction(n: u8) -> DirectionKeys {
    DirectionKeys { key: [n; 32], iv: [n ^ 0x5a; 12], pad: 0, seq: 7 }
}

/// The agent's half of stream `n`.
pub fn agent_stream(n: u8, fd: i32) -> AgentStream {
    AgentStream { fd, pad: 0, tx: direction(2 * n), rx: direction(2 * n + 1) }
}

/// The monitor's half of stream `n`.
pub struct Peer {
    pub socket: TcpStream,
    sealer: Sealer<RingAead>,
    opener: Opener<RingAead>,
    plain: Vec<u8>,
}

#[derive(Default, Clone)]
pub struct Call {
    pub header: CallHeader,
    pub fixups: Vec<u32>,
    pub outs: Vec<OutRange>,
    pub image: Vec<u8>,
}

impl Call {
    pub fn new(nr: i64, args: &[u64]) -> Self {
        let mut call = Self::default();
        call.header.kind = kind::CALL;
        call.header.nr = nr as u16;
        call.header.args[..args.len()].copy_from_slice(args);
        call
    }
    pub fn of_kind(kind: u16, args: &[u64]) -> Self {
        let mut call = Self::new(0, args);
        call.header.kind = kind;
        call
    }
    /// Argument `i` points to `image`, in a buffer of `len` bytes.
    pub fn buffer(mut self, i: u32, image: &[u8], len: usize) -> Self {
        self.header.ptr_args |= 1 << i;
        self.header.buf_len = len as u32;
        self.image = image.to_vec();
        self
    }
    pub fn fd(mut self, i: u32) -> Self {
        self.header.fd_args |= 1 << i;
        self
    }
    pub fn out(mut self, off: u32, len: u32, rule: u32, arg: u32) -> Self {
        self.outs.push(OutRange { off, len, rule, arg });
        self
    }
    pub fn seq(mut self, seq: u64) -> Self {
        self.header.seq = seq;
        self
    }
    pub fn bytes(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.fixups.iter().for_each(|f| rest.extend(f.to_le_bytes()));
        self.outs.iter().for_each(|o| rest.extend(o.as_bytes()));
        rest.extend(&self.image);
        let header = CallHeader {
            len: rest.len() as u32,
            fixups: self.fixups.len() as u16,
            outs: self.outs.len() as u16,
            in_len: self.image.len() as u32,
            ..self.header
        };
        [header.as_bytes(), &rest].concat()
    }
}

#[derive(Debug)]
pub struct Reply {
    pub header: ReplyHeader,
    pub outs: Vec<Vec<u8>>,
}

impl Peer {
    pub fn new(n: u8, socket: TcpStream) -> Self {
        let (to, from) = (direction(2 * n + 1), direction(2 * n));
        Self {
            socket,
            sealer: Sealer::new(RingAead::new(&to.key), to.iv, to.seq),
            opener: Opener::new(RingAead::new(&from.key), from.iv, from.seq),
            plain: Vec::new(),
        }
    }

    pub fn record(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut room = vec![0; RECORD_ROOM_BYTES];
        room[HEADER_BYTES..HEADER_BYTES + plain.len()].copy_from_slice(plain);
        let n = self.sealer.seal(&mut room, plain.len()).unwrap();
        room.truncate(n);
        room
    }

    pub fn send_records(&mut self, bytes: &[u8], record_bytes: usize) {
        for plain in bytes.chunks(record_bytes) {
            let record = self.record(plain);
            self.socket.write_all(&record).unwrap();
        }
    }

    pub fn send(&mut self, call: &Call) {
        self.send_records(&call.bytes(), PLAIN_MAX_BYTES);
    }

    fn receive_record(&mut self) {
        let mut head = [0; HEADER_BYTES];
        self.socket.read_exact(&mut head).unwrap();
        let mut body = vec![0; body_len(&head).unwrap()];
        self.socket.read_exact(&mut body).unwrap();
        let n = self.opener.open(&head, &mut body).unwrap();
        self.plain.extend(&body[..n]);
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        while self.plain.len() < n {
            self.receive_record();
        }
        self.plain.drain(..n).collect()
    }

    pub fn receive(&mut self) -> Reply {
        let header = ReplyHeader::from_bytes(&self.take(ReplyHeader::BYTES)).unwrap();
        assert_eq!(header.kind, kind::REPLY);
        let lens: Vec<u32> = (0..header.outs)
            .map(|_| u32::from_le_bytes(self.take(4).try_into().unwrap()))
            .collect();
        let outs: Vec<_> = lens.iter().map(|&n| self.take(n as usize)).collect();
        assert_eq!(header.len, 4 * lens.len() as u32 + lens.iter().sum::<u32>());
        assert!(self.plain.is_empty(), "a record ends with its frame");
        Reply { header, outs }
    }

    pub fn call(&mut self, call: &Call) -> Reply {
        self.send(call);
        let reply = self.receive();
        assert_eq!(reply.header.seq, call.header.seq);
        reply
    }

    pub fn receive_signal(&mut self) -> SignalFrame {
        let frame = SignalFrame::from_bytes(&self.take(SignalFrame::BYTES)).unwrap();
        assert_eq!(frame.kind, kind::SIGNAL);
        assert_eq!(frame.len as usize, SignalFrame::BYTES - 8);
        frame
    }
}
