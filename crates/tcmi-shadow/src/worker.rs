//! One call from the listener to its answer.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tcmi_call::engine::{Call, GuestMemory, SliceMemory};
use tcmi_call::frame::{ReplyHeader, disposition, kind, reply_flags};
use tcmi_call::table::errno::{EFAULT, EINTR, EINVAL, ENOSYS, ESRCH, Errno};
use tcmi_call::table::{self, Arg, Both, Class, Restart, Row, prctl};
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::births;
use crate::calls::{Flight, Shared};
use crate::children;
use crate::clone3;
use crate::devices;
use crate::files;
use crate::interrupt::{self, Pending};
use crate::limits;
use crate::live;
use crate::mapping::{self, Refusal};
use crate::memory::{ProcessMemory, word};
use crate::memory_files;
use crate::others;
use crate::selves;
use crate::signalfds::{self, Mirror};
use crate::stream::{CallStream, StreamError};
use crate::tracer::Closed;
use crate::usage::{self, Told};
use crate::visit;

/// Address at which bytes of ours stand for the engine.
pub(crate) const OWN_BASE: u64 = 0x1_0000;
const SIGSET_BYTES: u64 = 8;
const NS_PER_S: i64 = 1_000_000_000;
/// The guest's kernel, and whoever captures its thread, makes `restart_syscall` of it.
const ERESTART_RESTARTBLOCK: i32 = 516;

/// A guest thread's stream and the buffers of its calls.
pub(crate) struct Thread {
    pub(crate) stream: CallStream,
    call: Call,
    seq: u64,
    flight: Arc<Mutex<Option<Flight>>>,
    /// Number of the last signal in the guest when the last call left.
    seen: u32,
    /// On other nodes than home, before it came.
    pub(crate) used: Usage,
    pub(crate) told: Told,
    pub(crate) mirror: Mirror,
    /// How many signals home had sent before its last answer to a call of ours.
    pub(crate) sent: u32,
}

impl Thread {
    pub(crate) fn new(stream: CallStream, used: Usage) -> Self {
        let (call, flight, told) = (Call::new(), Arc::default(), Told::default());
        let mirror = Mirror::default();
        Thread { stream, call, seq: 0, flight, seen: 0, used, told, mirror, sent: 0 }
    }

    pub(crate) fn socket(&self) -> std::io::Result<OwnedFd> {
        self.stream.socket()
    }

    pub(crate) fn flight(&self) -> Arc<Mutex<Option<Flight>>> {
        Arc::clone(&self.flight)
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// A call on the monitor's own account, made again while signals interrupt it.
    pub(crate) fn ask<M: GuestMemory>(
        &mut self,
        nr: u32,
        args: &[u64; 6],
        mem: &mut M,
    ) -> Result<i64, StreamError> {
        self.repeat(|call, seq, mem: &mut M| call.marshal(nr, args, seq, 0, mem), mem)
    }

    /// The same with `bytes` for its buffers, from [`OWN_BASE`] on.
    pub(crate) fn ask_own(
        &mut self,
        nr: i64,
        args: &[u64; 6],
        bytes: &mut [u8],
    ) -> Result<i64, StreamError> {
        self.ask(nr as u32, args, &mut SliceMemory { base: OWN_BASE, bytes })
    }

    /// The same of a call that no row has.
    pub(crate) fn own(
        &mut self,
        make: impl Fn(&mut Call, u64),
        bytes: &mut [u8],
    ) -> Result<i64, StreamError> {
        let make = |call: &mut Call, seq, _: &mut SliceMemory<'_>| {
            make(call, seq);
            Ok(())
        };
        self.repeat(make, &mut SliceMemory { base: OWN_BASE, bytes })
    }

    fn repeat<M: GuestMemory>(
        &mut self,
        make: impl Fn(&mut Call, u64, &mut M) -> Result<(), Errno>,
        mem: &mut M,
    ) -> Result<i64, StreamError> {
        loop {
            let seq = self.next_seq();
            if let Err(errno) = make(&mut self.call, seq, mem) {
                return Ok(errno.ret());
            }
            self.stream.send(self.call.frame())?;
            let (reply, payload) = self.stream.receive()?;
            if reply.flags & (reply_flags::INTERRUPTED | reply_flags::NOT_STARTED) == 0 {
                self.sent = reply.signals;
                return Ok(self.call.unmarshal(&reply, payload, mem)?);
            }
        }
    }

