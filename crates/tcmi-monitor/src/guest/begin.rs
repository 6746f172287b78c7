//! How a guest begins: built in a room of its own, and let run at COMMIT.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcmi_call::abi::{BatchOp, StewardArea};
use tcmi_ckpt::texts::Texts;
use tcmi_core::limits::{COMMIT_TIMEOUT_MS, PHASE_TIMEOUT_MS};
use tcmi_kkc::{BulkReader, BulkWriter, Stream};
use tcmi_migr::destination::{self, Built, Site};
use tcmi_migr::fault::{self, Point};
use tcmi_migr::files::Cache;
use tcmi_migr::messages as msg;
use tcmi_migr::{Error, Result};
use tcmi_shadow::{
    CallStream, Callers, Calls, Events, Files, GuestThread, News, Processors, SignalStream,
    Steward, Tracer,
};
use tcmi_sys::Errno;
use tcmi_sys::kmod::Session;
use tcmi_sys::waker::Waker;

use super::births::Births;
use super::daemon::{claim, shared, tell, until_listed};
use super::looks::Looks;
use super::{Life, STATS_INTERVAL, Tidings, owned};
use crate::ipc::ToDaemon;
use crate::limits::Limits;
use crate::rooms::{self, NextId};

/// A guest that does not run, in its room.
pub(super) struct Born {
    built: Built,
    next_id: NextId,
    /// Its node's owner has sent it home already.
    unwanted: bool,
    /// Of this node, of which its room shows nothing.
    processors: Option<Processors>,
}

pub(super) fn build(
    daemon: &OwnedFd,
    cache: Cache,
    root: &str,
    limits: &mut Limits,
    w: &mut BulkWriter,
    r: &mut BulkReader,
) -> Result<Born> {
    let mut next_id = None;
    let processors = Processors::look();
    let unwanted = Cell::new(false);
    let mut site = Site {
        cache,
        claim: &mut |id| claim(daemon, id, &unwanted),
        segment: &mut |id, bytes| shared(daemon, &ToDaemon::Segment { id, bytes }, &unwanted),
        shared_file: &mut |id| shared(daemon, &ToDaemon::SharedFile { id }, &unwanted),
        bear: &mut |begin| {
            let room = rooms::bear(root, begin)?;
            next_id = Some(room.next_id);
            limits.set(room.leader)?;
            Ok(room.leader)
        },
    };
    let built = destination::build(w, r, &mut site)?;
    let unwanted = unwanted.get();
    Ok(Born { built, next_id: next_id.ok_or(tcmi_ckpt::Error::Ended)?, unwanted, processors })
}

/// What serves a guest that does not run yet.
struct Parts {
    calls: Calls,
    tracer: Tracer,
    steward: Arc<Steward>,
    events: Arc<Events>,
    shadow: Arc<Tidings>,
    pidfd: OwnedFd,
    signalled: Arc<Waker>,
}

impl Life {
    /// Waits for COMMIT and lets the guest run. On Err nothing is left of it.
    pub(super) fn begin(
        daemon: &OwnedFd,
        Born { mut built, next_id, unwanted, processors }: Born,
        limits: Limits,
        module: Option<Session>,
        mut w: BulkWriter,
        mut r: BulkReader,
    ) -> Result<Self> {
        let host = built.host_pid();
        let prepared = Self::prepare(&mut built, next_id, processors).and_then(|p| {
            r.set_idle_timeout(Duration::from_millis(COMMIT_TIMEOUT_MS));
            msg::expect::<msg::Commit>(&mut r)?;
            r.set_idle_timeout(Duration::from_millis(PHASE_TIMEOUT_MS));
            fault::pass(Point::NodeCommitReceived)?;
            Ok(p)
        });
        let Parts { calls, mut tracer, steward, events, shadow, pidfd, signalled } = match prepared
        {
            Ok(p) => p,
            Err(e) => {
                kill(host);
                return Err(e);
            }
        };
        tell(daemon, &ToDaemon::Runs { remote_pid: host });
        let helper = built.run_steward()?;
        let close = op(libc::SYS_close, [built.listener_there as u64, 0]);
        let unmap = op(libc::SYS_munmap, built.builder().into());
        if steward.run(&mut [close, unmap], &[]).is_err() {
            kill(host);
            return Err(tcmi_ckpt::Error::Ended.into());
        }
        let used = std::mem::take(&mut built.used);
        let (guest, image, files) = built.run(helper)?;
        tracer.adopt(guest.threads.iter().map(|(here, _)| *here));
        // Who asked for the move may look at this node as soon as home has the answer.
        let unwanted = until_listed(daemon) || unwanted;
        if let Err(e) = msg::send(&mut w, &msg::Running { remote_pid: guest.host_pid }) {
            kill(guest.host_pid);
            return Err(e);
        }
        Ok(Self {
            guest,
            image,
            used,
            files,
            calls,
            tracer,
            events,
            texts: Texts::default(),
            shadow,
            pidfd,
            limits,
            module,
            w,
            r,
            keeper: true,
            unwanted,
            told: Vec::new(),
            signalled,
            looks: Looks::begin(host, steward),
            report_at: Instant::now() + STATS_INTERVAL,
        })
    }

