//! Non-preemptive migration: a process that moves when it executes another program.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::watched::{Happening, Watched};
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_kkc::{Link, LinkId};

use super::{Shared, Sharers, examine};
use crate::control::Done;
use crate::doorbell::Bell;

/// A process that waits for its execve.
pub(super) struct Armed {
    uid: u32,
    pub(super) node: LinkId,
    bell: Arc<Bell>,
    /// Who asked for it to stay.
    disarmed: Mutex<Vec<Done>>,
}

impl Shared {
    /// `reply`: it is armed, or is not.
    pub(super) fn arm(self: &Arc<Self>, pid: Pid, link: Link, uid: u32, reply: Done) {
        let armed = match self.enter(pid, link.id(), uid) {
            Ok(armed) => armed,
            Err(error) => return reply(Err(error)),
        };
        let shared = Arc::clone(self);
        let started = thread::Builder::new().name(format!("keep-{pid}")).spawn(move || {
            let executed = shared.until_executed(pid, &armed, reply);
            // Nobody finds it any more to ask it to stay.
            shared.armed.lock().remove(&pid);
            armed.disarmed.lock().drain(..).for_each(|done| done(Ok(())));
            if let Some(frozen) = executed {
                shared.send_after(pid, frozen, Arc::default(), &link);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%pid, %error, "not armed");
            self.armed.lock().remove(&pid);
        }
    }

    fn enter(&self, pid: Pid, node: LinkId, uid: u32) -> Result<Arc<Armed>, MigrateError> {
        let examined = examine(pid, uid, false, Sharers::Among(&[]))?;
        let owner = examined.status.uid[0];
        examined.refusal()?;
        if let Some(task) = self.home.lock().get(&pid).filter(|t| t.is_held()) {
            return Err(MigrateError::Busy { pid, state: task.state() });
        }
        let bell = Bell::new()
            .map_err(|source| MigrateError::Local { doing: "arm a process".to_owned(), source })?;
        let (bell, disarmed) = (Arc::new(bell), Mutex::default());
        let armed = Arc::new(Armed { uid: owner, node, bell, disarmed });
        let mut all = self.armed.lock();
        if all.contains_key(&pid) || self.saving.lock().contains(&pid) {
            return Err(MigrateError::Busy { pid, state: State::Running });
        }
        self.doorbell.add(&armed.bell);
        all.insert(pid, Arc::clone(&armed));
        Ok(armed)
    }

    /// None: it has ended, or was disarmed.
    fn until_executed(&self, pid: Pid, armed: &Armed, reply: Done) -> Option<Frozen> {
        let mut watched = match Watched::seize(pid.raw()) {
            Ok(watched) => watched,
            Err(error) => {
                let reasons = vec![error.to_string()];
                reply(Err(MigrateError::Unsupported { pid, reasons }));
                return None;
            }
        };
        reply(Ok(()));
        loop {
            armed.bell.quiet();
            if !armed.disarmed.lock().is_empty() {
                let stays = watched.freeze().and_then(|(frozen, _)| frozen.thaw());
                if let Err(error) = stays {
                    tracing::debug!(%pid, %error, "disarmed");
                }
                return None;
            }
            for happening in watched.poll().ok()? {
                match happening {
                    Happening::Executed => return watched.freeze().ok().map(|(frozen, _)| frozen),
                    Happening::Ended => return None,
                    Happening::Began(_) | Happening::Returned => {}
                }
            }
            let mut rung = [PollFd::new(armed.bell.as_fd(), PollFlags::POLLIN)];
            // An interruption is a ring for nothing.
            poll(&mut rung, PollTimeout::NONE).ok();
        }
    }

    /// Some: it is not armed, and nobody is told.
    pub(super) fn disarm(&self, pid: Pid, uid: u32, reply: Done) -> Option<Done> {
        let all = self.armed.lock();
        let Some(armed) = all.get(&pid) else { return Some(reply) };
        if uid != 0 && uid != armed.uid {
            reply(Err(MigrateError::NotYours(pid)));
            return None;
        }
        armed.disarmed.lock().push(reply);
        armed.bell.ring();
        None
    }
}
