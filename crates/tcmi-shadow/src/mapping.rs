//! `mmap` of a home file: its content is fetched into a memfd that the guest maps, and the
//! shadow maps the file at the same place, so that the way home finds it there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use parking_lot::Mutex;
use tcmi_call::abi::BatchOp;
use tcmi_call::table::errno::{EACCES, EINVAL, EIO, ENODEV, ENOMEM, EOVERFLOW, EPERM, Errno};
use tcmi_ckpt::capture;
use tcmi_sys::maps;
use tcmi_sys::seccomp::Notification;

use crate::calls::Shared;
use crate::memory::word;
use crate::stream::StreamError;
use crate::worker::{OWN_BASE, Thread};

const PAGE_BYTES: u64 = 4096;
/// All that a process may map.
const USER_BYTES: u64 = (1 << 47) - PAGE_BYTES;
const FETCH_BYTES: usize = 1024 * 1024;
const STAT_BYTES: usize = 144;
const STATFS_BYTES: usize = 120;
const STATFS_FLAGS: usize = 80;

/// What a memfd in the guest stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// At home. Empty: the shadow has it mapped at the same place.
    pub name: String,
    /// From `fstat`.
    pub dev: u64,
    pub ino: u64,
    /// File offset of the memfd's first byte.
    pub offset: u64,
    pub len: u64,
}

/// Inode of each memfd that backs a mapping in the guest.
#[derive(Debug, Default)]
pub struct MappedFiles(Mutex<HashMap<u64, MappedFile>>);

impl MappedFiles {
    pub fn get(&self, memfd_inode: u64) -> Option<MappedFile> {
        self.0.lock().get(&memfd_inode).cloned()
    }

    fn insert(&self, memfd_inode: u64, file: MappedFile) {
        self.0.lock().insert(memfd_inode, file);
    }
}

struct Request {
    addr: u64,
    len: u64,
    prot: u64,
    flags: u64,
    fd: u64,
    offset: u64,
}

/// Why a file was not mapped.
pub(crate) enum Refusal {
    Errno(Errno),
    Stream(StreamError),
    /// Not here: home maps it, and it is live when the guest is back.
    AtHome,
}

/// What is needed of `struct stat`.
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) rdev: u64,
    pub(crate) size: u64,
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        Refusal::Stream(error)
    }
}

/// None: home has refused it.
pub(crate) fn granted<T>(outcome: Result<T, Refusal>) -> Result<Option<T>, StreamError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Refusal::Stream(error)) => Err(error),
        Err(Refusal::Errno(_) | Refusal::AtHome) => Ok(None),
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Errno(error.raw_os_error().map_or(EIO, Errno))
    }
}

fn checked(args: &[u64; 6]) -> Result<Request, Errno> {
    let [addr, len, prot, flags, fd, offset] = *args;
    let kind = flags as i32 & 0xf;
    if len == 0 {
        return Err(EINVAL);
    }
    if len > USER_BYTES - PAGE_BYTES {
        return Err(ENOMEM);
    }
    match kind {
        libc::MAP_PRIVATE | libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => {}
        _ => return Err(EINVAL),
    }
    // Of a file that is none of hugetlbfs.
    if flags as i32 & (libc::MAP_HUGETLB | libc::MAP_ANONYMOUS) == libc::MAP_HUGETLB {
        return Err(EINVAL);
    }
    Ok(Request { addr, len, prot, flags, fd, offset })
}

/// Whether an `mremap`, or its like, moves or extends memory that home has to know the place of.
pub(crate) fn remaps_at_home(shared: &Shared, notif: &Notification) -> bool {
    const MOVES: i32 = libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let [start, len, new_len, flags, ..] = notif.args;
    let is_mremap = i64::from(notif.nr) == libc::SYS_mremap;
    if is_mremap && new_len <= len && flags as i32 & MOVES == 0 {
        return false;
    }
    let end = start.saturating_add(len.max(1));
    // Where it cannot be seen, home is the safe place; of one that is gone nobody waits for it.
    let Ok(all) = maps::read_short(notif.tid) else { return true };
    all.iter()
        .filter(|m| m.start < end && start < m.end)
        .any(|m| capture::is_segment(m) || shared.live.is_of(m))
}

