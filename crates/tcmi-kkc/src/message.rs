//! What the ends of a link say to each other. A kind's number is its meaning on
//! the wire: it is never reused, and fields are never reordered; a changed
//! message is a new kind, or a new [`PROTOCOL_VERSION`].

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Frame};
use crate::limits::CONTROL_MESSAGE_BYTES_MAX;

/// What the messages mean; said in Hello. Ends with different versions do not talk.
pub const PROTOCOL_VERSION: u16 = 4;

macro_rules! messages {
    ($(#[$doc:meta])* $vis:vis enum $name:ident {
        $($(#[$vdoc:meta])* $kind:literal => $variant:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? }),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$vdoc])* $variant { $($(#[$fdoc])* $field: $ty),* }),+ }

        impl $name {
            #[allow(dead_code, reason = "not all of them are named in texts")]
            pub fn label(&self) -> &'static str {
                match self { $(Self::$variant { .. } => stringify!($variant)),+ }
            }
            pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
                match self { $(Self::$variant { $($field),* } => codec::encode($kind, &($($field,)*))),+ }
            }
            pub fn from_frame(frame: &Frame) -> Result<Self, CodecError> {
                match frame.kind {
                    $($kind => {
                        let ($($field,)*): ($($ty,)*) = frame.decode()?;
                        Ok(Self::$variant { $($field),* })
                    })+
                    other => Err(CodecError::Kind(other)),
                }
            }
        }
    };
}

messages! {
    /// Messages of a link's control connection.
    pub enum Control {
        /// First message of either end.
        1 => Hello { protocol: u16, name: String, features: Vec<String> },
        2 => Ping {},
        /// `load`: one-minute load average in thousandths.
        3 => Pong { load: u32 },
        /// Last message: the sender closes the link.
        4 => Bye { reason: String },
        /// Listener to dialer: have `parked` streams of the kind ready.
        8 => StreamsWanted { kind: StreamKind, parked: u32 },
        /// Listener to dialer: this parked stream is in use now.
        9 => StreamTaken { kind: StreamKind, id: u64 },
        /// Take over a process that has so many bytes of its own and so many threads now. Its
        /// state follows on the bulk stream `bulk`.
        16 => Offer {
            migration: u64,
            epoch: u32,
            pid: i32,
            uid: u32,
            comm: String,
            bulk: u64,
            memory: u64,
            threads: u32,
        },
        /// `errno` 0 accepts.
        17 => OfferAnswer { migration: u64, errno: i32, text: String },
        18 => Guest { migration: u64, what: GuestControl },
        /// What became of it? Asked after a link broke around COMMIT.
        19 => MigrationStatus { migration: u64, epoch: u32 },
        20 => MigrationStatusAnswer { migration: u64, epoch: u32, fate: Fate },
    }
}

impl Control {
    /// The session's own: nobody else sends or receives these.
    pub fn is_of_session(&self) -> bool {
        match self {
            Self::Hello { .. } | Self::Ping {} | Self::Pong { .. } | Self::Bye { .. } => true,
            Self::StreamsWanted { .. } | Self::StreamTaken { .. } => true,
            Self::Offer { .. } | Self::OfferAnswer { .. } | Self::Guest { .. } => false,
            Self::MigrationStatus { .. } | Self::MigrationStatusAnswer { .. } => false,
        }
    }
}

messages! {
    /// First message of a dialed connection, inside TLS.
    pub(crate) enum Opening {
        64 => Link { session: u64 },
        65 => Stream { session: u64, id: u64, kind: StreamKind },
    }
}

messages! {
    /// Its answer, and the last message inside TLS as the handshake left it.
    pub(crate) enum Opened {
        72 => Yes {},
        73 => No { reason: String },
    }
}

/// Decodes one whole control message; for fuzzing, and for whoever has the bytes already.
pub fn decode_control(bytes: &[u8]) -> Result<Control, CodecError> {
    Control::from_frame(&codec::decode_frame(bytes, CONTROL_MESSAGE_BYTES_MAX)?)
}

/// What a stream is for; the kind decides the cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub enum StreamKind {
    /// Forwarded calls or events of a guest: ChaCha20-Poly1305, which the agent has.
    Call = 1,
    /// Memory and messages of a migration: AES-128-GCM.
    Bulk = 2,
}

impl StreamKind {
    pub const ALL: [Self; 2] = [Self::Call, Self::Bulk];
}

/// Where a migration stands, as one end knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub enum Fate {
    /// Never heard of it, or it was given up before COMMIT and is forgotten.
    Unknown = 1,
    /// Before COMMIT.
    Pending = 2,
    /// COMMIT was done here.
    Committed = 3,
    /// Given up here; it will never be committed.
    Aborted = 4,
}

macro_rules! numbered {
    ($($t:ident { $($v:ident),+ })+) => {$(
        impl From<$t> for u16 {
            fn from(v: $t) -> u16 { v as u16 }
        }
        impl TryFrom<u16> for $t {
            type Error = String;
            fn try_from(n: u16) -> Result<Self, String> {
                $(if n == Self::$v as u16 { return Ok(Self::$v); })+
                Err(format!("{n} is not a {}", stringify!($t)))
            }
        }
    )+};
}
numbered! {
    StreamKind { Call, Bulk }
    Fate { Unknown, Pending, Committed, Aborted }
}

/// About one guest, between its home and its execution node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u16, String)", try_from = "(u16, String)")]
pub enum GuestControl {
    /// Execution node to home: fetch it back. (1)
    WantHome,
    /// Execution node to home: it exists no longer. (2)
    Gone { reason: String },
}

impl From<GuestControl> for (u16, String) {
    fn from(g: GuestControl) -> Self {
        match g {
            GuestControl::WantHome => (1, String::new()),
            GuestControl::Gone { reason } => (2, reason),
        }
    }
}

impl TryFrom<(u16, String)> for GuestControl {
    type Error = String;
    fn try_from(wire: (u16, String)) -> Result<Self, String> {
        match wire {
            (1, text) if text.is_empty() => Ok(Self::WantHome),
            (2, reason) => Ok(Self::Gone { reason }),
            (n, _) => Err(format!("{n} is not a GuestControl")),
        }
    }
}
