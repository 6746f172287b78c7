use tcmi_kkc::codec::CodecError;
use tcmi_kkc::{BulkError, StreamError};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a move did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Process(#[from] tcmi_ckpt::Error),
    /// The migration's stream failed: the peer is gone, or lies.
    #[error("the migration's stream: {0}")]
    Stream(#[from] BulkError),
    #[error("no stream to the node: {0}")]
    NoStream(#[from] StreamError),
    /// The peer gave up and said why.
    #[error("the other node says: {text}")]
    Peer { errno: i32, text: String },
    #[error("the peer sent {got} where {want} was due")]
    Protocol { want: &'static str, got: u16 },
    #[error("the peer sent a run of {len:#x} bytes of pages at {addr:#x}")]
    PageRun { addr: u64, len: u64 },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("fault injected at {0}")]
    Injected(&'static str),
    /// Of several that move at once; another one cannot.
    #[error("{0}")]
    Together(String),
    /// The process changed its threads or files faster than they could be prepared.
    #[error("the process changes too fast: {0}")]
    Unsteady(&'static str),
}

impl Error {
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
    /// The errno that names it to the peer and to users.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Process(tcmi_ckpt::Error::Ended) => libc::ESRCH,
            Self::Process(tcmi_ckpt::Error::Unsupported(_)) => libc::EOPNOTSUPP,
            Self::Process(tcmi_ckpt::Error::System(e)) if e.is_gone() => libc::ESRCH,
            Self::Process(tcmi_ckpt::Error::ThreadStorm) | Self::Unsteady(_) => libc::EBUSY,
            Self::Together(_) => libc::EOPNOTSUPP,
            Self::Process(_)
            | Self::Io { .. }
            | Self::Injected(_)
            | Self::Protocol { .. }
            | Self::PageRun { .. } => libc::EIO,
            Self::Stream(BulkError::Timeout) | Self::NoStream(StreamError::Timeout(_)) => {
                libc::ETIMEDOUT
            }
            Self::Stream(BulkError::Codec(_)) => libc::EIO,
            Self::Stream(_) | Self::NoStream(_) => libc::EHOSTUNREACH,
            Self::Peer { errno, .. } => *errno,
        }
    }
}

impl From<tcmi_sys::Errno> for Error {
    fn from(e: tcmi_sys::Errno) -> Self {
        Self::Process(e.into())
    }
}

impl From<CodecError> for Error {
    fn from(e: CodecError) -> Self {
        Self::Stream(e.into())
    }
}
