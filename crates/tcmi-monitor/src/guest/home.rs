//! A guest's way home, as its monitor goes it.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use tcmi_ckpt::capture::{self, Files};
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::{FileRef, ProcessImage, Segment};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_core::limits::{COMMIT_TIMEOUT_MS, PHASE_TIMEOUT_MS};
use tcmi_kkc::codec::Frame;
use tcmi_migr::destination::{GuestFiles, Held};
use tcmi_migr::fault::{self, Point};
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::module::Sending;
use tcmi_migr::pages::{self, Outgoing};
use tcmi_migr::{Error, Result};
use tcmi_shadow::MappedFiles;
use tcmi_sys::maps::Mapping;

use super::Life;
use super::births::Name;

/// Longest that home's cancelling of calls may take before it is asked again.
const QUIESCE_STEP: Duration = Duration::from_millis(20);
/// Longest until no call is in flight on the way home.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(20);

impl Life {
    /// Ok(true): the guest is at home and ends here. Ok(false), Err: it runs on here.
    pub(super) fn go_home(&mut self) -> Result<bool> {
        fault::pass(Point::NodeReturnAsked)?;
        let frozen = match self.freeze() {
            Ok(f) => f,
            Err(e) => {
                self.go_on();
                return Err(e);
            }
        };
        let mut held = match Held::new(frozen, &self.image) {
            Ok(h) => h,
            Err((f, e)) => {
                f.resume()?;
                self.go_on();
                return Err(e);
            }
        };
        // Others with which it shares memory may take long.
        self.r.set_idle_timeout(Duration::from_millis(COMMIT_TIMEOUT_MS));
        let sent = self.send_image(&mut held);
        self.r.set_idle_timeout(Duration::from_millis(PHASE_TIMEOUT_MS));
        match sent {
            Ok(f) if f.kind == msg::Finish::KIND => {
                held.end()?;
                // Home goes on without it, if it must.
                if let Err(e) = msg::send(&mut self.w, &msg::Gone {}) {
                    tracing::debug!(error = %e, "home did not wait for the end");
                }
                Ok(true)
            }
            other => {
                held.thaw()?;
                self.go_on();
                let frame = other?;
                // A return that home gave up.
                msg::decode::<msg::Thaw>(&frame)?;
                msg::send(&mut self.w, &msg::Thawed {})?;
                Ok(false)
            }
        }
    }

    /// It runs on here.
    fn go_on(&self) {
        self.tracer.open();
        self.calls.resume();
    }

    /// Holds the guest's threads, with no call in flight.
    fn freeze(&mut self) -> Result<Frozen> {
        self.tracer.close()?;
        self.calls.stop_taking();
        // Told before home takes calls back: a cancelled call's restart code is acted upon only
        // by a thread that is on its way to a stop.
        let told = self.tracer.interrupt_all()?;
        self.calls.told();
        let quiet = self.until_quiet();
        let frozen = self.tracer.freeze(told)?;
        let written = |()| {
            let written = self.calls.settle(QUIESCE_TIMEOUT).and_then(|all| match all {
                true => Ok(()),
                false => Err(io::ErrorKind::TimedOut.into()),
            });
            written.map_err(Error::io("write files back"))
        };
        match quiet.and_then(written).and_then(|()| fault::pass(Point::NodeGuestFrozen)) {
            Ok(()) => Ok(frozen),
            Err(e) => {
                frozen.resume()?;
                Err(e)
            }
        }
    }

    /// Until no call is in flight.
    fn until_quiet(&mut self) -> Result<()> {
        let until = Instant::now() + QUIESCE_TIMEOUT;
        while let Err(e) = self.calls.quiesce(QUIESCE_STEP) {
            if Instant::now() > until {
                return Err(Error::Io { what: "take the calls back", source: io::Error::other(e) });
            }
            msg::send(&mut self.w, &msg::CancelCalls {})?;
        }
        Ok(())
    }