    /// A frame that home does not answer.
    fn tell(&mut self, kind: u16, args: &[u64]) -> Result<(), StreamError> {
        let seq = self.next_seq();
        self.call.notice(kind, seq, args);
        self.stream.send(self.call.frame())
    }
}

/// How a call is to be answered.
pub(crate) enum Outcome {
    Answer(Answer),
    /// Home was not asked.
    Here(Answer),
    /// With an answer that is right only if the thread looks for signals.
    Told(Answer),
    /// It has been.
    Answered(Answer),
    /// EINTR, with a signal handled under the mask at this guest address.
    Suspended(u64),
}

pub(crate) fn returned(ret: i64) -> Outcome {
    Outcome::Answer(match ret {
        0.. => Answer::Value(ret),
        _ => Answer::Error(-ret as i32),
    })
}

pub(crate) fn failed(errno: Errno) -> Outcome {
    Outcome::Answer(Answer::Error(errno.0))
}

/// Why a call that is made in steps ends before the last of them.
pub(crate) enum Halt {
    Errno(Errno),
    /// Another process is neither at home nor away, or this one is about to leave.
    Again,
    Stream(StreamError),
}

impl From<StreamError> for Halt {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl Halt {
    pub(crate) fn outcome(self) -> Result<Outcome, StreamError> {
        match self {
            Self::Errno(errno) => Ok(failed(errno)),
            Self::Again => Ok(visit::again()),
            Self::Stream(error) => Err(error),
        }
    }
}

/// Serves one call. A stream that broke leaves it unanswered: what becomes of a guest whose
/// home is lost is for the hooks' owner to say.
pub(crate) fn serve(shared: &Shared, notif: &Notification) {
    if shared.guest.orders.is_led(notif.tid, notif.nr) {
        if let Err(error) = shared.listener.answer(notif.id, Answer::Continue) {
            tracing::debug!(%error, tid = notif.tid, "a thread that was led has ended");
        }
        return;
    }
    let begun = Instant::now();
    let outcome = match outcome(shared, notif) {
        Ok(outcome) => outcome,
        Err(error) => return shared.hooks.stream_failed(notif.tid, &error),
    };
    let is_here = matches!(outcome, Outcome::Here(_));
    let answer = match outcome {
        Outcome::Answered(answer)
        | Outcome::Answer(answer)
        | Outcome::Here(answer)
        | Outcome::Told(answer) => answer,
        Outcome::Suspended(_) => Answer::Error(EINTR.0),
    };
    let answered = match outcome {
        Outcome::Answered(_) => Ok(()),
        outcome => give(shared, notif, &outcome, answer),
    };
    match is_here {
        true => shared.stats.count_here(notif.nr),
        false => {
            shared.stats.count(notif.nr, matches!(answer, Answer::Error(_)), begun.elapsed());
        }
    }
    if let Err(error) = answered
        && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
    {
        tracing::error!(%error, tid = notif.tid, nr = notif.nr, "call not answered");
    }
}

fn give(
    shared: &Shared,
    notif: &Notification,
    outcome: &Outcome,
    answer: Answer,
) -> std::io::Result<()> {
    let tid = notif.tid;
    let answer = match *outcome {
        Outcome::Told(_) => {
            // Whoever has told it.
            interrupt::look_out(shared, notif, |orders| orders.interrupt(tid)).ok();
            answer
        }
        Outcome::Suspended(mask) => {
            match interrupt::look_out(shared, notif, |orders| orders.suspend(tid, notif.nr, mask)) {
                Ok(()) => answer,
                // It is made again, wherever the guest is then.
                Err(Closed) => Answer::Error(Restart::NoHandler.code()),
            }
        }
        _ => answer,
    };
    shared.guest.callers.answered(tid, answer);
    shared.listener.answer(notif.id, answer)
}

fn outcome(shared: &Shared, notif: &Notification) -> Result<Outcome, StreamError> {
    let Some(row) = table::row(notif.nr) else { return Ok(failed(ENOSYS)) };
    let both = match row.class {
        Class::Refused(errno) => return Ok(failed(errno)),
        Class::Local if signalfds::concerns(shared, notif.nr) => None,
        Class::Local => return Ok(Outcome::Answer(Answer::Continue)),
        Class::Forward => None,
        Class::Both(both) => Some(both),
    };
    let Some(thread) = shared.thread(notif.tid) else { return Ok(failed(ESRCH)) };
    let mut thread = thread.lock();
    if both.is_none()
        && let Some(outcome) = files::serve(shared, &mut thread, notif)?
    {
        return Ok(outcome);
    }
    if !row.private {
        live::write_back(shared, &mut thread)?;
        files::write_back(shared, &mut thread)?;
    }
    signalfds::settle(shared, &mut thread, notif.tid)?;
    match both {
        None if signalfds::concerns(shared, notif.nr) => {
            signalfds::serve(shared, &mut thread, notif)
        }
        None => {
            if let Some(outcome) = devices::serve(shared, notif) {
                return Ok(outcome);
            }
            if let Some(outcome) = memory_files::serve(shared, &mut thread, notif)? {
                return Ok(outcome);
            }
            if live::alters_at_home(shared, &mut thread, notif, row)? {
                drop(thread);
                return Ok(visit::visit(shared, notif));
            }
            let opening = selves::opening(shared, notif);
            let opening_device = devices::opening(shared, notif);
            let outcome = with_files(shared, &mut thread, notif, row)?;
            if let Outcome::Answer(Answer::Value(0)) = outcome {
                limits::set(shared, notif);
            }
            if let (Some(opening), Outcome::Answer(Answer::Value(fd))) = (opening_device, &outcome)
            {
                devices::opened(shared, &mut thread, &opening, *fd)?;
            }
            children::waited(shared, notif, &outcome);
            if let (Some(opening), Outcome::Answer(Answer::Value(fd))) = (opening, &outcome) {
                memory_files::opened(shared, &mut thread, &opening, *fd)?;
                return selves::opened(shared, &mut thread, notif, &opening, *fd);
            }
            Ok(outcome)
        }
        Some(Both::Disposition) => mirror_disposition(shared, &mut thread, notif),
        Some(Both::BeginThread) => {
            drop(thread);
            match i64::from(notif.nr) {
                libc::SYS_clone3 => clone3::begin(shared, notif),
                _ => births::begin_thread(shared, notif),
            }
        }
        Some(Both::AtHome) => match visit::foreseen(shared, &mut thread, notif)? {
            Some(errno) => Ok(failed(errno)),
            None => {
                drop(thread);
                Ok(visit::visit(shared, notif))
            }
        },
        Some(Both::ExitThread) => {
            thread.tell(kind::EXIT_THREAD, &[notif.args[0]])?;
            let left = shared.forget(notif.tid);
            shared.hooks.thread_exits(notif.tid, notif.args[0] as i32, left);
            Ok(Outcome::Answer(Answer::Continue))
        }
        Some(Both::ExitGroup) => {
            thread.tell(kind::EXIT_GROUP, &[notif.args[0]])?;
            shared.hooks.process_exits(notif.args[0] as i32);
            Ok(Outcome::Answer(Answer::Continue))
        }
        Some(Both::MapFile) => {
            match mapping::map_file(shared, &mut thread, notif.id, &notif.args) {
                Ok(addr) => Ok(returned(addr)),
                Err(Refusal::Errno(errno)) => Ok(failed(errno)),
                Err(Refusal::Stream(error)) => Err(error),
                Err(Refusal::AtHome) => {
                    drop(thread);
                    Ok(visit::visit(shared, notif))
                }
            }
        }
        Some(Both::Sync) => match live::sync(shared, &mut thread, &notif.args)? {
            Ok(()) => Ok(Outcome::Answer(Answer::Continue)),
            Err(errno) => Ok(failed(Errno(errno))),
        },
        Some(Both::Remap) => match mapping::remaps_at_home(shared, notif) {
            true => {
                drop(thread);
                Ok(visit::visit(shared, notif))
            }
            false => Ok(Outcome::Answer(Answer::Continue)),
        },
        Some(Both::Usage) => usage::serve(shared, &mut thread, notif),
        Some(Both::OtherMemory) => others::serve(shared, &mut thread, notif),
        Some(Both::Prctl) => match prctl::option(notif.args[0]) {
            prctl::Side::Local => Ok(Outcome::Answer(Answer::Continue)),
            prctl::Side::Refused(errno) => Ok(failed(errno)),
            prctl::Side::Home(_) => forward(shared, &mut thread, notif, row),
            prctl::Side::HomeThenLocal(_) => match forward(shared, &mut thread, notif, row)? {
                Outcome::Answer(Answer::Value(_)) => Ok(Outcome::Answer(Answer::Continue)),
                other => Ok(other),
            },
        },
    }
}

/// Forwards a call that may open or close a file which is read or written here.
fn with_files(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
) -> Result<Outcome, StreamError> {
    if shared.files.is_off() {
        return forward(shared, thread, notif, row);
    }
    let closing = files::before(shared, thread, notif, row)?;
    let held = files::hold(shared, thread, &closing)?;
    let opening = files::opening(shared, notif);
    let outcome = forward(shared, thread, notif, row)?;
    let closing = closing.iter().zip(held).collect();
    Ok(files::done(shared, notif, opening, closing, outcome))
}

fn sleeps(nr: u32) -> bool {
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&i64::from(nr))
}

