//! A stream as it leaves this crate: a connected socket and the keys of both directions.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tcmi_call::record::DirectionKeys;

use crate::bulk::{self, BulkReader, BulkWriter};
use crate::message::StreamKind;
use crate::socket;

/// One encrypted connection besides the control connection. What is sent on it is a byte
/// stream in TLS 1.3 records. Dropping it closes it; ends of links do not.
pub struct Stream {
    pub id: u64,
    pub kind: StreamKind,
    /// In blocking mode, close-on-exec.
    pub fd: OwnedFd,
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
}

impl Stream {
    /// Socket, keys to send with, keys to receive with.
    pub fn into_parts(self) -> (OwnedFd, DirectionKeys, DirectionKeys) {
        (self.fd, self.tx, self.rx)
    }

    /// Both directions for bytes and messages. Works for either kind.
    pub fn into_bulk(self) -> (BulkWriter, BulkReader) {
        bulk::open(self)
    }

    pub(crate) fn is_hung_up(&self) -> bool {
        socket::is_hung_up(&self.fd)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
