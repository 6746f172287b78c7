//! The guest's filter, built from the syscall table, and the listener's side of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::sock_filter;
use tcmi_call::table::{self, Both, Class, LocalIf, X32_BIT};

/// `seccomp(SECCOMP_SET_MODE_FILTER, INSTALL_FLAGS, &prog)`: one filter for all threads, a
/// listener, and a wait that only SIGKILL ends once the monitor has taken the call.
pub const INSTALL_FLAGS: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    | libc::SECCOMP_FILTER_FLAG_TSYNC
    | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    | FLAG_WAIT_KILLABLE_RECV;
pub const SET_MODE_FILTER: u64 = 1;
const FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;

const ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP: u32 = 8;
const ARGS: u32 = 16;

const MAP_ANONYMOUS: u32 = 0x20;
const MAP_HUGETLB: u32 = 0x40000;
const TIMER_ABSTIME: u32 = 1;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// What the steward may do that the program's own threads may not, by number.
const STEWARD_CALLS: [&str; 8] = [
    "mmap",
    "close",
    "exit",
    "kill",
    "tgkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "rt_sigtimedwait",
];
/// What changes or tells which signals wait, of a process that reads some from descriptors.
const SIGNAL_CALLS: [&str; 4] =
    ["rt_sigprocmask", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend"];

/// What is only looked after where a guest has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watches {
    /// Files that it has mapped shared.
    pub live_files: bool,
    /// Memory that it shares with others which have moved with it.
    pub segments: bool,
    /// Signals that it may read from descriptors.
    pub signals: u64,
}

/// From SIGSTOP to SIGTTOU.
const _: () = assert!(libc::SIGSTOP == 19 && libc::SIGTTOU == 22);

fn load(offset: u32) -> sock_filter {
    stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn ret(action: u32) -> sock_filter {
    stmt(libc::BPF_RET | libc::BPF_K, action)
}

fn stmt(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: usize, jf: usize) -> sock_filter {
    let short = |n: usize| u8::try_from(n).expect("a block of the filter is under 256 long");
    sock_filter {
        code: (libc::BPF_JMP | test | libc::BPF_K) as u16,
        jt: short(jt),
        jf: short(jf),
        k,
    }
}

/// Compares with X.
fn jump_x(test: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_X) as u16, jt, jf, k: 0 }
}

/// What the filter does with one number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Notify,
    /// Depends on arguments or on who calls.
    Look(LocalIf, bool),
}

fn verdict(nr: u32, watches: Watches) -> Verdict {
    let Some(row) = table::row(nr) else { return Verdict::Notify };
    match row.class {
        // Wherever it moves to, home's is not there.
        Class::Both(Both::Remap) if watches.segments => return Verdict::Notify,
        Class::Both(Both::Sync | Both::Remap) if !watches.live_files => return Verdict::Allow,
        _ => {}
    }
    let steward = STEWARD_CALLS.contains(&row.name);
    if watches.signals != 0 && SIGNAL_CALLS.contains(&row.name) {
        // With no set, a mask is only asked for.
        let test = if row.name == "rt_sigprocmask" { LocalIf::Query } else { LocalIf::Never };
        return Verdict::Look(test, steward);
    }
    match (row.class, row.local_if, steward) {
        (Class::Local, ..) => Verdict::Allow,
        (_, LocalIf::Never, false) => Verdict::Notify,
        (_, test, steward) => Verdict::Look(test, steward),
    }
}

