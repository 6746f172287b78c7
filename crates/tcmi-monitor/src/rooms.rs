//! Where a guest lives: an empty root, and namespaces of its own.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tcmi_migr::messages::Begin;
use tcmi_migr::{Error, Result, destination};
use tcmi_sys::{Errno, namespace};

/// Ids that a guest of a privileged node has outside of its namespace.
const NOBODY: u32 = 65534;

/// Enters new namespaces and an empty root. Children made afterwards are in them, beginning
/// with a pid 1 that ends with this process, and takes all others with it.
pub fn enter(root: &str, begin: &Begin) -> Result<()> {
    // SAFETY: plain calls.
    let own = unsafe { (libc::geteuid(), libc::getegid()) };
    if own.0 == 0 {
        bare_root(root)?;
        user_namespace((begin.uid, begin.gid), (NOBODY, NOBODY))?;
    } else {
        user_namespace((begin.uid, begin.gid), own)?;
        bare_root(root)?;
    }
    namespace::unshare(
        libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWTIME,
    )?;
    destination::set_clocks(begin)?;
    start_init()
}

/// The maps of a user namespace that change ids can be written only from outside.
fn user_namespace(inside: (u32, u32), outside: (u32, u32)) -> Result<()> {
    let (mut ours, mut theirs) = UnixStream::pair().map_err(Error::io("socketpair"))?;
    let me = std::process::id() as i32;
    // SAFETY: this process has one thread; the child ends by _exit.
    let helper = unsafe { namespace::fork_as(None) }?;
    if helper == 0 {
        let mut go = [0];
        let done = theirs.read_exact(&mut go).is_ok()
            && namespace::map_ids(me, inside, outside).is_ok();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if done { 0 } else { 1 }) };
    }
    namespace::unshare(libc::CLONE_NEWUSER)?;
    ours.write_all(b"g").map_err(Error::io("start the id mapping"))?;
    let mut status = 0;
    // SAFETY: our own child.
    if unsafe { libc::waitpid(helper, &mut status, 0) } < 0 {
        return Err(Errno::last("waitpid").into());
    }
    if status != 0 {
        return Err(Errno::new("map ids of the guest", libc::EPERM).into());
    }
    Ok(())
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) -> Result<()> {
    let c = |s: &str| CString::new(s).map_err(|_| Errno::new("path", libc::EINVAL));
    let (s, t, k) = (c(source)?, c(target)?, c(kind)?);
    // SAFETY: three C strings and no data.
    let r = unsafe { libc::mount(s.as_ptr(), t.as_ptr(), k.as_ptr(), flags, std::ptr::null()) };
    if r < 0 { Err(Errno::last("mount").into()) } else { Ok(()) }
}

/// A root with nothing in it but /proc, which the monitor needs, and the guest's empty root.
fn bare_root(dir: &str) -> Result<()> {
    namespace::unshare(libc::CLONE_NEWNS)?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE)?;
    mount("tcmi", dir, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV)?;
    for name in ["proc", "empty"] {
        std::fs::create_dir(format!("{dir}/{name}")).map_err(Error::io("make the guest's root"))?;
    }
    mount("/proc", &format!("{dir}/proc"), "", libc::MS_BIND | libc::MS_REC)?;
    let c = CString::new(dir).map_err(|_| Errno::new("path", libc::EINVAL))?;
    // SAFETY: C strings; the old root is stacked on the new one and then detached.
    unsafe {
        if libc::chdir(c.as_ptr()) < 0
            || libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) < 0
            || libc::umount2(c".".as_ptr(), libc::MNT_DETACH) < 0
            || libc::chdir(c"/".as_ptr()) < 0
        {
            return Err(Errno::last("pivot_root").into());
        }
    }
    Ok(())
}

fn start_init() -> Result<()> {
    // SAFETY: one thread; the child only closes what it inherited and waits.
    if unsafe { namespace::fork_as(None) }? == 0 {
        // SAFETY: plain calls in a process of its own.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
            loop {
                libc::pause();
            }
        }
    }
    Ok(())
}
