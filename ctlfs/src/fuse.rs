//! The tree as FUSE requests see it.
//!
//! No request waits: what may take long is a command, runs on its own thread and
//! answers when it is done. The kernel tells us nothing when a waiting writer is
//! killed; its command runs to its end and the answer goes nowhere.

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use nix::libc;
use tcmi_core::command::Command;
use tcmi_core::error::Errno;
use tcmi_core::limits::CONTROL_WRITE_BYTES_MAX;

use crate::commands::{self, Commands, Writer, form};
use crate::control::{Answer, Caller, Control, Owner};
use crate::handles::{Handles, OpenFile, lock};
use crate::inodes::Inodes;
use crate::place::{Capture, Place};
use crate::tree::{self, Item, Kind};

/// Nothing is cached: a place may go, and a value change, at any time.
const TTL: Duration = Duration::ZERO;
/// What a directory listing gives for a number that only a lookup would assign.
const INODE_UNKNOWN: u64 = 0xffff_ffff;
/// Larger than a command may be, so that a longer write arrives as what it is.
const WRITE_REQUEST_BYTES_MAX: u32 = 128 * 1024;
const _: () = assert!(WRITE_REQUEST_BYTES_MAX as usize > CONTROL_WRITE_BYTES_MAX);

pub struct Tree {
    commands: Commands,
    inodes: Mutex<Inodes>,
    files: Handles<OpenFile>,
    listings: Handles<Vec<(FileType, String)>>,
    mounted: SystemTime,
}

impl Tree {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self {
            commands: Commands::new(control),
            inodes: Mutex::new(Inodes::new()),
            files: Handles::new(),
            listings: Handles::new(),
            mounted: SystemTime::now(),
        }
    }

    fn place(&self, ino: INodeNo) -> Result<Place, Errno> {
        lock(&self.inodes).place(ino.0).ok_or(Errno::NoEntry)
    }

    fn owner(&self, place: &Place) -> Result<Owner, Errno> {
        match place.capture {
            Capture::None => Ok(Owner::ROOT),
            _ => self.commands.control.owner(place).ok_or(Errno::NoEntry),
        }
    }

    /// What `caller` would read, asked for by every stat: kernels since 6.5 let sendfile and
    /// splice see nothing beyond a file's size.
    fn value(&self, caller: Caller, place: &Place) -> Result<Arc<str>, Errno> {
        match place.entry.item {
            Item::Explain => Ok(self.commands.answers.of(caller.uid)),
            _ => self.commands.control.read(caller, place).map(Arc::from),
        }
    }

    fn attr(&self, caller: Caller, ino: u64, place: &Place) -> Result<FileAttr, Errno> {
        let owner = self.owner(place)?;
        let reads = place.entry.kind == Kind::File && place.entry.is_readable();
        let value = if reads { self.value(caller, place).ok() } else { None };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size: value.map_or(0, |text| text.len() as u64),
            blocks: 0,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind: file_type(place.entry.kind),
            perm: place.entry.mode,
            nlink: if place.entry.kind == Kind::Dir { 2 } else { 1 },
            uid: owner.uid,
            gid: owner.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn find(&self, caller: Caller, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let dir = self.place(parent)?;
        let place = name.to_str().and_then(|name| dir.child(name)).ok_or(Errno::NoEntry)?;
        // Numbered only once it is known to exist: the kernel forgets no failed lookup.
        let mut attr = self.attr(caller, INODE_UNKNOWN, &place)?;
        attr.ino = INodeNo(lock(&self.inodes).look_up(place));
        Ok(attr)
    }

    fn list(&self, dir: &Place) -> Result<Vec<(FileType, String)>, Errno> {
        self.owner(dir)?;
        let mut names =
            vec![(FileType::Directory, ".".to_owned()), (FileType::Directory, "..".to_owned())];
        for entry in tree::children(dir.entry) {
            let kind = file_type(entry.kind);
            if entry.wildcard().is_none() {
                names.push((kind, entry.component().to_owned()));
                continue;
            }
            let captures = self.commands.control.list(entry, &dir.capture);
            names.extend(captures.iter().map(|capture| (kind, capture.to_string())));
        }
        Ok(names)
    }

    fn open_file(
        &self,
        caller: Caller,
        ino: INodeNo,
        flags: OpenFlags,
    ) -> Result<(u64, FopenFlags), Errno> {
        let place = self.place(ino)?;
        let (reads, writes) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        // The kernel has checked the modes, but lets root through.
        if reads && !place.entry.is_readable() || writes && place.entry.write.is_none() {
            return Err(Errno::Access);
        }
        self.owner(&place)?;
        let answers = place.entry.item == Item::Explain;
        let text = if reads { self.value(caller, &place)? } else { Arc::from("") };
        let file = self.files.insert(OpenFile::new(place, text), caller.is_root())?;
        let mut how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        if answers {
            how |= FopenFlags::FOPEN_STREAM;
        }
        Ok((file, how))
    }

    /// Ok: the command, in its whole. Err: nothing was done.
    fn command(
        file: &OpenFile,
        offset: u64,
        bytes: &[u8],
        flags: OpenFlags,
    ) -> Result<Command, Errno> {
        let grammar = file.place.entry.write.ok_or(Errno::Access)?;
        let command = Command::parse(form(grammar), bytes).map_err(|_| Errno::Invalid);
        let is_first = file.use_once();
        let appends = flags.0 & libc::O_APPEND != 0;
        // The second part of something longer, which a command never has.
        if offset > 0 && !appends || appends && !is_first {
            return Err(Errno::Invalid);
        }
        command
    }
}