/// The filter for a guest with process id `pid` in its own namespace.
///
/// `steward_syscall_end` is the address after the steward's `syscall` instruction. Calls
/// decided by their number alone load nothing but architecture and number, so that the kernel
/// answers them from its bitmap.
pub fn program(pid: i32, steward_syscall_end: Option<u64>, watches: Watches) -> Vec<sock_filter> {
    let mut code = vec![
        load(ARCH),
        jump(libc::BPF_JEQ, ARCH_X86_64, 1, 0),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(NR),
        jump(libc::BPF_JGE, X32_BIT, 0, 1),
        ret(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    let mut nr = 0;
    while nr < table::ROWS as u32 {
        let first = nr;
        let found = verdict(first, watches);
        nr += 1;
        while found == Verdict::Allow && nr < table::ROWS as u32 && verdict(nr, watches) == found {
            nr += 1;
        }
        let block = match found {
            Verdict::Notify => continue,
            Verdict::Allow => vec![ret(ALLOW)],
            Verdict::Look(test, steward) => {
                let steward = steward_syscall_end.filter(|_| steward);
                look(first, test, pid, steward, watches.signals)
            }
        };
        // Ascending: a number below this run was in no run before it.
        code.push(jump(libc::BPF_JGE, first, 1, 0));
        code.push(ret(NOTIFY));
        code.push(jump(libc::BPF_JGE, nr, block.len(), 0));
        code.extend(block);
    }
    code.push(ret(NOTIFY));
    code
}

/// Tests of one call's arguments; ends with a verdict.
fn look(nr: u32, test: LocalIf, pid: i32, steward: Option<u64>, signals: u64) -> Vec<sock_filter> {
    let mut code = Vec::new();
    if let Some(ip) = steward {
        code.extend([
            load(IP),
            jump(libc::BPF_JEQ, ip as u32, 0, 3),
            load(IP + 4),
            jump(libc::BPF_JEQ, (ip >> 32) as u32, 0, 1),
            ret(ALLOW),
        ]);
    }
    match test {
        LocalIf::Never => {}
        LocalIf::Anonymous => code.extend([
            load(ARGS + 8 * 3),
            jump(libc::BPF_JSET, MAP_HUGETLB, 2, 0),
            jump(libc::BPF_JSET, MAP_ANONYMOUS, 0, 1),
            ret(ALLOW),
        ]),
        LocalIf::AbsoluteTime => {
            code.extend([load(ARGS + 8), jump(libc::BPF_JSET, TIMER_ABSTIME, 0, 1), ret(ALLOW)]);
        }
        LocalIf::Query => code.extend([
            load(ARGS + 8),
            jump(libc::BPF_JEQ, 0, 0, 3),
            load(ARGS + 12),
            jump(libc::BPF_JEQ, 0, 0, 1),
            ret(ALLOW),
        ]),
        // 64 bits in two halves, the old size in X.
        LocalIf::Shrinks => code.extend([
            load(ARGS + 12),
            stmt(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(ARGS + 20),
            jump_x(libc::BPF_JGT, 6, 0),
            jump_x(libc::BPF_JEQ, 0, 4),
            load(ARGS + 8),
            stmt(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(ARGS + 16),
            jump_x(libc::BPF_JGT, 1, 0),
            ret(ALLOW),
        ]),
        LocalIf::ThreadOption => {
            code.push(load(ARGS));
            for option in table::THREAD_OPTIONS {
                code.extend([jump(libc::BPF_JEQ, option, 0, 1), ret(ALLOW)]);
            }
        }
        LocalIf::NoUsage => code.extend([
            load(ARGS),
            jump(libc::BPF_JEQ, libc::CLOCK_PROCESS_CPUTIME_ID as u32, 3, 0),
            jump(libc::BPF_JEQ, libc::CLOCK_THREAD_CPUTIME_ID as u32, 2, 0),
            // A negative number.
            jump(libc::BPF_JSET, 1 << 31, 1, 0),
            ret(ALLOW),
        ]),
        LocalIf::Myself => {
            code.extend([load(ARGS), jump(libc::BPF_JEQ, pid as u32, 0, 1), ret(ALLOW)]);
        }
        LocalIf::OwnPid | LocalIf::MainThread => {
            let three =
                matches!(table::row(nr).map(|r| r.name), Some("tgkill" | "rt_tgsigqueueinfo"));
            let signal = if three { ARGS + 16 } else { ARGS + 8 };
            let read = (1..=64u32).filter(|n| signals & 1 << (n - 1) != 0);
            let read: Vec<_> =
                read.flat_map(|n| [jump(libc::BPF_JEQ, n, 0, 1), ret(NOTIFY)]).collect();
            code.extend([
                load(ARGS),
                jump(libc::BPF_JEQ, pid as u32, 0, 4 + read.len()),
                // A stop is for the parent at home to see, and ends there. Who sends itself SIGCONT
                // is not stopped; a batch inside of it may end so.
                load(signal),
                jump(libc::BPF_JGE, libc::SIGSTOP as u32, 0, 1),
                jump(libc::BPF_JGT, libc::SIGTTOU as u32, 0, 1 + read.len()),
            ]);
            // What is read from a descriptor has to be pending at home.
            code.extend(read);
            code.push(ret(ALLOW));
        }
    }
    code.push(ret(NOTIFY));
    code
}

/// Installs `code` on the calling process's threads.
///
/// Ok: the listener. ESRCH: a thread has a filter of its own already.
pub fn install(code: &[sock_filter]) -> io::Result<OwnedFd> {
    let prog = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    // SAFETY: `prog` points to `code.len()` instructions, which the kernel copies and verifies.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, INSTALL_FLAGS, &prog) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A call that a guest thread waits in.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    pub id: u64,
    /// The thread, in the pid namespace of the one who received it.
    pub tid: i32,
    pub nr: u32,
    pub args: [u64; 6],
    pub instruction_pointer: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(i64),
    /// An errno, or one of the kernel's restart codes while a signal is pending.
    Error(i32),
    /// The guest's kernel executes it.
    Continue,
}

#[repr(C)]
#[derive(Default)]
struct NotifAddfd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

const fn request(dir: u64, nr: u64, size: usize) -> u64 {
    dir << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | nr
}
const RECV: u64 = request(3, 0, size_of::<libc::seccomp_notif>());
const SEND: u64 = request(3, 1, size_of::<libc::seccomp_notif_resp>());
const ID_VALID: u64 = request(1, 2, 8);
const ADDFD: u64 = request(1, 3, size_of::<NotifAddfd>());
const SET_FLAGS: u64 = request(1, 4, 8);
const SYNC_WAKE_UP: usize = 1;

/// The notification descriptor of a guest's filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        Listener(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Waits for a call. EINTR: a signal came first. ENOENT: the caller was interrupted
    /// before it could be taken, or nobody is left; see [`Listener::is_abandoned`].
    pub fn receive(&self) -> io::Result<Notification> {
        // SAFETY: plain integers; the kernel demands zeroes.
        let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        self.ioctl(RECV, (&raw mut notif).cast())?;
        Ok(Notification {
            id: notif.id,
            tid: notif.pid as i32,
            nr: notif.data.nr as u32,
            args: notif.data.args,
            instruction_pointer: notif.data.instruction_pointer,
        })
    }

    /// ENOENT: the caller is gone.
    pub fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        let (val, error, flags) = match answer {
            Answer::Value(val) => (val, 0, 0),
            Answer::Error(errno) => (0, -errno, 0),
            Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut resp = libc::seccomp_notif_resp { id, val, error, flags };
        self.ioctl(SEND, (&raw mut resp).cast())?;
        Ok(())
    }

    /// Whether the caller still waits: what was read from its memory since was its own.
    pub fn is_valid(&self, mut id: u64) -> bool {
        self.ioctl(ID_VALID, (&raw mut id).cast()).is_ok()
    }

    /// Puts a copy of `fd`, close-on-exec, into the caller's table; returns its number there.
    pub fn add_fd(&self, id: u64, fd: BorrowedFd<'_>) -> io::Result<i32> {
        let mut addfd = NotifAddfd {
            id,
            srcfd: fd.as_raw_fd() as u32,
            newfd_flags: libc::O_CLOEXEC as u32,
            ..NotifAddfd::default()
        };
        loop {
            match self.ioctl(ADDFD, (&raw mut addfd).cast()) {
                // A signal for this thread of ours: the kernel has taken the request back.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    /// Has caller and listener run on one core, where waking the other is cheap (Linux 6.6).
    pub fn wake_on_same_core(&self) -> io::Result<()> {
        // The flags are the argument itself.
        self.ioctl(SET_FLAGS, std::ptr::without_provenance_mut(SYNC_WAKE_UP)).map(drop)
    }

    /// True when no process is left under the filter.
    pub fn is_abandoned(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        ready > 0 && poll.revents & libc::POLLHUP != 0
    }

    fn ioctl(&self, request: u64, arg: *mut libc::c_void) -> io::Result<i32> {
        // SAFETY: the request encodes the size of the structure that each caller passes.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), request, arg) };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
    }
}
