//! Mounting the filesystem, and taking it down whatever still uses it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tracing::warn;

use crate::control::Control;
use crate::fuse::Tree;
use crate::kernel::{Module, Served};

/// Threads that take requests. More than one, so that a request that waits for the
/// daemon's lock does not hold up the others.
const REQUEST_THREADS: usize = 4;

/// Stale mounts that are taken off one mount point before giving up.
const STALE_MOUNTS_MAX: usize = 16;
/// A daemon that answers nothing for so long is taken for dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A mounted control filesystem; unmounted when dropped, lazily if it is in use.
pub struct Server {
    mount_point: PathBuf,
    by: Option<By>,
}

enum By {
    Fuse(BackgroundSession),
    Kernel(Served),
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
        Ok(Self { mount_point, by: Some(By::Fuse(session)) })
    }

    /// As [`Server::mount`], through the kernel module.
    pub fn mount_kernel(dir: &Path, control: Arc<dyn Control>, module: Module) -> io::Result<Self> {
        let mount_point = dir.canonicalize()?;
        let served = Served::mount(&mount_point, control, module)?;
        Ok(Self { mount_point, by: Some(By::Kernel(served)) })
    }

    /// What the daemon calls whenever a peer, a listener or a process has come or gone, because
    /// the kernel keeps directories itself. It asks `Control` what there is, on another thread,
    /// and returns when the tree shows it.
    pub fn refresher(&self) -> Box<dyn Fn() + Send + Sync> {
        match &self.by {
            Some(By::Kernel(served)) => Box::new(served.refresher()),
            Some(By::Fuse(_)) | None => Box::new(|| ()),
        }
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// As dropping, but says what went wrong.
    pub fn unmount(mut self) -> io::Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> io::Result<()> {
        match self.by.take() {
            Some(By::Fuse(session)) => self.take_down_fuse(session),
            Some(By::Kernel(mut served)) => {
                served.stop()?;
                detach(&self.mount_point)
            }
            None => Ok(()),
        }
    }

    fn take_down_fuse(&self, session: BackgroundSession) -> io::Result<()> {
        // By force: a mount namespace that was made meanwhile has the mount, too, and would keep
        // the connection and our threads.
        match umount2(&self.mount_point, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: somebody else unmounted it.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::EBUSY) => detach(&self.mount_point)?,
            // Not root: fusermount does it.
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Without its own unmount, which would fail now.
        let BackgroundSession { guard, .. } = session;
        match guard.join().map_err(|_| io::Error::other("a request thread panicked"))? {
            // How a thread that was taking a request learns of the forced unmount.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            ended => ended,
        }
    }
}

fn detach(mount_point: &Path) -> io::Result<()> {
    match umount2(mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: it is unmounted, by somebody else or by `abort_requests`.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
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
        match probe(dir)? {
            Probe::Absent => return Ok(()),
            Probe::Live => {
                let text = format!("{} is served already", dir.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Probe::Dead => detach(dir)?,
            Probe::Silent => {
                warn!("what is mounted at {} does not answer", dir.display());
                abort_requests(dir);
                detach(dir)?;
            }
        }
    }
    Err(io::Error::other(format!("too many stale mounts at {}", dir.display())))
}

enum Probe {
    /// No control filesystem is there.
    Absent,
    Live,
    /// Its daemon is gone.
    Dead,
    /// Nobody takes its requests, yet somebody holds its connection: a process that a
    /// killed daemon left behind.
    Silent,
}

fn probe(dir: &Path) -> io::Result<Probe> {
    let name = dir.join("node/name");
    let (answer, answered) = mpsc::channel();
    // Not joined: if nobody answers, it waits until the connection is aborted.
    thread::Builder::new().name("ctlfs-probe".to_owned()).spawn(move || {
        // Reads: without a daemon the kernel's tree stands all the same.
        let read = std::fs::read(name).map(drop);
        // Fails if the caller has given up waiting, which is as well.
        answer.send(read).ok();
    })?;
    match answered.recv_timeout(PROBE_TIMEOUT) {
        Ok(Ok(())) => Ok(Probe::Live),
        Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => Ok(Probe::Dead),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(Probe::Absent),
        Ok(Err(error)) => Err(error),
        Err(RecvTimeoutError::Timeout) => Ok(Probe::Silent),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the probe panicked")),
    }
}
