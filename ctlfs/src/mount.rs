//! Mounting the filesystem, and taking it down whatever still uses it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tracing::warn;

use crate::control::Control;
use crate::fuse::Tree;

/// Threads that take requests. More than one, so that a request that waits for the
/// daemon's lock does not hold up the others.
const REQUEST_THREADS: usize = 4;

/// Stale mounts that are taken off one mount point before giving up.
const STALE_MOUNTS_MAX: usize = 16;

/// A mounted control filesystem; unmounted when dropped, lazily if it is in use.
pub struct Server {
    mount_point: PathBuf,
    session: Option<BackgroundSession>,
}

impl Server {
    /// Ok: mounted at `dir` and answering. As root, every user can reach it and the
    /// modes decide; otherwise only the one who mounts it.
    pub fn mount(dir: &Path, control: Arc<dyn Control>) -> io::Result<Self> {
        let mount_point = dir.canonicalize()?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("tcmictlfs".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
        ];
        let by_root = nix::unistd::geteuid().is_root();
        config.acl = if by_root { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(REQUEST_THREADS);
        let session = Session::new(Tree::new(control), &mount_point, &config)?.spawn()?;
        Ok(Self { mount_point, session: Some(session) })
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// As dropping, but says what went wrong.
    pub fn unmount(mut self) -> io::Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match umount2(&self.mount_point, MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: somebody else unmounted it.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::EBUSY) => {
                abort_requests(&self.mount_point);
                umount2(&self.mount_point, MntFlags::MNT_DETACH)?;
            }
            // Not root: fusermount does it.
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Without its own unmount, which would fail now.
        let BackgroundSession { guard, .. } = session;
        guard.join().map_err(|_| io::Error::other("a request thread panicked"))?
    }
}

/// A forced unmount of FUSE ends its connection, so that waiting writers return and
/// the server's threads end, even where the mount itself stays busy (EBUSY).
fn abort_requests(mount_point: &Path) {
    match umount2(mount_point, MntFlags::MNT_FORCE) {
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(errno) => warn!("cannot abort requests at {}: {errno}", mount_point.display()),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            warn!("cannot unmount {}: {error}", self.mount_point.display());
        }
    }
}

/// Takes the mounts of killed daemons off `dir`. Err(AddrInUse): a live one serves it.
pub fn unmount_stale(dir: &Path) -> io::Result<()> {
    for _ in 0..STALE_MOUNTS_MAX {
        match std::fs::metadata(dir.join("node/name")) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
                umount2(dir, MntFlags::MNT_DETACH)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {
                let text = format!("{} is served already", dir.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
        }
    }
    Err(io::Error::other(format!("too many stale mounts at {}", dir.display())))
}
