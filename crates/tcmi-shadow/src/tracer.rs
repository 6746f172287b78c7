//! A guest's threads are traced for as long as it is here, by one OS thread. So no signal ends a
//! call that is still on its way to a worker, whoever sent it; and workers, who trace nobody, have
//! threads stopped when an answer is right only for one that stops.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tcmi_call::abi::UserRegs;
use tcmi_ckpt::freeze::{self, Frozen};
use tcmi_sys::errno::{Errno, Result};
use tcmi_sys::ptrace::{self, Running, Stop, Stopped, Waited};

use crate::callers::Callers;

mod led;
mod orders;

use led::Led;
pub(crate) use orders::Closed;
use orders::Order;
pub use orders::Orders;

/// Between two looks whether the guest can be held.
const CLOSE_STEP: Duration = Duration::from_millis(10);

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
    newborn: Option<Newborn>,
    held: Vec<Stopped>,
}

/// A thread that a guest's kernel has begun, and that is not let go.
#[derive(Debug)]
struct Newborn {
    tid: i32,
    /// Registers and mask of the one that began it, if that was led.
    like: Option<(UserRegs, u64)>,
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
        let orders = Arc::new(Orders::to_this_thread());
        let (threads, led, newborn, held) = Default::default();
        Ok(Self { pid, callers, orders, news, threads, led, newborn, held })
    }

    pub fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// These are traced by this OS thread, with [`freeze::GUEST_OPTIONS`].
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

    /// Until nothing is under way for which the guest has to run, and be served; then nobody is
    /// waited for.
    pub fn close(&mut self) -> Result<()> {
        loop {
            // One that waits in a call which it is led through stops, too.
            for tid in self.led.keys() {
                Running::attached_by_kernel(*tid).interrupt()?;
            }
            self.turn()?;
            if self.led.is_empty() && self.orders.close() {
                return Ok(());
            }
            self.wait(CLOSE_STEP);
        }
    }

    /// After a return that failed.
    pub fn open(&self) {
        self.orders.open();
    }

    /// The guest ends: nobody is to wait.
    pub fn end(&self) {
        self.orders.end();
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
        let mut frozen = freeze::settle_guest(self.pid, told, &before)?;
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
        while let Some(order) = self.orders.next() {
            let obeyed = match order {
                Order::Interrupt(tid) => Running::attached_by_kernel(tid).interrupt(),
                Order::Lead(tid, by) => {
                    self.led.insert(tid, Led::Told(by));
                    Running::attached_by_kernel(tid).interrupt()
                }
                Order::LetGo => {
                    self.newborn = None;
                    self.held.drain(..).try_for_each(|thread| thread.cont(0).map(drop))
                }
            };
            self.orders.done();
            match obeyed {
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, tid: i32, waited: Waited) -> Result<()> {
        let (thread, stop) = match waited {
            Waited::Stopped(thread, stop) => (thread, stop),
            Waited::Ended(_) => {
                self.threads.remove(&tid);
                self.led_no_more(tid);
                self.orders.called(tid);
                return Ok(());
            }
        };
        if let Some(led) = self.led.remove(&tid) {
            return self.lead(thread, stop, led);
        }
        match stop {
            Stop::Signal(signal) => {
                // A `clone` that a signal stopped is made again behind it.
                self.orders.called(tid);
                set_back(&self.callers, &thread, signal)?;
                thread.cont(signal).map(drop)
            }
            Stop::Group(_) => {
                self.orders.called(tid);
                thread.listen().map(drop)
            }
            Stop::Event(libc::PTRACE_EVENT_CLONE) => {
                let child = self.bore(&thread)?;
                self.orders.bore(Some(child));
                self.held.push(thread);
                Ok(())
            }
            // A new one, which is let go when it can be served.
            Stop::Interrupt if !self.threads.contains(&tid) || self.is_newborn(tid) => {
                self.held.push(thread);
                self.dress()
            }
            _ => {
                // Of one whose `clone` has failed.
                self.orders.called(tid);
                thread.cont(0).map(drop)
            }
        }
    }

    /// Notes the thread that `parent` has begun.
    fn bore(&mut self, parent: &Stopped) -> Result<i32> {
        let child = parent.event_message()? as i32;
        self.threads.insert(child);
        self.newborn = Some(Newborn { tid: child, like: None });
        Ok(child)
    }

    fn is_newborn(&self, tid: i32) -> bool {
        self.newborn.as_ref().is_some_and(|newborn| newborn.tid == tid)
    }

    /// Both threads of a birth that was led find what a `clone3` leaves.
    fn dress(&mut self) -> Result<()> {
        let Some(Newborn { tid, like: Some((like, mask)) }) = &self.newborn else { return Ok(()) };
        let Some(thread) = self.held.iter().find(|held| held.tid() == *tid) else { return Ok(()) };
        let UserRegs { rdi, rsi, rdx, r10, r8, .. } = *like;
        thread.set_regs(&UserRegs { rdi, rsi, rdx, r10, r8, ..thread.regs()? })?;
        thread.set_sigmask(*mask)?;
        self.orders.bore(Some(*tid));
        Ok(())
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
