//! A guest's threads are traced for as long as it is here, by one OS thread. So no signal ends a
//! call that is still on its way to a worker, whoever sent it; and workers, who trace nobody, have
//! threads stopped when an answer is right only for one that stops.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tcmi_call::abi::UserRegs;
use tcmi_ckpt::freeze::{self, Frozen, GUEST_OPTIONS};
use tcmi_sys::errno::{Errno, Result};
use tcmi_sys::ptrace::{self, Running, Stop, Stopped, Waited};

use crate::callers::Callers;

/// From the answer to the new thread; the kernel needs some 50 us. A call that fails shows nowhere,
/// so the wait has to have an end.
const BIRTH_MAX: Duration = Duration::from_millis(100);
/// Between two looks whether the guest can be held.
const CLOSE_STEP: Duration = Duration::from_millis(10);

const SYSCALL_INSN_BYTES: u64 = 2;
const ERESTARTNOHAND: i64 = -514;

/// The guest is being held, or has ended: its threads are told by whoever does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

#[derive(Clone, Copy, Debug)]
enum Order {
    /// Has a thread stop when it next can.
    Interrupt(i32),
    Lead(i32, Suspension),
    /// What a birth holds.
    LetGo,
}

/// A call that lets a signal in by a mask of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspension {
    pub(crate) nr: u32,
    /// Address of the mask in the guest.
    pub(crate) mask: u64,
}

/// A `clone` that the guest's kernel makes now. Both threads are held when it has begun one.
#[derive(Debug)]
struct Birth {
    /// Some(None): it has begun none.
    outcome: Option<Option<i32>>,
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
    /// Thread whose `clone` is made now; 0: none.
    bearing: AtomicI32,
}

impl Orders {
    /// The next stop of thread `tid` comes before it is back in its program.
    pub(crate) fn interrupt(&self, tid: i32) -> std::result::Result<(), Closed> {
        self.give(Order::Interrupt(tid))
    }

    /// A thread whose call is answered EINTR next is led through an `rt_sigsuspend` with the mask
    /// that the program gave: only the thread itself can exchange its mask so that a handler
    /// restores the old one. Its return is then made to look like the call's own.
    pub(crate) fn lead(&self, tid: i32, by: Suspension) -> std::result::Result<(), Closed> {
        self.give(Order::Lead(tid, by))
    }

    /// Whether what the thread calls now is not its program's.
    pub(crate) fn is_led(&self, tid: i32) -> bool {
        self.state.lock().led.contains(&tid)
    }

    /// `let_it` has the guest's kernel make the `clone` of thread `by`. Some: the new thread, held
    /// as `by` is until [`Orders::let_go`]. None: it began none; the call has failed, or is made
    /// again behind a signal.
    pub(crate) fn bear(
        &self,
        by: i32,
        let_it: impl FnOnce() -> io::Result<()>,
    ) -> std::result::Result<io::Result<Option<i32>>, Closed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        state.birth = Some(Birth { outcome: None });
        self.bearing.store(by, Ordering::Release);
        drop(state);
        let let_go = let_it();
        let mut state = self.state.lock();
        while let_go.is_ok() && !state.closed && state.birth.as_ref().is_some_and(Birth::is_open) {
            if self.changed.wait_for(&mut state, BIRTH_MAX).timed_out() {
                // On its way back from a call that failed: it shows itself by this.
                state.queue.push_back(Order::Interrupt(by));
                state.given += 1;
                self.ring();
            }
        }
        let child = state.birth.as_ref().and_then(|birth| birth.outcome.flatten());
        if child.is_none() {
            state.birth = None;
            self.bearing.store(0, Ordering::Release);
        }
        Ok(let_go.map(|()| child))
    }

    pub(crate) fn let_go(&self) {
        // Nobody is held of a guest that has ended.
        self.give(Order::LetGo).ok();
    }

    /// A worker has a call of thread `tid`.
    pub(crate) fn called(&self, tid: i32) {
        // Of one whose `clone` began a thread there is none before it is let go.
        if self.bearing.load(Ordering::Acquire) == tid {
            self.bore(None);
        }
    }

    fn bore(&self, child: Option<i32>) {
        let mut state = self.state.lock();
        if let Some(birth) = state.birth.as_mut().filter(|birth| birth.is_open()) {
            birth.outcome = Some(child);
            self.changed.notify_all();
        }
    }

    fn give(&self, order: Order) -> std::result::Result<(), Closed> {
        let mut state = self.state.lock();
        state.queue.push_back(order);
        state.given += 1;
        let mine = state.given;
        self.ring();
        while state.done < mine && !state.closed {
            self.changed.wait(&mut state);
        }
        if state.done < mine { Err(Closed) } else { Ok(()) }
    }

    /// The kernel wakes the tracer by the same signal.
    fn ring(&self) {
        // SAFETY: a signal that is blocked, to a thread of our own; ESRCH when it has ended.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.tracer, libc::SIGCHLD) };
    }
}

