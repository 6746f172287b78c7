//! The workers that serve a guest's calls.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tcmi_call::table::errno::Errno;
use tcmi_ckpt::birth;
use tcmi_ckpt::devices::OpenDevice;
use tcmi_ckpt::live::LiveFile;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::About;
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::Listener;
use tcmi_sys::waker::Waker;

use crate::callers::Callers;
use crate::devices::Devices;
use crate::events::Events;
use crate::files::{self, Files, Opened};
use crate::interrupt::{self, Pending};
use crate::live::{self, Live};
use crate::mapping::MappedFiles;
use crate::memory::Writable;
use crate::memory_files;
use crate::placement::Placement;
use crate::selves::{self, Names, Processors};
use crate::signalfds;
use crate::stats::Stats;
use crate::steward::Steward;
use crate::stream::{CallStream, StreamError};
use crate::tracer::Orders;
use crate::usage::Told;
use crate::worker::{self, Thread};

/// Between two attempts to get workers out of the wait for a call.
const WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// Between two looks for what a guest that makes no calls has written to live files.
const WRITE_BACK_INTERVAL: Duration = Duration::from_millis(100);
/// One part in so many of a core goes into those looks, at most.
const WRITE_BACK_SHARE: u32 = 50;

/// What calls need of a guest besides its threads.
pub struct Guest {
    /// As it is called here.
    pub pid: i32,
    pub steward: Arc<Steward>,
    pub events: Arc<Events>,
    pub callers: Arc<Callers>,
    pub orders: Arc<Orders>,
    /// Taken when serving begins, as `watch`.
    pub live: Vec<LiveFile>,
    /// Its process here and a userfaultfd of it, to learn by which pages it writes.
    pub watch: Option<(i32, OwnedFd)>,
    /// On other nodes than home, before it came.
    pub used: Usage,
    /// The same by children that it waited for.
    pub children: Usage,
    /// Files at home that it has mapped since it came.
    pub names: Names,
    /// Of this node. None: home's are shown.
    pub processors: Option<Processors>,
    /// Signals that it may read from descriptors.
    pub signals: u64,
    /// That it reads and writes here. None: at home.
    pub devices: Option<Vec<OpenDevice>>,
    /// That it reads and writes here. Taken when serving begins.
    pub files: Files,
    /// It came with files of memory open, as /proc/self/mem.
    pub memory_files: bool,
}

pub struct GuestThread {
    /// In the monitor's pid namespace.
    pub tid: i32,
    pub stream: CallStream,
    /// As of its process.
    pub used: Usage,
}

/// A thread that a guest is to begin: home has its shadow.
pub struct Begun {
    /// At home, and to be here.
    pub tid: i32,
    pub stream: CallStream,
}

/// Why a call that home has a part in is not made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is about to leave: its call is to be made again.
    Leaving,
    Failed(Errno),
}

/// What the owner of a guest is told. Called from workers, with the call not yet answered.
pub trait Hooks: Send + Sync {
    /// Thread `by` begins another. Ok: the next one of the guest's kernel gets that id.
    fn begin_thread(&self, by: i32) -> Result<Begun, Denied>;
    /// Thread `by` makes a call that only home can: the guest is to leave for it.
    fn visit_home(&self, by: i32) -> Denied;
    /// On other nodes than home, by a child that was waited for.
    fn child_used(&self, pid: i32) -> Usage;
    /// Reaches for a process that is called so at home and, in an access to its memory, `began` then,
    /// as Found::Away told.
    fn reach(&self, pid: i32, began: u64, access: Access) -> Found;
    /// It has been begun here as `here`, and does not run yet.
    fn thread_begun(&self, here: i32, tid: i32);
    /// `left`: guest threads that remain.
    fn thread_exits(&self, tid: i32, code: i32, left: usize);
    fn process_exits(&self, code: i32);
    /// A call began or ended, the first since [`Calls::rest`].
    fn stirs(&self);
    /// Home is not reached any more; the thread's call stays unanswered until the guest is
    /// killed. (Closing the listener before would answer it ENOSYS.)
    fn stream_failed(&self, tid: i32, error: &StreamError);
}

/// What a guest has its calls at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    pub in_flight: usize,
    pub threads: usize,
    /// How many began, and how many ended, so far.
    pub calls: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} calls still in flight")]
pub struct QuiesceError {
    pub in_flight: usize,
}

