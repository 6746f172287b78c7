//! `process_vm_readv` and `process_vm_writev` of another process. Where that is at home, its
//! memory is what the shadow's own call reaches; where it is away, home asks its node.
//!
//! Whether it may be done is for home's kernel to say, by a call of the shadow on the other one.

use tcmi_call::engine::GuestMemory;
use tcmi_call::table::errno::{EAGAIN, EFAULT, EINVAL, EPERM, Errno};
use tcmi_ckpt::reach::{Access, Found, PIECE_BYTES_MAX};
use tcmi_sys::seccomp::{Answer, Notification};

use crate::calls::Shared;
use crate::memory::{MOVED_MAX, ProcessMemory, iovecs};
use crate::stream::StreamError;
use crate::worker::{Halt, OWN_BASE, Outcome, Thread, returned};

/// Nobody has memory there.
const NOWHERE: u64 = 16;

pub(crate) fn serve(
    shared: &Shared,
    thread: &mut Thread,
    notif: &Notification,
) -> Result<Outcome, StreamError> {
    if shared.called_at_home(notif.args[0] as i32).is_some() {
        return Ok(Outcome::Answer(Answer::Continue));
    }
    match move_all(shared, thread, notif) {
        Ok(moved) => Ok(returned(moved as i64)),
        // Again: what was moved is moved once more.
        Err(halt) => halt.outcome(),
    }
}

/// In the order in which the kernel finds what is wrong.
fn move_all(shared: &Shared, thread: &mut Thread, notif: &Notification) -> Result<u64, Halt> {
    let [pid, here, here_count, there, there_count, flags] = notif.args;
    let mut mem = ProcessMemory { pid: notif.tid, writable: &shared.writable };
    if flags != 0 {
        return Err(Halt::Errno(EINVAL));
    }
    // Of this count, and not of the other, kernels take the lower half.
    let mut here = Spans::read(&mut mem, here, u64::from(here_count as u32))?;
    here.left = here.left.min(MOVED_MAX);
    if here.left == 0 {
        return Ok(0);
    }
    let mut there = Spans::read(&mut mem, there, there_count)?;
    if there.left == 0 {
        return Ok(0);
    }
    let writes = i64::from(notif.nr) == libc::SYS_process_vm_writev;
    let mut other = Other::find(shared, thread, pid as i32)?;
    let mut all = 0;
    while here.left > 0
        && let Some((addr, len)) = there.take(here.left.min(PIECE_BYTES_MAX as u64))
    {
        let moved = match writes {
            true => {
                let bytes = here.gather(&mut mem, len);
                other.write(addr, bytes)?
            }
            false => {
                let bytes = other.read(addr, len)?;
                here.scatter(&mut mem, &bytes)
            }
        };
        all += moved;
        if moved < len {
            break;
        }
    }
    if all == 0 { Err(Halt::Errno(EFAULT)) } else { Ok(all) }
}

/// What is left of ranges of memory, from the first on.
struct Spans {
    ranges: Vec<(u64, u64)>,
    next: usize,
    left: u64,
}

impl Spans {
    fn read(mem: &mut ProcessMemory<'_>, addr: u64, count: u64) -> Result<Self, Halt> {
        let ranges = iovecs(mem, addr, count).map_err(Halt::Errno)?;
        let left = ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        Ok(Self { ranges, next: 0, left })
    }

    /// The next range, of `most` bytes at most.
    fn take(&mut self, most: u64) -> Option<(u64, u64)> {
        while self.ranges.get(self.next)?.1 == 0 {
            self.next += 1;
        }
        let (addr, len) = &mut self.ranges[self.next];
        let taken = (*addr, most.min(*len).min(self.left));
        *addr = addr.wrapping_add(taken.1);
        *len -= taken.1;
        self.left -= taken.1;
        Some(taken)
    }

    /// The next `len` bytes; fewer, if they cannot be read.
    fn gather(&mut self, mem: &mut ProcessMemory<'_>, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        while done < bytes.len()
            && let Some((addr, n)) = self.take((bytes.len() - done) as u64)
        {
            let into = &mut bytes[done..done + n as usize];
            if let Err(fault) = mem.read(addr, into) {
                done += fault.copied;
                break;
            }
            done += n as usize;
        }
        bytes.truncate(done);
        bytes
    }