/// Ok: the address, as the guest's kernel gave it.
pub(crate) fn map_file(
    shared: &Shared,
    thread: &mut Thread,
    id: u64,
    args: &[u64; 6],
) -> Result<i64, Refusal> {
    let [_, _, _, flags, fd, offset] = *args;
    // The node's huge pages are not for guests: as of a kernel that has none left.
    let huge = libc::MAP_HUGETLB | libc::MAP_ANONYMOUS;
    if flags as i32 & huge == huge {
        return Err(Refusal::Errno(checked(args).err().unwrap_or(ENOMEM)));
    }
    if !offset.is_multiple_of(PAGE_BYTES) {
        return Err(Refusal::Errno(EINVAL));
    }
    let Stat { dev, ino, mode, size, .. } = stat(thread, fd)?;
    let request = checked(args).map_err(Refusal::Errno)?;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Refusal::Errno(ENODEV));
    }
    if offset > i64::MAX as u64 - request.len {
        return Err(Refusal::Errno(EOVERFLOW));
    }
    if request.prot as i32 & libc::PROT_EXEC != 0 && may_not_execute(thread, fd)? {
        return Err(Refusal::Errno(EPERM));
    }
    if shared.live.has(dev, ino) || is_for_writing(thread, &request)? {
        return Err(Refusal::AtHome);
    }
    let memfd = fetch(thread, &request, size)?;
    let inode = memfd.metadata()?.ino();
    let local = shared.listener.add_fd(id, memfd.as_fd())?;
    let mut ops = [
        BatchOp {
            nr: libc::SYS_mmap as u64,
            args: [
                request.addr,
                request.len,
                request.prot,
                guest_flags(request.flags),
                local as u64,
                0,
            ],
            ..BatchOp::default()
        },
        BatchOp {
            nr: libc::SYS_close as u64,
            args: [local as u64, 0, 0, 0, 0, 0],
            ..BatchOp::default()
        },
    ];
    shared.guest.steward.run(&mut ops, &[]).map_err(|_| Refusal::Errno(ENOMEM))?;
    let addr = ops[0].ret;
    if addr < 0 {
        return Ok(addr);
    }
    let name = mirror(thread, &request, addr as u64)?;
    let file = MappedFile { name, dev, ino, offset: request.offset, len: request.len };
    shared.mapped.insert(inode, file);
    Ok(addr)
}

fn guest_flags(flags: u64) -> u64 {
    let kept = libc::MAP_FIXED
        | libc::MAP_FIXED_NOREPLACE
        | libc::MAP_POPULATE
        | libc::MAP_NORESERVE
        | libc::MAP_LOCKED
        | libc::MAP_32BIT;
    (flags & kept as u64) | libc::MAP_PRIVATE as u64
}

/// Shared, with a descriptor that may write: what cannot be read becomes an error at home, too.
fn is_for_writing(thread: &mut Thread, request: &Request) -> Result<bool, Refusal> {
    if request.flags as i32 & 0xf == libc::MAP_PRIVATE {
        return Ok(false);
    }
    let args = [request.fd, libc::F_GETFL as u64, 0, 0, 0, 0];
    let flags = positive(thread.ask_own(libc::SYS_fcntl, &args, &mut [])?)? as i32;
    match flags & libc::O_ACCMODE {
        libc::O_RDWR => Ok(true),
        _ if request.prot as i32 & libc::PROT_WRITE != 0 => Err(Refusal::Errno(EACCES)),
        _ => Ok(false),
    }
}

pub(crate) fn stat(thread: &mut Thread, fd: u64) -> Result<Stat, Refusal> {
    let mut bytes = [0u8; STAT_BYTES];
    positive(thread.ask_own(libc::SYS_fstat, &[fd, OWN_BASE, 0, 0, 0, 0], &mut bytes)?)?;
    Ok(Stat::of(&bytes))
}

