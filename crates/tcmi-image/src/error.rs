use crate::format::Flaw;
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no image of a process, or no process of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Process(#[from] tcmi_ckpt::Error),
    /// The process has what an image cannot hold. One reason for each.
    #[error("{}", .0.join("; "))]
    Unsupported(Vec<String>),
    #[error("{0}")]
    Flaw(#[from] Flaw),
    /// `doing` names the file.
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
    /// What the process needs is not as it was.
    #[error("{0}")]
    Changed(String),
    /// An id of the process is in use.
    #[error("its process id {0} is in use here")]
    Taken(i32),
}

impl Error {
    /// The errno that names it to users.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Process(tcmi_ckpt::Error::Unsupported(_)) | Self::Unsupported(_) => {
                Some(libc::EOPNOTSUPP)
            }
            Self::Process(e) if e.is_gone() => Some(libc::ESRCH),
            Self::Process(tcmi_ckpt::Error::ThreadStorm) => Some(libc::EBUSY),
            Self::Process(_) => Some(libc::EIO),
            Self::Flaw(_) => Some(libc::EINVAL),
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Changed(_) => Some(libc::ESTALE),
            Self::Taken(_) => Some(libc::EEXIST),
        }
    }
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }
}

impl From<tcmi_sys::Errno> for Error {
    fn from(e: tcmi_sys::Errno) -> Self {
        Self::Process(e.into())
    }
}