/// A call that home has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) seq: u64,
    /// Signals that the call blocks for its own time.
    pub(crate) mask: Option<u64>,
}

struct Entry {
    flight: Arc<Mutex<Option<Flight>>>,
    thread: Arc<Mutex<Thread>>,
    used: Usage,
    /// A second handle, to end a wait for home's reply.
    socket: OwnedFd,
}

#[derive(Default)]
struct Gate {
    /// No call is to be taken.
    closed: bool,
    /// For good.
    ended: bool,
    /// The freezer has interrupted every thread of the guest.
    told: bool,
    /// Workers in the wait for a call, or about to be.
    taking: usize,
    in_flight: usize,
    /// Counts what changes that.
    calls: u64,
    /// The owner is to be told of the next change.
    at_rest: bool,
    workers: Vec<JoinHandle<()>>,
    /// Writes files back.
    flusher: Option<JoinHandle<()>>,
    /// The same is to be woken by the next change.
    flusher_rests: bool,
    tids: Vec<i32>,
}

pub(crate) struct Shared {
    pub(crate) listener: Listener,
    pub(crate) guest: Guest,
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) stats: Stats,
    pub(crate) mapped: MappedFiles,
    pub(crate) writable: Writable,
    pub(crate) live: Live,
    pub(crate) told: Told,
    /// On other nodes than home, by children that were waited for.
    pub(crate) children: Mutex<Usage>,
    pub(crate) devices: Devices,
    pub(crate) memory_files: memory_files::IsOpen,
    pub(crate) files: Opened,
    pub(crate) let_in: signalfds::LetIn,
    /// Held while home is asked for a thread, whose ids are given out one after the other, or for
    /// a visit.
    pub(crate) births: Mutex<()>,
    /// Home is on this machine.
    near: bool,
    threads: Mutex<HashMap<i32, Entry>>,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Wakes who writes files back.
    flush: Waker,
}

impl Shared {
    pub(crate) fn thread(&self, tid: i32) -> Option<Arc<Mutex<Thread>>> {
        self.threads.lock().get(&tid).map(|entry| Arc::clone(&entry.thread))
    }

    /// By a thread of the guest on other nodes than home, before it came. Its own lock may be
    /// held as long as a call takes.
    pub(crate) fn used_before(&self, tid: i32) -> Usage {
        self.threads.lock().get(&tid).map_or(Usage::default(), |entry| entry.used)
    }

    /// A thread of the guest by its id at home, which it has in its own namespace.
    pub(crate) fn called_at_home(&self, tid: i32) -> Option<i32> {
        let here: Vec<i32> = self.threads.lock().keys().copied().collect();
        here.into_iter().find(|&here| birth::inner_tid(self.guest.pid, here) == Some(tid))
    }

    /// Waits for it a little.
    pub(crate) fn freezer_told(&self) -> bool {
        let mut gate = self.gate.lock();
        if !gate.told {
            self.changed.wait_for(&mut gate, WAKE_INTERVAL);
        }
        gate.told
    }

    /// What stopped the guest by its own call has it continued when the call returns.
    pub(crate) fn until_continued(&self) {
        let mut gate = self.gate.lock();
        while self.guest.callers.is_stopped() && !gate.closed && !gate.ended {
            self.changed.wait(&mut gate);
        }
    }

    pub(crate) fn add_thread(&self, tid: i32, served: Thread) -> io::Result<()> {
        let entry = Entry {
            flight: served.flight(),
            socket: served.socket()?,
            used: served.used,
            thread: Arc::new(Mutex::new(served)),
        };
        self.threads.lock().insert(tid, entry);
        Ok(())
    }

    /// Returns how many threads are left.
    pub(crate) fn forget(&self, tid: i32) -> usize {
        self.guest.callers.called(tid);
        self.let_in.close(tid);
        let mut threads = self.threads.lock();
        threads.remove(&tid);
        threads.len()
    }
}

/// The running workers. Dropping it ends them; calls in flight stay unanswered.
pub struct Calls(Arc<Shared>);

