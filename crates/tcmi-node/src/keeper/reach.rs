//! What processes of one home reach for in each other, wherever they are: the keeper of the one that
//! asks finds the other's, whose guest's monitor does it.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use crossbeam_channel::Sender;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::File;
use tcmi_core::command::Pid;
use tcmi_core::lifecycle::State;
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::{Error, Result};
use tcmi_sys::proc;

use super::Keeper;
use crate::doorbell::Bell;
use crate::task::Task;

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

/// An access to a guest.
pub struct Reaching {
    /// By which it was asked for.
    pub pid: i32,
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
        put(self.task, began, Reaching { pid, access, asker });
        Ok(())
    }

    /// Has the guest's monitor do what others want of it.
    pub(super) fn pass_reaches(&mut self) -> Result<()> {
        while let Some(Reaching { pid, access, asker }) = self.task.next_reaching() {
            let number = asker.number;
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
        answer.found.check()?;
        match self.asked.pop_front() {
            Some(asker) if asker.number == answer.number => asker.answer(answer.found),
            _ => return Err(Error::Protocol { want: "nothing", got: msg::Reached::KIND }),
        }
        Ok(())
    }
}

/// Has the keeper of the process that `task` reaches for do it, if it may and that is away.
fn put(task: &Task, began: u64, what: Reaching) {
    let Reaching { pid, access, asker } = what;
    let other = proc::status(pid).ok().and_then(|status| Pid::new(status.tgid));
    let Some(other) = other.and_then(|pid| task.other(pid)) else {
        return asker.answer(Found::AtHome);
    };
    let (is_away, origin) = (other.state() == State::Emigrated, other.origin.0);
    let granted = match access {
        _ if !other.is_held() => return asker.answer(Found::AtHome),
        Access::Find if is_away => return asker.answer(Found::Away { began: origin }),
        Access::Read { .. } | Access::Write { .. } if is_away && began == origin => {
            may_reach(task.pid.raw(), other.pid.raw()).then_some(access)
        }
        Access::Tell { file, tid, fd, rest } if is_away => {
            may_be_told(task.pid.raw(), fd, pid, (file, tid)).map(|file| Access::Tell {
                file,
                tid,
                fd,
                rest,
            })
        }
        _ => return asker.answer(Found::Moves),
    };
    match granted {
        Some(access) => other.reached_for(Reaching { pid, access, asker }),
        None => asker.answer(Found::Denied),
    }
}

/// As which file `caller` may be told of one about `pid`. Its shadow has that open, so home's kernel
/// let it: whatever its node says, and whichever process had the number before. But who may look
/// into a process may change behind an open.
fn may_be_told(caller: i32, fd: i32, pid: i32, (file, tid): (File, Option<i32>)) -> Option<File> {
    if !has_open(caller, fd, &file.path(pid, tid)) {
        return None;
    }
    if may_reach(caller, pid) { Some(file) } else { file.public() }
}

fn has_open(caller: i32, fd: i32, path: &str) -> bool {
    let Ok(named) = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) else {
        return false;
    };
    let own = proc::open_file(std::process::id() as i32, named.as_raw_fd());
    let its = proc::open_file(caller, fd);
    own.is_ok_and(|own| its.is_ok_and(|its| its.is_of(&own) && its.is_to_read()))
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
