//! A guest, its home and its monitor on one machine, without daemons.

use std::arch::{asm, global_asm};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use tcmi_call::abi::{BatchOp, StewardArea};
use tcmi_call::record::DirectionKeys;
use tcmi_call::table::errno::Errno;
use tcmi_ckpt::freeze::{GUEST_OPTIONS, seize_new};
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::usage::Usage;
use tcmi_shadow::{
    Begun, CallStream, Callers, Calls, Denied, Events, Files, Guest, GuestThread, Hooks, Names,
    Orders, SignalStream, Steward, StreamError, Tracer,
};
use tcmi_sys::ptrace::{self, Running};
use tcmi_sys::seccomp;

use crate::home;

pub const THREADS_MAX: usize = 104;
const LOG_BYTES: usize = 1 << 20;

/// A page set that guest, home and monitor share.
#[repr(C)]
pub struct Board {
    pub steward: StewardArea,
    steward_tid: AtomicU32,
    pub guest_tids: [AtomicU32; THREADS_MAX],
    pub home_tids: [AtomicU32; THREADS_MAX],
    /// Listener's number in the guest, plus 1.
    listener: AtomicU32,
    go: AtomicU32,
    /// Not 0: signals at home cancel calls.
    pub cancel: AtomicU32,
    /// Free for the bodies of tests.
    pub words: [AtomicU32; 16],
    log_len: AtomicUsize,
    log: [u8; LOG_BYTES],
}

static BOARD: AtomicPtr<Board> = AtomicPtr::new(std::ptr::null_mut());

pub fn board() -> &'static Board {
    // SAFETY: set by `new_board` before anything runs; its mappings are never removed.
    unsafe { &*BOARD.load(Ordering::Acquire) }
}

fn new_board() -> &'static Board {
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Board>(),
            3,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    BOARD.store(at.cast(), Ordering::Release);
    board()
}

impl Board {
    pub fn guest_tid_of_home(&self, tid: i64) -> u32 {
        let at = self.home_tids.iter().position(|t| i64::from(t.load(Ordering::Acquire)) == tid);
        at.map_or(0, |i| self.guest_tids[i].load(Ordering::Acquire))
    }

    pub fn log(&self, bytes: &[u8]) {
        let at = self.log_len.fetch_add(bytes.len(), Ordering::AcqRel);
        assert!(at + bytes.len() <= LOG_BYTES);
        // SAFETY: this range was just reserved for us.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.log.as_ptr().add(at).cast_mut(),
                bytes.len(),
            )
        };
    }

    fn take_log(&self) -> Vec<u8> {
        self.log[..self.log_len.swap(0, Ordering::AcqRel)].to_vec()
    }
}

/// A raw call: the kernel's return value, nothing in between.
pub fn sys(nr: i64, args: &[u64]) -> i64 {
    let a = |i: usize| args.get(i).copied().unwrap_or(0);
    let ret;
    // SAFETY: tests pass pointers to their own live buffers or deliberately bad ones.
    unsafe {
        asm!("syscall", inlateout("rax") nr => ret, in("rdi") a(0), in("rsi") a(1), in("rdx") a(2),
             in("r10") a(3), in("r8") a(4), in("r9") a(5), out("rcx") _, out("r11") _);
    }
    ret
}

global_asm!(
    ".global rig_steward_call",
    ".global rig_steward_end",
    "rig_steward_call:",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "syscall",
    "rig_steward_end:",
    "ret",
);
unsafe extern "C" {
    fn rig_steward_call(nr: u64, args: *const u64) -> i64;
    fn rig_steward_end();
}

fn futex(word: &AtomicU32, op: i32, value: u32) {
    sys(libc::SYS_futex, &[word.as_ptr() as u64, op as u64, u64::from(value), 0]);
}

