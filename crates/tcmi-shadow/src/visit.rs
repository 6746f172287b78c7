//! Calls that only home's kernel makes: new processes, and other programs in place of this one.
//! The guest goes home, makes the call there, and comes back with what it returned.

use tcmi_call::table::Restart;
use tcmi_call::table::errno::{ENOSYS, Errno};
use tcmi_call::table::number;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::{Denied, Shared};
use crate::memory::ProcessMemory;
use crate::stream::StreamError;
use crate::worker::{Outcome, Thread, failed};

/// The call is made again, wherever the guest is then.
pub(crate) fn again() -> Outcome {
    Outcome::Told(Answer::Error(Restart::Always.code()))
}

pub(crate) fn visit(shared: &Shared, notif: &Notification) -> Outcome {
    let _one = shared.births.lock();
    match shared.hooks.visit_home(notif.tid) {
        Denied::Leaving => again(),
        Denied::Failed(errno) => failed(errno),
    }
}

/// The error of a call that need not go home to fail: of an execution of a file that is not there,
/// or may not be executed. A search along PATH has many.
pub(crate) fn foreseen(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Option<Errno>, StreamError> {
    const FLAGS: u64 = (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) as u64;
    let (dir, path, flags) = match i64::from(notif.nr) {
        libc::SYS_execve => (libc::AT_FDCWD as u64, notif.args[0], 0),
        // With others it fails for their sake, or is asked something else.
        libc::SYS_execveat if notif.args[4] & !FLAGS == 0 => {
            (notif.args[0], notif.args[1], notif.args[4])
        }
        _ => return Ok(None),
    };
    let Some(access) = number("faccessat2") else { return Ok(None) };
    let args = [dir, path, libc::X_OK as u64, flags | libc::AT_EACCESS as u64, 0, 0];
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let found = thread.ask(access, &args, &mut mem)?;
    let errno = Errno(-found as i32);
    // Home's kernel may be older than this call.
    Ok((found < 0 && errno != ENOSYS).then_some(errno))
}
