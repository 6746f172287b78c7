//! A forked child whose only thread is a shadow thread of the agent.

use crate::peer::{Peer, agent_stream};
use std::arch::asm;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::{null_mut, write_bytes};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tcmi_call::abi::{BlobHeader, ProcArea, ThreadArea};
use tcmi_ckpt::blob::Blob;

pub const RESERVED_FIRST: i32 = 900;
pub const RESERVED_LAST: i32 = 909;
const CALLS_FD: i32 = 900;
const EVENTS_FD: i32 = 901;
/// No call of these tests takes longer; a reply that never comes fails the test.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

pub fn round_up(n: usize) -> usize {
    n.next_multiple_of(4096)
}

/// Memory that a child made by fork shares with the test.
pub struct Shared {
    pub base: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory; what concurrent parties write in it is accessed as atomics.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    pub fn new(bytes: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let base = unsafe { libc::mmap(null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { base: base.cast(), bytes }
    }

    /// The blob at the start of `bytes` of shared memory, its code executable.
    pub fn with_blob(more_bytes: usize) -> (Self, Blob) {
        let blob = Blob::built_in();
        let shared = Self::new(blob.total_bytes() + more_bytes);
        let image = blob.image_for(shared.base as u64);
        // SAFETY: the mapping is at least the image long; its first part is made RX.
        unsafe {
            shared.base.copy_from_nonoverlapping(image.as_ptr(), image.len());
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            assert_eq!(libc::mprotect(shared.base.cast(), blob.code_bytes(), protection), 0);
        }
        (shared, blob)
    }

    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.bytes);
        // SAFETY: inside the mapping, which lives as long as self.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        assert_eq!(unsafe { libc::munmap(self.base.cast(), self.bytes) }, 0);
    }
}

/// Killed and reaped when dropped, unless it was waited for.
pub struct Child {
    pub pid: i32,
    reaped: bool,
}

impl Child {
    /// `run` in a forked child. It may make raw system calls only: the test has threads.
    pub fn fork(run: impl FnOnce()) -> Self {
        // SAFETY: the child only makes system calls and never returns.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 => {
                // SAFETY: plain system calls.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                run();
                // SAFETY: as above.
                unsafe { libc::_exit(99) }
            }
            pid => Self { pid, reaped: false },
        }
    }

    pub fn wait(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: our child, not reaped yet.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, 0) };
        assert_eq!(pid, self.pid, "{}", io::Error::last_os_error());
        self.reaped = true;
        status
    }

    pub fn kill(&self, signo: i32) {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(self.pid, signo) }, 0);
    }

    pub fn queue(&self, signo: i32, value: usize) {
        let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
        // SAFETY: our own child.
        while unsafe { libc::sigqueue(self.pid, signo, value) } != 0 {
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN));
            std::thread::yield_now();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill(libc::SIGKILL);
            self.wait();
        }
    }
}

pub struct Shadow {
    pub child: Child,
    pub calls: Peer,
    pub events: Peer,
    shared: Shared,
    proc_at: usize,
    thread_at: usize,
}

#[repr(C)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

fn block_all() {
    let all = u64::MAX;
    // SAFETY: reads one word.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &all, 0, 8) };
}

fn install_handlers(base: u64, header: &BlobHeader) {
    const SA_RESTORER: u64 = 0x0400_0000;
    let action = KernelAction {
        handler: base + header.on_signal,
        flags: SA_RESTORER | libc::SA_SIGINFO as u64,
        restorer: base + header.restorer,
        mask: u64::MAX,
    };
    for signo in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        // SAFETY: the handler is the agent's, in memory that stays.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signo, &action, 0, 8) };
    }
}

