//! Files with the rights of another user.

use crate::errno::{Errno, Result, check};
use crate::proc;

/// Whose rights: a user, with all groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl User {
    /// Who the thread `tid` is for files.
    pub fn of_thread(tid: i32) -> Result<Self> {
        let status = proc::status(tid)?;
        Ok(Self { uid: status.uid[3], gid: status.gid[3], groups: status.groups })
    }

    /// Does something with files as this user, in the calling thread alone. The caller is root.
    ///
    /// Err: it was not done.
    pub fn act<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        let _guard = Guard::assume(self)?;
        Ok(action())
    }
}

/// Its thread is somebody else for files until this is dropped.
struct Guard(User);

impl Guard {
    fn assume(user: &User) -> Result<Self> {
        let guard = Self(User::of_thread(tid())?);
        set_groups(&user.groups)?;
        set_ids(user);
        // These calls tell what was before, not whether they did anything.
        let now = User::of_thread(tid())?;
        match (now.uid, now.gid) == (user.uid, user.gid) {
            true => Ok(guard),
            false => Err(Errno::new("become another user for files", libc::EPERM)),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        set_ids(&self.0);
        set_groups(&self.0.groups).expect("a thread may have the groups that it had");
    }
}

fn tid() -> i32 {
    // SAFETY: plain call.
    unsafe { libc::gettid() }
}

/// The library's function would set those of all threads.
fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: a live list of as many groups as it says.
    check("setgroups", unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
        .map(drop)
}

fn set_ids(user: &User) {
    // SAFETY: plain calls, of this thread alone.
    unsafe {
        libc::setfsgid(user.gid);
        libc::setfsuid(user.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn files_are_made_as_the_user_and_only_where_he_may() {
        // SAFETY: plain call.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let dir = std::env::temp_dir().join(format!("tcmi-access-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let own = User::of_thread(tid()).unwrap();
        let user = User { uid: 4321, gid: 4322, groups: vec![4323] };
        let make = || std::fs::write(dir.join("file"), "");
        assert!(user.act(make).unwrap().is_err(), "the directory is root's");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        user.act(make).unwrap().unwrap();
        let made = std::fs::metadata(dir.join("file")).unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 4322));
        assert_eq!(User::of_thread(tid()).unwrap(), own);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
