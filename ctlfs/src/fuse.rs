//! The tree as FUSE requests see it.
//!
//! No request waits: what may take long is a command, runs on its own thread and
//! answers when it is done. The kernel tells us nothing when a waiting writer is
//! killed; its command runs to its end and the answer goes nowhere.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use nix::libc;
use tcmi_core::command::{Command, Form};
use tcmi_core::error::Errno;
use tcmi_core::limits::{CONTROL_COMMANDS_MAX, CONTROL_WRITE_BYTES_MAX};

use crate::control::{Answer, Caller, Control, Owner, Reply};
use crate::handles::{Handles, LastAnswers, OpenFile, lock};
use crate::inodes::Inodes;
use crate::place::{Capture, Place};
use crate::tree::{self, Grammar, Item, Kind};

/// Nothing is cached: a place may go, and a value change, at any time.
const TTL: Duration = Duration::ZERO;
/// What a directory listing gives for a number that only a lookup would assign.
const INODE_UNKNOWN: u64 = 0xffff_ffff;
/// Larger than a command may be, so that a longer write arrives as what it is.
const WRITE_REQUEST_BYTES_MAX: u32 = 128 * 1024;
const _: () = assert!(WRITE_REQUEST_BYTES_MAX as usize > CONTROL_WRITE_BYTES_MAX);

pub struct Tree {
    control: Arc<dyn Control>,
    inodes: Mutex<Inodes>,
    files: Handles<OpenFile>,
    listings: Handles<Vec<(FileType, String)>>,
    answers: Arc<LastAnswers>,
    /// Commands that have not been answered.
    commands: Arc<AtomicUsize>,
    mounted: SystemTime,
}

impl Tree {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            inodes: Mutex::new(Inodes::new()),
            files: Handles::new(),
            listings: Handles::new(),
            answers: Arc::new(LastAnswers::new()),
            commands: Arc::new(AtomicUsize::new(0)),
            mounted: SystemTime::now(),
        }
    }

    fn place(&self, ino: INodeNo) -> Result<Place, Errno> {
        lock(&self.inodes).place(ino.0).ok_or(Errno::NoEntry)
    }

    fn owner(&self, place: &Place) -> Result<Owner, Errno> {
        match place.capture {
            Capture::None => Ok(Owner::ROOT),
            _ => self.control.owner(place).ok_or(Errno::NoEntry),
        }
    }

    fn attr(&self, ino: u64, place: &Place) -> Result<FileAttr, Errno> {
        let owner = self.owner(place)?;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size: 0,
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

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let dir = self.place(parent)?;
        let place = name.to_str().and_then(|name| dir.child(name)).ok_or(Errno::NoEntry)?;
        // Numbered only once it is known to exist: the kernel forgets no failed lookup.
        let mut attr = self.attr(INODE_UNKNOWN, &place)?;
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
            let captures = self.control.list(entry, &dir.capture);
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
        let text = match (reads, answers) {
            (false, _) => Arc::from(""),
            (true, true) => self.answers.of(caller.uid),
            (true, false) => Arc::from(self.control.read(caller, &place)?),
        };
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

    /// None: as many wait as may.
    fn admit(&self, caller: Caller) -> Option<Admitted> {
        let admitted = Admitted::new(Arc::clone(&self.commands));
        let waiting = admitted.number;
        // Root is not held to the bound: others must not lock it out.
        (waiting <= CONTROL_COMMANDS_MAX || caller.is_root()).then_some(admitted)
    }

    fn run(
        &self,
        caller: Caller,
        file: Arc<OpenFile>,
        command: Command,
        waits: bool,
        writer: Writer,
    ) {
        let Some(admitted) = self.admit(caller) else {
            return writer.answer(Err(Errno::Busy));
        };
        let control = Arc::clone(&self.control);
        let answers = Arc::clone(&self.answers);
        let later = writer.clone();
        let spawned = thread::Builder::new().name("ctlfs-command".to_owned()).spawn(move || {
            let place = file.place.clone();
            let for_reply = later.clone();
            let reply = Reply::new(move |result| {
                if file.place.entry.item == Item::Explain {
                    keep_answer(&answers, &file, caller.uid, &result);
                }
                for_reply.answer(result.map(|_| ()));
                drop(admitted);
            });
            control.write(caller, &place, command, reply);
            if !waits {
                // Unless it was refused at once, which the writer has been told.
                later.answer(Ok(()));
            }
        });
        if spawned.is_err() {
            writer.answer(Err(Errno::Busy));
        }
    }
}

fn keep_answer(answers: &LastAnswers, file: &OpenFile, uid: u32, result: &Result<Answer, Errno>) {
    match result {
        Ok(Answer::Text(text)) => {
            let text: Arc<str> = Arc::from(text.as_str());
            file.answer(Arc::clone(&text));
            answers.keep(uid, text);
        }
        Ok(Answer::Done) | Err(_) => {
            file.answer(Arc::from(""));
            answers.clear(uid);
        }
    }
}

/// One of the commands that wait for their end.
struct Admitted {
    commands: Arc<AtomicUsize>,
    /// How many there are with this one.
    number: usize,
}

impl Admitted {
    fn new(commands: Arc<AtomicUsize>) -> Self {
        let number = commands.fetch_add(1, Ordering::Relaxed) + 1;
        Self { commands, number }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The process that waits in write(2); the first answer is the one it gets.
#[derive(Clone)]
struct Writer {
    reply: Arc<Mutex<Option<ReplyWrite>>>,
    bytes: u32,
}

impl Writer {
    fn answer(&self, result: Result<(), Errno>) {
        let Some(reply) = lock(&self.reply).take() else { return };
        match result {
            Ok(()) => reply.written(self.bytes),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }
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

fn form(grammar: Grammar) -> Form {
    match grammar {
        Grammar::Address => Form::Address,
        Grammar::KeyLines => Form::KeyLines,
        Grammar::AddressKey => Form::AddressKey,
        Grammar::PidNode => Form::PidNode,
        Grammar::Pid => Form::Pid,
        Grammar::PidMaybeNode => Form::PidMaybeNode,
        Grammar::One => Form::One,
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

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        lock(&self.inodes).forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.place(ino).and_then(|place| self.attr(ino.0, &place)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
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
            (Some(0), None, None, None) if place.entry.write.is_some() => self.attr(ino.0, &place),
            (Some(_), None, None, None) => Err(Errno::Invalid),
            _ => Err(Errno::NotPermitted),
        });
        match attr {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.place(ino).and_then(|place| self.control.readlink(&place)) {
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
                let reply = Arc::new(Mutex::new(Some(reply)));
                let writer = Writer { reply, bytes: bytes.len() as u32 };
                self.run(caller(request), file, command, waits, writer);
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
