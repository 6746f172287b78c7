//! The syscall table: what becomes of each x86-64 system call of a guest, and
//! what each of its arguments is.
//!
//! Pure data. [`crate::engine`] copies arguments by it, the guest's seccomp filter
//! is built from its classes, and the monitor reads its restart column.
//! A NULL pointer is always passed on as NULL: home's kernel says whether it may be.

mod absent;
mod files;
pub mod ioctl;
mod memory;
pub mod prctl;
mod process;
mod sockets;
mod threads;

pub mod errno;

use errno::Errno;

/// One more than the newest number known (Linux 6.18: `file_setattr`).
pub const ROWS: usize = 470;
/// Bit of the numbers of the x32 ABI.
pub const X32_BIT: u32 = 0x4000_0000;

/// Who executes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The guest's own kernel, at native speed.
    Local,
    /// The shadow, at home.
    Forward,
    /// A part on each side.
    Both(Both),
    /// Nobody: the errno of a kernel without the feature.
    Refused(Errno),
}

/// What the monitor does for a call that has an effect on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Both {
    /// `rt_sigaction`: home learns the disposition, then the guest's kernel executes it.
    Disposition,
    /// `clone` or `clone3` of a thread: home makes its shadow thread, then the guest's kernel the thread.
    /// Of a process: [`Both::AtHome`].
    BeginThread,
    /// The guest comes home for it and goes out again behind it.
    AtHome,
    /// `exit`: the shadow thread is told, the guest thread ends.
    ExitThread,
    /// `exit_group`.
    ExitGroup,
    /// `mmap` of a file: content is fetched, the mapping is mirrored at home. One that is shared
    /// and may be written: [`Both::AtHome`].
    MapFile,
    /// `msync`: what the guest has written to live files goes home first. The guest's own
    /// kernel's, where it has none.
    Sync,
    /// `mremap` and such, which may show other parts of a live file, or memory that is shared at
    /// another place than home's: [`Both::AtHome`] then, else the guest's own kernel's.
    Remap,
    /// `prctl`, by [`prctl::option`].
    Prctl,
    /// What home counts, and what was used on other nodes.
    Usage,
    /// `process_vm_readv` and its like: of the guest's own threads its kernel's. Home says whether
    /// another process may be reached, and where it is.
    OtherMemory,
}

/// When the filter lets a call that is otherwise forwarded through to the guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalIf {
    Never,
    /// `mmap`: MAP_ANONYMOUS is set in argument 3, MAP_HUGETLB is not.
    Anonymous,
    /// Argument 0 is the guest's own pid (and so argument 1 of `tgkill` is one of its threads).
    OwnPid,
    /// The same, where argument 1 is no signal.
    Myself,
    /// `tkill` of the caller's process cannot be told from another's by number; the main
    /// thread's can.
    MainThread,
    /// `clock_nanosleep`: TIMER_ABSTIME is set in argument 1.
    AbsoluteTime,
    /// `rt_sigaction`: argument 1 is NULL, so nothing changes. Capturing a guest asks so, when
    /// nobody answers notifications.
    Query,
    /// `mremap`: argument 2 is not above argument 1.
    Shrinks,
    /// `prctl`: argument 0 is an option about the calling thread alone ([`THREAD_OPTIONS`]).
    ThreadOption,
    /// `clock_gettime`: argument 0 is no clock of a process, thread or descriptor.
    NoUsage,
}

/// PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_GET_TID_ADDRESS.
pub const THREAD_OPTIONS: [u32; 3] = [29, 30, 40];

/// What a signal does to a call that was waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// EINTR.
    Never,
    /// Again after a handler with SA_RESTART or no handler, else EINTR.
    SaRestart,
    /// Again only if no handler ran, else EINTR.
    NoHandler,
    /// Again. Also the calls that never wait.
    Always,
}

impl Restart {
    /// The errno that makes the guest's kernel do so, as the tracee of a seccomp
    /// notification (they never reach the program while a signal is pending).
    pub const fn code(self) -> i32 {
        match self {
            Restart::Never => 4,
            Restart::SaRestart => 512,
            Restart::Always => 513,
            Restart::NoHandler => 514,
        }
    }
}

/// How long a buffer is. `Arg(i)` counts in argument i.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Bytes(u32),
    /// A `size_t` in argument i.
    Arg(u8),
    /// The same of a call that takes no buffer beyond the end of user space.
    Checked(u8),
    /// An `int` in argument i; a negative one is passed on with an empty buffer.
    Int(u8),
    /// Argument i (an `int`) times a unit.
    Items(u8, u32),
    /// Argument i plus a header of so many bytes.
    Plus(u8, u32),
}

