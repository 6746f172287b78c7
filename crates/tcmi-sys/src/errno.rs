//! Errors of system calls.

use std::fmt;

pub type Result<T> = std::result::Result<T, Errno>;

/// An errno and the operation that gave it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno {
    pub code: i32,
    pub what: &'static str,
}

impl Errno {
    pub const fn new(what: &'static str, code: i32) -> Self {
        Self { code, what }
    }
    /// The calling thread's last error.
    pub fn last(what: &'static str) -> Self {
        Self { code: std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO), what }
    }
    pub fn from_io(what: &'static str, e: &std::io::Error) -> Self {
        Self { code: e.raw_os_error().unwrap_or(libc::EIO), what }
    }
    /// The thing acted on has ended.
    pub fn is_gone(self) -> bool {
        self.code == libc::ESRCH
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, std::io::Error::from_raw_os_error(self.code))
    }
}
impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl std::error::Error for Errno {}

/// -1 with errno set becomes an error, anything else a value.
pub(crate) fn check(what: &'static str, ret: libc::c_long) -> Result<u64> {
    if ret == -1 { Err(Errno::last(what)) } else { Ok(ret as u64) }
}