/// For the handle that asked.
fn keep_answer(file: &OpenFile, result: &Result<Answer, Errno>) {
    let text = match result {
        Ok(Answer::Text(text)) => text.as_str(),
        Ok(Answer::Done) | Err(_) => "",
    };
    file.answer(Arc::from(text));
}

fn writer(reply: ReplyWrite, bytes: usize) -> Writer {
    Writer::new(move |result| match result {
        Ok(_) => reply.written(bytes as u32),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw())
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

fn caller(request: &Request) -> Caller {
    let tid = i32::try_from(request.pid()).unwrap_or(0);
    Caller { uid: request.uid(), gid: request.gid(), tid }
}

impl Filesystem for Tree {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it `>` is a truncation of its own, which waits for the inode's lock.
        if let Err(missing) = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC) {
            tracing::debug!("the kernel has no {missing:?}");
        }
        config
            .set_max_write(WRITE_REQUEST_BYTES_MAX)
            .map(|_| ())
            .map_err(|nearest| io::Error::other(format!("write size is at most {nearest}")))
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(caller(request), parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        lock(&self.inodes).forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.place(ino).and_then(|place| self.attr(caller(request), ino.0, &place)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = self.place(ino).and_then(|place| match (size, mode, uid, gid) {
            (Some(0), None, None, None) if place.entry.write.is_some() => {
                self.attr(caller(request), ino.0, &place)
            }
            (Some(_), None, None, None) => Err(Errno::Invalid),
            _ => Err(Errno::NotPermitted),
        });
        match attr {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.place(ino).and_then(|place| self.commands.control.readlink(&place)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(caller(request), ino, flags) {
            Ok((file, how)) => reply.opened(FileHandle(file), how),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(fuser::Errno::EBADF);
        };
        let size = size as usize;
        if file.place.entry.item == Item::Explain {
            reply.data(&file.read_next(size));
        } else {
            reply.data(&file.read_at(offset, size));
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(fuser::Errno::EBADF);
        };
        match Self::command(&file, offset, bytes, flags) {
            Ok(command) => {
                let waits = flags.0 & libc::O_NONBLOCK == 0;
                let place = file.place.clone();
                let command = commands::Command { caller: caller(request), place, command, waits };
                let writer = writer(reply, bytes.len());
                self.commands.run(command, writer, move |result| {
                    if file.place.entry.item == Item::Explain {
                        keep_answer(&file, result);
                    }
                });
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(handle.0);
        reply.ok();
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let by_root = caller(request).is_root();
        let listing = self.place(ino).and_then(|dir| self.list(&dir));
        match listing.and_then(|names| self.listings.insert(names, by_root)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(names) = self.listings.get(handle.0) else {
            return reply.error(fuser::Errno::EBADF);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, (kind, name)) in names.iter().enumerate().skip(from) {
            if reply.add(INodeNo(INODE_UNKNOWN), i as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.remove(handle.0);
        reply.ok();
    }

    // The tree changes by commands only. The defaults say ENOSYS, which reads as a bug.

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }
}