/// What is to be done after a reply.
enum After {
    Deliver,
    Again,
    Interrupt(Outcome),
}

fn forward(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
) -> Result<Outcome, StreamError> {
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let mask = match own_mask(row, &notif.args, &mut mem) {
        Ok(mask) => mask,
        Err(errno) => {
            return Ok(failed(bad_timeout(row, &notif.args, &mut mem).unwrap_or(errno)));
        }
    };
    if let Some(mask) = mask {
        signalfds::let_in(shared, thread, notif.tid, mask.bits)?;
    }
    let begun = Instant::now();
    let mut elapsed_ns = 0;
    loop {
        let seq = thread.next_seq();
        if let Err(errno) = thread.call.marshal(notif.nr, &notif.args, seq, elapsed_ns, &mut mem) {
            return Ok(failed(errno));
        }
        // In this order: a signal that comes before the look at them is seen here, one that
        // comes after it finds the flight.
        *thread.flight.lock() = Some(Flight { seq, mask: mask.map(|m| m.bits) });
        if let Some(outcome) = unseen(shared, thread, notif, row, mask) {
            *thread.flight.lock() = None;
            return Ok(outcome);
        }
        thread.stream.send(thread.call.frame())?;
        let (reply, payload) = thread.stream.receive()?;
        *thread.flight.lock() = None;
        if reply.signals != 0 && !shared.guest.events.wait_injected(reply.signals) {
            return Err(StreamError::Closed);
        }
        shared.until_continued();
        match after(&reply, notif, row, mask) {
            After::Deliver => {
                let ret = thread.call.unmarshal(&reply, payload, &mut mem)?;
                if let Ok(done) = u64::try_from(ret) {
                    live::altered(shared, thread, notif, row, done)?;
                }
                if live::renumbers(notif.nr) {
                    live::forget_descriptors(shared);
                }
                return Ok(returned(ret));
            }
            After::Interrupt(outcome) => {
                // What an interrupted call leaves: the rest of a timeout, with which it is made
                // again. One that was not begun leaves nothing.
                if reply.flags & reply_flags::NOT_STARTED == 0 {
                    thread.call.unmarshal(&reply, payload, &mut mem)?;
                }
                return Ok(outcome);
            }
            After::Again => {}
        }
        signalfds::take_pending_home(shared, thread, notif.tid)?;
        elapsed_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }
}

