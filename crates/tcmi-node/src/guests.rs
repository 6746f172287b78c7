//! The execution node's side: guests of other nodes, each in the hands of its monitor.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use parking_lot::Mutex;
use tcmi_ckpt::capture;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_core::limits::PHASE_TIMEOUT_MS;
use tcmi_kkc::{Control, GuestControl, Link, LinkId};
use tcmi_migr::module::ByModule;
use tcmi_migr::source::Times;
use tcmi_monitor::ipc::{self, Limits, StreamKeys, ToDaemon, ToMonitor};

use crate::cgroup::{Groups, THREADS_OF_OURS};
use crate::config::Grant;
use crate::control::{Done, TaskView};
use crate::task::Task;
use crate::tree::Tree;

/// Name under which this program is a monitor.
pub const MONITOR: &str = "tcmi-monitor";
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// A process that another node offers.
pub struct Offer {
    pub migration: u64,
    pub pid: i32,
    pub uid: u32,
    pub bulk: u64,
    /// Of its own, in bytes.
    pub memory: u64,
    pub threads: u32,
}

/// Where guests live here, and within what.
pub struct Hosting {
    /// The daemon's directory, for the file cache.
    pub state: PathBuf,
    /// Of guests' roots.
    pub root: PathBuf,
    pub grant: Grant,
    pub groups: Arc<Groups>,
}

struct Guest {
    task: Task,
    socket: Arc<OwnedFd>,
    waiting: Mutex<Vec<Done>>,
    shared: Mutex<Vec<Arc<OwnedFd>>>,
}

type Key = (LinkId, i32);

/// All guests here.
pub struct Guests {
    hosting: Hosting,
    module: Option<ByModule>,
    all: Mutex<HashMap<Key, Arc<Guest>>>,
    /// By guest, how many of its monitors there are: one that comes again may find its former one.
    places: Mutex<HashMap<Key, usize>>,
    /// Memory that guests of one home share, by home's number, while one of them is here.
    shared: Mutex<HashMap<(LinkId, u64), Weak<OwnedFd>>>,
    tree: Arc<Tree>,
}

impl Guests {
    pub fn new(hosting: Hosting, module: Option<ByModule>, tree: Arc<Tree>) -> io::Result<Self> {
        std::fs::create_dir_all(hosting.state.join("cache"))?;
        std::fs::create_dir_all(&hosting.root)?;
        let (all, places, shared) = Default::default();
        Ok(Self { hosting, module, all, places, shared, tree })
    }

    /// Starts a monitor for what is offered, and answers.
    pub fn offered(self: &Arc<Self>, link: Link, offer: Offer) {
        let guests = Arc::clone(self);
        let name = format!("guest-{}", offer.pid);
        let started = thread::Builder::new().name(name).spawn(move || {
            let migration = offer.migration;
            let place = guests.hosting.may_come(&offer).and_then(|()| guests.place(&link, &offer));
            let place = match place {
                Ok(place) => place,
                Err((errno, text)) => return answer(&link, migration, errno, &text),
            };
            if let Err(e) = guests.host(&link, offer) {
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                answer(&link, migration, errno, &e.to_string());
            }
            drop(place);
        });
        if let Err(error) = started {
            tracing::error!(%error, "no thread for a guest");
        }
    }

