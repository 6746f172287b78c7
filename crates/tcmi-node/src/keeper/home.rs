//! The way home of one process, as its keeper goes it.

use std::time::Duration;

use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::{ProcessImage, Segment};
use tcmi_ckpt::usage::Used;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_migr::fault::{self, Point};
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::pages::Incoming;
use tcmi_migr::source::{self, Attached};
use tcmi_migr::{Error, Result};

use super::{AtHome, End, Keeper, Visit, explain_error, gone_is_fine};
use crate::control::Done;
use crate::task::{Order, Task};
use crate::tasks::{Homeward, Party, Purpose, Rest};

/// Longest wait for the node to say that it has let go of a guest that is home already.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a return did not bring the process home.
enum Return {
    Stays(Error),
    Ended,
    Lost(String),
}

impl Return {
    fn lost(e: Error) -> Self {
        match e {
            Error::Process(tcmi_ckpt::Error::Ended) => Self::Ended,
            e => Self::Lost(e.to_string()),
        }
    }
}

/// Lets go of a process that is itself again.
fn run(frozen: Frozen) -> std::result::Result<(), Return> {
    frozen.thaw().map_err(|_| Return::Ended)
}

impl Keeper<'_> {
    /// Brings the process home.
    ///
    /// Some: it is home or gone. None: the return failed, the guest runs on.
    pub(super) fn bring_home(
        &mut self,
        purpose: Purpose,
        done: Option<Done>,
    ) -> Result<Option<End>> {
        self.task.visits(purpose != Purpose::Stay);
        self.task.to(State::Returning);
        self.task.drop_reachings();
        let came = self.come_home_as(purpose);
        let with = self.party.clone().filter(|_| came.is_ok());
        let (answer, outcome) = match came {
            Ok(end) => {
                if !matches!(end, End::Again(AtHome::Visit(_))) {
                    self.farewell();
                }
                if matches!(end, End::Home) {
                    // Before anyone can know: the next move may begin at once.
                    self.task.release();
                }
                self.task.to(State::Running);
                (Ok(()), Some(end))
            }
            Err(why) => {
                self.task.visits(false);
                let (error, end) = match why {
                    Return::Stays(e) => (explain_error(self.task, &self.node, e), None),
                    Return::Ended => (MigrateError::NoSuchProcess(self.task.pid), Some(End::Gone)),
                    Return::Lost(reason) => {
                        let (node, end) = (self.node.clone(), End::Lost(reason.clone()));
                        (MigrateError::PeerGone { node, reason }, Some(end))
                    }
                };
                if end.is_none() {
                    self.task.to(State::Emigrated);
                }
                tracing::info!(pid = %self.task.pid, %error, "did not come home");
                self.task.failed(&error.to_string());
                (Err(error), end)
            }
        };
        match (with, answer) {
            (Some(party), Ok(())) => party.released(done),
            (_, answer) => {
                if let Some(done) = done {
                    done(answer);
                }
            }
        }
        Ok(outcome)
    }

    /// The node says that nothing of the guest is left there.
    fn farewell(&mut self) {
        self.wire.r.set_idle_timeout(FAREWELL_TIMEOUT);
        if let Err(e) = msg::expect::<msg::Gone>(&mut self.wire.r) {
            tracing::debug!(error = %e, "the node did not say farewell");
        }
    }

    fn come_home_as(&mut self, purpose: Purpose) -> std::result::Result<End, Return> {
        if let Some(party) = self.party.clone() {
            return self.come_home_with(&party, purpose);
        }
        let frozen = self.come_home(None)?;
        match purpose {
            Purpose::Call(by) => Ok(End::Again(AtHome::Visit(Visit { frozen, by }))),
            Purpose::Stay => run(frozen).map(|()| End::Home),
        }
    }

    fn come_home_with(
        &mut self,
        party: &Party,
        purpose: Purpose,
    ) -> std::result::Result<End, Return> {
        party.call_home(purpose).map_err(Return::Stays)?;
        let pid = self.task.pid;
        let came = self.come_home(Some(party)).and_then(|frozen| {
            let files = party.common_of(pid).files;
            let rest = party.next().map(|next| Rest::of(pid, &files, next)).transpose();
            let rest = rest.map_err(|_| Return::Ended)?;
            run(frozen).map(|()| rest)
        });
        match &came {
            Ok(_) => party.came(pid, None),
            Err(Return::Stays(e)) => party.came(pid, Some(format!("process {pid}: {e}"))),
            Err(Return::Ended | Return::Lost(_)) => party.gone(pid, true),
        }
        came.map(|rest| rest.map_or(End::Home, |rest| End::Again(AtHome::Rest(rest))))
    }

    /// Ok: the process is whole at home, and held.
    fn come_home(&mut self, party: Option<&Party>) -> std::result::Result<Frozen, Return> {
        msg::send(&mut self.wire.w, &msg::ComeHome {}).map_err(Return::lost)?;
        let segments = self.until_quiet()?;
        let kept = self.kept().map_err(Return::lost)?;
        let (mut frozen, signals) = kept.shadow.hold().map_err(|_| Return::Ended)?;
        let (attached, agent) = (kept.attached, *kept.shadow.agent());
        let skip = party.map_or(Ok(Vec::new()), |p| {
            p.meet_home(self.task, Homeward::Quiet, &segments, &mut self.wire.r)
        });
        let image = match skip.and_then(|skip| self.take_image(signals, skip)) {
            Ok(image) => image,
            Err(e) => return Err(self.stay(frozen, None, e)),
        };
        let rebuilt = self.rebuild(&mut frozen, &attached, &image, party.is_none());
        let decided = rebuilt.and_then(|()| {
            party.map_or(Ok(Vec::new()), |p| {
                p.meet_home(self.task, Homeward::Rebuilt, &[], &mut self.wire.r)
            })
        });
        if let Err(e) = decided {
            return Err(self.stay(frozen, Some(&image), e));
        }
        // COMMIT of the way back: home has everything. Whatever the node says from here on,
        // the process runs here, and the guest has no streams.
        let kept = self.shadow.take().ok_or(Return::Ended)?;
        if party.is_none() {
            kept.shadow.decide_home().map_err(|_| Return::Ended)?;
        }
        fault::pass_or_die(Point::HomeDecidedHome);
        self.task.charge_used();
        if let Err(e) = msg::send(&mut self.wire.w, &msg::Finish {}) {
            tracing::warn!(error = %e, "the node is gone; the process is home");
        }
        fault::pass_or_die(Point::HomeFinishSent);
        let made = kept
            .installed
            .close(&mut frozen, &agent)
            .and_then(|()| source::make_own(&mut frozen, &attached, &image));
        fault::pass_or_die(Point::HomeRunsAgain);
        made.map(|()| frozen).map_err(|_| Return::Ended)
    }

    /// The node takes no more calls; those that wait are taken back as often as it asks.
    fn until_quiet(&mut self) -> std::result::Result<Vec<Segment>, Return> {
        loop {
            let frame = self.wire.r.recv_message().map_err(|e| Return::lost(e.into()))?;
            match frame.kind {
                msg::Quiet::KIND => {
                    let quiet = frame.decode::<msg::Quiet>();
                    return quiet.map(|q| q.segments).map_err(|e| Return::lost(e.into()));
                }
                msg::CancelCalls::KIND => {
                    let kept = self.kept().map_err(Return::lost)?;
                    kept.shadow.cancel_calls().map_err(|_| Return::Ended)?;
                }
                msg::Stats::KIND => {
                    let stats: msg::Stats = msg::decode(&frame).map_err(Return::lost)?;
                    self.task.set_calls(stats.calls);
                }
                msg::AskUsed::KIND => {
                    let msg::AskUsed { pid, .. } = msg::decode(&frame).map_err(Return::lost)?;
                    self.waited.extend(Pid::new(pid));
                }
                msg::Reached::KIND => {
                    let reached = msg::decode(&frame).and_then(|reached| self.reached(reached));
                    reached.map_err(Return::lost)?;
                }
                msg::WantHome::KIND => {
                    // It comes anyway, unless for a call alone.
                    if let Err((state, _)) = self.task.order(Order::HomeUnasked) {
                        tracing::debug!(%state, "asked home on its way there");
                    }
                }
                msg::Reach::KIND
                | msg::Poke::KIND
                | msg::BeginThread::KIND
                | msg::VisitHome::KIND => {}
                msg::Ended::KIND => {
                    let ended: msg::Ended = frame.decode().map_err(|e| Return::lost(e.into()))?;
                    self.task.ended(&self.node, &ended.why);
                    self.task.set_used(Used { process: ended.used, ..Used::default() });
                    self.task.charge_used();
                    let kept = self.kept().map_err(Return::lost)?;
                    kept.shadow
                        .end_as(ended.status)
                        .or_else(gone_is_fine)
                        .map_err(|e| Return::lost(e.into()))?;
                    return Err(Return::Ended);
                }
                msg::Failed::KIND => {
                    let f: msg::Failed = frame.decode().map_err(|e| Return::lost(e.into()))?;
                    return Err(Return::Stays(Error::Peer { errno: f.errno, text: f.text }));
                }
                got => return Err(Return::lost(Error::Protocol { want: "Quiet", got })),
            }
        }
    }

    fn take_image(&mut self, signals: u32, skip: Vec<(u64, u64)>) -> Result<ProcessImage> {
        fault::pass(Point::HomeReturnFrozen)?;
        msg::send(&mut self.wire.w, &msg::Capture { signals, skip })?;
        let msg::Image { image, mut used } = msg::expect(&mut self.wire.r)?;
        for child in self.waited.drain(..) {
            used.children = used.children.and(&self.task.left_by(child));
        }
        self.task.set_used(used);
        Ok(image)
    }

    fn rebuild(
        &mut self,
        frozen: &mut Frozen,
        a: &Attached,
        image: &ProcessImage,
        alone: bool,
    ) -> Result<()> {
        let shadow = &mut self.kept()?.shadow;
        let alike = shadow.let_end(frozen, image);
        let armed = alike.and_then(|()| shadow.arm_return(frozen, image, alone));
        armed
            .map_err(Error::from)
            .and_then(|()| fault::pass(Point::HomeReturnArmed))
            .map_err(|e| Incoming::new(&mut self.wire.r).discard(e))?;
        let task: &Task = self.task;
        source::rebuild_at_home(frozen, a, image, &mut self.wire.r, task).map(drop)
    }

    /// A return that failed: the guest goes on if it still can.
    fn stay(&mut self, frozen: Frozen, image: Option<&ProcessImage>, e: Error) -> Return {
        let told = match &e {
            // It said so itself and has let the guest run.
            Error::Peer { .. } => Ok(()),
            _ => msg::send(&mut self.wire.w, &msg::Thaw {}).and_then(|()| self.until_thawed()),
        };
        if let Err(lost) = told {
            return Return::lost(lost);
        }
        match self.kept().and_then(|k| Ok(k.shadow.serve_again(frozen, image)?)) {
            Ok(()) => Return::Stays(e),
            Err(_) => Return::Ended,
        }
    }

    /// It may have given up as well, before it heard that we did.
    fn until_thawed(&mut self) -> Result<()> {
        loop {
            match msg::expect::<msg::Thawed>(&mut self.wire.r) {
                Ok(_) => return Ok(()),
                Err(Error::Peer { text, .. }) => tracing::debug!(text, "gave up as well"),
                Err(e) => return Err(e),
            }
        }
    }
}
