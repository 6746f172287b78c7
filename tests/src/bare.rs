//! A root with nothing in it but our program, for a daemon about to be executed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, chdir, mkdir, pivot_root, unlinkat};

/// The daemon's paths inside.
pub const PROGRAM: &str = "/tcmid";
pub const STATE: &str = "/state";
pub const CTL: &str = "/ctl";
pub const PEN_ROOT: &str = "/pen";

const DEVICES: &[&str] = &["null", "zero", "urandom", "fuse"];

enum Step {
    Directory(CString),
    File(CString),
    Bind { from: CString, to: CString },
}

/// Everything that needs memory is made beforehand: `enter` runs between fork
/// and exec of a process with threads, where nothing may be allocated.
pub struct BareRoot {
    root: CString,
    old: CString,
    proc: CString,
    steps: Vec<Step>,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

impl BareRoot {
    /// `root` is an empty directory; `state` outlives the root, so that a daemon
    /// that is started again finds its key.
    pub fn plan(root: &Path, program: &Path, state: &Path) -> io::Result<Self> {
        let inside = |path: &str| c_path(&root.join(path.trim_start_matches('/')));
        let mut steps = Vec::new();
        for directory in ["/proc", "/dev", "/old", STATE, CTL, PEN_ROOT] {
            steps.push(Step::Directory(inside(directory)?));
        }
        let mut files = vec![(program.to_path_buf(), PROGRAM.to_owned())];
        files.extend(DEVICES.iter().map(|d| (Path::new("/dev").join(d), format!("/dev/{d}"))));
        for (from, to) in files {
            steps.push(Step::File(inside(&to)?));
            steps.push(Step::Bind { from: c_path(&from)?, to: inside(&to)? });
        }
        steps.push(Step::Bind { from: c_path(state)?, to: inside(STATE)? });
        Ok(Self { root: c_path(root)?, old: inside("/old")?, proc: inside("/proc")?, steps })
    }

    /// The mounts live in a namespace of the calling process and end with it.
    pub fn enter(&self) -> io::Result<()> {
        const NONE: Option<&CStr> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        mount(
            Some(c"tmpfs"),
            self.root.as_c_str(),
            Some(c"tmpfs"),
            MsFlags::empty(),
            Some(c"mode=755"),
        )?;
        for step in &self.steps {
            step.run()?;
        }
        mount(Some(c"proc"), self.proc.as_c_str(), Some(c"proc"), MsFlags::empty(), NONE)?;
        pivot_root(self.root.as_c_str(), self.old.as_c_str())?;
        chdir(c"/")?;
        umount2(c"/old", MntFlags::MNT_DETACH)?;
        unlinkat(AT_FDCWD, c"/old", UnlinkatFlags::RemoveDir)?;
        Ok(())
    }
}

impl Step {
    fn run(&self) -> Result<(), Errno> {
        const NONE: Option<&CStr> = None;
        match self {
            Step::Directory(path) => mkdir(path.as_c_str(), Mode::from_bits_truncate(0o755)),
            Step::File(path) => open(
                path.as_c_str(),
                OFlag::O_CREAT | OFlag::O_WRONLY,
                Mode::from_bits_truncate(0o644),
            )
            .map(drop),
            Step::Bind { from, to } => {
                mount(Some(from.as_c_str()), to.as_c_str(), NONE, MsFlags::MS_BIND, NONE)
            }
        }
    }
}
