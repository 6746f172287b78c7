//! The life of one guest, from the offer to its end or its return.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcmi_ckpt::birth::Guest;
use tcmi_ckpt::image::ProcessImage;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::{About, Texts};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_kkc::codec::Frame;
use tcmi_kkc::{BulkReader, BulkWriter};
use tcmi_migr::destination::GuestFiles;
use tcmi_migr::files::Cache;
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::{Error, Result};
use tcmi_shadow::{Begun, CallStats, Calls, Denied, Events, Hooks, StreamError, Tracer};
use tcmi_sys::Errno;
use tcmi_sys::kmod::Session;
use tcmi_sys::ptrace;
use tcmi_sys::waker::Waker;

use crate::ipc::{self, ToDaemon, ToMonitor};
use crate::limits::Limits;

mod begin;
mod births;
mod daemon;
mod home;
mod inquiry;
mod looks;

use begin::build;
use births::{Births, Question};
use daemon::{claim, tell};
use inquiry::Inquiry;
use looks::{Looks, Seen};

/// Until home is asked again for a process that was neither here nor there.
const REACH_AGAIN: Duration = Duration::from_millis(5);
/// From the end of a shadow to that of a guest that ends with it.
const END_OF_BOTH: Duration = Duration::from_millis(200);
/// For what a guest that has ended stored last to be taken at home.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between two looks whether there are new counters to tell home.
const STATS_INTERVAL: Duration = Duration::from_millis(500);

/// The monitor's whole run over its socket to the daemon. Exit status: 0 unless the guest could
/// not be made.
pub fn run(daemon: OwnedFd) -> i32 {
    match oversee(&daemon) {
        Ok(text) => {
            tell(&daemon, &ToDaemon::Ended { text });
            0
        }
        Err(e) => {
            tell(&daemon, &ToDaemon::Ended { text: e.to_string() });
            1
        }
    }
}

fn oversee(daemon: &OwnedFd) -> Result<String> {
    let (start, fds) =
        ipc::receive::<ToMonitor>(daemon.as_fd()).map_err(Error::io("the daemon's socket"))?;
    let mut fds = fds.into_iter();
    let unknown = || Errno::new("the daemon's first message", libc::EPROTO);
    let (ToMonitor::Start { bulk, root, limits }, Some(socket), Some(cache)) =
        (start, fds.next(), fds.next())
    else {
        return Err(unknown().into());
    };
    let mut limits = Limits::take(limits, &mut fds).ok_or_else(unknown)?;
    let (mut w, mut r) = bulk.with(socket).into_bulk();
    let built = build(daemon, Cache::new(cache), &root, &mut limits, &mut w, &mut r);
    let born = match built {
        Ok(b) => b,
        Err(e) => {
            let failed = msg::Failed { errno: e.errno(), text: e.to_string() };
            if !matches!(e, Error::Stream(_) | Error::Peer { .. }) {
                msg::send(&mut w, &failed)?;
            }
            return Err(e);
        }
    };
    let module = fds.next().map(Session::from);
    let mut life = Life::begin(daemon, born, limits, module, w, r)?;
    let ended = life.serve(daemon);
    tell(daemon, &ToDaemon::Stats { calls: life.stats() });
    life.shadow.close();
    life.tracer.end();
    life.kill();
    // Those who wait for its steward see its end when it shows.
    if let Err(error) = life.ends_within(END_OF_BOTH) {
        tracing::debug!(%error, "the end of the guest");
    }
    ended
}

/// What others learn of the shadow, and the bell that wakes the main loop for it.
struct Tidings {
    births: Births,
    /// What a child used that the guest has waited for.
    children: Inquiry<i32, Usage>,
    /// Another process: its id, when it began, and what is to be done there.
    others: Inquiry<(i32, u64, Access), Found>,
    bell: Waker,
    /// It serves. Until then the process may go on at home.
    serving: AtomicBool,
    /// It cannot be reached any more.
    lost: AtomicBool,
    /// A call began or ended while the guest was at rest.
    stirred: AtomicBool,
}

