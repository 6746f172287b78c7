//! Why a migration, or any other command, did not happen, and its errno.

use std::io;

use crate::command::{NodeRef, Pid};
use crate::lifecycle::State;

/// The error numbers that a control file may answer with, by their Linux value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    NotPermitted = 1,
    NoEntry = 2,
    NoProcess = 3,
    Io = 5,
    Access = 13,
    Busy = 16,
    Exists = 17,
    NotDirectory = 20,
    IsDirectory = 21,
    Invalid = 22,
    TooManyOpen = 23,
    NoSpace = 28,
    ReadOnly = 30,
    NotSupported = 95,
    AddressInUse = 98,
    AddressNotAvailable = 99,
    TimedOut = 110,
    ConnectionRefused = 111,
    HostUnreachable = 113,
}

impl Errno {
    pub fn raw(self) -> i32 {
        self as i32
    }
}

/// A command that was refused or failed. In every case the process it was about
/// runs on where it ran before, and nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("there is no process {0}")]
    NoSuchProcess(Pid),
    /// Asked to come home, but it never left.
    #[error("process {0} is not away")]
    NotAway(Pid),
    /// On its way out again.
    #[error("process {0} was called home")]
    CalledHome(Pid),
    #[error("process {0} belongs to another user")]
    NotYours(Pid),
    #[error("only root may do this")]
    RootOnly,
    /// One reason for each thing that stops the move.
    #[error("process {pid} cannot move: {}", reasons.join("; "))]
    Unsupported { pid: Pid, reasons: Vec<String> },
    /// One reason for each thing that an image cannot hold.
    #[error("process {pid} cannot be saved: {}", reasons.join("; "))]
    NotSaved { pid: Pid, reasons: Vec<String> },
    /// There is no new image; the file that may have been there is as it was.
    #[error("image of process {pid}: {doing}: {source}")]
    Image { pid: Pid, doing: String, source: io::Error },
    #[error("there is no node {0}")]
    NoSuchNode(NodeRef),
    #[error("node {node} is gone: {reason}")]
    PeerGone { node: String, reason: String },
    #[error("node {node} refused: {reason}")]
    PeerRefused { node: String, reason: String },
    #[error("process {pid} is {state} already")]
    Busy { pid: Pid, state: State },
    /// It would not hold still.
    #[error("process {pid}: {reason}")]
    Unsteady { pid: Pid, reason: String },
    /// Something that a move needs did not work, here or on the node.
    #[error("process {pid}: {reason}")]
    Failed { pid: Pid, reason: String },
    /// Another one of its tree cannot move, and `reason` says which and why.
    #[error("process {pid} stays with its tree: {reason}")]
    StaysTogether { pid: Pid, reason: String },
    /// The daemon is busy, not the process.
    #[error("too many commands at once")]
    TooManyCommands,
    #[error("{0}")]
    Invalid(#[from] crate::command::GrammarError),
    #[error("not a public key: {0}")]
    BadKey(String),
    #[error("{0} is not trusted here")]
    NotTrusted(String),
    #[error("{0} is gone")]
    NoEntry(String),
    #[error("{0}")]
    Exists(String),
    #[error("{phase} took more than {limit_ms} ms")]
    TimedOut { phase: State, limit_ms: u64 },
    #[error("no connection to {address}: {source}")]
    Connect { address: String, source: io::Error },
    /// One of the two ends does not know the other's key.
    #[error("{reason}")]
    Untrusted { reason: String },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("node {node} broke the protocol: {reason}")]
    Protocol { node: String, reason: String },
    #[error("{doing}: {source}")]
    Local { doing: String, source: io::Error },
    #[error("the daemon is going down")]
    ShuttingDown,
}

impl MigrateError {
    /// The answer of the write that asked for it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoSuchProcess(_) | Self::NotAway(_) => Errno::NoProcess,
            Self::NotYours(_) | Self::RootOnly => Errno::NotPermitted,
            Self::Unsupported { .. }
            | Self::NotSaved { .. }
            | Self::PeerRefused { .. }
            | Self::StaysTogether { .. } => Errno::NotSupported,
            Self::Image { source, .. } => file_errno(source.kind()),
            Self::NoSuchNode(_) | Self::PeerGone { .. } | Self::ShuttingDown => {
                Errno::HostUnreachable
            }
            Self::CalledHome(_)
            | Self::Busy { .. }
            | Self::Unsteady { .. }
            | Self::TooManyCommands => Errno::Busy,
            Self::Invalid(_) | Self::BadKey(_) => Errno::Invalid,
            Self::Untrusted { .. } => Errno::Access,
            Self::NotTrusted(_) | Self::NoEntry(_) => Errno::NoEntry,
            Self::Exists(_) => Errno::Exists,
            Self::TimedOut { .. } => Errno::TimedOut,
            Self::Connect { source, .. } => connect_errno(source.kind()),
            Self::Listen { source, .. } => listen_errno(source.kind()),
            Self::Protocol { .. } | Self::Failed { .. } | Self::Local { .. } => Errno::Io,
        }
    }
}