fn steward_loop() {
    // SAFETY: all signals blocked in this thread only.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
    board().steward_tid.store(sys(libc::SYS_gettid, &[]) as u32, Ordering::Release);
    let area = std::ptr::from_ref(&board().steward).cast_mut();
    // SAFETY: the protocol of StewardArea: the page is ours between request and answer.
    let (request, answered) = unsafe {
        (
            AtomicU32::from_ptr(&raw mut (*area).request),
            AtomicU32::from_ptr(&raw mut (*area).answered),
        )
    };
    loop {
        let done = answered.load(Ordering::Acquire);
        while request.load(Ordering::Acquire) == done {
            futex(request, libc::FUTEX_WAIT, done);
        }
        // SAFETY: as above; `count` is at most 16.
        unsafe {
            for i in 0..(*area).count as usize {
                let op: *mut BatchOp = &raw mut (*area).ops[i];
                (*op).ret = rig_steward_call((*op).nr, (*op).args.as_ptr());
            }
        }
        answered.store(done.wrapping_add(1), Ordering::Release);
        futex(answered, libc::FUTEX_WAKE, 1);
    }
}

fn keys(n: usize) -> DirectionKeys {
    DirectionKeys { key: [n as u8; 32], iv: [7; 12], pad: 0, seq: 0 }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (a, b) = UnixStream::pair().expect("socketpair");
    (a.into(), b.into())
}

fn fork() -> i32 {
    // SAFETY: this program has one thread whenever it forks.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        mask_sigchld(libc::SIG_UNBLOCK);
    }
    pid
}

fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

pub fn wait_until(what: &str, mut test: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !test() {
        assert!(begun.elapsed().as_secs() < 10, "{what}: not within 10 s");
        std::thread::yield_now();
    }
}

struct Quiet;
impl Hooks for Quiet {
    fn child_used(&self, _: i32) -> Usage {
        Usage::default()
    }
    fn begin_thread(&self, _: i32) -> Result<Begun, Denied> {
        Err(Denied::Failed(Errno(libc::EAGAIN)))
    }
    fn visit_home(&self, _: i32) -> Denied {
        Denied::Failed(Errno(libc::EAGAIN))
    }
    fn reach(&self, _: i32, _: u64, _: Access) -> Found {
        Found::Nobody
    }
    fn thread_begun(&self, here: i32, tid: i32) {
        panic!("thread {tid} as {here}");
    }
    fn thread_exits(&self, _: i32, _: i32, _: usize) {}
    fn process_exits(&self, _: i32) {}
    fn stirs(&self) {}
    fn stream_failed(&self, tid: i32, error: &StreamError) {
        panic!("stream of {tid}: {error}");
    }
}

pub type Body = fn(usize);

/// A temporary directory as cwd of home or of a native run.
fn enter_scratch(name: &str) {
    let dir = std::env::temp_dir().join(format!("tcmi-guest-{}-{name}", std::process::id()));
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).expect("scratch directory");
    std::env::set_current_dir(&dir).expect("scratch directory");
}

fn leave_scratch() {
    let dir = std::env::current_dir().expect("cwd");
    std::env::set_current_dir("/").expect("cwd");
    std::fs::remove_dir_all(dir).expect("scratch directory");
}

pub fn run_native(body: Body) -> Vec<u8> {
    let board = new_board();
    enter_scratch("native");
    let pid = fork();
    if pid == 0 {
        sys(libc::SYS_close_range, &[3, u64::from(u32::MAX), 0]);
        body(0);
        sys(libc::SYS_exit_group, &[0]);
    }
    assert_eq!(wait(pid), 0, "native run");
    leave_scratch();
    board.take_log()
}

type Work = Box<dyn FnOnce(&mut Tracer) + Send>;

/// A thread that traces the guest until it ends, and what it is given to do.
struct Tracing {
    /// Returns the guest's wait status.
    thread: JoinHandle<i32>,
    work: Sender<Work>,
}

