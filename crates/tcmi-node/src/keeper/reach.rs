//! Memory that processes of one home reach for in each other, wherever they are: the keeper of the
//! one that asks finds the other's, whose guest's monitor does it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crossbeam_channel::Sender;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_core::command::Pid;
use tcmi_core::lifecycle::State;
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::{Error, Result};
use tcmi_sys::proc;

use super::Keeper;
use crate::doorbell::Bell;

const CAP_SYS_PTRACE: u64 = 1 << 19;

/// Who waits for an answer. Dropped without one, it is told to ask again.
pub struct Asker {
    answers: Sender<msg::Reached>,
    bell: Arc<Bell>,
    number: u64,
    found: Found,
}

impl Asker {
    pub fn answer(mut self, found: Found) {
        self.found = found;
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let found = std::mem::replace(&mut self.found, Found::Moves);
        // Its keeper may be none any more.
        if self.answers.send(msg::Reached { number: self.number, found }).is_ok() {
            self.bell.ring();
        }
    }
}

/// An access to a guest's memory.
pub struct Reaching {
    pub access: Access,
    pub asker: Asker,
}

impl Keeper<'_> {
    /// This one's guest reaches for another process. Answered when that has been asked.
    pub(super) fn reach(&self, question: msg::Reach) -> Result<()> {
        let msg::Reach { number, pid, began, access } = question;
        access.check()?;
        let (answers, bell) = (self.answers.0.clone(), Arc::clone(&self.task.bell));
        let asker = Asker { answers, bell, number, found: Found::Moves };
        let other = proc::status(pid).ok().and_then(|status| Pid::new(status.tgid));
        let Some(other) = other.and_then(|pid| self.task.other(pid)) else {
            asker.answer(Found::AtHome);
            return Ok(());
        };
        let (is_away, origin) = (other.state() == State::Emigrated, other.origin.0);
        match access {
            _ if !other.is_held() => asker.answer(Found::AtHome),
            Access::Find if is_away => asker.answer(Found::Away { began: origin }),
            Access::Read { .. } | Access::Write { .. } if is_away && began == origin => {
                match may_reach(self.task.pid.raw(), other.pid.raw()) {
                    true => other.reached_for(Reaching { access, asker }),
                    false => asker.answer(Found::Denied),
                }
            }
            _ => asker.answer(Found::Moves),
        }
        Ok(())
    }

    /// Has the guest's monitor do what others want of it.
    pub(super) fn pass_reaches(&mut self) -> Result<()> {
        while let Some(Reaching { access, asker }) = self.task.next_reaching() {
            let (number, pid) = (asker.number, self.task.pid.raw());
            self.asked.push_back(asker);
            msg::send(&mut self.wire.w, &msg::Reach { number, pid, began: 0, access })?;
        }
        while let Ok(reached) = self.answers.1.try_recv() {
            msg::send(&mut self.wire.w, &reached)?;
        }
        Ok(())
    }

    /// The guest's monitor has answered what others wanted.
    pub(super) fn reached(&mut self, answer: msg::Reached) -> Result<()> {
        match self.asked.pop_front() {
            Some(asker) if asker.number == answer.number => asker.answer(answer.found),
            _ => return Err(Error::Protocol { want: "nothing", got: msg::Reached::KIND }),
        }
        Ok(())
    }
}

/// Whether `caller` may reach for the memory of `pid`. Its shadow has asked home's kernel, as its
/// node says; this is for a node that lies, and looks no further than at whose they are.
fn may_reach(caller: i32, pid: i32) -> bool {
    let (Ok(by), Ok(of)) = (proc::status(caller), proc::status(pid)) else { return false };
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    if namespace(caller) != namespace(pid) {
        return false;
    }
    // Of one that may not be dumped, its files belong to another.
    let is_open = fs::metadata(format!("/proc/{pid}/stat")).is_ok_and(|m| m.uid() == of.uid[1]);
    let is_its = of.uid[..3].iter().all(|uid| *uid == by.uid[0])
        && of.gid[..3].iter().all(|gid| *gid == by.gid[0])
        && of.permitted_capabilities & !by.permitted_capabilities == 0;
    by.permitted_capabilities & CAP_SYS_PTRACE != 0 || (is_its && is_open)
}
