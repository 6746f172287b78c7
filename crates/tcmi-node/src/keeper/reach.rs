//! What processes of one home reach for in each other, wherever they are: the keeper of the one that
//! asks finds the other's, whose guest's monitor does it.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use crossbeam_channel::Sender;
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::texts::{About, File};
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
        pass_on(self.task, began, Reaching { pid, access, asker });
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
fn pass_on(task: &Task, began: u64, what: Reaching) {
    let Reaching { pid, access, asker } = what;
    let other = proc::status(pid).ok().and_then(|status| Pid::new(status.tgid));
    let Some(other) = other.and_then(|pid| task.other(pid)) else {
        return asker.answer(Found::AtHome);
    };
    let (state, origin) = (other.state(), other.origin.0);
    let is_away = state == State::Emigrated;
    let granted = match access {
        _ if !other.is_held() => return asker.answer(Found::AtHome),
        Access::Find if is_away => return asker.answer(Found::Away { began: origin }),
        Access::Read { .. } | Access::Map { .. } | Access::Write { .. }
            if is_away && began == origin =>
        {
            may_reach(task.pid.raw(), other.pid.raw()).then_some(access)
        }
        // It may be about to leave; until then home's kernel tells what there is.
        Access::Tell { .. } if matches!(state, State::Running | State::Preparing) => {
            return asker.answer(Found::AtHome);
        }
        Access::Tell { file, tid, fd, rest } if is_away => {
            may_be_told(task.pid.raw(), fd, About { pid, tid, file }).map(|file| Access::Tell {
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
fn may_be_told(caller: i32, fd: i32, about: About) -> Option<File> {
    if !has_open(caller, fd, &about.path()) {
        return None;
    }
    if may_reach(caller, about.pid) { Some(about.file) } else { about.file.public() }
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

/// What a node asks that lies about what home's kernel has let its guest do.
#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use crossbeam_channel::unbounded;
    use parking_lot::Mutex;
    use tcmi_kkc::LinkId;

    use super::*;
    use crate::task::Away;

    const NOBODY: u32 = 65534;
    const BEGAN: u64 = 77;

    /// A process that is away, as far as its keeper knows.
    struct Guest {
        task: Arc<Task>,
        process: Child,
    }

    impl Guest {
        /// With the file as its descriptor 0, opened by us.
        fn new(away: &Arc<Mutex<Away>>, uid: u32, open: Option<fs::File>) -> Self {
            let mut command = Command::new("sleep");
            command.arg("infinity").uid(uid).gid(uid);
            if let Some(file) = open {
                command.stdin(file);
            }
            let process = command.spawn().unwrap();
            let pid = Pid::new(process.id() as i32).unwrap();
            let mut task = Task::new(pid, (uid, uid), LinkId(1), 1).unwrap();
            (task.origin, task.all) = ((BEGAN, 1), Arc::downgrade(away));
            let way = [State::Preparing, State::Freezing, State::Transferring, State::Committing];
            way.into_iter().chain([State::Emigrated]).for_each(|state| task.to(state));
            let task = Arc::new(task);
            away.lock().insert(pid, Arc::clone(&task));
            Self { task, process }
        }

        fn pid(&self) -> i32 {
            self.task.pid.raw()
        }

        fn file(&self, name: &str, flags: i32) -> Option<fs::File> {
            let mut how = OpenOptions::new();
            let path = format!("/proc/{}/{name}", self.pid());
            Some(how.read(true).custom_flags(flags).open(path).unwrap())
        }

        /// Ok: what the other one's node is asked then. Err: the answer.
        fn ask(
            &self,
            other: &Guest,
            began: u64,
            access: Access,
        ) -> std::result::Result<Access, Found> {
            let (answers, answered) = unbounded();
            let bell = Arc::clone(&self.task.bell);
            let asker = Asker { answers, bell, number: 1, found: Found::Moves };
            pass_on(&self.task, began, Reaching { pid: other.pid(), access, asker });
            match other.task.next_reaching() {
                Some(reaching) => Ok(reaching.access),
                None => Err(answered.try_recv().unwrap().found),
            }
        }

        fn asks_to_be_told(&self, other: &Guest, file: File) -> std::result::Result<File, Found> {
            let told = Access::Tell { file, tid: None, fd: 0, rest: None };
            self.ask(other, 0, told).map(|granted| match granted {
                Access::Tell { file, .. } => file,
                other => panic!("{other:?}"),
            })
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    #[test]
    fn memory_of_another_user_or_of_one_that_began_then_is_not_reached() {
        let away = Arc::default();
        let [root, also_root, user] = [0, 0, NOBODY].map(|uid| Guest::new(&away, uid, None));
        let read = || Access::Read { addr: 4096, len: 1 };
        let write = || Access::Write { addr: 4096, bytes: vec![1] };
        assert_eq!(root.ask(&also_root, 0, Access::Find), Err(Found::Away { began: BEGAN }));
        for access in [read, write] as [fn() -> Access; 2] {
            assert_eq!(root.ask(&also_root, BEGAN, access()), Ok(access()));
            assert_eq!(root.ask(&also_root, BEGAN + 1, access()), Err(Found::Moves));
            assert_eq!(user.ask(&root, BEGAN, access()), Err(Found::Denied));
        }
        also_root.task.release();
        assert_eq!(root.ask(&also_root, BEGAN, read()), Err(Found::AtHome));
    }

    #[test]
    fn who_has_the_very_file_open_is_told_of_one_that_is_away() {
        let away = Arc::default();
        let [one, other] = [0, 0].map(|uid| Guest::new(&away, uid, None));
        let reader = Guest::new(&away, 0, one.file("maps", 0));
        assert_eq!(reader.asks_to_be_told(&one, File::Maps), Ok(File::Maps));
        assert_eq!(reader.asks_to_be_told(&one, File::Smaps), Err(Found::Denied));
        assert_eq!(reader.asks_to_be_told(&other, File::Maps), Err(Found::Denied));
        assert_eq!(other.asks_to_be_told(&one, File::Status), Err(Found::Denied));
        let knows_its_path = Guest::new(&away, 0, one.file("maps", libc::O_PATH));
        assert_eq!(knows_its_path.asks_to_be_told(&one, File::Maps), Err(Found::Denied));
        one.task.to(State::Returning);
        assert_eq!(reader.asks_to_be_told(&one, File::Maps), Err(Found::Moves));
        one.task.to(State::Running);
        assert_eq!(reader.asks_to_be_told(&one, File::Maps), Err(Found::AtHome));
    }

    /// Home's kernel let it, once.
    #[test]
    fn who_may_not_look_into_a_process_is_told_what_everybody_is() {
        let away = Arc::default();
        let root = Guest::new(&away, 0, None);
        for (file, told) in [
            (File::Maps, Err(Found::Denied)),
            (File::SmapsRollup, Err(Found::Denied)),
            (File::Stat, Ok(File::PublicStat)),
            (File::Statm, Ok(File::Statm)),
        ] {
            let user = Guest::new(&away, NOBODY, root.file(file.name(), 0));
            assert_eq!(user.asks_to_be_told(&root, file), told);
        }
    }
}