    /// Of those that the node's owner grants. Err: errno and why not.
    fn place(&self, link: &Link, offer: &Offer) -> Result<Place<'_>, (i32, String)> {
        let key = (link.id(), offer.pid);
        let mut places = self.places.lock();
        match self.hosting.grant.at_once {
            Some(most) if places.len() >= most && !places.contains_key(&key) => {
                Err((libc::EAGAIN, format!("{most} guests are here, and no more may be at once")))
            }
            _ => {
                *places.entry(key).or_default() += 1;
                Ok(Place { guests: self, key })
            }
        }
    }

    /// From the offer to the guest's end. Err: nothing was begun, and home is to be told.
    fn host(self: &Arc<Self>, link: &Link, offer: Offer) -> io::Result<()> {
        let pid = Pid::new(offer.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let key = (link.id(), offer.pid);
        let bulk = link.claim_stream(offer.bulk, CLAIM_TIMEOUT).map_err(io::Error::other)?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let Hosting { state, root, grant, groups } = &self.hosting;
        let cache = File::open(state.join("cache"))?;
        let group = groups.make(offer.pid, grant)?;
        let (events, procs) = (group.events()?, group.guest()?);
        let mut child = start_monitor(theirs)?;
        // It begins nothing before Start.
        if let Err(e) = group.hold(child.id()) {
            child.kill()?;
            finish(child);
            return Err(e);
        }
        let task = Task::new(pid, (offer.uid, offer.uid), link.id(), offer.migration)?;
        task.to(State::Preparing);
        let guest = Arc::new(Guest {
            task,
            socket: Arc::new(ours),
            waiting: Mutex::default(),
            shared: Mutex::default(),
        });
        let start = ToMonitor::Start {
            bulk: StreamKeys::of(&bulk),
            root: root.to_string_lossy().into_owned(),
            limits: Limits {
                memory: grant.memory.filter(|_| events.is_some()),
                threads: grant.threads + THREADS_OF_OURS,
                has_group: procs.is_some(),
            },
        };
        let mut fds = vec![bulk.fd.as_raw_fd(), cache.as_raw_fd()];
        fds.extend([&events, &procs].into_iter().flatten().map(AsRawFd::as_raw_fd));
        let session = self.module.and_then(ByModule::session);
        fds.extend(session.as_ref().map(|s| s.as_fd().as_raw_fd()));
        ipc::send(guest.socket.as_fd(), &start, &fds)?;
        // From here on it is the monitor's, and ends with it.
        drop((session, events, procs));
        drop(bulk);
        if self.all.lock().insert(key, guest.clone()).is_some() {
            tracing::debug!(pid = offer.pid, "a former guest of this pid is still ending");
        }
        answer(link, offer.migration, 0, "");
        let text = attend(&guest, link, self);
        let calls = guest.task.calls();
        tracing::info!(pid = offer.pid, calls, text, "a guest is gone");
        finish(child);
        drop(group);
        guest.task.to(State::Gone);
        let mut all = self.all.lock();
        if all.get(&key).is_some_and(|g| Arc::ptr_eq(g, &guest)) {
            all.remove(&key);
        }
        drop(all);
        self.tree.changed();
        let waiting = std::mem::take(&mut *guest.waiting.lock());
        if !waiting.is_empty() {
            // It may be at home for a call alone.
            let (migration, what) = (offer.migration, GuestControl::WantHome);
            if let Err(error) = link.send(&Control::Guest { migration, what }) {
                tracing::debug!(%error, "the home of a guest that left is gone");
            }
        }
        waiting.into_iter().for_each(|done| done(Ok(())));
        Ok(())
    }

    pub fn list(&self) -> Vec<TaskView> {
        let all = self.all.lock();
        all.values().filter(|g| g.task.state() != State::Preparing).map(|g| g.task.view()).collect()
    }

    /// Sends a guest home; `done` when it is gone from here, or stays.
    pub fn send_home(&self, pid: Pid, done: Done) {
        let found = {
            let all = self.all.lock();
            all.values().find(|g| g.task.pid == pid).cloned()
        };
        match found {
            None => done(Err(MigrateError::NotAway(pid))),
            Some(g) => g.send_home(done),
        }
    }

    /// Sends all guests of one home, or all there are, back. Returns when they are gone, stay,
    /// or time is up.
    pub fn evacuate(&self, home: Option<LinkId>, patience: Duration) -> Result<(), MigrateError> {
        let chosen: Vec<Arc<Guest>> = {
            let all = self.all.lock();
            all.values().filter(|g| home.is_none_or(|h| h == g.task.node)).cloned().collect()
        };
        let (sender, answers) = crossbeam_channel::unbounded();
        for g in &chosen {
            let sender = sender.clone();
            g.send_home(Box::new(move |result| {
                // Nobody listens any more when time was up.
                if sender.send(result).is_err() {
                    tracing::debug!("an evacuation came late");
                }
            }));
        }
        drop(sender);
        let until = std::time::Instant::now() + patience;
        for _ in &chosen {
            match answers.recv_deadline(until) {
                Ok(result) => result?,
                Err(_) => {
                    let limit_ms = patience.as_millis() as u64;
                    return Err(MigrateError::TimedOut { phase: State::Returning, limit_ms });
                }
            }
        }
        Ok(())
    }
}

impl Guests {
    /// Hands over memory that several guests of a home have, which the first that asks makes.
    fn hand_shared(
        &self,
        guest: &Guest,
        key: (LinkId, u64),
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        match self.shared(key, make) {
            Ok(memory) => {
                let fds = [memory.as_raw_fd()];
                guest.shared.lock().push(memory);
                ipc::send(guest.socket.as_fd(), &ToMonitor::Shared {}, &fds)
            }
            Err(e) => {
                let text = format!("no shared memory: {e}");
                ipc::send(guest.socket.as_fd(), &ToMonitor::NoStream { text }, &[])
            }
        }
    }

    fn shared(
        &self,
        key: (LinkId, u64),
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<OwnedFd>> {
        let mut all = self.shared.lock();
        all.retain(|_, memory| memory.strong_count() > 0);
        if let Some(memory) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(memory);
        }
        let memory = Arc::new(make()?);
        all.insert(key, Arc::downgrade(&memory));
        Ok(memory)
    }
}

fn segment(bytes: u64) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(capture::SEGMENT, MFdFlags::MFD_CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file.into())
}

/// Its guests make it as long as the file.
fn shared_file() -> io::Result<OwnedFd> {
    Ok(memfd_create("home-file", MFdFlags::MFD_CLOEXEC)?)
}

