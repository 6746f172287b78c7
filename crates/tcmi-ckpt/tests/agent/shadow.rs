//! A forked child whose threads are shadow threads of the agent.

use crate::peer::{Peer, agent_stream};
use std::arch::asm;
use std::io;
use std::mem::offset_of;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::ptr::{null_mut, write_bytes};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tcmi_call::abi::{BlobHeader, ProcArea, ThreadArea};
use tcmi_ckpt::blob::Blob;

pub const RESERVED_FIRST: i32 = 900;
pub const RESERVED_LAST: i32 = 909;
const EVENTS_FD: i32 = 900;
const FIRST_CALLS_FD: i32 = 901;
const THREAD_ROOM_BYTES: usize = size_of::<ThreadArea>().next_multiple_of(4096);
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
    /// The first thread's stream, then the others'.
    pub calls: Peer,
    pub others: Vec<Peer>,
    pub events: Peer,
    shared: Shared,
    header: BlobHeader,
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

/// What a thread needs to become a shadow thread.
#[derive(Clone, Copy)]
struct Start {
    area: *mut ThreadArea,
    serve: u64,
}

impl Start {
    fn serve(self) -> ! {
        const ARCH_SET_GS: i32 = 0x1001;
        // SAFETY: raw system calls on the area that the parent prepared; the jump leaves for
        // the agent on the stack that is the area's.
        unsafe {
            (*self.area).tid = libc::syscall(libc::SYS_gettid) as i32;
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, self.area);
            let top = (&raw mut (*self.area).stack).add(1);
            asm!("mov rsp, {top}", "jmp {serve}", top = in(reg) top,
                serve = in(reg) self.serve, in("rdi") self.area, options(noreturn));
        }
    }
}

extern "C" fn begin_thread(start: *mut libc::c_void) -> i32 {
    // SAFETY: `become_shadow` passes a Start that stays where it is.
    unsafe { *start.cast::<Start>() }.serve()
}

/// Turns the calling process into a shadow. `ends` has the event stream's descriptor, then
/// each thread's.
fn become_shadow(base: u64, header: &BlobHeader, starts: &mut [Start], ends: &[i32]) -> ! {
    const THREAD: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    block_all();
    // SAFETY: raw system calls; a further thread begins on the stack of its own area, and what
    // it is given stays, since this thread leaves this frame for good without unwinding it.
    unsafe {
        for (to, &end) in (EVENTS_FD..).zip(ends) {
            libc::dup2(end, to);
        }
        // What was inherited from the test would keep its peers' streams open.
        libc::syscall(libc::SYS_close_range, 3, RESERVED_FIRST - 1, 0);
        libc::syscall(libc::SYS_close_range, RESERVED_FIRST + ends.len() as i32, u32::MAX, 0);
        install_handlers(base, header);
        (*((*starts[0].area).proc_area as *mut ProcArea)).tgid = libc::getpid();
        for start in &mut starts[1..] {
            let stack = (&raw mut (*start.area).stack).add(1);
            libc::clone(begin_thread, stack.cast(), THREAD, (&raw mut *start).cast());
        }
    }
    starts[0].serve()
}

impl Shadow {
    pub fn spawn() -> Self {
        Self::spawn_threads(1)
    }

    pub fn spawn_threads(threads: usize) -> Self {
        let room = round_up(size_of::<ProcArea>()) + threads * THREAD_ROOM_BYTES;
        let (shared, blob) = Shared::with_blob(room);
        let proc_at = blob.total_bytes();
        let thread_at = proc_at + round_up(size_of::<ProcArea>());
        let (mut near, far): (Vec<_>, Vec<_>) = (0..=threads).map(|_| tcp_pair()).unzip();
        let proc = shared.base.wrapping_add(proc_at).cast::<ProcArea>();
        // SAFETY: zeroed pages of our own, large enough for all areas, whose fields are
        // integers.
        let mut starts = unsafe {
            write_bytes(shared.base.add(proc_at), 0, room);
            (*proc).reserved_first = RESERVED_FIRST;
            (*proc).reserved_last = RESERVED_LAST;
            (*proc).blob = shared.base as u64;
            // Nothing to do before it serves, nobody to tell.
            (*proc).settled = 1;
            (*proc).events = agent_stream(0, EVENTS_FD);
            let serve = shared.base as u64 + blob.header().serve;
            let start = |i: usize| {
                let at = thread_at + i * THREAD_ROOM_BYTES;
                let area = shared.base.add(at).cast::<ThreadArea>();
                (*area).me = area as u64;
                (*area).proc_area = proc as u64;
                (*area).calls = agent_stream(i as u8 + 1, FIRST_CALLS_FD + i as i32);
                Start { area, serve }
            };
            (0..threads).map(start).collect::<Vec<_>>()
        };
        let ends: Vec<i32> = far.iter().map(AsRawFd::as_raw_fd).collect();
        let base = shared.base as u64;
        let child = Child::fork(|| become_shadow(base, blob.header(), &mut starts, &ends));
        near.iter().for_each(|end| end.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap());
        let mut peers = (0..).zip(near.drain(..)).map(|(n, end)| Peer::new(n, end));
        let (events, calls) = (peers.next().unwrap(), peers.next().unwrap());
        let others = peers.collect();
        let header = *blob.header();
        let shadow = Self { child, calls, others, events, shared, header, proc_at, thread_at };
        // Before they wait for requests they may still be without handlers.
        (0..threads).for_each(|i| shadow.wait_thread_asleep(i));
        shadow
    }

    pub fn tid(&self, thread: usize) -> i32 {
        let at = self.thread_at + thread * THREAD_ROOM_BYTES + offset_of!(ThreadArea, tid);
        self.shared.word(at).load(Ordering::SeqCst) as i32
    }

    fn wait_thread_asleep(&self, thread: usize) {
        wait_until(|| self.tid(thread) != 0);
        wait_asleep(self.tid(thread));
    }

    pub fn thread_word(&self, offset: usize) -> &AtomicU32 {
        self.shared.word(self.thread_at + offset)
    }

    /// Where something that the blob's header names is in the child.
    pub fn address(&self, offset: impl Fn(&BlobHeader) -> u64) -> u64 {
        self.shared.base as u64 + offset(&self.header)
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

/// Two ends of one connection.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    (near, far)
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