impl Calls {
    pub fn start(
        listener: OwnedFd,
        threads: Vec<GuestThread>,
        mut guest: Guest,
        hooks: Arc<dyn Hooks>,
    ) -> io::Result<Calls> {
        let live = Live::of(std::mem::take(&mut guest.live), guest.watch.take())?;
        let devices = Devices::new(guest.devices.take());
        let memory_files = memory_files::IsOpen::new(guest.memory_files);
        let children = Mutex::new(guest.children);
        let files = Opened::new(std::mem::take(&mut guest.files));
        install_wake_signal();
        let listener = Listener::from(listener);
        if let Err(error) = listener.wake_on_same_core() {
            tracing::debug!(%error, "calls wake their worker on any core");
        }
        let near = threads.iter().all(|t| t.stream.is_near().unwrap_or(false));
        let calls = Calls(Arc::new(Shared {
            listener,
            guest,
            hooks,
            stats: Stats::default(),
            mapped: MappedFiles::default(),
            writable: Writable::default(),
            live,
            told: Told::default(),
            children,
            devices,
            memory_files,
            files,
            let_in: signalfds::LetIn::default(),
            births: Mutex::default(),
            near,
            threads: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
            flush: Waker::new().map_err(io::Error::other)?,
        }));
        for thread in threads {
            calls.add_thread(thread)?;
        }
        spawn_worker(&calls.0, &mut calls.0.gate.lock())?;
        if !calls.0.live.is_empty() || calls.0.files.writes() {
            let ours = Arc::clone(&calls.0);
            let flusher = thread::Builder::new().name("guest-files".into());
            calls.0.gate.lock().flusher = Some(flusher.spawn(move || keep_written(&ours))?);
        }
        Ok(calls)
    }

    /// Before the thread makes its first call.
    pub fn add_thread(&self, thread: GuestThread) -> io::Result<()> {
        self.0.add_thread(thread.tid, Thread::new(thread.stream, thread.used))
    }

    /// Takes no further call; returns when none is being taken. Those in flight go on.
    pub fn stop_taking(&self) {
        let mut gate = self.0.gate.lock();
        gate.closed = true;
        self.0.changed.notify_all();
        while gate.taking > 0 {
            wake(&gate.tids);
            // The signal may come just before the wait it is to end, so it is repeated.
            self.0.changed.wait_for(&mut gate, WAKE_INTERVAL);
        }
    }

    /// Takes no further call and waits until none is in flight.
    ///
    /// For calls that wait, home has to cancel them; before it does, PTRACE_INTERRUPT must
    /// have been sent to every guest thread, and [`Calls::told`] been called: the restart codes
    /// that answer cancelled calls are right only for threads that stop. Err: `resume` goes on as
    /// if nothing had been.
    pub fn quiesce(&self, timeout: Duration) -> Result<(), QuiesceError> {
        self.stop_taking();
        let end = Instant::now() + timeout;
        let mut gate = self.0.gate.lock();
        while gate.in_flight > 0 {
            if self.0.changed.wait_until(&mut gate, end).timed_out() && gate.in_flight > 0 {
                return Err(QuiesceError { in_flight: gate.in_flight });
            }
        }
        Ok(())
    }

    /// Whoever holds the guest has interrupted all its threads.
    pub fn told(&self) {
        self.0.gate.lock().told = true;
        self.0.changed.notify_all();
    }

    /// Whether job control has stopped the guest. To be told before it is stopped, and after it is
    /// continued. Returns what was told last.
    pub fn stopped(&self, is: bool) -> bool {
        // Who looks at it, and then waits, does so with the gate's lock held.
        let gate = self.0.gate.lock();
        let was = self.0.guest.callers.stopped(is);
        drop(gate);
        self.0.changed.notify_all();
        was
    }

    pub fn resume(&self) {
        for entry in self.0.threads.lock().values() {
            // Nobody has it while no call is in flight.
            if let Some(mut thread) = entry.thread.try_lock() {
                thread.forget_mirror();
            }
        }
        let mut gate = self.0.gate.lock();
        (gate.closed, gate.told) = (false, false);
        drop(gate);
        self.0.changed.notify_all();
    }

    /// Calls that home has while a signal waits for their thread: (tid, number of the call).
    ///
    /// A signal that is in the guest before the call left was seen by its worker; this is for
    /// those that come after, and for calls that wait for ever because another shadow thread
    /// took the signal.
    pub fn held_up(&self) -> Vec<(i32, u64)> {
        let held_up = |(&tid, entry): (&i32, &Entry)| {
            let flight = (*entry.flight.lock())?;
            match interrupt::pending(tid, flight.mask) {
                // One that is gone has no call.
                Ok(Pending::Nothing) | Err(_) => None,
                Ok(Pending::Told | Pending::PerhapsTold | Pending::LetIn) => {
                    Some((tid, flight.seq))
                }
            }
        };
        let mut all: Vec<_> = self.0.threads.lock().iter().filter_map(held_up).collect();
        if all.is_empty() && signalfds::is_held_up(&self.0) {
            // Whichever it is: on its way it takes the signal home.
            let waits = |(&tid, entry): (&i32, &Entry)| Some((tid, (*entry.flight.lock())?.seq));
            all.extend(self.0.threads.lock().iter().find_map(waits));
        }
        all
    }