fn trace(guest: i32, steward: i32, callers: Arc<Callers>) -> (Arc<Orders>, Tracing) {
    const LOOK_MS: u64 = 1;
    let (to, orders) = channel();
    let (work, given) = channel::<Work>();
    let thread = std::thread::spawn(move || {
        let mut tracer = Tracer::new(guest, callers).expect("tracer");
        let threads = seize_new(guest, GUEST_OPTIONS, |tid| tid == steward).expect("threads");
        tracer.adopt(threads.iter().map(Running::tid));
        to.send(tracer.orders()).expect("who waits");
        while !has_ended(guest) {
            let poll = tracer.as_fd().as_raw_fd() as u64 | 1 << 32;
            assert!(sys(libc::SYS_poll, &[&raw const poll as u64, 1, LOOK_MS]) >= 0);
            tracer.turn().expect("a turn");
            given.try_iter().for_each(|work| work(&mut tracer));
        }
        tracer.end();
        ptrace::wait_for_end(guest).expect("its end is the tracer's")
    });
    (orders.recv().expect("the tracer"), Tracing { thread, work })
}

fn has_ended(pid: i32) -> bool {
    tcmi_sys::proc::status(pid).is_ok_and(|s| s.state == 'Z')
}

/// Of the test: its tracer's news come to the whole process.
pub fn mask_sigchld(how: i32) {
    // SAFETY: a set that sigemptyset fills in.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::pthread_sigmask(how, &set, std::ptr::null_mut());
    }
}

/// A running guest.
pub struct Rig {
    pub calls: Calls,
    tracer: Tracing,
    pub guest: i32,
    pub home: i32,
    pub board: &'static Board,
}

impl Rig {
    pub fn start(threads: usize, body: Body) -> Rig {
        let board = new_board();
        let calls: Vec<_> = (0..threads).map(|_| pair()).collect();
        let events = pair();
        enter_scratch("home");
        let home = fork();
        if home == 0 {
            let ends: Vec<_> = calls.into_iter().map(|(_, b)| b).collect();
            run_home(ends, events.1);
        }
        let guest = fork();
        if guest == 0 {
            run_guest(threads, body);
        }
        let (streams, _theirs): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        wait_until("the filter", || board.listener.load(Ordering::Acquire) != 0);
        // SAFETY: plain calls; the results are checked.
        let (pidfd, listener) = unsafe {
            let pidfd = libc::syscall(libc::SYS_pidfd_open, guest, 0) as RawFd;
            assert!(pidfd >= 0);
            let number = board.listener.load(Ordering::Acquire) - 1;
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) as RawFd;
            assert!(fd >= 0);
            (OwnedFd::from_raw_fd(pidfd), OwnedFd::from_raw_fd(fd))
        };
        let area = NonNull::from(&board.steward);
        let tid = board.steward_tid.load(Ordering::Acquire) as i32;
        // SAFETY: the board is shared with the guest and never unmapped.
        let steward = Arc::new(unsafe { Steward::new(area, area.as_ptr() as u64, tid, pidfd) });
        let signals = SignalStream::new(events.0, &keys(200));
        let callers = Arc::new(Callers::new(guest));
        let by = Arc::clone(&steward);
        let events = Events::start(signals, by, guest, 0, |_| {}).expect("event thread");
        let (orders, tracer) = trace(guest, tid, Arc::clone(&callers));
        let threads = streams
            .into_iter()
            .enumerate()
            .map(|(i, fd)| GuestThread {
                tid: board.guest_tids[i].load(Ordering::Acquire) as i32,
                stream: CallStream::new(fd, &keys(2), &keys(3)),
                used: Usage::default(),
            })
            .collect();
        let guest_parts = Guest {
            callers,
            orders,
            pid: guest,
            steward,
            events: Arc::new(events),
            used: Usage::default(),
            names: Names::default(),
            processors: None,
            children: Usage::default(),
            files: Files::default(),
            memory_files: false,
            devices: None,
            signals: 0,
            live: Vec::new(),
            watch: None,
        };
        let calls = Calls::start(listener, threads, guest_parts, Arc::new(Quiet)).expect("workers");
        board.go.store(1, Ordering::Release);
        futex(&board.go, libc::FUTEX_WAKE, i32::MAX as u32);
        Rig { calls, tracer, guest, home, board }
    }

    /// Waits until home's thread `index` waits in call `nr`.
    pub fn wait_for_home_in(&self, index: usize, nr: i64) {
        wait_until("home in the call", || {
            let tid = self.board.home_tids[index].load(Ordering::Acquire);
            std::fs::read_to_string(format!("/proc/{tid}/syscall"))
                .is_ok_and(|s| s.split(' ').next() == Some(nr.to_string().as_str()))
        });
    }

    /// For the tracer to do, and nothing else meanwhile.
    pub fn trace(&self, work: impl FnOnce(&mut Tracer) + Send + 'static) {
        self.tracer.work.send(Box::new(work)).expect("the tracer");
    }

    /// The guest's log, after its end.
    pub fn finish(self) -> Vec<u8> {
        let status = self.tracer.thread.join().expect("the tracer");
        drop(self.calls);
        // SAFETY: our child.
        unsafe { libc::kill(self.home, libc::SIGKILL) };
        wait(self.home);
        leave_scratch();
        assert_eq!(status, 0, "guest's status");
        self.board.take_log()
    }
}

