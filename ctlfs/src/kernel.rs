//! The tree as the kernel module asks for it.
//!
//! The module knows the table; what stands for its wildcards it is told. One thread
//! talks to it, so that whoever gets an answer finds the tree as the answer says.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
    refreshes: Mutex<Refreshes>,
    refreshed: Condvar,
}

#[derive(Default)]
struct Refreshes {
    asked: u64,
    /// How many of those asked for are made.
    made: u64,
    /// The thread has ended; none is made any more.
    over: bool,
}

impl Wake {
    fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            event: EventFd::from_value_and_flags(0, flags)?,
            stops: AtomicBool::new(false),
            ended: Mutex::default(),
            refreshes: Mutex::default(),
            refreshed: Condvar::new(),
        })
    }

    /// Returns when the tree shows what there is.
    fn refresh(&self) {
        let mut refreshes = lock(&self.refreshes);
        refreshes.asked += 1;
        let ours = refreshes.asked;
        self.ring();
        let waits = |r: &mut Refreshes| r.made < ours && !r.over;
        let shown = self.refreshed.wait_while(refreshes, waits);
        drop(shown.unwrap_or_else(PoisonError::into_inner));
    }

    fn ring(&self) {
        // Full is as good as rung.
        if let Err(errno) = self.event.write(1)
            && errno != RawErrno::EAGAIN
        {
            warn!("cannot wake the control filesystem's thread: {errno}");
        }
    }
}

/// Why the kernel module does not serve us.
#[derive(Clone, Copy, Debug)]
pub enum NoModule {
    NotLoaded,
    /// It has another interface, or another table of the tree.
    OtherVersion {
        abi: u32,
        tree: u64,
    },
    /// Another process has its tree served; there is one a machine.
    Taken,
    Failed(tcmi_sys::Errno),
}

impl std::fmt::Display for NoModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLoaded => f.write_str("it is not loaded"),
            Self::OtherVersion { abi, tree } => {
                let (ours, table) = (abi::TCMI_ABI, ctable::hash());
                write!(f, "it has interface {abi}, tree {tree:016x}, ")?;
                write!(f, "and this program interface {ours}, tree {table:016x}")
            }
            Self::Taken => f.write_str("it serves another daemon"),
            Self::Failed(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for NoModule {}

/// The kernel module, its tree ours to serve.
pub struct Module {
    session: Session,
}

impl Module {
    /// From here on nobody else serves it, so what a node says of itself stays true.
    pub fn claim() -> Result<Self, NoModule> {
        let session =
            Session::open_with(libc::O_NONBLOCK | libc::O_CLOEXEC).map_err(|e| match e.code {
                libc::ENOENT | libc::ENXIO | libc::ENODEV => NoModule::NotLoaded,
                _ => NoModule::Failed(e),
            })?;
        let version = session.version().map_err(NoModule::Failed)?;
        if (version.abi, version.ctl_hash) != (abi::TCMI_ABI, ctable::hash()) {
            return Err(NoModule::OtherVersion { abi: version.abi, tree: version.ctl_hash });
        }
        session.serve().map_err(|e| match e.code {
            libc::EBUSY => NoModule::Taken,
            _ => NoModule::Failed(e),
        })?;
        Ok(Self { session })
    }
}

impl Served {
    pub fn mount(dir: &Path, control: Arc<dyn Control>, module: Module) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        let mut tree = Tree {
            session: module.session,
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

    /// What stands for the wildcards may be something else now. When the function returns, the
    /// tree shows it.
    pub fn refresher(&self) -> impl Fn() + Send + Sync + 'static {
        let wake = Arc::clone(&self.wake);
        move || wake.refresh()
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
                self.refresh_asked();
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

    fn refresh_asked(&mut self) {
        let asked = lock(&self.wake.refreshes).asked;
        self.refresh();
        lock(&self.wake.refreshes).made = asked;
        self.wake.refreshed.notify_all();
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

impl Drop for Tree {
    fn drop(&mut self) {
        lock(&self.wake.refreshes).over = true;
        self.wake.refreshed.notify_all();
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
            | Command::Checkpoint { pid, .. }
            | Command::Explain { pid, .. }
            | Command::MigrateHome(pid) => *pid = target,
            Command::Listen(_) | Command::Trust(_) | Command::Connect { .. } | Command::Go => {}
        }
    }
    Ok(command)
}