fn after(reply: &ReplyHeader, notif: &Notification, row: &Row, mask: Option<Mask>) -> After {
    let not_started = reply.flags & reply_flags::NOT_STARTED != 0;
    if reply.flags & reply_flags::CANCELLED != 0 {
        let code = match row.restart {
            _ if not_started => Restart::Always.code(),
            // The shadow thread's kernel keeps the end of a sleep for `restart_syscall`.
            _ if sleeps(notif.nr) => ERESTART_RESTARTBLOCK,
            // A move is no signal.
            Restart::Never => Restart::NoHandler.code(),
            restart => restart.code(),
        };
        return After::Interrupt(Outcome::Told(Answer::Error(code)));
    }
    let interrupted = reply.flags & reply_flags::INTERRUPTED != 0 && reply.ret == EINTR.ret();
    if !not_started && !interrupted {
        return After::Deliver;
    }
    // A signal that came before the call began came before the call, unless the call is what
    // lets it in.
    let restart = if not_started && mask.is_none() { Restart::Always } else { row.restart };
    interruption(notif, restart, mask).map_or(After::Again, After::Interrupt)
}

/// The answer that lets the thread take the signal that waits for it. None: there is none.
fn interruption(notif: &Notification, restart: Restart, mask: Option<Mask>) -> Option<Outcome> {
    let answer = Answer::Error(restart.code());
    match interrupt::pending(notif.tid, mask.map(|m| m.bits)) {
        // The thread is gone; nobody sees the answer.
        Err(_) => Some(Outcome::Answer(Answer::Error(EINTR.0))),
        Ok(Pending::Nothing) => None,
        Ok(Pending::Told) => Some(Outcome::Answer(answer)),
        Ok(Pending::PerhapsTold) => Some(Outcome::Told(answer)),
        Ok(Pending::LetIn) => mask.map(|m| Outcome::Suspended(m.addr)),
    }
}

