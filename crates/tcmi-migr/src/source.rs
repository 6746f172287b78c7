//! Home's side of a move: out, and back.

use crate::error::{Error, Result};
use crate::fault::{self, Point};
use crate::files;
use crate::messages as msg;
use crate::module::{self, ByModule, Sending, freezer};
use crate::pages::{self, Outgoing};
use std::ops::Range;
use std::time::Instant;
use tcmi_ckpt::capture::{self, Space};
use tcmi_ckpt::copies;
use tcmi_ckpt::devices;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::freezer::Freezer;
use tcmi_ckpt::image::{Common, FileRef, ProcessImage};
use tcmi_ckpt::mapped::HomeFiles;
use tcmi_ckpt::memory_files;
use tcmi_ckpt::rebuild;
use tcmi_ckpt::signalfds;
use tcmi_ckpt::usage::Used;
use tcmi_core::lifecycle::State;
use tcmi_kkc::{BulkError, BulkReader, BulkWriter, Stream};
use tcmi_sys::{namespace, proc, signal};

/// Told how far a move is.
pub trait Watch {
    fn enter(&self, state: State);
    fn memory(&self, sent: u64, total: u64);
    /// What the process has used on other nodes.
    fn used(&self) -> Used;
    fn rules(&self) -> Rules;
}

/// What of its resources is not home's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kinds of which a guest has its node's own.
    pub devices: bool,
    pub processors: bool,
    /// Where files lie that are read on the node, as the process names them.
    pub copied: Vec<String>,
    /// Where files lie that are made and written on the node.
    pub moved: Vec<String>,
}

/// For how many threads more than there are a stream is taken.
const MORE_THREADS: usize = 4;
/// Tries to find the process with no more threads than there are streams for.
const ATTEMPTS_MAX: u32 = 5;

/// What a move needs of the link.
pub struct Channel<'a> {
    pub w: &'a mut BulkWriter,
    pub r: &'a mut BulkReader,
    pub module: Option<ByModule>,
    pub common: &'a Common,
    /// A new stream for calls, parked or dialed now.
    pub take_stream: &'a mut dyn FnMut() -> Result<Stream>,
}

/// What is to move out.
pub enum Original {
    Runs(i32),
    /// It stays so until its guest runs.
    Held(Frozen),
}

impl Original {
    pub fn pid(&self) -> i32 {
        match self {
            Self::Runs(pid) => *pid,
            Self::Held(frozen) => frozen.pid,
        }
    }
}

/// A process that the peer has got: held here and whole, not committed.
pub struct Sent {
    pub frozen: Frozen,
    pub attached: Attached,
    pub image: ProcessImage,
    pub installed: Installed,
    times: Times,
    since: Instant,
}

/// A process whose guest runs: the original is held and still whole, nothing served yet.
pub struct Emigrated {
    pub frozen: Frozen,
    pub attached: Attached,
    pub installed: Installed,
    pub remote_pid: i32,
    pub times: Times,
}

/// How long the parts of a move took, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub freeze: u64,
    pub transfer: u64,
    pub resume: u64,
    pub bytes: u64,
    /// Those of `bytes` that the kernel module sent.
    pub bytes_by_module: u64,
}

/// Moves a process out, up to COMMIT.
///
/// Ok: the peer has it, held. Err: the process runs at home as before, nothing of the attempt
/// is left in it; the peer is told, unless the stream itself failed.
pub fn emigrate(
    original: Original,
    migration: u64,
    epoch: u32,
    c: &mut Channel,
    watch: &dyn Watch,
) -> Result<Sent> {
    let pid = original.pid();
    let sent = match original {
        Original::Runs(pid) => move_out(pid, (migration, epoch), c, watch),
        Original::Held(frozen) => move_held_out(frozen, (migration, epoch), c, watch),
    };
    sent.map_err(|e| of_its_end(pid, e))
}

/// Whatever failed in a process that ends, failed because it ends.
fn of_its_end(pid: i32, e: Error) -> Error {
    match has_ended(pid) {
        true => tcmi_ckpt::Error::Ended.into(),
        false => e,
    }
}