/// Turns the calling process into a shadow.
fn become_shadow(base: u64, header: &BlobHeader, area: *mut ThreadArea, ends: [i32; 2]) -> ! {
    const ARCH_SET_GS: i32 = 0x1001;
    block_all();
    // SAFETY: raw system calls on the areas that the parent prepared; the jump leaves for the
    // agent on the stack that is the area's.
    unsafe {
        libc::dup2(ends[0], CALLS_FD);
        libc::dup2(ends[1], EVENTS_FD);
        // What was inherited from the test would keep its peers' streams open.
        libc::syscall(libc::SYS_close_range, 3, RESERVED_FIRST - 1, 0);
        libc::syscall(libc::SYS_close_range, RESERVED_FIRST + 2, u32::MAX, 0);
        install_handlers(base, header);
        let pid = libc::getpid();
        (*area).tid = pid;
        (*((*area).proc_area as *mut ProcArea)).tgid = pid;
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, area);
        let top = (&raw mut (*area).stack).add(1);
        asm!("mov rsp, {top}", "jmp {serve}", top = in(reg) top,
            serve = in(reg) base + header.serve, in("rdi") area, options(noreturn));
    }
}

impl Shadow {
    pub fn spawn() -> Self {
        let room = round_up(size_of::<ProcArea>()) + round_up(size_of::<ThreadArea>());
        let (shared, blob) = Shared::with_blob(room);
        let proc_at = blob.total_bytes();
        let thread_at = proc_at + round_up(size_of::<ProcArea>());
        let (calls, agent_calls) = UnixStream::pair().unwrap();
        let (events, agent_events) = UnixStream::pair().unwrap();
        // SAFETY: zeroed pages of our own, large enough for both areas, whose fields are
        // integers.
        let area = unsafe {
            let area = shared.base.add(thread_at).cast::<ThreadArea>();
            let proc = shared.base.add(proc_at).cast::<ProcArea>();
            write_bytes(shared.base.add(proc_at), 0, room);
            (*proc).reserved_first = RESERVED_FIRST;
            (*proc).reserved_last = RESERVED_LAST;
            (*proc).blob = shared.base as u64;
            (*proc).events = agent_stream(1, EVENTS_FD);
            (*area).me = area as u64;
            (*area).proc_area = proc as u64;
            (*area).calls = agent_stream(0, CALLS_FD);
            area
        };
        let ends = [agent_calls.as_raw_fd(), agent_events.as_raw_fd()];
        let base = shared.base as u64;
        let child = Child::fork(|| become_shadow(base, blob.header(), area, ends));
        calls.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        events.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        let (calls, events) = (Peer::new(0, calls), Peer::new(1, events));
        let shadow = Self { child, calls, events, shared, proc_at, thread_at };
        // Before it waits for requests it may still be without handlers.
        shadow.wait_asleep();
        shadow
    }

    pub fn thread_word(&self, offset: usize) -> &AtomicU32 {
        self.shared.word(self.thread_at + offset)
    }

    pub fn calls_begun(&self) -> u32 {
        self.shared.word(self.proc_at + offset_of!(ProcArea, calls_begun)).load(Ordering::SeqCst)
    }

    /// Returns when the thread is about to make a forwarded call, or in it.
    pub fn wait_in_call(&self) {
        wait_until(|| {
            self.thread_word(offset_of!(ThreadArea, in_call)).load(Ordering::SeqCst) == 1
        });
    }

    /// Why the thread gave up its stream, once it did.
    pub fn wait_broken(&self) -> u32 {
        let broken = self.thread_word(offset_of!(ThreadArea, broken));
        wait_until(|| broken.load(Ordering::SeqCst) != 0);
        broken.load(Ordering::SeqCst)
    }

    /// Returns when the child's thread sleeps in the kernel.
    pub fn wait_asleep(&self) {
        wait_asleep(self.child.pid);
    }
}

/// Burns time, up to some 20 us, differently each round.
pub fn spin_at_random(random: &mut u32) {
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    (0..*random % 2000).for_each(|_| std::hint::spin_loop());
}

pub fn wait_until(done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + REPLY_TIMEOUT;
    while !done() {
        assert!(std::time::Instant::now() < end, "what the test waits for does not happen");
        std::thread::yield_now();
    }
}

pub fn wait_asleep(pid: i32) {
    wait_until(|| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
    });
}