    pub fn under_way(&self) -> UnderWay {
        let threads = self.0.threads.lock().len();
        let gate = self.0.gate.lock();
        UnderWay { in_flight: gate.in_flight, threads, calls: gate.calls }
    }

    /// From here on [`Hooks::stirs`] tells when a call begins or ends, once. False: one has since
    /// `seen`.
    pub fn rest(&self, seen: UnderWay) -> bool {
        let mut gate = self.0.gate.lock();
        gate.at_rest = gate.calls == seen.calls;
        gate.at_rest
    }

    pub fn in_flight(&self) -> usize {
        self.0.gate.lock().in_flight
    }

    /// By children that it waited for, here and before.
    pub fn children_used(&self) -> Usage {
        *self.0.children.lock()
    }

    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Sends home what the guest has written to live files and others, by a thread that has no call
    /// in flight. Of a guest that is held, or has ended, that is all of it.
    ///
    /// Ok(false): every thread has one, before which all was written back that it wrote. Err
    /// (TimedOut): home has not taken it by then, as while its process is stopped.
    pub fn write_back(&self, timeout: Duration) -> io::Result<bool> {
        if self.0.live.is_empty() && !self.0.files.writes() {
            return Ok(true);
        }
        self.with_a_thread(timeout, write_back)
    }

    /// As [`Calls::write_back`]; the positions of its files are home's, too.
    pub fn settle(&self, timeout: Duration) -> io::Result<bool> {
        if self.0.live.is_empty() && self.0.files.is_off() {
            return Ok(true);
        }
        self.with_a_thread(timeout, |shared, thread| {
            write_back(shared, thread)?;
            files::settle(shared, thread)
        })
    }

