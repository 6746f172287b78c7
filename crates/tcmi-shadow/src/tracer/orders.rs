//! What workers ask of the tracer, and wait for.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::led::By;
use crate::clone3::Clone;

/// From the answer to the new thread; the kernel needs some 50 us. A call that fails shows nowhere,
/// so the wait has to have an end.
const BIRTH_MAX: Duration = Duration::from_millis(100);

/// The guest is being held, or has ended: its threads are told by whoever does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

type Result<T> = std::result::Result<T, Closed>;

#[derive(Debug)]
pub(super) enum Order {
    /// Has a thread stop when it next can.
    Interrupt(i32),
    Lead(i32, By),
    /// What a birth holds.
    LetGo,
}

/// A thread that the guest's kernel begins now. It is held when it is there, as is the one that
/// began it.
#[derive(Debug, Default)]
struct Birth {
    /// Some(None): there is none.
    outcome: Option<Option<i32>>,
}

impl Birth {
    fn is_open(&self) -> bool {
        self.outcome.is_none()
    }
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    queue: VecDeque<Order>,
    given: u64,
    done: u64,
    birth: Option<Birth>,
    led: Vec<i32>,
}

/// What workers ask of the tracer.
#[derive(Debug)]
pub struct Orders {
    /// OS thread of the tracer.
    tracer: i32,
    state: Mutex<State>,
    changed: Condvar,
    /// Thread that makes a `clone` now, and shows by any other call that it failed; 0: none.
    bearing: AtomicI32,
}

impl Orders {
    pub(super) fn to_this_thread() -> Self {
        Self {
            // SAFETY: no arguments, no failure.
            tracer: unsafe { libc::gettid() },
            state: Mutex::default(),
            changed: Condvar::new(),
            bearing: AtomicI32::new(0),
        }
    }

    /// The next stop of thread `tid` comes before it is back in its program.
    pub(crate) fn interrupt(&self, tid: i32) -> Result<()> {
        self.give(self.state.lock(), Order::Interrupt(tid)).map(drop)
    }

    /// A thread whose call `nr` is answered EINTR next is led through an `rt_sigsuspend` with the
    /// mask at `mask`: only the thread itself can exchange its mask so that a handler restores the
    /// old one. Its return is then made to look like the call's own.
    pub(crate) fn suspend(&self, tid: i32, nr: u32, mask: u64) -> Result<()> {
        let by = By::Suspension { nr, mask };
        let mut state = self.give(self.state.lock(), Order::Lead(tid, by))?;
        state.led.push(tid);
        Ok(())
    }

    /// Whether what the thread calls now is not its program's.
    pub(crate) fn is_led(&self, tid: i32, nr: u32) -> bool {
        const THROUGH: [i64; 2] = [libc::SYS_rt_sigsuspend, libc::SYS_clone];
        THROUGH.contains(&i64::from(nr)) && self.state.lock().led.contains(&tid)
    }

    /// `let_it` has the guest's kernel make the `clone` of thread `by`. Some: the new thread, held
    /// as `by` is until [`Orders::let_go`]. None: it began none; the call has failed, or is made
    /// again behind a signal.
    pub(crate) fn bear(
        &self,
        by: i32,
        let_it: impl FnOnce() -> io::Result<()>,
    ) -> Result<io::Result<Option<i32>>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        state.birth = Some(Birth::default());
        self.bearing.store(by, Ordering::Release);
        drop(state);
        Ok(let_it().map(|()| self.born(by)))
    }

    /// The same of a `clone3`: when `let_it` has answered it to be made again, its thread makes
    /// `call` instead.
    pub(crate) fn bear_led(
        &self,
        by: i32,
        call: Clone,
        let_it: impl FnOnce() -> io::Result<()>,
    ) -> Result<io::Result<Option<i32>>> {
        let mut state = self.state.lock();
        state.birth = Some(Birth::default());
        state.led.push(by);
        if self.give(state, Order::Lead(by, By::Clone(call))).map(drop).is_err() {
            self.led_no_more(by);
            self.state.lock().birth = None;
            return Err(Closed);
        }
        Ok(let_it().map(|()| self.born(by)))
    }

    fn born(&self, by: i32) -> Option<i32> {
        let mut state = self.state.lock();
        while !state.closed && state.birth.as_ref().is_some_and(Birth::is_open) {
            if self.changed.wait_for(&mut state, BIRTH_MAX).timed_out() {
                // On its way back from a call that failed: it shows itself by this.
                self.put(&mut state, Order::Interrupt(by));
            }
        }
        let child = state.birth.as_ref().and_then(|birth| birth.outcome.flatten());
        if child.is_none() {
            state.birth = None;
            self.bearing.store(0, Ordering::Release);
        }
        child
    }

    pub(crate) fn let_go(&self) {
        // Nobody is held of a guest that has ended.
        if let Ok(mut state) = self.give(self.state.lock(), Order::LetGo) {
            state.birth = None;
            self.bearing.store(0, Ordering::Release);
        }
    }

    /// A worker has a call of thread `tid`.
    pub(crate) fn called(&self, tid: i32) {
        // Of one whose `clone` began a thread there is none before it is let go.
        if self.bearing.load(Ordering::Acquire) == tid {
            self.bore(None);
        }
    }

    pub(super) fn bore(&self, child: Option<i32>) {
        let mut state = self.state.lock();
        if let Some(birth) = state.birth.as_mut().filter(|birth| birth.is_open()) {
            birth.outcome = Some(child);
            self.changed.notify_all();
        }
    }

    pub(super) fn led_no_more(&self, tid: i32) {
        self.state.lock().led.retain(|led| *led != tid);
    }

    pub(super) fn next(&self) -> Option<Order> {
        self.state.lock().queue.pop_front()
    }

    /// The last one that [`Orders::next`] gave.
    pub(super) fn done(&self) {
        self.state.lock().done += 1;
        self.changed.notify_all();
    }

    /// False: there is something that has to be waited for.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        if !state.closed && (state.birth.is_some() || !state.queue.is_empty()) {
            return false;
        }
        state.closed = true;
        true
    }

    pub(super) fn open(&self) {
        self.state.lock().closed = false;
    }

    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.queue.clear();
        self.changed.notify_all();
    }

    fn put(&self, state: &mut State, order: Order) {
        state.queue.push_back(order);
        state.given += 1;
        // SAFETY: a signal that is blocked, to a thread of our own, which the kernel wakes by the
        // same one; ESRCH when it has ended.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.tracer, libc::SIGCHLD) };
    }

    /// Until it is done.
    fn give<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        order: Order,
    ) -> Result<MutexGuard<'a, State>> {
        if state.closed {
            return Err(Closed);
        }
        self.put(&mut state, order);
        let mine = state.given;
        while state.done < mine && !state.closed {
            self.changed.wait(&mut state);
        }
        if state.done < mine { Err(Closed) } else { Ok(state) }
    }
}