    /// What it has used here and before. It is held.
    fn used(&self, image: &ProcessImage, names: &[Name]) -> Result<Used> {
        let pid = self.guest.host_pid;
        let process = Usage::of_process(pid)?.and(&self.used.process);
        let threads = image.threads.iter().filter_map(|t| {
            let (here, _) = names.iter().find(|(_, home)| *home == t.tid)?;
            let here = Usage::of_thread(pid, *here).ok()?;
            Some((t.tid, here.and(&self.used.thread(t.tid))))
        });
        let children = self.calls.children_used();
        Ok(Used { process, threads: threads.collect(), children })
    }

    /// Sends the guest to home; returns what home says to that.
    fn send_image(&mut self, held: &mut Held) -> Result<Frame> {
        let calls = self.stats();
        msg::send(&mut self.w, &msg::Stats { calls })?;
        msg::send(&mut self.w, &msg::Quiet { segments: segments(self.guest.host_pid)? })?;
        let frame = self.r.recv_message()?;
        if frame.kind == msg::Thaw::KIND {
            return Ok(frame);
        }
        let capture: msg::Capture = msg::decode(&frame)?;
        // The steward is not held: what home has sent is in the image.
        self.events.wait_injected(capture.signals);
        let names = self.shadow.births.names();
        let name = |tid: i32| names.iter().find(|(here, _)| *here == tid).map_or(tid, |n| n.1);
        let mut files = Mapped { files: &mut self.files, memfds: self.calls.mapped_files() };
        let (image, mut runs) = held.capture(&name, &mut files, &self.image.mm)?;
        let skipped = |r: &Range<u64>| capture.skip.iter().any(|s| s.0 <= r.start && r.end <= s.1);
        runs.retain(|r| !skipped(r));
        let image = ProcessImage { files: self.files.refs.clone(), ..image };
        let used = self.used(&image, &names)?;
        msg::send(&mut self.w, &msg::Image { image: image.clone(), used })?;
        let (pid, vmas) = (self.guest.host_pid, &image.mm.vmas);
        let module = Sending::prepare(&mut self.module, pid, &mut self.w)?;
        let all = Outgoing { pid, vmas, runs: &runs, module };
        let sent = pages::send(&mut self.w, &all, Point::NodePagesHalfSent, &|_| {});
        if let Some(module) = all.module {
            tracing::info!(pid, bytes = module.sent(), "pages sent home by the module");
            self.module = module.end();
        }
        sent?;
        fault::pass(Point::NodeImageSent)?;
        Ok(self.r.recv_message()?)
    }
}

/// What a held guest has mapped of segments.
fn segments(host: i32) -> Result<Vec<Segment>> {
    let maps = tcmi_sys::maps::read_short(host)?;
    let of = |m: &Mapping| Segment {
        id: m.inode,
        start: m.start,
        end: m.end,
        offset: m.offset,
        bytes: 0,
        is_sent: true,
        outlives: false,
    };
    Ok(maps.iter().filter(|m| capture::is_segment(m)).map(of).collect())
}

/// The guest's files, and those that it mapped since it came.
struct Mapped<'a> {
    files: &'a mut GuestFiles,
    memfds: &'a MappedFiles,
}

impl Mapped<'_> {
    fn learn(&mut self, m: &Mapping) {
        let Some(f) = self.memfds.get(m.inode) else { return };
        let dev = u64::from(libc::major(f.dev)) << 32 | u64::from(libc::minor(f.dev));
        let r = FileRef {
            path: f.name.clone(),
            dev,
            inode: f.ino,
            size: 0,
            first: 0,
            last: 0,
            hash: [0; 32],
            live: false,
        };
        self.files.add_memfd(m.dev, m.inode, r, f.offset);
    }
}

impl Files for Mapped<'_> {
    fn is_alone(&self, _: &Mapping) -> bool {
        true
    }
    fn index(&mut self, m: &Mapping) -> tcmi_ckpt::Result<u32> {
        self.learn(m);
        self.files.index(m)
    }
    fn offset(&self, m: &Mapping) -> u64 {
        self.files.offset(m)
    }
}