/// A signal that reached the guest while its call was on the way here: the thread waits for
/// our answer and cannot take it, and home, which sent it before, does not know the call.
fn unseen(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
    row: &Row,
    mask: Option<Mask>,
) -> Option<Outcome> {
    let injected = shared.guest.events.injected();
    if injected == std::mem::replace(&mut thread.seen, injected) {
        return None;
    }
    let restart = if mask.is_none() { Restart::Always } else { row.restart };
    interruption(notif, restart, mask)
}

/// The signal mask that a call brings for its own time.
#[derive(Clone, Copy, Debug)]
struct Mask {
    bits: u64,
    /// In the guest.
    addr: u64,
}

fn own_mask(
    row: &Row,
    args: &[u64; 6],
    mem: &mut ProcessMemory<'_>,
) -> Result<Option<Mask>, Errno> {
    let mut words = |addr: u64, into: &mut [u8]| mem.read(addr, into).map_err(|_| EFAULT);
    let mut pair = [0; 16];
    let place = row.args.iter().position(|a| matches!(a, Arg::Mask | Arg::MaskPair));
    let (addr, size) = match place.map(|i| (row.args[i], i)) {
        Some((Arg::MaskPair, i)) if args[i] != 0 => {
            words(args[i], &mut pair)?;
            (word(&pair, 0), word(&pair, 8))
        }
        Some((Arg::Mask, i)) => (args[i], args[i + 1]),
        _ => return Ok(None),
    };
    if addr == 0 {
        return Ok(None);
    }
    if size != SIGSET_BYTES {
        return Err(EINVAL);
    }
    words(addr, &mut pair[..8])?;
    Ok(Some(Mask { bits: word(&pair, 0), addr }))
}

/// What is wrong with the time that a call is to wait for: kernels look at it before the mask,
/// but in `epoll_pwait`, whose milliseconds are always right.
fn bad_timeout(row: &Row, args: &[u64; 6], mem: &mut ProcessMemory<'_>) -> Option<Errno> {
    let i = row.args.iter().position(|a| matches!(a, Arg::Timeout | Arg::TimeoutRest))?;
    let mut time = [0; 16];
    if args[i] == 0 {
        return None;
    }
    if mem.read(args[i], &mut time).is_err() {
        return Some(EFAULT);
    }
    let time = u128::from_le_bytes(time);
    let (seconds, ns) = (time as i64, (time >> 64) as i64);
    let sound = seconds >= 0 && (0..NS_PER_S).contains(&ns);
    (!sound).then_some(EINVAL)
}

/// Home learns what becomes of a signal before the guest's kernel does: a signal in between
/// meets the new disposition at home and the old one here, as if it had come earlier.
fn mirror_disposition(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    let [signal, act, ..] = notif.args;
    let here = Outcome::Answer(Answer::Continue);
    let mut bytes = [0; 16];
    let catchable = (1..=64).contains(&signal)
        && signal != libc::SIGKILL as u64
        && signal != libc::SIGSTOP as u64;
    // The guest's kernel finds the error in what is wrong here.
    if act == 0
        || !catchable
        || notif.args[3] != SIGSET_BYTES
        || (ProcessMemory { pid: notif.tid, writable: &shared.writable })
            .read(act, &mut bytes)
            .is_err()
    {
        return Ok(here);
    }
    let (handler, flags) = bytes.split_at(8);
    let what = match handler {
        [0, 0, 0, 0, 0, 0, 0, 0] => disposition::DEFAULT,
        [1, 0, 0, 0, 0, 0, 0, 0] => disposition::IGNORE,
        _ => disposition::HANDLE,
    };
    thread.tell(kind::DISPOSITION, &[signal, what, word(flags, 0)])?;
    let (reply, payload) = thread.stream.receive()?;
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let ret = thread.call.unmarshal(&reply, payload, &mut mem)?;
    if reply.signals != 0 && !shared.guest.events.wait_injected(reply.signals) {
        return Err(StreamError::Closed);
    }
    if ret < 0 {
        tracing::warn!(signal, errno = -ret, "disposition not mirrored at home");
    }
    Ok(here)
}