/// Home's own descriptors stand above those of the program, as the agent's do.
const RESERVED_FIRST: i32 = 600;

fn out_of_the_way(fd: OwnedFd) -> OwnedFd {
    // SAFETY: a new descriptor, checked.
    unsafe {
        let high = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, RESERVED_FIRST);
        assert!(high >= RESERVED_FIRST);
        OwnedFd::from_raw_fd(high)
    }
}

fn run_home(streams: Vec<OwnedFd>, events: OwnedFd) -> ! {
    let board = board();
    // Only a thread in a call takes signals.
    home::mask(libc::SIG_BLOCK);
    let streams: Vec<_> = streams.into_iter().map(out_of_the_way).collect();
    let events = out_of_the_way(events);
    sys(libc::SYS_close_range, &[3, RESERVED_FIRST as u64 - 1, 0]);
    home::set_events(CallStream::new(events, &keys(200), &keys(201)));
    let serving: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(i, fd)| std::thread::spawn(move || home::serve(fd, &keys(3), &keys(2), board, i)))
        .collect();
    for thread in serving {
        thread.join().expect("home's thread");
    }
    std::process::exit(0);
}

fn run_guest(threads: usize, body: Body) -> ! {
    let board = board();
    std::thread::spawn(steward_loop);
    let ready = move |i: usize| {
        board.guest_tids[i].store(sys(libc::SYS_gettid, &[]) as u32, Ordering::Release);
        futex(&board.guest_tids[i], libc::FUTEX_WAKE, 1);
        while board.go.load(Ordering::Acquire) == 0 {
            futex(&board.go, libc::FUTEX_WAIT, 0);
        }
        body(i);
    };
    for i in 1..threads {
        std::thread::Builder::new().stack_size(64 * 1024).spawn(move || ready(i)).expect("thread");
    }
    wait_until("threads", || {
        board.steward_tid.load(Ordering::Acquire) != 0
            && (1..threads).all(|i| board.guest_tids[i].load(Ordering::Acquire) != 0)
    });
    // A guest has no descriptor of its own.
    sys(libc::SYS_close_range, &[0, u64::from(u32::MAX), 0]);
    let program = seccomp::program(
        sys(libc::SYS_getpid, &[]) as i32,
        Some(rig_steward_end as *const () as u64),
        seccomp::Watches::default(),
    );
    sys(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    let listener = seccomp::install(&program).expect("filter");
    board.listener.store(listener.as_raw_fd() as u32 + 1, Ordering::Release);
    std::mem::forget(listener);
    ready(0);
    sys(libc::SYS_exit_group, &[0]);
    unreachable!()
}