impl Birth {
    fn is_open(&self) -> bool {
        self.outcome.is_none()
    }
}

/// A thread on its way through an `rt_sigsuspend`.
#[derive(Debug)]
enum Led {
    /// Told to stop; its call is answered.
    Told(Suspension),
    /// Registers to go on with.
    Enters(UserRegs),
    Leaves(UserRegs),
}

/// All of it happens in the OS thread that made it: the kernel ties a traced thread to one.
pub struct Tracer {
    pid: i32,
    callers: Arc<Callers>,
    orders: Arc<Orders>,
    /// Of SIGCHLD.
    news: OwnedFd,
    threads: BTreeSet<i32>,
    led: HashMap<i32, Led>,
    /// Of a birth.
    held: Vec<Stopped>,
}

impl AsFd for Tracer {
    /// Readable when there is something to do for [`Tracer::turn`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl Tracer {
    /// Of guest `pid`, as it is called here. Blocks SIGCHLD in this OS thread, and so in those that
    /// it begins; no other thread of this process may have it unblocked.
    pub fn new(pid: i32, callers: Arc<Callers>) -> Result<Self> {
        let news = sigchld()?;
        let orders = Orders {
            // SAFETY: no arguments, no failure.
            tracer: unsafe { libc::gettid() },
            state: Mutex::default(),
            changed: Condvar::new(),
            bearing: AtomicI32::new(0),
        };
        let (threads, led, held) = Default::default();
        Ok(Self { pid, callers, orders: Arc::new(orders), news, threads, led, held })
    }

    pub fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// These are traced by this OS thread, with [`GUEST_OPTIONS`].
    pub fn adopt(&mut self, threads: impl IntoIterator<Item = i32>) {
        self.threads.extend(threads);
    }

