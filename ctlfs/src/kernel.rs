//! The tree as the kernel module asks for it.
//!
//! The module knows the table; what stands for its wildcards it is told. One thread
//! talks to it, so that whoever gets an answer finds the tree as the answer says.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::errno::Errno as RawErrno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tcmi_core::command::Pid;
use tcmi_core::error::Errno;
use tcmi_sys::kmod::{Message, Request, Session, abi};
use tracing::warn;

use crate::commands::{Command, Commands, Writer, form};
use crate::control::{Answer, Caller, Control, Owner};
use crate::ctable;
use crate::handles::lock;
use crate::place::{Capture, Place};
use crate::tree::{Item, TREE};

/// The thread that serves the module's file system.
pub struct Served {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// What others have for the thread.
struct Wake {
    event: EventFd,
    stops: AtomicBool,
    ended: Mutex<Vec<(u64, Result<Answer, Errno>)>>,
}

impl Wake {
    fn ring(&self) {
        // Full is as good as rung.
        if let Err(errno) = self.event.write(1)
            && errno != RawErrno::EAGAIN
        {
            warn!("cannot wake the control filesystem's thread: {errno}");
        }
    }
}

fn from_module(error: tcmi_sys::Errno) -> io::Error {
    io::Error::from_raw_os_error(error.code)
}

/// Whether the module is there and has this table.
fn session() -> io::Result<Session> {
    let session = Session::open_with(libc::O_NONBLOCK | libc::O_CLOEXEC).map_err(from_module)?;
    let version = session.version().map_err(from_module)?;
    if (version.abi, version.ctl_hash) != (abi::TCMI_ABI, ctable::hash()) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel module is of another version",
        ));
    }
    Ok(session)
}

impl Served {
    pub fn mount(dir: &Path, control: Arc<dyn Control>) -> io::Result<Self> {
        let session = session()?;
        session.serve().map_err(from_module)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(Wake {
            event: EventFd::from_value_and_flags(0, flags)?,
            stops: AtomicBool::new(false),
            ended: Mutex::new(Vec::new()),
        });
        let mut tree = Tree {
            session,
            commands: Commands::new(control),
            wake: Arc::clone(&wake),
            made: HashMap::new(),
            last_key: 0,
        };
        tree.refresh();
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tcmictlfs"), dir, Some("tcmictlfs"), flags, None::<&str>)?;
        let thread = thread::Builder::new().name("ctlfs-kernel".to_owned());
        let thread = thread.spawn(move || tree.serve())?;
        Ok(Self { wake, thread: Some(thread) })
    }

    /// What stands for the wildcards may be something else now.
    pub fn changed(&self) {
        self.wake.ring();
    }

    /// Whoever waits gets ENOTCONN.
    pub fn stop(&mut self) -> io::Result<()> {
        self.wake.stops.store(true, Ordering::Release);
        self.wake.ring();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| io::Error::other("the serving thread panicked"))
    }
}

/// Something that stands for a wildcard.
#[derive(Clone, PartialEq)]
struct Made {
    place: Place,
    owner: Owner,
}

struct Tree {
    session: Session,
    commands: Commands,
    wake: Arc<Wake>,
    /// By their keys in the module; a key is never used twice.
    made: HashMap<u64, Made>,
    last_key: u64,
}

impl Tree {
    fn serve(mut self) {
        loop {
            let event = PollFd::new(self.wake.event.as_fd(), PollFlags::POLLIN);
            let session = PollFd::new(self.session.as_fd(), PollFlags::POLLIN);
            match poll(&mut [event, session], PollTimeout::NONE) {
                Ok(_) | Err(RawErrno::EINTR) => {}
                Err(errno) => return warn!("the control filesystem ends: poll: {errno}"),
            }
            if self.wake.stops.load(Ordering::Acquire) {
                return;
            }
            if self.wake.event.read().is_ok() {
                self.refresh();
                self.answer_ended();
            }
            match self.session.read() {
                Ok(Message::Request(request)) => self.take(request),
                Ok(Message::Event(_)) => {}
                Err(e) if e.code == libc::EAGAIN || e.code == libc::EINTR => {}
                Err(e) => return warn!("the control filesystem ends: {e}"),
            }
        }
    }

    /// Everything that stands for a wildcard now.
    fn wanted(&self) -> Vec<Made> {
        let control = &self.commands.control;
        let families = TREE.iter().filter(|entry| entry.wildcard().is_some());
        families
            .flat_map(|entry| {
                let captures = control.list(entry, &Capture::None);
                captures.into_iter().map(move |capture| Place { entry, capture })
            })
            .filter_map(|place| Some(Made { owner: control.owner(&place)?, place }))
            .collect()
    }

