//! A shadow thread for a thread that its guest begins.

use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tcmi_call::abi::{THREAD_STACK_BYTES, ThreadArea};
use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::descriptors::{Beyond, Way};
use tcmi_ckpt::freeze::{Frozen, OPTIONS, Thread, settle};
use tcmi_ckpt::image::ProcessImage;
use tcmi_ckpt::rebuild::Batcher;
use tcmi_ckpt::remote::Ids;
use tcmi_ckpt::{Error, Result};
use tcmi_sys::ptrace::{Running, Stop, Waited};
use tcmi_sys::{memory, proc, signal};

use super::arm::write_thread_area;
use super::{Shadow, StreamAt};

/// Where a shadow thread has its area and its descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) area: u64,
    pub(super) fd: i32,
}

/// Longest that a thread which was told to end may take.
const END_MAX: Duration = Duration::from_secs(5);
const END_LOOK_INTERVAL: Duration = Duration::from_micros(200);

const FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_CHILD_SETTID;

impl Shadow {
    /// Err: not for one thread more.
    pub fn has_room(&self) -> Result<()> {
        self.free_seat().map(drop)
    }

    fn free_seat(&self) -> Result<Seat> {
        let full = || Error::unsupported("it began more threads than there is room for");
        self.free.last().copied().ok_or_else(full)
    }

    /// Has the shadow of thread `by` begin another, which serves `socket`; its id.
    ///
    /// Err: there is none. It has ended, or has no room for one more.
    pub fn begin_thread(
        &mut self,
        by: i32,
        socket: OwnedFd,
        (tx, rx): (DirectionKeys, DirectionKeys),
    ) -> Result<i32> {
        let seat = self.free_seat()?;
        let stream = StreamAt { fd: seat.fd, tx, rx };
        let running = self.running.remove(&by).ok_or(Error::Ended)?;
        running.interrupt()?;
        let (mut t, group) = settle(running)?.ok_or(Error::Ended)?;
        self.missed.extend(self.job.at_stop(group));
        t.stopped()?.set_options(OPTIONS | libc::PTRACE_O_TRACECLONE)?;
        let born = self.clone_in(&mut t, seat.area, socket, stream);
        // Whatever came of it, it goes on as it was first.
        t.stopped()?.set_options(OPTIONS)?;
        t.own_again()?;
        let s = t.take()?;
        let going = if group.is_some() { s.listen()? } else { s.cont(0)? };
        self.running.insert(by, going);
        let tid = born?;
        self.free.pop();
        self.passing += 1;
        self.seats.insert(tid, seat);
        if let Some(cores) = self.cores.get(&by).copied() {
            self.cores.insert(tid, cores);
        }
        let child = Running::attached_by_kernel(tid);
        let (mut child, group) = settle(child)?.ok_or(Error::Ended)?;
        let s = child.take()?;
        s.set_options(OPTIONS)?;
        s.set_sigmask(signal::ALL)?;
        self.running.insert(tid, if group.is_some() { s.listen()? } else { s.cont(0)? });
        Ok(tid)
    }

    /// The new thread is traced and stopped, and would find its way alone.
    fn clone_in(
        &self,
        t: &mut Thread,
        area: u64,
        socket: OwnedFd,
        stream: StreamAt,
    ) -> Result<i32> {
        let mut mask = [0; 8];
        let own = self.area(t.tid)? + offset_of!(ThreadArea, mask) as u64;
        memory::read(self.pid, own, &mut mask)?;
        write_thread_area(self.pid, area, self.places.proc_area, u64::from_le_bytes(mask), stream)?;
        let begun = area + offset_of!(ThreadArea, begun) as u64;
        memory::write(self.pid, begun, &1u32.to_le_bytes())?;
        let stack = area + offset_of!(ThreadArea, stack) as u64;
        let top = ((stack + THREAD_STACK_BYTES as u64) & !15) - 16;
        memory::write(self.pid, top, &area.to_le_bytes())?;
        let ids = Ids { tgid: self.pid, tid: t.tid };
        let mut b = Batcher::new(&self.places.agent, t, self.pid, ids);
        let passed = Way::with(&mut b, |b, way| way.pass(b, &[socket]))?;
        let (low, fd) = (passed[0] as u64, stream.fd as u64);
        let (soft, hard) = proc::limit(self.pid, libc::RLIMIT_NOFILE)?;
        let mut put = 0;
        let beyond = Beyond { soft, hard, end: soft.max(fd + 1) };
        let results = beyond.calls(&mut b, |b| {
            put = b.attempt("dup3", libc::SYS_dup3, [low, fd, libc::O_CLOEXEC as u64, 0, 0, 0])?;
            b.attempt("close", libc::SYS_close, [low, 0, 0, 0, 0, 0]).map(drop)
        })?;
        if results.ret(put) < 0 {
            return Err(Error::Remote { what: "dup3", errno: -results.ret(put) as i32 });
        }
        let tid_at = area + offset_of!(ThreadArea, tid) as u64;
        let args = [FLAGS as u64, top, 0, tid_at, 0, 0];
        let clone = b.push("clone", libc::SYS_clone, args)?;
        Ok(b.flush()?.ret(clone) as i32)
    }

    /// Lets the threads that the guest has no more do what they were told, which is to end.
    ///
    /// Err: the guest has others than these.
    pub fn let_end(&mut self, f: &mut Frozen, image: &ProcessImage) -> Result<()> {
        let until = Instant::now() + END_MAX;
        let mut i = 0;
        while let Some(t) = f.threads.get_mut(i) {
            if image.threads.iter().any(|own| own.tid == t.tid) {
                i += 1;
                continue;
            }
            t.own_again()?;
            let mut running = t.take()?.cont(0)?;
            let tid = t.tid;
            loop {
                match running.try_wait()? {
                    Ok(Waited::Ended(_)) => break,
                    Ok(Waited::Stopped(s, Stop::Signal(sig))) => running = s.cont(sig)?,
                    Ok(Waited::Stopped(s, _)) => running = s.cont(0)?,
                    Err(still) if Instant::now() < until => {
                        running = still;
                        std::thread::sleep(END_LOOK_INTERVAL);
                    }
                    Err(still) => {
                        still.interrupt()?;
                        let (held, _) = settle(still)?.ok_or(Error::Ended)?;
                        *t = held;
                        return Err(Error::Image("not all threads that home has"));
                    }
                }
            }
            f.threads.remove(i);
            self.left(tid);
        }
        match image.threads.len() {
            n if n == f.threads.len() => Ok(()),
            _ => Err(Error::Image("threads that home has not")),
        }
    }

    /// The thread has ended: its seat is free.
    pub(super) fn left(&mut self, tid: i32) {
        self.cores.remove(&tid);
        self.free.extend(self.seats.remove(&tid));
    }
}