    /// Returns how many of `bytes` could be written.
    fn scatter(&mut self, mem: &mut ProcessMemory<'_>, bytes: &[u8]) -> u64 {
        let mut done = 0;
        while done < bytes.len()
            && let Some((addr, n)) = self.take((bytes.len() - done) as u64)
        {
            if let Err(fault) = mem.write(addr, &bytes[done..done + n as usize]) {
                return (done + fault.copied) as u64;
            }
            done += n as usize;
        }
        done as u64
    }
}

/// A process that may be reached.
pub(crate) struct Other<'a> {
    shared: &'a Shared,
    thread: &'a mut Thread,
    pid: i32,
    /// None: it is at home.
    began: Option<u64>,
}

impl<'a> Other<'a> {
    pub(crate) fn find(shared: &'a Shared, thread: &'a mut Thread, pid: i32) -> Result<Self, Halt> {
        let began = whereabouts(shared, pid)?;
        // It fails by the address if the process is there and may be looked at.
        match thread.peek(pid, NOWHERE, &mut [0])? {
            asked @ ..0 if asked != EFAULT.ret() => Err(Halt::Errno(Errno(-asked as i32))),
            _ => Ok(Self { shared, thread, pid, began }),
        }
    }

    /// So much of `len` bytes as there is.
    pub(crate) fn read(&mut self, addr: u64, len: u64) -> Result<Vec<u8>, Halt> {
        if let Some(began) = self.began {
            return match self.reach(began, Access::Read { addr, len: len as u32 })? {
                Found::Read(bytes) if bytes.len() as u64 <= len => Ok(bytes),
                _ => Err(Halt::Again),
            };
        }
        let mut bytes = vec![0; len as usize];
        let read = self.thread.peek(self.pid, addr, &mut bytes)?;
        self.expect_at_home()?;
        bytes.truncate(usize::try_from(read).unwrap_or(0));
        Ok(bytes)
    }

    /// So much of `len` bytes of its page map as there is. The shadow has it open as `fd`.
    pub(crate) fn read_map(&mut self, fd: u64, at: u64, len: u64) -> Result<Vec<u8>, Halt> {
        if let Some(began) = self.began {
            return match self.reach(began, Access::Map { at, len: len as u32 })? {
                Found::Read(bytes) if bytes.len() as u64 <= len => Ok(bytes),
                _ => Err(Halt::Again),
            };
        }
        let mut bytes = vec![0; len as usize];
        let args = [fd, OWN_BASE, len, at, 0, 0];
        let read = self.thread.ask_own(libc::SYS_pread64, &args, &mut bytes)?;
        self.expect_at_home()?;
        if read < 0 {
            return Err(Halt::Errno(Errno(-read as i32)));
        }
        bytes.truncate(read as usize);
        Ok(bytes)
    }

    /// Returns how many bytes could be written.
    pub(crate) fn write(&mut self, addr: u64, bytes: Vec<u8>) -> Result<u64, Halt> {
        if let Some(began) = self.began {
            let len = bytes.len() as u32;
            return match self.reach(began, Access::Write { addr, bytes })? {
                Found::Written(n) if n <= len => Ok(n.into()),
                _ => Err(Halt::Again),
            };
        }
        let pieces = std::iter::once((addr, bytes.as_slice()));
        let written = self.thread.poke(self.pid, pieces)?;
        self.expect_at_home()?;
        Ok(u64::try_from(written).unwrap_or(0))
    }

    fn reach(&self, began: u64, access: Access) -> Result<Found, Halt> {
        match self.shared.hooks.reach(self.pid, began, access) {
            Found::Denied => Err(Halt::Errno(EPERM)),
            Found::Nobody => Err(Halt::Errno(EAGAIN)),
            found => Ok(found),
        }
    }

    /// One that has left meanwhile had memory that was nobody's any more.
    fn expect_at_home(&self) -> Result<(), Halt> {
        match whereabouts(self.shared, self.pid)? {
            None => Ok(()),
            Some(_) => Err(Halt::Again),
        }
    }
}

/// When a process that is away began. None: it is at home.
fn whereabouts(shared: &Shared, pid: i32) -> Result<Option<u64>, Halt> {
    match shared.hooks.reach(pid, 0, Access::Find) {
        Found::AtHome => Ok(None),
        Found::Away { began } => Ok(Some(began)),
        Found::Nobody => Err(Halt::Errno(EAGAIN)),
        Found::Denied => Err(Halt::Errno(EPERM)),
        Found::Moves | Found::Read(_) | Found::Written(_) | Found::Told(_) => Err(Halt::Again),
    }
}