    fn with_a_thread(&self, timeout: Duration, what: Work) -> io::Result<bool> {
        let (to, done) = std::sync::mpsc::channel();
        let ours = Arc::clone(&self.0);
        let writer = thread::Builder::new().name("guest-files-last".into());
        writer.spawn(move || to.send(by_a_thread(&ours, timeout, what)))?;
        match done.recv_timeout(timeout) {
            Ok(written) => written.map_err(io::Error::other),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What another process is told, by ids at home. None: there is no such thing here.
    pub fn tell(&self, about: About) -> Option<Vec<u8>> {
        selves::for_another(&self.0, about)
    }

    /// Which memfd mappings of the guest stand for which files at home.
    pub fn mapped_files(&self) -> &MappedFiles {
        &self.0.mapped
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.stop_taking();
        for entry in self.0.threads.lock().values() {
            // SAFETY: shuts down a socket we own; it fails only if the peer closed it before.
            unsafe { libc::shutdown(entry.socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
        let (workers, flusher) = {
            let mut gate = self.0.gate.lock();
            gate.ended = true;
            (std::mem::take(&mut gate.workers), gate.flusher.take())
        };
        self.0.changed.notify_all();
        self.0.flush.wake();
        for worker in workers.into_iter().chain(flusher) {
            if worker.join().is_err() {
                tracing::error!("a call worker panicked");
            }
        }
    }
}

fn spawn_worker(shared: &Arc<Shared>, gate: &mut Gate) -> io::Result<()> {
    let ours = Arc::clone(shared);
    let worker = thread::Builder::new().name("guest-calls".into()).spawn(move || work(&ours))?;
    gate.workers.push(worker);
    Ok(())
}

fn work(shared: &Arc<Shared>) {
    // SAFETY: no arguments, no failure.
    let tid = unsafe { libc::gettid() };
    shared.gate.lock().tids.push(tid);
    let mut placement = Placement::new(shared.near);
    while enter(shared) {
        placement.before_call();
        let taken = shared.listener.receive();
        placement.in_call();
        if let Ok(notif) = &taken {
            shared.guest.callers.called(notif.tid);
            shared.guest.orders.called(notif.tid);
        }
        let mut gate = shared.gate.lock();
        gate.taking -= 1;
        match taken {
            Ok(notif) => {
                gate.in_flight += 1;
                staff(shared, &mut gate);
                stir(shared, gate);
                worker::serve(shared, &notif);
                let mut gate = shared.gate.lock();
                gate.in_flight -= 1;
                stir(shared, gate);
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOENT) if !shared.listener.is_abandoned() => {}
                _ => gate.ended = true,
            },
        }
        shared.changed.notify_all();
    }
}

/// A call begins or ends.
fn stir(shared: &Shared, mut gate: MutexGuard<'_, Gate>) {
    gate.calls += 1;
    let was_at_rest = std::mem::take(&mut gate.at_rest);
    if std::mem::take(&mut gate.flusher_rests) {
        shared.flush.wake();
    }
    drop(gate);
    if was_at_rest {
        shared.hooks.stirs();
    }
}

/// Waits until calls may be taken. False: no more calls will be.
fn enter(shared: &Shared) -> bool {
    let mut gate = shared.gate.lock();
    while gate.closed && !gate.ended {
        shared.changed.wait(&mut gate);
    }
    if !gate.ended {
        gate.taking += 1;
    }
    !gate.ended
}

/// Somebody must be left to take the next call: a worker may wait in one for ever. Each thread has
/// one call, but that whose `clone3` is made as a `clone` has two.
fn staff(shared: &Arc<Shared>, gate: &mut Gate) {
    let enough = shared.threads.lock().len() + 1;
    if gate.taking == 0
        && !gate.closed
        && gate.workers.len() < enough
        && let Err(error) = spawn_worker(shared, gate)
    {
        tracing::error!(%error, "no further call worker");
    }
}

type Work = fn(&Shared, &mut Thread) -> Result<(), StreamError>;

fn write_back(shared: &Shared, thread: &mut Thread) -> Result<(), StreamError> {
    live::write_back(shared, thread)?;
    files::write_back(shared, thread)
}

/// Waits for a free thread, for each so long. Ok(false): there is none.
fn by_a_thread(shared: &Shared, patience: Duration, what: Work) -> Result<bool, StreamError> {
    let all: Vec<_> = shared.threads.lock().values().map(|e| Arc::clone(&e.thread)).collect();
    let free = all.iter().find_map(|thread| thread.try_lock());
    match free.or_else(|| all.iter().find_map(|thread| thread.try_lock_for(patience))) {
        Some(mut thread) => what(shared, &mut thread).map(|()| true),
        None => Ok(false),
    }
}

/// Who looks at a live file at home sees it a little later, whatever the guest calls or not.
fn keep_written(shared: &Shared) {
    let mut due = Instant::now() + WRITE_BACK_INTERVAL;
    while wait_until_due(shared, due) {
        let begun = Instant::now();
        if let Err(error) = by_a_thread(shared, Duration::ZERO, write_back) {
            tracing::debug!(%error, "nothing is written back any more");
            return;
        }
        let took = begun.elapsed();
        due = Instant::now() + WRITE_BACK_INTERVAL.max(took * WRITE_BACK_SHARE);
    }
}

/// Until files are to be written back: not while every thread has a call in flight, before which
/// all was written back that it wrote. False: the guest is at its end.
fn wait_until_due(shared: &Shared, due: Instant) -> bool {
    const STEP: Duration = Duration::from_millis(1);
    loop {
        let mut gate = shared.gate.lock();
        if gate.ended {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        let rests = gate.in_flight >= shared.threads.lock().len();
        if left.is_zero() && !gate.closed && !rests {
            return true;
        }
        gate.flusher_rests = rests;
        drop(gate);
        shared.live.wait(&shared.flush, (!rests).then_some(left.max(STEP)));
        shared.flush.clear();
    }
}

fn wake_signal() -> i32 {
    libc::SIGRTMAX() - 3
}

extern "C" fn woken(_: i32) {}

/// A handler that does nothing, without SA_RESTART: the wait for a call ends in EINTR.
fn install_wake_signal() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = woken as *const () as usize;
            let ret = libc::sigaction(wake_signal(), &action, std::ptr::null_mut());
            assert_eq!(ret, 0, "SIGRTMAX - 3 can be caught");
        }
    });
}

fn wake(tids: &[i32]) {
    for &tid in tids {
        // SAFETY: a signal to one of our own threads; ESRCH when it has ended.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, wake_signal()) };
    }
}