/// `io::ErrorKind` is open, so what is not known to be more precise is EHOSTUNREACH.
fn connect_errno(kind: io::ErrorKind) -> Errno {
    match kind {
        io::ErrorKind::TimedOut => Errno::TimedOut,
        io::ErrorKind::ConnectionRefused => Errno::ConnectionRefused,
        io::ErrorKind::PermissionDenied => Errno::Access,
        _ => Errno::HostUnreachable,
    }
}

fn file_errno(kind: io::ErrorKind) -> Errno {
    match kind {
        io::ErrorKind::NotFound => Errno::NoEntry,
        io::ErrorKind::PermissionDenied => Errno::Access,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::NoSpace,
        io::ErrorKind::NotADirectory => Errno::NotDirectory,
        io::ErrorKind::IsADirectory => Errno::IsDirectory,
        io::ErrorKind::ReadOnlyFilesystem => Errno::ReadOnly,
        _ => Errno::Io,
    }
}

fn listen_errno(kind: io::ErrorKind) -> Errno {
    match kind {
        io::ErrorKind::AddrInUse => Errno::AddressInUse,
        io::ErrorKind::AddrNotAvailable => Errno::AddressNotAvailable,
        io::ErrorKind::PermissionDenied => Errno::Access,
        _ => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_are_those_of_the_control_filesystem() {
        let pid = Pid::new(7).unwrap();
        let io = |kind| io::Error::from(kind);
        let desk = || "desk".to_owned();
        let cases = [
            (MigrateError::NoSuchProcess(pid), libc_value::ESRCH),
            (MigrateError::NotYours(pid), libc_value::EPERM),
            (MigrateError::Unsupported { pid, reasons: vec![] }, libc_value::EOPNOTSUPP),
            (
                MigrateError::PeerGone { node: desk(), reason: "reset".into() },
                libc_value::EHOSTUNREACH,
            ),
            (MigrateError::Busy { pid, state: State::Freezing }, libc_value::EBUSY),
            (MigrateError::Invalid(crate::command::GrammarError::Empty), libc_value::EINVAL),
            (
                MigrateError::TimedOut { phase: State::Committing, limit_ms: 1 },
                libc_value::ETIMEDOUT,
            ),
            (
                MigrateError::Local { doing: "read".into(), source: io(io::ErrorKind::Other) },
                libc_value::EIO,
            ),
            (
                MigrateError::Listen { address: desk(), source: io(io::ErrorKind::AddrInUse) },
                libc_value::EADDRINUSE,
            ),
            (MigrateError::NotSaved { pid, reasons: vec![] }, libc_value::EOPNOTSUPP),
            (
                MigrateError::Image {
                    pid,
                    doing: "write".into(),
                    source: io(io::ErrorKind::StorageFull),
                },
                libc_value::ENOSPC,
            ),
        ];
        for (error, errno) in cases {
            assert_eq!(error.errno().raw(), errno, "{error}");
        }
    }

    #[test]
    fn a_refusal_names_every_reason() {
        let error = MigrateError::Unsupported {
            pid: Pid::new(7).unwrap(),
            reasons: vec!["an io_uring".into(), "a device mapping".into()],
        };
        assert_eq!(error.to_string(), "process 7 cannot move: an io_uring; a device mapping");
    }

    /// From asm-generic/errno.h, which x86-64 uses.
    mod libc_value {
        pub const EPERM: i32 = 1;
        pub const ESRCH: i32 = 3;
        pub const EIO: i32 = 5;
        pub const EBUSY: i32 = 16;
        pub const EINVAL: i32 = 22;
        pub const ENOSPC: i32 = 28;
        pub const EOPNOTSUPP: i32 = 95;
        pub const EADDRINUSE: i32 = 98;
        pub const ETIMEDOUT: i32 = 110;
        pub const EHOSTUNREACH: i32 = 113;
    }
}
