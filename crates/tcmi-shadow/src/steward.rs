//! The helper thread in the guest, over its shared page.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tcmi_call::abi::{BatchOp, StewardArea};

/// How often a wait for the steward looks whether the guest still lives.
const ALIVE_CHECK_NS: i64 = 100_000_000;
/// So many looks, and the guest has done something to it. Counted and not timed: a machine that
/// keeps the steward from running keeps us, too.
const LOOKS_MAX: u32 = 100;

/// The guest ended before the steward answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest is gone")]
pub struct GuestGone;

#[derive(Debug)]
pub struct Steward {
    area: NonNull<StewardArea>,
    guest_address: u64,
    tid: i32,
    pidfd: OwnedFd,
    turn: Mutex<()>,
}

// SAFETY: the area is reached only with `turn` held, but for its two futex words, which
// are accessed as atomics.
unsafe impl Send for Steward {}
// SAFETY: as above.
unsafe impl Sync for Steward {}

impl Steward {
    /// `guest_address`: where the area is in the guest. `tid`: the steward's, as the guest counts.
    ///
    /// # Safety
    /// `area` is mapped shared with the guest, zeroed or as a former `Steward` left it, and
    /// stays mapped and used by nobody else while this lives.
    pub unsafe fn new(
        area: NonNull<StewardArea>,
        guest_address: u64,
        tid: i32,
        pidfd: OwnedFd,
    ) -> Self {
        Steward { area, guest_address, tid, pidfd, turn: Mutex::new(()) }
    }

    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// A pidfd of the guest.
    pub fn guest(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Guest address of byte `offset` of the data that [`Steward::run`] takes along.
    pub fn data_address(&self, offset: usize) -> u64 {
        self.guest_address + (std::mem::offset_of!(StewardArea, data) + offset) as u64
    }

    /// Executes `ops` in the guest, in order; their results stand in them afterwards.
    /// At most 16 ops and 2048 bytes of data, or this panics. A guest whose steward does not
    /// answer, which is the guest's doing, is ended.
    pub fn run(&self, ops: &mut [BatchOp], data: &[u8]) -> Result<(), GuestGone> {
        let _turn = self.turn.lock();
        self.execute(ops, data)
    }

    /// The same, with the data as the calls left it.
    pub fn run_with(&self, ops: &mut [BatchOp], data: &mut [u8]) -> Result<(), GuestGone> {
        let _turn = self.turn.lock();
        self.execute(ops, data)?;
        let area = self.area.as_ptr();
        // SAFETY: the steward has answered and sleeps, and we have `turn`.
        data.copy_from_slice(unsafe { &(&(*area).data)[..data.len()] });
        Ok(())
    }

    /// With `turn` held.
    fn execute(&self, ops: &mut [BatchOp], data: &[u8]) -> Result<(), GuestGone> {
        let area = self.area.as_ptr();
        // SAFETY: the steward sleeps until `request` moves, so with `turn` held the page is
        // ours; the pointers stay inside the area (slices are bounds-checked).
        unsafe {
            (&mut (*area).ops)[..ops.len()].copy_from_slice(ops);
            (&mut (*area).data)[..data.len()].copy_from_slice(data);
            (*area).count = ops.len() as u32;
        }
        let (request, answered) = self.words();
        let number = request.load(Ordering::Relaxed).wrapping_add(1);
        request.store(number, Ordering::Release);
        futex_wake(request);
        let mut looks = 0;
        loop {
            let seen = answered.load(Ordering::Acquire);
            if seen == number {
                break;
            }
            futex_wait(answered, seen);
            if answered.load(Ordering::Acquire) == number {
                continue;
            }
            if self.guest_ended() {
                return Err(GuestGone);
            }
            looks += u32::from(!self.is_stopped());
            if looks > LOOKS_MAX {
                tracing::error!(tid = self.tid, "the steward does not answer: its guest is ended");
                self.end_guest();
                return Err(GuestGone);
            }
        }
        // SAFETY: the steward has answered and sleeps again.
        unsafe { ops.copy_from_slice(&(&(*area).ops)[..ops.len()]) };
        Ok(())
    }

    fn words(&self) -> (&AtomicU32, &AtomicU32) {
        let area = self.area.as_ptr();
        // SAFETY: both words are aligned, live as long as `self`, and only accessed atomically.
        unsafe {
            (
                AtomicU32::from_ptr(&raw mut (*area).request),
                AtomicU32::from_ptr(&raw mut (*area).answered),
            )
        }
    }

    /// As a stopped process's threads are, until it is continued.
    fn is_stopped(&self) -> bool {
        let read = |file: String| std::fs::read_to_string(file).unwrap_or_default();
        let info = read(format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd()));
        let Some(pid) = fields(&info, "Pid:").next().and_then(|pid| pid.parse().ok()) else {
            return false;
        };
        let ours = self.tid.to_string();
        let tids = tcmi_sys::proc::tids(pid).unwrap_or_default();
        let status = tids.iter().map(|tid| read(format!("/proc/{pid}/task/{tid}/status")));
        status
            .filter(|status| fields(status, "NSpid:").last() == Some(ours.as_str()))
            .any(|status| matches!(fields(&status, "State:").next(), Some("T" | "t")))
    }

    fn end_guest(&self) {
        let (fd, no_info) = (self.pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: plain call; it fails only when the guest is gone.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, no_info, 0) };
    }

    fn guest_ended(&self) -> bool {
        let mut poll =
            libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }
}

fn fields<'a>(status: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    line.unwrap_or_default().split_ascii_whitespace()
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: wakes by address only. Not private: the waiter is another process.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Returns early for any reason; the caller looks again.
fn futex_wait(word: &AtomicU32, seen: u32) {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: ALIVE_CHECK_NS };
    // SAFETY: `word` and `timeout` outlive the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &timeout) };
}