/// Whether a process has ended, or is about to: a dying one gives its memory up before it is a
/// zombie, and what we miss then is missing for no other reason.
pub fn has_ended(pid: i32) -> bool {
    proc::status(pid).map_or(true, |s| matches!(s.state, 'Z' | 'X') || !s.has_memory)
}

fn move_out(pid: i32, which: (u64, u32), c: &mut Channel, watch: &dyn Watch) -> Result<Sent> {
    let by = freezer(c.module);
    let attached = Attached::attach(pid, by)?;
    let held = fault::pass(Point::HomeAttached)
        .and_then(|()| prepare(&attached, which, c, watch))
        .and_then(|mut prepared| {
            watch.enter(State::Freezing);
            let started = Instant::now();
            let frozen = freeze_with_room(&attached, by, &mut prepared.streams, c)?;
            Ok((prepared, frozen, micros(started)))
        });
    match held {
        Ok((prepared, frozen, freeze)) => send(frozen, attached, prepared, freeze, c, watch),
        Err(e) => {
            attached.remove(by);
            Err(tell(c, e))
        }
    }
}

fn move_held_out(
    mut frozen: Frozen,
    which: (u64, u32),
    c: &mut Channel,
    watch: &dyn Watch,
) -> Result<Sent> {
    let attached = match Attached::inject(&mut frozen) {
        Ok(attached) => attached,
        Err(e) => {
            frozen.thaw()?;
            return Err(tell(c, e));
        }
    };
    let prepared =
        fault::pass(Point::HomeAttached).and_then(|()| prepare(&attached, which, c, watch));
    match prepared {
        Ok(prepared) => {
            watch.enter(State::Freezing);
            send(frozen, attached, prepared, 0, c, watch)
        }
        Err(e) => {
            undo(frozen, &attached, None);
            Err(tell(c, e))
        }
    }
}

/// Err: the process runs as before.
fn send(
    mut frozen: Frozen,
    attached: Attached,
    prepared: Prepared,
    freeze: u64,
    c: &mut Channel,
    watch: &dyn Watch,
) -> Result<Sent> {
    let mut installed = None;
    match transfer(&mut frozen, &attached, prepared, &mut installed, c, watch) {
        Ok(Transfer { image, bytes, by_module, since }) => {
            let installed = installed.ok_or(Error::Unsteady("no streams"))?;
            let times = Times { freeze, bytes, bytes_by_module: by_module, ..Times::default() };
            Ok(Sent { frozen, attached, image, installed, times, since })
        }
        Err(e) => {
            undo(frozen, &attached, installed.as_ref());
            Err(tell(c, e))
        }
    }
}