    /// Does what there is to do. Nothing in it waits.
    pub fn turn(&mut self) -> Result<()> {
        self.quiet();
        self.obey()?;
        while let Some((tid, waited)) = ptrace::try_wait_any_but_end_of(self.pid)? {
            match self.take(tid, waited) {
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Until nothing is under way for which the guest has to run; then nobody is waited for.
    pub fn close(&mut self) -> Result<()> {
        for tid in self.led.keys() {
            Running::attached_by_kernel(*tid).interrupt()?;
        }
        loop {
            self.turn()?;
            {
                let mut state = self.orders.state.lock();
                if state.closed || (state.birth.is_none() && self.led.is_empty()) {
                    self.orders.shut(&mut state);
                    return Ok(());
                }
            }
            self.wait(CLOSE_STEP);
        }
    }

    /// After a return that failed.
    pub fn open(&self) {
        self.orders.state.lock().closed = false;
    }

    /// The guest ends: nobody is to wait.
    pub fn end(&self) {
        self.orders.shut(&mut self.orders.state.lock());
    }

    /// Tells all threads to stop.
    pub fn interrupt_all(&self) -> Result<Vec<Running>> {
        let all: Vec<_> = self.threads.iter().copied().map(Running::attached_by_kernel).collect();
        all.iter().try_for_each(Running::interrupt)?;
        Ok(all)
    }

    /// Waits for their stops. Calls that no worker had taken are set back to their beginning.
    ///
    /// Err: they run on.
    pub fn freeze(&mut self, told: Vec<Running>) -> tcmi_ckpt::Result<Frozen> {
        let callers = &self.callers;
        let before = |thread: &Stopped, signal| set_back(callers, thread, signal);
        let mut frozen = freeze::settle_all(self.pid, told, GUEST_OPTIONS, &before)?;
        for thread in &mut frozen.threads {
            self.callers.set_back_held(thread);
        }
        Ok(frozen)
    }

    fn wait(&self, time: Duration) {
        let events = libc::POLLIN;
        let mut news = libc::pollfd { fd: self.news.as_raw_fd(), events, revents: 0 };
        // SAFETY: one live pollfd. Whatever it returns, the caller looks again.
        unsafe { libc::poll(&mut news, 1, time.as_millis() as i32) };
    }

    fn quiet(&self) {
        let mut told = [0u8; size_of::<libc::signalfd_siginfo>()];
        // One of this thread and one of the process may wait.
        // SAFETY: room for one signal; EAGAIN when there is none.
        while unsafe { libc::read(self.news.as_raw_fd(), told.as_mut_ptr().cast(), told.len()) > 0 }
        {
        }
    }

    fn obey(&mut self) -> Result<()> {
        loop {
            let orders = Arc::clone(&self.orders);
            let mut state = orders.state.lock();
            let Some(order) = state.queue.pop_front() else { return Ok(()) };
            let obeyed = match order {
                Order::Interrupt(tid) => Running::attached_by_kernel(tid).interrupt(),
                Order::Lead(tid, by) => {
                    state.led.push(tid);
                    self.led.insert(tid, Led::Told(by));
                    Running::attached_by_kernel(tid).interrupt()
                }
                Order::LetGo => {
                    state.birth = None;
                    orders.bearing.store(0, Ordering::Release);
                    self.held.drain(..).try_for_each(|thread| thread.cont(0).map(drop))
                }
            };
            state.done += 1;
            orders.changed.notify_all();
            match obeyed {
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
        }
    }

    fn take(&mut self, tid: i32, waited: Waited) -> Result<()> {
        let (thread, stop) = match waited {
            Waited::Stopped(thread, stop) => (thread, stop),
            Waited::Ended(_) => {
                self.threads.remove(&tid);
                self.is_led_no_more(tid);
                self.orders.called(tid);
                return Ok(());
            }
        };
        match stop {
            Stop::Signal(signal) => self.signal(thread, signal),
            Stop::Group(_) => {
                self.orders.called(tid);
                thread.listen().map(drop)
            }
            Stop::Event(libc::PTRACE_EVENT_CLONE) => self.began(thread),
            // A new one, which is let go when it can be served.
            Stop::Interrupt if !self.threads.contains(&tid) || self.is_newborn(tid) => {
                self.held.push(thread);
                Ok(())
            }
            _ => self.step(thread, stop),
        }
    }

    fn signal(&mut self, thread: Stopped, signal: i32) -> Result<()> {
        let tid = thread.tid();
        // A `clone` that a signal stopped is made again behind it.
        self.orders.called(tid);
        match self.is_led_no_more(tid) {
            // A signal got through on the thread's own mask.
            Some(Led::Enters(back) | Led::Leaves(back)) => thread.set_regs(&back)?,
            Some(Led::Told(_)) => {}
            None => set_back(&self.callers, &thread, signal)?,
        }
        thread.cont(signal).map(drop)
    }

    fn began(&mut self, parent: Stopped) -> Result<()> {
        let child = parent.event_message()? as i32;
        self.threads.insert(child);
        if self.orders.bearing.load(Ordering::Acquire) != parent.tid() {
            tracing::error!(parent = parent.tid(), child, "a thread that nobody asked for");
        }
        self.orders.bore(Some(child));
        self.held.push(parent);
        Ok(())
    }

    fn is_newborn(&self, tid: i32) -> bool {
        let state = self.orders.state.lock();
        state.birth.as_ref().is_some_and(|birth| birth.outcome == Some(Some(tid)))
    }

    /// A stop that is nobody's, or one on the way of a thread that is led.
    fn step(&mut self, thread: Stopped, stop: Stop) -> Result<()> {
        let tid = thread.tid();
        match (self.led.remove(&tid), stop) {
            (Some(Led::Told(by)), Stop::Interrupt) => {
                let regs = thread.regs()?;
                let back =
                    UserRegs { orig_rax: u64::from(by.nr), rax: ERESTARTNOHAND as u64, ..regs };
                thread.set_regs(&UserRegs {
                    rax: libc::SYS_rt_sigsuspend as u64,
                    // Not the way out of a call, as far as restarts are concerned.
                    orig_rax: u64::MAX,
                    rdi: by.mask,
                    rsi: 8,
                    rip: regs.rip - SYSCALL_INSN_BYTES,
                    ..regs
                })?;
                self.led.insert(tid, Led::Enters(back));
                thread.to_syscall(0).map(drop)
            }
            (Some(Led::Enters(back)), Stop::Syscall) => {
                self.led.insert(tid, Led::Leaves(back));
                thread.to_syscall(0).map(drop)
            }
            (Some(Led::Enters(back) | Led::Leaves(back)), _) => {
                self.is_led_no_more(tid);
                thread.set_regs(&back)?;
                thread.cont(0).map(drop)
            }
            (Some(told), _) => {
                self.led.insert(tid, told);
                thread.cont_to_stop().map(drop)
            }
            (None, _) => {
                // Of one whose `clone` has failed.
                self.orders.called(tid);
                thread.cont(0).map(drop)
            }
        }
    }

    fn is_led_no_more(&mut self, tid: i32) -> Option<Led> {
        self.orders.state.lock().led.retain(|led| *led != tid);
        self.led.remove(&tid)
    }
}

impl Orders {
    fn shut(&self, state: &mut State) {
        state.closed = true;
        state.queue.clear();
        self.changed.notify_all();
    }
}

/// Before a signal is delivered.
fn set_back(callers: &Callers, thread: &Stopped, signal: i32) -> Result<()> {
    let regs = thread.regs()?;
    match callers.set_back(thread.tid(), &regs, signal) {
        Some(back) => thread.set_regs(&back),
        None => Ok(()),
    }
}

fn sigchld() -> Result<OwnedFd> {
    // SAFETY: a signal set that sigemptyset fills in, and a new descriptor that nobody else has.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(Errno::last("signalfd")),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