impl Tidings {
    fn new(births: Births) -> Result<Self> {
        let [serving, lost, stirred] = [false; 3].map(AtomicBool::new);
        let (children, others) = Default::default();
        Ok(Self { births, children, others, bell: Waker::new()?, serving, lost, stirred })
    }
    /// The guest is on its way home.
    fn close(&self) {
        self.births.close();
        self.children.close();
        self.others.close();
    }
    /// After a return that failed.
    fn open(&self) {
        self.births.open();
        self.children.open();
        self.others.open();
    }
    /// There is nobody to answer what is asked.
    fn answer_none(&self) {
        self.births.answer(None);
        self.children.answer_any(Usage::default());
        self.others.answer_any(Found::Nobody);
    }
    fn set(&self, what: &AtomicBool) {
        what.store(true, Ordering::Release);
        self.bell.wake();
    }
}

impl Hooks for Tidings {
    fn begin_thread(&self, by: i32) -> std::result::Result<Begun, Denied> {
        self.births.ask(by, || self.bell.wake())
    }
    fn visit_home(&self, by: i32) -> Denied {
        self.births.ask_visit(by, || self.bell.wake())
    }
    fn child_used(&self, pid: i32) -> Usage {
        self.children.ask(pid, || self.bell.wake()).unwrap_or_default()
    }
    fn reach(&self, pid: i32, began: u64, access: Access) -> Found {
        let found = self.others.ask((pid, began, access), || self.bell.wake());
        if found == Some(Found::Moves) {
            self.others.pause(REACH_AGAIN);
        }
        found.unwrap_or(Found::Moves)
    }
    fn thread_begun(&self, here: i32, tid: i32) {
        self.births.begun(here, tid);
    }
    fn thread_exits(&self, here: i32, _: i32, _: usize) {
        self.births.ended(here);
    }
    fn process_exits(&self, _: i32) {}
    fn stirs(&self) {
        self.set(&self.stirred);
    }
    fn stream_failed(&self, tid: i32, error: &StreamError) {
        tracing::warn!(tid, %error, "the shadow is not reached any more");
        self.set(&self.lost);
    }
}

/// A guest that runs, and everything that keeps it running.
struct Life {
    guest: Guest,
    image: ProcessImage,
    /// On other nodes than home, before it came.
    used: Used,
    files: GuestFiles,
    calls: Calls,
    tracer: Tracer,
    events: Arc<Events>,
    /// That others fetch.
    texts: Texts,
    shadow: Arc<Tidings>,
    pidfd: OwnedFd,
    limits: Limits,
    /// To send it home with.
    module: Option<Session>,
    w: BulkWriter,
    r: BulkReader,
    /// Home's keeper still answers.
    keeper: bool,
    /// The owner of this node wants the guest to leave, and home is not told yet.
    unwanted: bool,
    /// What home was told last.
    told: Vec<msg::CallCount>,
    /// Rung for each signal that the guest got.
    signalled: Arc<Waker>,
    looks: Looks,
    report_at: Instant,
}

enum Next {
    Signalled,
    /// A thread of the guest stops, or a worker asks for it.
    Traced,
    Shadow,
    LookDue,
    Message,
    Daemon,
    Ended,
}