/// `path` has its NUL.
pub(crate) fn stat_path(thread: &mut Thread, directory: u64, path: &[u8]) -> Result<Stat, Refusal> {
    let mut bytes = vec![0; STAT_BYTES];
    bytes.extend_from_slice(path);
    // It is read in pieces longer than itself.
    bytes.resize(STAT_BYTES + 2 * libc::PATH_MAX as usize, 0);
    let args = [directory, OWN_BASE + STAT_BYTES as u64, OWN_BASE, 0, 0, 0];
    positive(thread.ask_own(libc::SYS_newfstatat, &args, &mut bytes)?)?;
    Ok(Stat::of(&bytes))
}

impl Stat {
    pub(crate) fn id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    fn of(bytes: &[u8]) -> Self {
        let word = |at| word(bytes, at);
        let (dev, ino, mode) = (word(0), word(8), word(24) as u32);
        Stat { dev, ino, mode, rdev: word(40), size: word(48) }
    }
}

/// The file is on a file system that is mounted so.
fn may_not_execute(thread: &mut Thread, fd: u64) -> Result<bool, Refusal> {
    let mut bytes = [0u8; STATFS_BYTES];
    positive(thread.ask_own(libc::SYS_fstatfs, &[fd, OWN_BASE, 0, 0, 0, 0], &mut bytes)?)?;
    Ok(word(&bytes, STATFS_FLAGS) & libc::ST_NOEXEC != 0)
}

fn positive(ret: i64) -> Result<u64, Refusal> {
    u64::try_from(ret).map_err(|_| Refusal::Errno(Errno(-ret as i32)))
}

pub(crate) fn memfd() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"home-file".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The needed range of the file in a memfd. Shorter than asked where the file ends, so that
/// pages behind it fault as they would in the file.
fn fetch(thread: &mut Thread, request: &Request, size: u64) -> Result<File, Refusal> {
    let memfd = memfd()?;
    let wanted = request.len.next_multiple_of(PAGE_BYTES).min(size.saturating_sub(request.offset));
    memfd.set_len(wanted)?;
    let mut buffer = vec![0; FETCH_BYTES.min(wanted as usize)];
    let mut done = 0;
    while done < wanted {
        let n = (wanted - done).min(FETCH_BYTES as u64);
        let args = [request.fd, OWN_BASE, n, request.offset + done, 0, 0];
        // A descriptor that cannot be read cannot be mapped.
        let got = match thread.ask_own(libc::SYS_pread64, &args, &mut buffer)? {
            ret if ret == -i64::from(libc::EBADF) => return Err(Refusal::Errno(EACCES)),
            ret => positive(ret)?,
        };
        if got == 0 {
            break;
        }
        memfd.write_all_at(&buffer[..got as usize], done)?;
        done += got;
    }
    Ok(memfd)
}

/// Best effort: home may have something else at that address, such as what the guest has unmapped
/// since it left. Returns the name by which a return then finds the file.
fn mirror(thread: &mut Thread, request: &Request, addr: u64) -> Result<String, StreamError> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE) as u64;
    let args = [addr, request.len, request.prot, flags, request.fd, request.offset];
    let ret = thread.ask_own(libc::SYS_mmap, &args, &mut [])?;
    match ret == addr as i64 {
        true => Ok(String::new()),
        false => name(thread, request.fd),
    }
}

pub(crate) fn name(thread: &mut Thread, fd: u64) -> Result<String, StreamError> {
    let mut bytes = format!("/proc/self/fd/{fd}\0").into_bytes();
    let at = bytes.len();
    bytes.resize(at + libc::PATH_MAX as usize, 0);
    let (here, room) = (libc::AT_FDCWD as u64, libc::PATH_MAX as u64);
    let args = [here, OWN_BASE, OWN_BASE + at as u64, room, 0, 0];
    let length = thread.ask_own(libc::SYS_readlinkat, &args, &mut bytes)?.max(0) as usize;
    let name = bytes.get(at..at + length).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
