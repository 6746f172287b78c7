//! The errnos that the table and the engine answer by themselves (x86-64 values).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// As a system call returns it.
    pub const fn ret(self) -> i64 {
        -(self.0 as i64)
    }
}

pub const EPERM: Errno = Errno(1);
pub const EINTR: Errno = Errno(4);
pub const ESRCH: Errno = Errno(3);
pub const EIO: Errno = Errno(5);
pub const E2BIG: Errno = Errno(7);
pub const EAGAIN: Errno = Errno(11);
pub const ENOMEM: Errno = Errno(12);
pub const EACCES: Errno = Errno(13);
pub const EFAULT: Errno = Errno(14);
pub const ENODEV: Errno = Errno(19);
pub const EINVAL: Errno = Errno(22);
pub const ENOTTY: Errno = Errno(25);
pub const ENAMETOOLONG: Errno = Errno(36);
pub const ENOSYS: Errno = Errno(38);
pub const EOVERFLOW: Errno = Errno(75);
pub const EMSGSIZE: Errno = Errno(90);
pub const EOPNOTSUPP: Errno = Errno(95);
