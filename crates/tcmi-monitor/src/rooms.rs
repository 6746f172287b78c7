//! Where a guest lives: an empty root, and namespaces of its own.

use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use tcmi_migr::fault::{self, Point};
use tcmi_migr::messages::Begin;
use tcmi_migr::{Error, Result, destination};
use tcmi_sys::namespace::Parent;
use tcmi_sys::{Errno, namespace};

/// Ids that a guest of a privileged node has outside of its namespace.
const NOBODY: u32 = 65534;

/// A guest's leader in its namespaces, and their pid 1.
pub struct Room {
    /// Of the leader, here.
    pub leader: i32,
    pub next_id: NextId,
}

/// Chooses the ids of a guest's threads, by its pid 1, which alone may.
pub struct NextId(UnixStream);

impl NextId {
    /// The next thread gets this id, which is free. One at a time.
    pub fn set(&self, tid: i32) -> io::Result<()> {
        let mut errno = [0; 4];
        (&self.0).write_all(&(tid - 1).to_le_bytes())?;
        (&self.0).read_exact(&mut errno)?;
        match i32::from_le_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Makes the process that becomes the guest's leader: it waits, has home's pid, and lives in new
/// namespaces with a pid 1 that ends with this process and takes all others with it.
///
/// A child of ours enters the namespaces and makes both as our children: a process whose
/// children go to another pid namespace can have no threads, and we need some.
pub fn bear(root: &str, begin: &Begin) -> Result<Room> {
    let privileged = is_root();
    if privileged {
        bare_root(root)?;
    }
    let offsets = destination::clock_offsets();
    let (mut ours, theirs) = UnixStream::pair().map_err(Error::io("socketpair"))?;
    let (ids, first) = UnixStream::pair().map_err(Error::io("socketpair"))?;
    let (mut tied, ties) = std::io::pipe().map_err(Error::io("pipe"))?;
    // SAFETY: this process has one thread.
    let midwife = unsafe { namespace::fork_as(None, Parent::Me) }?;
    if midwife == 0 {
        drop((ours, tied, ids));
        let bare = (!privileged).then_some(root);
        let code = match deliver(theirs, &ties, &first, bare, begin.pid, offsets) {
            Ok(()) => 0,
            Err(e) => {
                tracing::error!(error = %e, "making the guest's namespaces");
                1
            }
        };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    drop((theirs, ties, first));
    let born = attend(&mut ours, &mut tied, midwife, privileged, begin);
    let mut status = 0;
    // SAFETY: our own child.
    if unsafe { libc::waitpid(midwife, &mut status, 0) } < 0 {
        return Err(Errno::last("waitpid").into());
    }
    Ok(Room { leader: born?, next_id: NextId(ids) })
}

fn is_root() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Our side: maps the ids, which can be done only from outside, and learns the guest's pid.
fn attend(
    ours: &mut UnixStream,
    tied: &mut PipeReader,
    midwife: i32,
    privileged: bool,
    begin: &Begin,
) -> Result<i32> {
    let io = || Error::io("make the guest's namespaces");
    let mut entered = [0];
    ours.read_exact(&mut entered).map_err(io())?;
    // SAFETY: no arguments.
    let own = unsafe { (libc::geteuid(), libc::getegid()) };
    let outside = if privileged { (NOBODY, NOBODY) } else { own };
    namespace::map_ids(midwife, (begin.uid, begin.gid), outside)?;
    ours.write_all(&[1]).map_err(io())?;
    let mut pid = [0; 4];
    ours.read_exact(&mut pid).map_err(io())?;
    // Both of them end with us from here on.
    tied.read_exact(&mut [0; 2]).map_err(io())?;
    Ok(i32::from_le_bytes(pid))
}

/// The child's side.
fn deliver(
    mut parent: UnixStream,
    ties: &PipeWriter,
    ids: &UnixStream,
    bare: Option<&str>,
    pid: i32,
    offsets: (i64, i64),
) -> Result<()> {
    let io = || Error::io("make the guest's namespaces");
    fault::pass(Point::NodeBears)?;
    namespace::unshare(libc::CLONE_NEWUSER)?;
    parent.write_all(&[1]).map_err(io())?;
    let mut mapped = [0];
    parent.read_exact(&mut mapped).map_err(io())?;
    if let Some(root) = bare {
        bare_root(root)?;
    }
    namespace::unshare(
        libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWTIME,
    )?;
    namespace::set_clock_offsets(offsets.0, offsets.1)?;
    wait_as(None, ties, ids)?;
    let guest = wait_as(Some(pid), ties, ids)?;
    parent.write_all(&guest.to_le_bytes()).map_err(io())
}

/// A sibling that waits, and ends with the parent. Without a pid it is the first of its namespace
/// and serves [`NextId`]. It says in `ties` when it is to be told of the parent's end; a parent that
/// ended before does not read that.
fn wait_as(pid: Option<i32>, ties: &PipeWriter, ids: &UnixStream) -> Result<i32> {
    // SAFETY: one thread; the child only closes what it inherited and waits.
    let child = unsafe { namespace::fork_as(pid, Parent::Mine) }?;
    if child == 0 {
        // SAFETY: plain calls in a process of its own. The guest's leader keeps its
        // descriptors: the mapped files are among them.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // Rust's programs ignore SIGPIPE.
            if libc::write(ties.as_raw_fd(), [1u8].as_ptr().cast(), 1) < 0 {
                libc::_exit(1);
            }
            libc::close(ties.as_raw_fd());
            match pid {
                None => choose_ids(ids.as_raw_fd()),
                Some(_) => drop(libc::close(ids.as_raw_fd())),
            }
            loop {
                libc::pause();
            }
        }
    }
    Ok(child)
}

/// Pid 1 keeps no descriptor but the orders and the kernel's word for the last id.
///
/// # Safety
/// In a process of its own, which needs none of its descriptors any more.
unsafe fn choose_ids(orders: RawFd) {
    const LAST_ID: &CStr = c"/proc/sys/kernel/ns_last_pid";
    // SAFETY: plain calls with live buffers of the lengths given.
    unsafe {
        let last = libc::open(LAST_ID.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let error = if last < 0 { errno() } else { 0 };
        libc::dup2(orders, 0);
        libc::dup2(last, 1);
        libc::syscall(libc::SYS_close_range, 2, u32::MAX, 0);
        let mut id = [0u8; 4];
        while libc::recv(0, id.as_mut_ptr().cast(), 4, libc::MSG_WAITALL) == 4 {
            let text = i32::from_le_bytes(id).to_string();
            let answer = match error {
                0 if libc::pwrite(1, text.as_ptr().cast(), text.len(), 0) < 0 => errno(),
                error => error,
            };
            libc::send(0, answer.to_le_bytes().as_ptr().cast(), 4, libc::MSG_NOSIGNAL);
        }
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
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