impl Sent {
    /// Waits until the guest is complete. Err: it is to be given up, as in all that follows.
    pub fn until_ready(&mut self, c: &mut Channel) -> Result<()> {
        fault::pass(Point::HomeArmed)?;
        msg::expect::<msg::Ready>(c.r)?;
        self.times.transfer = micros(self.since);
        fault::pass(Point::HomeReadyReceived)
    }
    /// Lets the guest run: COMMIT. Its pid on the node.
    pub fn let_run(&mut self, c: &mut Channel, watch: &dyn Watch) -> Result<i32> {
        watch.enter(State::Committing);
        let started = Instant::now();
        msg::send(c.w, &msg::Commit {})?;
        // The original is whole until the first call is served, and none is before Running:
        // without it, closing the streams makes the guest a copy that can do nothing, and home
        // goes on.
        fault::pass(Point::HomeCommitSent)?;
        let running = msg::expect::<msg::Running>(c.r)?;
        fault::pass(Point::HomeRunningReceived)?;
        self.times.resume = micros(started);
        Ok(running.remote_pid)
    }
    /// Its guest, `remote_pid` on the node, runs.
    pub fn left(self, remote_pid: i32) -> Emigrated {
        let Self { frozen, attached, installed, times, .. } = self;
        Emigrated { frozen, attached, installed, remote_pid, times }
    }
    /// The process runs on at home because of `e`, which the peer is told.
    pub fn give_up(self, c: &mut Channel, e: Error) -> Error {
        let e = of_its_end(self.frozen.pid, e);
        undo(self.frozen, &self.attached, Some(&self.installed));
        tell(c, e)
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// Tells the peer why we give up, if it does not know.
fn tell(c: &mut Channel, e: Error) -> Error {
    if !matches!(e, Error::Stream(_) | Error::Peer { .. }) {
        let failed = msg::Failed { errno: e.errno(), text: e.to_string() };
        if let Err(lost) = msg::send(c.w, &failed) {
            tracing::debug!(error = %lost, "the peer could not be told");
        }
    }
    e
}

/// A peer that closed the stream while we sent may have said why before. Never waits: what can
/// still be read of a closed stream is here.
fn reason_of(c: &mut Channel, e: Error) -> Error {
    if !matches!(e, Error::Stream(BulkError::Closed)) {
        return e;
    }
    match msg::expect::<msg::Ready>(c.r) {
        Err(said @ Error::Peer { .. }) => said,
        _ => e,
    }
}

/// What the peer has and knows before the process is frozen.
struct Prepared {
    /// One for events and one for each thread, in the order that Begin named them.
    streams: Vec<Stream>,
    files: Vec<FileRef>,
}

/// Everything that can be done while the process runs, if it does.
fn prepare(
    a: &Attached,
    (migration, epoch): (u64, u32),
    c: &mut Channel,
    watch: &dyn Watch,
) -> Result<Prepared> {
    watch.enter(State::Preparing);
    let threads = proc::tids(a.pid)?.len();
    // It may have some more when it is frozen. For one thread that is what is parked.
    let more = if threads > 1 { MORE_THREADS } else { MORE_THREADS / 2 };
    let streams: Vec<Stream> =
        (0..threads + more + 1).map(|_| (c.take_stream)()).collect::<Result<_>>()?;
    let (files, space) = layout_in_passing(a, c.common)?;
    let mut resident = capture::own_pages(a.pid, &space.vmas)?;
    resident.retain(|r| c.common.segments.iter().all(|s| !s.covers(r.start, r.end)));
    let status = proc::status(a.pid)?;
    let begin = msg::Begin {
        migration,
        epoch,
        pid: a.pid,
        uid: status.uid[1],
        gid: status.gid[1],
        mm: address_space(a, &space)?,
        files: files.refs.clone(),
        resident: resident.iter().map(|r| (r.start, r.end)).collect(),
        xfeatures: a.xfeatures,
        events: streams[0].id,
        calls: streams[1..].iter().map(|s| s.id).collect(),
        common: c.common.clone(),
    };
    msg::send(c.w, &begin)?;
    fault::pass(Point::HomeBeginSent)?;
    tell_clocks(c)?;
    send_files(&files, c)?;
    fault::pass(Point::HomeFilesSent)?;
    msg::expect::<msg::Prepared>(c.r)?;
    Ok(Prepared { streams, files: files.refs })
}

/// Of a process that runs: a file that it maps may be gone between two looks.
fn layout_in_passing(a: &Attached, common: &Common) -> Result<(HomeFiles, Space)> {
    let look = || {
        let mut files = HomeFiles::in_passing(a.pid, common);
        let space = capture::space(&capture::mappings(a.pid)?, a.reserved(), &mut files)?;
        files.hash()?;
        Ok((files, space))
    };
    let mut looked = look();
    for _ in 1..ATTEMPTS_MAX {
        if looked.is_ok() {
            break;
        }
        looked = look();
    }
    looked
}

fn tell_clocks(c: &mut Channel) -> Result<()> {
    for _ in 0..msg::CLOCK_QUESTIONS {
        msg::expect::<msg::AskClock>(c.r)?;
        let monotonic = namespace::clock(libc::CLOCK_MONOTONIC);
        let boottime = namespace::clock(libc::CLOCK_BOOTTIME);
        msg::send(c.w, &msg::Clock { monotonic, boottime })?;
    }
    Ok(())
}

fn send_files(mapped: &HomeFiles, c: &mut Channel) -> Result<()> {
    for index in msg::expect::<msg::Need>(c.r)?.files {
        msg::send(c.w, &msg::File { index })?;
        files::send(mapped, c.w, index)?;
        c.w.flush()?;
    }
    Ok(())
}

fn address_space(a: &Attached, s: &Space) -> Result<tcmi_ckpt::image::AddressSpace> {
    let mut vdso_text = vec![0; (s.vdso.1 - s.vdso.0) as usize];
    tcmi_sys::memory::read(a.pid, s.vdso.0, &mut vdso_text)?;
    Ok(tcmi_ckpt::image::AddressSpace {
        vmas: s.vmas.clone(),
        vvar: s.vvar,
        vdso: s.vdso,
        vdso_text,
        reserved: a.reserved(),
        ..Default::default()
    })
}

/// Held, with a stream for each of its threads. It is tried to find it with no more than there are
/// streams for: any other is taken while it stands still.
fn freeze_with_room(
    a: &Attached,
    by: &dyn Freezer,
    streams: &mut Vec<Stream>,
    c: &mut Channel,
) -> Result<Frozen> {
    for attempt in 1..=ATTEMPTS_MAX {
        let f = by.freeze(a.pid)?.trace()?;
        if !a.is_in(f.pid) {
            f.thaw()?;
            return Err(Error::Unsteady("it executes another program"));
        }
        let threads = f.threads.len();
        let fits = threads <= a.room;
        if fits && attempt == ATTEMPTS_MAX {
            while streams.len() <= threads {
                match (c.take_stream)() {
                    Ok(stream) => streams.push(stream),
                    Err(e) => {
                        f.thaw()?;
                        return Err(e);
                    }
                }
            }
        }
        if fits && threads < streams.len() {
            return Ok(f);
        }
        f.thaw()?;
    }
    Err(Error::Unsteady("it keeps creating threads"))
}

struct Transfer {
    image: ProcessImage,
    bytes: u64,
    by_module: u64,
    since: Instant,
}

/// From the freeze until the peer has been sent everything. On Err the caller undoes.
fn transfer(
    f: &mut Frozen,
    a: &Attached,
    Prepared { streams, files: known }: Prepared,
    installed: &mut Option<Installed>,
    c: &mut Channel,
    watch: &dyn Watch,
) -> Result<Transfer> {
    fault::pass(Point::HomeFrozen)?;
    watch.enter(State::Transferring);
    let since = Instant::now();
    let maps = capture::mappings(f.pid)?;
    if let Some(vdso) = maps.iter().find(|m| m.name == "[vdso]") {
        // A clock read that began here would end there with a time of here.
        f.step_out(&[(vdso.start, vdso.end)])?;
    }
    let mut files = HomeFiles::of(f.pid, c.common);
    let mut image = capture::capture(f, &a.agent, &|tid| tid, &maps, &mut files)?;
    files.hash()?;
    image.files = files.refs.clone();
    image.descriptor_signals = signalfds::of(f.pid)?;
    allow_locked_memory(&mut image)?;
    leave_stops(&mut image);
    signalfds::leave_pending(&mut image);
    fault::pass(Point::HomeCaptured)?;
    let mut runs = capture::own_pages(f.pid, &image.mm.vmas)?;
    runs.retain(|r| c.common.segments.iter().all(|s| s.is_sent || !s.covers(r.start, r.end)));
    let total: u64 = runs.iter().map(|r: &Range<u64>| r.end - r.start).sum();
    let calls = f.threads.iter().zip(&streams[1..]).map(|(t, s)| (t.tid, s.id)).collect();
    let mut rules = watch.rules();
    let here = !rules.copied.is_empty() || !rules.moved.is_empty();
    if here && !copies::has_own_table(f.pid)? {
        (rules.copied, rules.moved) = Default::default();
    }
    let devices = rules.devices.then(|| devices::open_in(f.pid)).transpose()?;
    let open = copies::open_in(f.pid, &rules.copied)?;
    // Whoever shares memory with it can learn there of a file that home has not got yet.
    let moved = if c.common.is_empty() { rules.moved } else { Vec::new() };
    let (processors, copied) = (rules.processors, rules.copied);
    let rebinds = msg::Rebinds { processors, devices, copied, open, moved };
    let memory_files = memory_files::are_open_in(f.pid)?;
    let state =
        msg::State { image: image.clone(), calls, used: watch.used(), rebinds, memory_files };
    msg::send(c.w, &state)?;
    fault::pass(Point::HomeStateSent)?;
    if image.files.iter().any(|f| !known.contains(f)) {
        send_files(&files, c)?;
    }
    files::send_live(&files, c.w)?;
    let sent = |n| watch.memory(n, total);
    let worth = runs.iter().any(|r| r.end - r.start >= module::RUN_BYTES_MIN);
    let mut session = c.module.filter(|_| worth).and_then(ByModule::session);
    let module = Sending::prepare(&mut session, f.pid, c.w)?;
    let all = Outgoing { pid: f.pid, vmas: &image.mm.vmas, runs: &runs, module };
    pages::send(c.w, &all, Point::HomePagesHalfSent, &sent).map_err(|e| reason_of(c, e))?;
    let by_module = all.module.as_ref().map_or(0, Sending::sent);
    // Before its threads are to run again.
    drop(all);
    fault::pass(Point::HomePagesSent)?;
    // While the peer restores.
    *installed = Some(Installed::install(f, a, streams, a.room.saturating_sub(f.threads.len()))?);
    fault::pass(Point::HomeStreamsInstalled)?;
    Ok(Transfer { image, bytes: total, by_module, since })
}

/// As much of it as the process may lock by its privileges, of which it has none on the node.
fn allow_locked_memory(image: &mut ProcessImage) -> Result<()> {
    const CAP_IPC_LOCK: u32 = 14;
    if proc::status(image.pid)?.effective_capabilities & 1 << CAP_IPC_LOCK != 0 {
        let locked = image.limits.iter_mut().filter(|l| l.0 == libc::RLIMIT_MEMLOCK);
        locked.for_each(|l| *l = (l.0, libc::RLIM_INFINITY, libc::RLIM_INFINITY));
    }
    Ok(())
}

/// A stop that came while the process was held is for its parent at home to see: the shadow takes
/// it. One that is blocked moves with what blocks it.
fn leave_stops(image: &mut ProcessImage) {
    const SIG_DFL: u64 = 0;
    let default = |n| !image.actions.iter().any(|a| a.signal == n && a.handler != SIG_DFL);
    let stops: u64 = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]
        .into_iter()
        .filter(|&n| default(n))
        .map(signal::bit)
        .sum();
    let nobody = image.threads.iter().fold(signal::ALL, |all, t| all & t.mask);
    let stays = |info: &Vec<u8>, blocked: u64| {
        let number = info.first_chunk().map_or(0, |n| i32::from_le_bytes(*n));
        (1..=64).contains(&number) && signal::bit(number) & stops & !blocked != 0
    };
    image.pending.retain(|info| !stays(info, nobody));
    for t in &mut image.threads {
        t.pending.retain(|info| !stays(info, t.mask));
    }
}

/// Puts a held original back as it was and lets it run.
fn undo(mut f: Frozen, a: &Attached, installed: Option<&Installed>) {
    let pid = f.pid;
    let cleaned = installed
        .map_or(Ok(()), |i| i.close(&mut f, &a.agent))
        .and_then(|()| a.unmap(&mut f))
        .and_then(|()| Ok(f.thaw()?));
    if let Err(e) = cleaned {
        // Dropping what was held lets it run all the same: the kernel detaches.
        tracing::error!(pid, error = %e, "the process could not be put back cleanly");
    }
}

/// The last step home: every thread has its own registers, and the agent is gone. It is held yet.
pub fn make_own(f: &mut Frozen, a: &Attached, image: &ProcessImage) -> Result<()> {
    for t in &mut f.threads {
        let state = rebuild::thread_of(image, t.tid)?;
        (t.regs, t.mask) = (rebuild::registers_of(state)?, state.mask);
    }
    a.unmap(f)?;
    f.leader_mut().own_again()?;
    crate::destination::wait_for_clocks(&image.clocks, (0, 0));
    Ok(())
}

mod attach;
mod back;
mod install;
pub use attach::Attached;
pub use back::rebuild_at_home;
pub use install::{Installed, InstalledStream};