impl Life {
    /// Until the guest ends or has gone home. Returns what to tell the daemon.
    fn serve(&mut self, daemon: &OwnedFd) -> Result<String> {
        let mut daemon_lives = true;
        loop {
            match self.wait(daemon, daemon_lives)? {
                Next::Ended => return self.ended(None),
                Next::Signalled => {
                    self.signalled.clear();
                    self.looks.signalled();
                }
                Next::Shadow => {
                    // First: who rings behind the looks is to be heard again.
                    self.shadow.bell.clear();
                    if self.shadow.stirred.swap(false, Ordering::AcqRel) {
                        self.looks.stirred();
                    }
                    if self.shadow.lost.load(Ordering::Acquire) {
                        // Its end and its shadow's are one, and either may show first.
                        if self.ends_within(END_OF_BOTH)? {
                            return self.ended(None);
                        }
                        self.kill();
                        self.ends_within(END_OF_BOTH)?;
                        return self.ended(Some("its shadow is not reached any more"));
                    }
                    if let Some(question) = self.shadow.births.asked() {
                        self.put(question);
                    }
                    if let Some((number, pid)) = self.shadow.children.asked() {
                        self.ask(&msg::AskUsed { number, pid });
                    }
                    if let Some((number, (pid, began, access))) = self.shadow.others.asked() {
                        self.ask(&msg::Reach { number, pid, began, access });
                    }
                    self.ask_home(daemon);
                }
                Next::Traced => self.tracer.turn()?,
                Next::LookDue => {
                    self.poke();
                    self.report(daemon);
                }
                Next::Daemon => match ipc::receive::<ToMonitor>(daemon.as_fd()) {
                    Ok((ToMonitor::SendHome {}, _)) => {
                        self.unwanted = true;
                        self.ask_home(daemon);
                    }
                    Ok(_) => {}
                    Err(_) => daemon_lives = false,
                },
                Next::Message => {
                    if let Some(text) = self.message(daemon) {
                        return Ok(text);
                    }
                }
            }
        }
    }

    /// Its threads' ends are the tracer's to take before its own shows.
    fn ends_within(&mut self, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        loop {
            self.tracer.turn()?;
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [self.pidfd.as_raw_fd(), self.tracer.as_fd().as_raw_fd()]
                .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            // SAFETY: a live array and its length.
            match unsafe { libc::poll(fds.as_mut_ptr(), 2, left.as_millis() as i32) } {
                -1 => return Err(Errno::last("poll").into()),
                0 => return Ok(false),
                _ if fds[0].revents != 0 => return Ok(true),
                _ => {}
            }
        }
    }

    fn is_served(&self) -> bool {
        self.shadow.serving.load(Ordering::Acquire)
    }

    /// Asks home to take the guest back if this node does not want it any more.
    fn ask_home(&mut self, daemon: &OwnedFd) {
        if !self.unwanted || (self.keeper && !self.is_served()) {
            return;
        }
        self.unwanted = false;
        self.tell_keeper(&msg::WantHome {});
        if !self.keeper {
            tell(daemon, &ToDaemon::Stays { text: "nobody at home can take it".to_owned() });
        }
    }

    fn put(&mut self, question: Question) {
        match question {
            Question::Thread(by) => self.ask(&msg::BeginThread { by }),
            Question::Visit(by) => self.ask(&msg::VisitHome { by }),
        }
    }

    fn ask<M: Message>(&mut self, question: &M) {
        self.tell_keeper(question);
        if !self.keeper {
            self.shadow.answer_none();
        }
    }

    /// Tells home's keeper, if there is one.
    fn tell_keeper<M: Message>(&mut self, what: &M) {
        if self.keeper
            && let Err(e) = msg::send(&mut self.w, what)
        {
            self.lose_keeper(&e);
        }
    }

    /// The daemon at home is gone, or is not to be understood. The shadow needs it not; if there
    /// is none yet, the process closes its streams when it goes on at home, and the guest ends by
    /// that. Of a stopped guest nobody tells when it is continued: it waits in its next call, until
    /// its shadow is.
    fn lose_keeper(&mut self, why: &Error) {
        tracing::info!(error = %why, "home's keeper is gone; the guest goes on");
        self.keeper = false;
        self.shadow.answer_none();
        if self.calls.stopped(false) {
            self.obey_signal(libc::SIGCONT);
        }
    }

