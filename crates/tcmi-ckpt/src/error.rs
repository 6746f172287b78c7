use tcmi_sys::Errno;

pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a process under checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process or a thread of it ended; the wait status if we were told.
    #[error("the process ended")]
    Ended,
    /// It does something that cannot be moved; the text says what.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    System(#[from] Errno),
    /// A system call made inside the process failed.
    #[error("{what} in the process: {}", std::io::Error::from_raw_os_error(*errno))]
    Remote { what: &'static str, errno: i32 },
    /// Our own code faulted in the process.
    #[error("the agent took signal {signal} at {rip:#x}, address {address:#x}")]
    Fault { signal: i32, rip: u64, address: u64 },
    /// More threads kept appearing than rescans are allowed.
    #[error("the process creates threads faster than they can be stopped")]
    ThreadStorm,
    /// The image does not describe a process that can exist.
    #[error("damaged image: {0}")]
    Image(&'static str),
}

impl Error {
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }
    /// What was to be acted on has ended.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Ended => true,
            Self::System(e) => e.is_gone(),
            _ => false,
        }
    }
}
