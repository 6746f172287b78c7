//! Children that the guest has waited for, and what they used on other nodes than home.

use tcmi_call::engine::GuestMemory;
use tcmi_ckpt::usage::Usage;
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::memory::ProcessMemory;
use crate::usage::{RUSAGE_BYTES, add_to};
use crate::worker::Outcome;

/// In `siginfo_t` of a child.
const CODE: usize = 8;
const PID: usize = 16;
const SIGINFO_BYTES: usize = 32;

/// Behind a call that home has made: if a child's end was taken by it, what it used is its
/// parent's, and in the parent's buffer.
pub(crate) fn waited(shared: &Shared, notif: &Notification, outcome: &Outcome) {
    let Outcome::Answer(Answer::Value(value)) = outcome else { return };
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    let (pid, rusage) = match i64::from(notif.nr) {
        libc::SYS_wait4 if *value > 0 && is_end(&mut mem, notif) => (*value as i32, notif.args[3]),
        libc::SYS_waitid => match ended(&mut mem, notif) {
            Some(pid) => (pid, notif.args[4]),
            None => return,
        },
        _ => return,
    };
    let used = shared.hooks.child_used(pid);
    if used == Usage::default() {
        return;
    }
    let mut all = shared.children.lock();
    *all = all.and(&used);
    drop(all);
    let mut bytes = [0; RUSAGE_BYTES];
    if rusage != 0 && mem.read(rusage, &mut bytes).is_ok() {
        add_to(&mut bytes, &used);
        // It was written to a moment ago.
        if mem.write(rusage, &bytes).is_err() {
            tracing::debug!(pid, "no place for what a child used");
        }
    }
}

/// Of wait4. One that may have told of a stop, and did not say, has not.
fn is_end(mem: &mut ProcessMemory, notif: &Notification) -> bool {
    let [_, at, options, ..] = notif.args;
    if at == 0 {
        return options as i32 & (libc::WUNTRACED | libc::WCONTINUED) == 0;
    }
    let mut status = [0; 4];
    let status = mem.read(at, &mut status).map(|()| i32::from_le_bytes(status));
    status.is_ok_and(|status| libc::WIFEXITED(status) || libc::WIFSIGNALED(status))
}

fn ended(mem: &mut ProcessMemory, notif: &Notification) -> Option<i32> {
    let [_, _, at, options, ..] = notif.args;
    if at == 0 || options as i32 & libc::WNOWAIT != 0 {
        return None;
    }
    let mut info = [0; SIGINFO_BYTES];
    mem.read(at, &mut info).ok()?;
    let word = |at: usize| info[at..].first_chunk().map_or(0, |w| i32::from_le_bytes(*w));
    let ends = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
    (word(0) == libc::SIGCHLD && ends.contains(&word(CODE))).then(|| word(PID))
}