    /// Tells home and the daemon the counters, if they have changed.
    fn report(&mut self, daemon: &OwnedFd) {
        if Instant::now() < self.report_at {
            return;
        }
        self.report_at = Instant::now() + STATS_INTERVAL;
        let calls = self.stats();
        if calls == self.told {
            return;
        }
        if self.is_served() {
            self.tell_keeper(&msg::Stats { calls: calls.clone() });
        }
        tell(daemon, &ToDaemon::Stats { calls: calls.clone() });
        self.told = calls;
    }

    fn wait(&mut self, daemon: &OwnedFd, daemon_lives: bool) -> Result<Next> {
        if self.keeper && self.r.has_buffered() {
            return Ok(Next::Message);
        }
        let bulk = if self.keeper { self.r.as_fd().as_raw_fd() } else { -1 };
        let daemon = if daemon_lives { daemon.as_raw_fd() } else { -1 };
        let bells = [&self.shadow.bell, &*self.signalled].map(|bell| bell.as_fd().as_raw_fd());
        let tracer = self.tracer.as_fd().as_raw_fd();
        let mut fds = [self.pidfd.as_raw_fd(), tracer, bells[0], bulk, daemon, bells[1]]
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        loop {
            let ms = self.looks.timeout_ms();
            // SAFETY: a live array and its length.
            match unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as u64, ms) } {
                0 => return Ok(Next::LookDue),
                1.. => break,
                _ => {
                    let e = Errno::last("poll");
                    if e.code != libc::EINTR {
                        return Err(e.into());
                    }
                }
            }
        }
        // An end is told before what it caused: a shadow that ended because the guest did.
        Ok(match fds.map(|f| f.revents != 0) {
            [true, ..] => Next::Ended,
            [_, true, ..] => Next::Traced,
            [_, _, true, ..] => Next::Shadow,
            [_, _, _, true, ..] => Next::Message,
            [_, _, _, _, true, _] => Next::Daemon,
            _ => Next::Signalled,
        })
    }

    /// Has home end the calls that keep threads from their signals.
    fn poke(&mut self) {
        let under_way = self.calls.under_way();
        let held_up = self.calls.held_up();
        let seen =
            Seen { held_up: !held_up.is_empty(), needed: self.told != self.stats(), under_way };
        if self.looks.done(&seen) && !self.calls.rest(under_way) {
            self.looks.stirred();
        }
        for (here, seq) in held_up {
            if let Some(tid) = self.shadow.births.at_home(here) {
                self.tell_keeper(&msg::Poke { tid, seq });
            }
        }
    }

    /// One message of home's keeper. Some: the guest is no longer here.
    fn message(&mut self, daemon: &OwnedFd) -> Option<String> {
        let done = self.r.recv_message().map_err(Error::from).and_then(|f| self.obey(&f, daemon));
        done.unwrap_or_else(|e| {
            self.lose_keeper(&e);
            self.ask_home(daemon);
            None
        })
    }

    fn obey_signal(&self, signal: i32) {
        let host = self.guest.host_pid;
        match signal {
            libc::SIGSTOP => {
                self.calls.stopped(true);
                // The kernel tells one thread, and of those the one that waits in a call hears
                // nothing. The steward always does, and stops all.
                // SAFETY: plain call on a thread of our own child, not reaped yet.
                unsafe { libc::syscall(libc::SYS_tgkill, host, self.guest.steward, signal) };
            }
            _ => {
                // SAFETY: plain call on our own child, not reaped yet.
                unsafe { libc::kill(host, signal) };
                self.calls.stopped(false);
            }
        }
    }

    fn obey(&mut self, frame: &Frame, daemon: &OwnedFd) -> Result<Option<String>> {
        match frame.kind {
            // Home gave up while we did so, too.
            msg::Thaw::KIND => self.tell_keeper(&msg::Thawed {}),
            msg::Signal::KIND => {
                let s: msg::Signal = msg::decode(frame)?;
                self.obey_signal(s.signal);
            }
            msg::AskStats::KIND => self.tell_keeper(&msg::Stats { calls: self.stats() }),
            msg::ThreadBegun::KIND => {
                let msg::ThreadBegun { tid, stream } = msg::decode(frame)?;
                let unwanted = Cell::new(self.unwanted);
                let claimed = claim(daemon, stream, &unwanted);
                self.unwanted = unwanted.get();
                self.shadow.births.answer(claimed.ok().map(|s| (tid, s)));
                self.ask_home(daemon);
            }
            msg::ChildUsed::KIND => {
                let msg::ChildUsed { number, used } = msg::decode(frame)?;
                self.shadow.children.answer(number, used);
            }
            msg::Reached::KIND => {
                let msg::Reached { number, found } = msg::decode(frame)?;
                self.shadow.others.answer(number, found);
            }
            msg::Reach::KIND => {
                let msg::Reach { number, pid, access, .. } = msg::decode(frame)?;
                access.check()?;
                let found = self.reached_for(pid, &access);
                self.tell_keeper(&msg::Reached { number, found });
            }
            msg::ThreadRefused::KIND => {
                msg::decode::<msg::ThreadRefused>(frame)?;
                self.shadow.births.answer(None);
            }
            msg::ComeHome::KIND => {
                tell(daemon, &ToDaemon::Returning {});
                self.shadow.close();
                let went = self.go_home();
                self.shadow.open();
                match went {
                    Ok(true) => return Ok(Some("went home".to_owned())),
                    Ok(false) => tell(daemon, &ToDaemon::Stays { text: "home gave up".to_owned() }),
                    Err(e) => {
                        let text = e.to_string();
                        self.tell_keeper(&msg::Failed { errno: e.errno(), text: text.clone() });
                        tell(daemon, &ToDaemon::Stays { text });
                    }
                }
            }
            other => return Err(Error::Protocol { want: "a command for the guest", got: other }),
        }
        Ok(None)
    }

    /// By another process, which calls the guest `pid`.
    fn reached_for(&mut self, pid: i32, access: &Access) -> Found {
        match access {
            Access::Tell { file, rest: Some(rest), .. } => self.texts.go_on(*file, rest),
            Access::Tell { file, tid, .. } => {
                match self.calls.tell(About { pid, tid: *tid, file: *file }) {
                    Some(text) => self.texts.begin(*file, text),
                    None => Found::AtHome,
                }
            }
            _ => access.make(self.guest.host_pid),
        }
    }

    fn stats(&self) -> Vec<msg::CallCount> {
        let count = |c: CallStats| {
            let us = c.time.as_micros() as u64;
            let CallStats { nr, calls, errors, here, .. } = c;
            msg::CallCount { nr, calls, errors, us, here }
        };
        self.calls.stats().snapshot().into_iter().map(count).collect()
    }

    /// `cut`: why it was ended here.
    fn ended(&mut self, cut: Option<&str>) -> Result<String> {
        // Nothing tells of it when it has been waited for.
        let here = Usage::of_process(self.guest.host_pid).unwrap_or_default();
        let used = here.and(&self.used.process).and(&self.calls.children_used());
        let status = ptrace::wait_for_end(self.guest.host_pid)?;
        // A shadow that has exited took all of it before; one that was killed takes nothing.
        if let Err(error) = self.calls.write_back(LAST_WORDS) {
            tracing::debug!(%error, "shared mappings were not written back");
        }
        self.tell_keeper(&msg::Stats { calls: self.stats() });
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        let broken = self.limits.broken().filter(|_| killed);
        let why = cut.map(str::to_owned).or(broken).unwrap_or_default();
        self.tell_keeper(&msg::Ended { status, why: why.clone(), used });
        Ok(format!("ended with wait status {status:#x} {why}").trim_end().to_owned())
    }

    /// It may have ended, and another process have its number.
    fn kill(&self) {
        let (fd, no_info) = (self.pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: plain call; it fails only when the guest is gone.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, no_info, 0) };
    }
}

fn owned(what: &'static str, fd: i64) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::last(what).into());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
