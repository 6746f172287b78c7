//! The bounds of links. Each may be changed per endpoint only where [`crate::Options`] says so.

use std::time::Duration;

pub use tcmi_core::limits::CONTROL_MESSAGE_BYTES_MAX;

/// Largest message on a bulk stream, in bytes. Bodies between messages are not bounded by it.
pub const BULK_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest first message of a connection and largest Hello, in bytes.
pub const OPENING_BYTES_MAX: usize = 32 * 1024;

/// From the accepted TCP connection to the answered first message.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the dialed TCP connection's start to its end, per address of a name.
pub const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the authenticated connection to the peer's Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two Pings.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A peer that says nothing for so long is dead.
pub const KEEPALIVE_LIMIT: Duration = Duration::from_secs(20);
/// Longest that one control message may wait for room in the socket.
pub const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a bulk stream waits without one byte of progress, unless told otherwise.
pub const BULK_IDLE_TIMEOUT: Duration = Duration::from_millis(tcmi_core::limits::PHASE_TIMEOUT_MS);
/// Between a failed dial of a stream and the next attempt.
pub const STREAM_REDIAL_DELAY: Duration = Duration::from_millis(500);

/// Connections that have not yet shown who they are, per endpoint.
pub const HALF_OPEN_MAX: usize = 64;
/// Control messages that wait for the writer of one link.
pub const CONTROL_QUEUE_MESSAGES_MAX: usize = 1024;
/// Their encoded bytes.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 4 * CONTROL_MESSAGE_BYTES_MAX;

/// Streams of one kind parked or being dialed, per link.
pub const STREAMS_PARKED_MAX: u32 = 4096;
/// Bulk streams that a dialer keeps parked.
pub const PARKED_BULK_DEFAULT: u32 = 2;
/// Call streams that a dialer keeps parked.
pub const PARKED_CALL_DEFAULT: u32 = 4;
/// Streams of one link that are dialed at the same time.
pub const DIALS_AT_ONCE_MAX: usize = 4;

/// Records protected with one AES-GCM key: 2^24.5 (RFC 8446, 5.5). With full records 362 GiB
/// in one direction of one stream; a transfer that needs more takes another stream.
pub const AES_GCM_RECORDS_MAX: u64 = 23_726_566;
/// Full records sealed before they are written.
pub const BULK_RECORDS_AT_ONCE: usize = 32;
/// Most that one receive takes from a bulk stream, in bytes.
pub const BULK_RECEIVE_BYTES: usize = 512 * 1024;

/// A node's name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Features in a Hello.
pub const FEATURES_MAX: usize = 128;
/// One feature, in bytes.
pub const FEATURE_BYTES_MAX: usize = 128;
/// A reason or an error text that travels, in bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 512;

/// Refusals of one source are logged once in so long.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Sources remembered for that.
pub const REFUSAL_SOURCES_MAX: usize = 1024;