/// Given up when dropped.
struct Place<'a> {
    guests: &'a Guests,
    key: Key,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.guests.places.lock();
        if let Some(count) = places.get_mut(&self.key) {
            *count -= 1;
        }
        places.retain(|_, count| *count > 0);
    }
}

impl Hosting {
    /// Whether there is so much for it. Err: errno and why not.
    fn may_come(&self, offer: &Offer) -> Result<(), (i32, String)> {
        let Grant { memory, threads, .. } = self.grant;
        if let Some(memory) = memory
            && offer.memory > memory
        {
            let has = offer.memory.div_ceil(MIB);
            let text = format!("it has {has} MiB of memory, guests here {}", memory / MIB);
            return Err((libc::ENOMEM, text));
        }
        if offer.threads > threads {
            let text = format!("it has {} threads, guests here at most {threads}", offer.threads);
            return Err((libc::EAGAIN, text));
        }
        Ok(())
    }
}

impl Guest {
    fn send_home(&self, done: Done) {
        let mut waiting = self.waiting.lock();
        match ipc::send(self.socket.as_fd(), &ToMonitor::SendHome {}, &[]) {
            Ok(()) => waiting.push(done),
            Err(_) => {
                drop(waiting);
                done(Err(MigrateError::NotAway(self.task.pid)));
            }
        }
    }
}

fn answer(link: &Link, migration: u64, errno: i32, text: &str) {
    let text = text.to_owned();
    if let Err(error) = link.send(&Control::OfferAnswer { migration, errno, text }) {
        tracing::debug!(%error, "the home that offered is gone");
    }
}

fn start_monitor(socket: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // A fault that a test asked for happens once on this node, not once in every monitor.
    if FAULT_HANDED_ON.swap(true, Ordering::Relaxed) {
        command.env_remove(tcmi_migr::fault::VARIABLE);
    }
    command.arg0(MONITOR).stdin(socket).spawn()
}

static FAULT_HANDED_ON: AtomicBool = AtomicBool::new(false);

fn finish(mut child: Child) {
    match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!(%status, "a monitor ended"),
        Err(error) => tracing::error!(%error, "waiting for a monitor"),
    }
}

/// Serves a monitor until it ends; returns what it said last.
fn attend(guest: &Guest, link: &Link, guests: &Guests) -> String {
    let tree = &guests.tree;
    let task = &guest.task;
    loop {
        let message = match ipc::receive::<ToDaemon>(guest.socket.as_fd()) {
            Ok((message, _)) => message,
            Err(e) => return format!("its monitor ended: {e}"),
        };
        match message {
            ToDaemon::Claim { id } => {
                if let Err(e) = hand_over(guest, link, id) {
                    return format!("its monitor ended: {e}");
                }
            }
            ToDaemon::Segment { id, bytes } => {
                if let Err(e) = guests.hand_shared(guest, (link.id(), id), || segment(bytes)) {
                    return format!("its monitor ended: {e}");
                }
            }
            ToDaemon::SharedFile { id } => {
                if let Err(e) = guests.hand_shared(guest, (link.id(), id), shared_file) {
                    return format!("its monitor ended: {e}");
                }
            }
            ToDaemon::Runs { remote_pid } => {
                for state in
                    [State::Freezing, State::Transferring, State::Committing, State::Emigrated]
                {
                    task.to(state);
                }
                task.moved(remote_pid, Times::default());
                // Home hears that it runs after us: whoever emigrated it finds it here.
                tree.changed();
                if let Err(e) = ipc::send(guest.socket.as_fd(), &ToMonitor::Listed {}, &[]) {
                    return format!("its monitor ended: {e}");
                }
            }
            ToDaemon::Returning {} => task.to(State::Returning),
            ToDaemon::Stays { text } => {
                task.failed(&text);
                task.to(State::Emigrated);
                for done in guest.waiting.lock().drain(..) {
                    done(Err(MigrateError::PeerRefused {
                        node: link.peer_name().to_owned(),
                        reason: text.clone(),
                    }));
                }
            }
            ToDaemon::Stats { calls } => task.set_calls(calls),
            ToDaemon::Ended { text } => return text,
        }
    }
}

fn hand_over(guest: &Guest, link: &Link, id: u64) -> io::Result<()> {
    match link.claim_stream(id, CLAIM_TIMEOUT) {
        Ok(stream) => {
            let message = ToMonitor::Stream { keys: StreamKeys::of(&stream) };
            ipc::send(guest.socket.as_fd(), &message, &[stream.fd.as_raw_fd()])
        }
        Err(e) => {
            ipc::send(guest.socket.as_fd(), &ToMonitor::NoStream { text: e.to_string() }, &[])
        }
    }
}

/// How long a guest may take to go home when its node's daemon ends.
pub const EVACUATION: Duration = Duration::from_millis(PHASE_TIMEOUT_MS);