    fn prepare(
        built: &mut Built,
        next_id: NextId,
        processors: Option<Processors>,
    ) -> Result<Parts> {
        let io = || Error::io("start serving the guest");
        let names = built.threads();
        let callers = Arc::new(Callers::new(built.host_pid()));
        // Before there are other threads.
        let tracer = Tracer::new(built.host_pid(), callers.clone())?;
        let area = map_area(built.area.as_raw_fd())?;
        let pidfd = open_pidfd(built.host_pid())?;
        let watched = pidfd.try_clone().map_err(io())?;
        let tid = built.steward_tid()?;
        // SAFETY: the area is mapped shared with the guest for as long as we live, and only the
        // steward uses it there.
        let steward = Arc::new(unsafe { Steward::new(area, built.area_at, tid, watched) });
        let (fd, _, rx) = take(&mut built.events)?.into_parts();
        let signals = SignalStream::new(fd, &rx);
        let pid = built.image.pid;
        let signalled = Arc::new(Waker::new()?);
        let shadow = Arc::new(Tidings::new(Births::new(names.clone(), next_id, tid))?);
        let (bell, told) = (signalled.clone(), shadow.clone());
        let tell = move |news| match news {
            News::Signal => bell.wake(),
            News::Serving => told.set(&told.serving),
            News::Ended => told.set(&told.lost),
        };
        let events = Events::start(signals, steward.clone(), pid, 0, tell);
        let events = Arc::new(events.map_err(io())?);
        let mut threads = Vec::new();
        for (tid, stream) in built.calls.drain(..) {
            let here = names.iter().find(|(_, home)| *home == tid).map(|(here, _)| *here);
            let used = built.used.thread(tid);
            let tid = here.ok_or(tcmi_ckpt::Error::Image("a stream for no thread"))?;
            let (fd, tx, rx) = stream.into_parts();
            threads.push(GuestThread { tid, stream: CallStream::new(fd, &tx, &rx), used });
        }
        let listener = built.listener.try_clone().map_err(io())?;
        let parts = tcmi_shadow::Guest {
            pid: built.host_pid(),
            steward: steward.clone(),
            events: events.clone(),
            callers,
            orders: tracer.orders(),
            used: built.used.process,
            children: built.used.children,
            names: built.files.names(),
            processors: processors.filter(|_| built.rebinds.processors),
            signals: built.image.descriptor_signals,
            devices: built.rebinds.devices.take(),
            files: Files {
                copied: std::mem::take(&mut built.rebinds.copied),
                open: std::mem::take(&mut built.rebinds.open),
                moved: std::mem::take(&mut built.rebinds.moved),
            },
            memory_files: built.memory_files,
            live: built.files.take_live(),
            watch: built.userfault.take().map(|fd| (built.host_pid(), fd)),
        };
        let calls = Calls::start(listener, threads, parts, shadow.clone()).map_err(io())?;
        Ok(Parts { calls, tracer, steward, events, shadow, pidfd, signalled })
    }
}

fn op(nr: i64, args: [u64; 2]) -> BatchOp {
    BatchOp { nr: nr as u64, args: [args[0], args[1], 0, 0, 0, 0], ret: 0, flags: 0 }
}

fn kill(host: i32) {
    // SAFETY: our own child, which nobody else reaps.
    unsafe { libc::kill(host, libc::SIGKILL) };
}

fn map_area(fd: RawFd) -> Result<NonNull<StewardArea>> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let len = std::mem::size_of::<StewardArea>();
    // SAFETY: a new shared mapping at a place of the kernel's choice.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    match p {
        libc::MAP_FAILED => Err(Errno::last("mmap steward area").into()),
        p => Ok(NonNull::new(p.cast()).expect("mmap does not give null")),
    }
}

fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: plain call.
    owned("pidfd_open", unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn take(s: &mut Option<Stream>) -> Result<Stream> {
    s.take().ok_or(tcmi_ckpt::Error::Image("no event stream").into())
}
