//! Links between nodes.
//!
//! A link is one control connection and any number of *streams* of the same
//! pair of nodes, each its own TCP connection, so that bulk data never delays a
//! call. The execution node dials, the home listens. Everything starts as TLS
//! 1.3 with raw ed25519 keys pinned on both sides; after one message each way
//! the keys are taken out of the handshake and the records are spoken by
//! [`tcmi_call::record`], because the other end of a call stream is the agent.

mod address;
pub mod aead;
pub mod bulk;
pub mod codec;
mod control;
mod endpoint;
mod identity;
mod ktls;
pub mod limits;
mod message;
mod pins;
mod refusals;
mod session;
mod socket;
mod stream;
mod tls;

pub use address::{Address, AddressError};
pub use bulk::{BulkError, BulkReader, BulkWriter};
pub use endpoint::{
    ConnectError, Endpoint, EndpointError, Link, LinkEvent, LinkId, ListenError, ListenerInfo,
    Options, SendError, StreamError,
};
pub use identity::{IDENTITY_FILE, Identity, IdentityError, PeerKey, PeerKeyError};
pub use ktls::kernel_protects;
pub use message::{Control, Fate, GuestControl, PROTOCOL_VERSION, StreamKind, decode_control};
pub use session::{
    Dial, DownReason, Hello, Moment, NameError, Role, Session, SessionEvent, SessionOptions,
};
pub use stream::Stream;
pub use tls::ExportedKeys;