    /// Removes first: a name may come back as another thing.
    fn refresh(&mut self) {
        let wanted = self.wanted();
        let gone: Vec<u64> = self
            .made
            .iter()
            .filter(|(_, made)| !wanted.contains(made))
            .map(|(&key, _)| key)
            .collect();
        for key in gone {
            if let Some(made) = self.made.remove(&key)
                && let Some(entry) = ctable::index(made.place.entry)
                && let Err(e) = self.session.remove(entry, key)
            {
                warn!("cannot remove {}: {e}", made.place);
            }
        }
        for made in wanted {
            if !self.made.values().any(|known| *known == made) {
                self.make(made);
            }
        }
    }

    fn make(&mut self, made: Made) {
        let Some(entry) = ctable::index(made.place.entry) else { return };
        self.last_key += 1;
        let Owner { uid, gid } = made.owner;
        match self.session.add(entry, self.last_key, &made.place.name(), uid, gid) {
            Ok(()) => drop(self.made.insert(self.last_key, made)),
            Err(e) => warn!("cannot make {}: {e}", made.place),
        }
    }

    fn answer_ended(&self) {
        let ended = std::mem::take(&mut *lock(&self.wake.ended));
        for (id, result) in ended {
            match result {
                Ok(Answer::Text(text)) => self.answer(id, Ok(text)),
                Ok(Answer::Done) => self.answer(id, Ok(String::new())),
                Err(errno) => self.answer(id, Err(errno)),
            }
        }
    }

    fn answer(&self, id: u64, result: Result<String, Errno>) {
        let answered = match &result {
            Ok(text) => self.session.answer(id, Ok(text.as_bytes())),
            Err(errno) => self.session.answer(id, Err(errno.raw())),
        };
        match answered {
            Ok(()) => {}
            // Who asked was killed.
            Err(e) if e.code == libc::ENOENT => {}
            Err(e) => warn!("cannot answer: {e}"),
        }
    }

    fn place(&self, request: &Request) -> Option<Place> {
        let entry = TREE.get(request.entry as usize)?;
        let capture = match request.key {
            0 => Capture::None,
            key => self.made.get(&key)?.place.capture.clone(),
        };
        Some(Place { entry, capture })
    }

    fn take(&mut self, request: Request) {
        let caller = Caller { uid: request.uid, gid: request.gid, tid: request.tid };
        let Some(place) = self.place(&request) else {
            return self.answer(request.id, Err(Errno::NoEntry));
        };
        let control = &self.commands.control;
        match request.op {
            abi::TCMI_CTL_READ if place.entry.item == Item::Explain => {
                let text = self.commands.answers.of(caller.uid).to_string();
                self.answer(request.id, Ok(text));
            }
            abi::TCMI_CTL_READ => self.answer(request.id, control.read(caller, &place)),
            abi::TCMI_CTL_READLINK => self.answer(request.id, control.readlink(&place)),
            abi::TCMI_CTL_WRITE => match command(&place, &request) {
                Ok(command) => {
                    let waits = request.waits;
                    self.run(request.id, Command { caller, place, command, waits });
                }
                Err(errno) => self.answer(request.id, Err(errno)),
            },
            _ => self.answer(request.id, Err(Errno::Invalid)),
        }
    }

    fn run(&self, id: u64, command: Command) {
        let wake = Arc::clone(&self.wake);
        let writer = Writer::new(move |result| {
            lock(&wake.ended).push((id, result));
            wake.ring();
        });
        self.commands.run(command, writer, |_| ());
    }
}

/// With the process that the writer meant, who may count from another namespace.
fn command(place: &Place, request: &Request) -> Result<tcmi_core::command::Command, Errno> {
    use tcmi_core::command::Command;
    let grammar = place.entry.write.ok_or(Errno::Access)?;
    let mut command = Command::parse(form(grammar), &request.data).map_err(|_| Errno::Invalid)?;
    if ctable::names_process(place.entry) {
        let target = Pid::new(request.target).ok_or(Errno::NoProcess)?;
        match &mut command {
            Command::Emigrate { pid, .. }
            | Command::Explain { pid, .. }
            | Command::MigrateHome(pid) => *pid = target,
            Command::Listen(_) | Command::Trust(_) | Command::Connect { .. } | Command::Go => {}
        }
    }
    Ok(command)
}
