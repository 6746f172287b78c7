//! What a guest has used: what home's kernel counts, and what was used on other nodes.

use parking_lot::Mutex;
use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EFAULT, Errno};
use tcmi_ckpt::birth;
use tcmi_ckpt::usage::{TICK_NS, Usage};
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::memory::{ProcessMemory, word};
use crate::stream::StreamError;
use crate::worker::{OWN_BASE, Outcome, Thread, failed};

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_US: u64 = 1_000;
pub(crate) const RUSAGE_BYTES: usize = 144;
/// In `struct rusage`.
const MAXRSS: usize = 32;
const MINFLT: usize = 64;
const MAJFLT: usize = 72;
/// In the id of a processor clock.
const CLOCK_KIND: i32 = 3;
const CLOCK_OF_THREAD: i32 = 4;
const CLOCK_VIRT: i32 = 1;
const CLOCK_OF_DESCRIPTOR: i32 = 3;

/// Since it came: user and system time as they were told last, as neither may go back.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<(u64, u64)>);

impl Told {
    fn at_least(&self, usage: Usage) -> Usage {
        let mut told = self.0.lock();
        *told = (told.0.max(usage.user), told.1.max(usage.system));
        Usage { user: told.0, system: told.1, ..usage }
    }
}

/// Whom a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Process,
    /// As it is called here.
    Thread(i32),
    /// Those that it waited for.
    Children,
    /// Home's kernel knows all there is.
    Other,
}

pub(crate) fn used(shared: &Shared, thread: &Thread, caller: i32, who: Who) -> Usage {
    match who {
        Who::Thread(tid) if tid == caller => {
            let here = Usage::of_thread(shared.guest.pid, tid).unwrap_or_default();
            thread.told.at_least(here.and(&thread.used))
        }
        _ => used_by(shared, who),
    }
}

/// The same, asked by none of its threads.
pub(crate) fn used_by(shared: &Shared, who: Who) -> Usage {
    let pid = shared.guest.pid;
    // One that ends while it asks does not see the answer.
    match who {
        Who::Other => Usage::default(),
        Who::Children => *shared.children.lock(),
        Who::Process => {
            let here = Usage::of_process(pid).unwrap_or_default();
            shared.told.at_least(here.and(&shared.guest.used))
        }
        Who::Thread(tid) => {
            let here = Usage::of_thread(pid, tid).unwrap_or_default();
            here.and(&shared.used_before(tid))
        }
    }
}

pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    match i64::from(notif.nr) {
        libc::SYS_getrusage => rusage(shared, thread, notif),
        libc::SYS_times => times(shared, thread, notif),
        _ => clock(shared, thread, notif),
    }
}

/// Home's answer in `bytes`; the address of the buffer is argument `at`.
fn ask(
    thread: &mut Thread,
    notif: &Notification,
    at: usize,
    bytes: &mut [u8],
) -> Result<i64, StreamError> {
    let mut args = notif.args;
    args[at] = OWN_BASE;
    thread.ask_own(notif.nr.into(), &args, bytes)
}

fn deliver(shared: &Shared, notif: &Notification, addr: u64, bytes: &[u8], ret: i64) -> Outcome {
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    match mem.write(addr, bytes) {
        Ok(()) => Outcome::Answer(Answer::Value(ret)),
        Err(_) => failed(EFAULT),
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Adds to seconds and parts of a second.
fn add_time(bytes: &mut [u8], at: usize, part_ns: u64, ns: u64) {
    let time = word(bytes, at) * NS_PER_S + word(bytes, at + 8) * part_ns + ns;
    put(bytes, at, time / NS_PER_S);
    put(bytes, at + 8, time % NS_PER_S / part_ns);
}

fn rusage(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    let mut bytes = [0; RUSAGE_BYTES];
    let ret = ask(thread, notif, 1, &mut bytes)?;
    if ret < 0 {
        return Ok(failed(Errno(-ret as i32)));
    }
    let who = match notif.args[0] as i32 {
        libc::RUSAGE_SELF => Who::Process,
        libc::RUSAGE_CHILDREN => Who::Children,
        libc::RUSAGE_THREAD => Who::Thread(notif.tid),
        _ => Who::Other,
    };
    add_to(&mut bytes, &used(shared, thread, notif.tid, who));
    Ok(deliver(shared, notif, notif.args[1], &bytes, ret))
}

/// To a `struct rusage`.
pub(crate) fn add_to(bytes: &mut [u8; RUSAGE_BYTES], used: &Usage) {
    add_time(bytes, 0, NS_PER_US, used.user);
    add_time(bytes, 16, NS_PER_US, used.system);
    let peak = word(bytes, MAXRSS).max(used.peak / 1024);
    put(bytes, MAXRSS, peak);
    for (at, faults) in [(MINFLT, used.minor_faults), (MAJFLT, used.major_faults)] {
        let sum = word(bytes, at) + faults;
        put(bytes, at, sum);
    }
}

fn times(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    let mut bytes = [0; 32];
    let ret = ask(thread, notif, 0, &mut bytes)?;
    let used = used(shared, thread, notif.tid, Who::Process);
    let children = *shared.children.lock();
    let times = [used.user, used.system, children.user, children.system];
    for (at, ns) in [0, 8, 16, 24].into_iter().zip(times) {
        let ticks = word(&bytes, at) + ns / TICK_NS;
        put(&mut bytes, at, ticks);
    }
    match notif.args[0] {
        0 => Ok(Outcome::Answer(Answer::Value(ret))),
        addr => Ok(deliver(shared, notif, addr, &bytes, ret)),
    }
}

fn clock(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    let mut bytes = [0; 16];
    let ret = ask(thread, notif, 1, &mut bytes)?;
    if ret < 0 {
        return Ok(failed(Errno(-ret as i32)));
    }
    let id = notif.args[0] as i32;
    let used = used(shared, thread, notif.tid, whose(shared, notif.tid, id));
    let ns = if id < 0 && id & CLOCK_KIND == CLOCK_VIRT { used.user } else { used.total() };
    add_time(&mut bytes, 0, 1, ns);
    Ok(deliver(shared, notif, notif.args[1], &bytes, ret))
}

/// Of a clock that the filter does not leave to the guest's kernel.
fn whose(shared: &Shared, caller: i32, clock: i32) -> Who {
    let pid = shared.guest.pid;
    let tid = !(clock >> 3);
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID => Who::Process,
        libc::CLOCK_THREAD_CPUTIME_ID => Who::Thread(caller),
        _ if clock & CLOCK_KIND == CLOCK_OF_DESCRIPTOR => Who::Other,
        _ if clock & CLOCK_OF_THREAD == 0 => match tid {
            0 => Who::Process,
            tid if birth::inner_tid(pid, pid) == Some(tid) => Who::Process,
            _ => Who::Other,
        },
        _ if tid == 0 => Who::Thread(caller),
        _ => shared.called_at_home(tid).map_or(Who::Other, Who::Thread),
    }
}