/// When a buffer is written back to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Also by a call that fails.
    Always,
    /// As far as it is no longer what was sent, which may stand in read-only memory.
    Changed,
    /// The call did not fail.
    Success,
    /// It returned more than 0.
    Positive,
    /// The first `ret` units.
    Return(u32),
    /// The first `ret + n` bytes.
    ReturnPlus(u32),
    /// Only if it ended in EINTR (the rest of a sleep).
    Interrupted,
    SuccessOrInterrupted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The call has no such argument; home gets 0.
    Unused,
    Value,
    Fd,
    /// NUL-terminated, at most PATH_MAX bytes with the NUL, else ENAMETOOLONG.
    Path,
    In(Size),
    Out(Size, When),
    InOut(Size, When),
    /// Descriptors of a `select`, so many in argument 0.
    Bits,
    /// `struct iovec` array, count in argument i.
    IovecIn(u8),
    IovecOut(u8),
    MsghdrIn,
    MsghdrOut,
    /// `struct mmsghdr` array, count in argument 2, of which one message is done.
    MmsghdrIn,
    MmsghdrOut,
    /// Result whose room and length stand in a `socklen_t` that argument i points to;
    /// at most so many bytes.
    Measured(u8, u32),
    /// That `socklen_t`.
    Length,
    /// Milliseconds to wait, an `int`; negative is for ever.
    TimeoutMs,
    /// Relative `struct timespec`, not written back.
    Timeout,
    /// Relative `struct timespec`; the rest is written back.
    TimeoutRest,
    /// The same with a `struct timeval`.
    TimevalRest,
    /// Signal mask for the time of the call: home gets NULL, the monitor honours it.
    Mask,
    /// `pselect6`'s pointer to pointer and size of such a mask.
    MaskPair,
    /// By the request in argument 1.
    Ioctl,
    /// By the command in argument 1.
    Fcntl,
    /// `semctl`, by the command in argument 2.
    Semctl,
    /// `msgctl`, by the command in argument 1.
    Msgctl,
    /// `shmctl`, by the command in argument 1.
    Shmctl,
    /// `struct ifconf`: a length and a pointer to so many bytes.
    Ifconf,
    /// `prctl`, by the option in argument 0.
    Prctl,
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub class: Class,
    pub local_if: LocalIf,
    pub restart: Restart,
    pub args: [Arg; 6],
    /// Nobody can tell from it what the guest has written to a live file, so that need not be at
    /// home before it. Of a call that asks about its own process, and does not wait.
    pub private: bool,
    pub alters: Alters,
}

/// Whether a call writes to a file, which the guest may have mapped as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alters {
    Nothing,
    /// As many bytes as it returns, at the position of the descriptor in argument i.
    AtPosition(u8),
    /// The same at the offset in argument 3; -1 is the position.
    AtOffset(u8),
    /// Any part of the file of the descriptor in argument i.
    Any(u8),
    /// The file that it opens, if the flags in argument i (or where that points to) have O_TRUNC.
    Opened(u8),
    /// The file named in argument 0.
    Named,
}

impl Row {
    const MISSING: Row = Row::refused("", errno::ENOSYS);

    const fn new(name: &'static str, class: Class, restart: Restart, list: &[Arg]) -> Row {
        let mut args = [Arg::Unused; 6];
        let mut i = 0;
        while i < list.len() {
            args[i] = list[i];
            i += 1;
        }
        let (local_if, private, alters) = (LocalIf::Never, false, Alters::Nothing);
        Row { name, class, local_if, restart, args, private, alters }
    }

    /// Never waits.
    const fn forward(name: &'static str, args: &[Arg]) -> Row {
        Row::new(name, Class::Forward, Restart::Always, args)
    }

    const fn waits(name: &'static str, restart: Restart, args: &[Arg]) -> Row {
        Row::new(name, Class::Forward, restart, args)
    }

    const fn local(name: &'static str) -> Row {
        Row::new(name, Class::Local, Restart::Always, &[])
    }

    const fn both(name: &'static str, both: Both, args: &[Arg]) -> Row {
        Row::new(name, Class::Both(both), Restart::Always, args)
    }

    const fn refused(name: &'static str, errno: Errno) -> Row {
        Row::new(name, Class::Refused(errno), Restart::Always, &[])
    }

    /// Asks about its own process.
    const fn asks(name: &'static str, args: &[Arg]) -> Row {
        let mut row = Row::forward(name, args);
        row.private = true;
        row
    }

    const fn alters(mut self, what: Alters) -> Row {
        self.alters = what;
        self
    }

    const fn local_if(mut self, test: LocalIf) -> Row {
        self.local_if = test;
        self
    }
}

const SUBJECTS: [&[(usize, Row)]; 6] =
    [files::ROWS, sockets::ROWS, process::ROWS, memory::ROWS, threads::ROWS, absent::ROWS];

/// Fails to compile where a number has two rows or none.
const fn assemble() -> [Row; ROWS] {
    let mut table = [Row::MISSING; ROWS];
    let mut s = 0;
    while s < SUBJECTS.len() {
        let mut i = 0;
        while i < SUBJECTS[s].len() {
            let (nr, row) = SUBJECTS[s][i];
            assert!(table[nr].name.is_empty(), "two rows for one number");
            table[nr] = row;
            i += 1;
        }
        s += 1;
    }
    let mut nr = 0;
    while nr < ROWS {
        if nr >= absent::HOLE.0 && nr <= absent::HOLE.1 {
            table[nr].name = "unassigned";
        }
        assert!(!table[nr].name.is_empty(), "a number without a row");
        nr += 1;
    }
    table
}

static TABLE: [Row; ROWS] = assemble();

/// None for numbers of the x32 ABI and those newer than the table: ENOSYS.
pub fn row(nr: u32) -> Option<&'static Row> {
    TABLE.get(nr as usize)
}

pub fn rows() -> impl Iterator<Item = (u32, &'static Row)> {
    (0..).zip(TABLE.iter())
}

/// Number by name, for tests and reports.
pub fn number(name: &str) -> Option<u32> {
    rows().find(|(_, r)| r.name == name).map(|(nr, _)| nr)
}
