//! Signals that arrive at home, and calls that wait.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use crate::rig::{Rig, THREADS_MAX, board, sys, wait_until};

pub const ALL: &[(&str, fn())] = &[
    ("interrupted_read_without_restart", without_restart),
    ("interrupted_read_with_restart", with_restart),
    ("ignored_signal_leaves_a_read_alone", ignored),
    ("blocked_signal_leaves_a_read_alone", blocked),
    ("interrupted_poll", poll),
    ("mask_of_a_call_lets_a_signal_in", own_mask),
    ("payload_arrives", payload),
    ("process_signal_with_many_threads", many_threads),
    ("blocked_calls_delay_nobody", blocked_calls),
    ("cancelled_call_is_made_again", cancelled),
    ("stop_taking_and_cancel", cancel_for_a_move),
    ("quiesce_and_resume", quiesce),
    ("speed", speed),
];

const RET: usize = 0;
const HITS: usize = 1;
const PIPE: usize = 2;
const READY: usize = 4;
const VALUE: usize = 5;

fn word(i: usize) -> &'static AtomicU32 {
    &board().words[i]
}

extern "C" fn count(_: i32, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    word(HITS).fetch_add(1, Ordering::AcqRel);
    // SAFETY: the kernel gives a whole siginfo.
    word(VALUE).store(unsafe { (*info).si_value().sival_ptr.addr() } as u32, Ordering::Release);
}

fn on(signo: i32, handler: usize, flags: i32) {
    // SAFETY: an all-zero sigaction is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags | libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signo, &action, std::ptr::null_mut()), 0);
    }
}

fn counting() -> usize {
    count as *const () as usize
}

fn open_pipe() -> u64 {
    let pipe = [0u32; 2];
    assert_eq!(sys(libc::SYS_pipe2, &[pipe.as_ptr() as u64, 0]), 0);
    word(PIPE).store(pipe[0], Ordering::Release);
    word(PIPE + 1).store(pipe[1], Ordering::Release);
    u64::from(pipe[0])
}

fn read_one(fd: u64) -> i64 {
    let byte = [0u8];
    sys(libc::SYS_read, &[fd, byte.as_ptr() as u64, 1])
}

fn read_and_note(_: usize) {
    let fd = open_pipe();
    word(RET).store(read_one(fd) as u32, Ordering::Release);
}

fn signal_home(rig: &Rig, signo: i32) {
    // SAFETY: our child.
    assert_eq!(unsafe { libc::kill(rig.home, signo) }, 0);
}

/// Writes into the guest's pipe from outside, through home's descriptor.
fn feed(rig: &Rig) {
    let path = format!("/proc/{}/fd/{}", rig.home, word(PIPE + 1).load(Ordering::Acquire));
    std::fs::write(path, b"x").expect("the pipe at home");
}

fn outcome(rig: Rig) -> (i32, u32) {
    rig.finish();
    (word(RET).load(Ordering::Acquire) as i32, word(HITS).load(Ordering::Acquire))
}

fn without_restart() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, counting(), 0);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    signal_home(&rig, libc::SIGUSR1);
    assert_eq!(outcome(rig), (-libc::EINTR, 1));
}

fn with_restart() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, counting(), libc::SA_RESTART);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    signal_home(&rig, libc::SIGUSR1);
    wait_until("the handler", || word(HITS).load(Ordering::Acquire) == 1);
    rig.wait_for_home_in(0, libc::SYS_read);
    feed(&rig);
    assert_eq!(outcome(rig), (1, 1));
}

fn ignored() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, libc::SIG_IGN, 0);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    signal_home(&rig, libc::SIGUSR1);
    signal_home(&rig, libc::SIGUSR1);
    rig.wait_for_home_in(0, libc::SYS_read);
    feed(&rig);
    assert_eq!(outcome(rig), (1, 0));
}

fn block(signo: i32) {
    let set = 1u64 << (signo - 1);
    assert_eq!(sys(libc::SYS_rt_sigprocmask, &[0, (&raw const set) as u64, 0, 8]), 0);
}

fn blocked() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, counting(), 0);
        block(libc::SIGUSR1);
        read_and_note(i);
        word(READY).store(word(HITS).load(Ordering::Acquire) + 1, Ordering::Release);
        let none = 0u64;
        sys(libc::SYS_rt_sigprocmask, &[2, (&raw const none) as u64, 0, 8]);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    signal_home(&rig, libc::SIGUSR1);
    let status = format!("/proc/{}/status", rig.guest);
    wait_until("a pending signal", || {
        let text = std::fs::read_to_string(&status).expect("status");
        text.lines().any(|l| l.starts_with("ShdPnd") && !l.ends_with("0000000000000000"))
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    feed(&rig);
    assert_eq!(outcome(rig), (1, 1));
    assert_eq!(word(READY).load(Ordering::Acquire), 1, "no handler before the read ended");
}

fn poll() {
    let rig = Rig::start(1, |_| {
        on(libc::SIGUSR1, counting(), libc::SA_RESTART);
        let fd = open_pipe();
        let fds = [fd | 1 << 32];
        let ret = sys(libc::SYS_poll, &[fds.as_ptr() as u64, 1, 100_000]);
        word(RET).store(ret as u32, Ordering::Release);
    });
    rig.wait_for_home_in(0, libc::SYS_poll);
    signal_home(&rig, libc::SIGUSR1);
    assert_eq!(outcome(rig), (-libc::EINTR, 1));
}

/// The signal is blocked but while the call waits; afterwards it is blocked again.
fn own_mask() {
    let rig = Rig::start(1, |_| {
        on(libc::SIGUSR1, counting(), 0);
        block(libc::SIGUSR1);
        let none = 0u64;
        let ret = sys(libc::SYS_ppoll, &[0, 0, 0, (&raw const none) as u64, 8]);
        word(RET).store(ret as u32, Ordering::Release);
        let mut now = 0u64;
        sys(libc::SYS_rt_sigprocmask, &[0, 0, (&raw mut now) as u64, 8]);
        word(READY).store(now as u32, Ordering::Release);
    });
    rig.wait_for_home_in(0, libc::SYS_ppoll);
    signal_home(&rig, libc::SIGUSR1);
    assert_eq!(outcome(rig), (-libc::EINTR, 1));
    assert_eq!(word(READY).load(Ordering::Acquire), 1 << (libc::SIGUSR1 - 1), "mask afterwards");
}

fn payload() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR2, counting(), 0);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(4711) };
    // SAFETY: our child.
    assert_eq!(unsafe { libc::sigqueue(rig.home, libc::SIGUSR2, value) }, 0);
    assert_eq!(outcome(rig), (-libc::EINTR, 1));
    assert_eq!(word(VALUE).load(Ordering::Acquire), 4711);
}

/// Whichever thread home's kernel chose and whichever the guest's: no thread sees a restart
/// code, the handler runs once a signal, all reads are made again.
fn many_threads() {
    const THREADS: usize = 8;
    const SIGNALS: u32 = 200;
    let rig = Rig::start(THREADS, |i| {
        if i == 0 {
            on(libc::SIGUSR1, counting(), libc::SA_RESTART);
            open_pipe();
            word(READY).store(1, Ordering::Release);
        }
        while word(READY).load(Ordering::Acquire) == 0 {
            sys(libc::SYS_sched_yield, &[]);
        }
        let fd = u64::from(word(PIPE).load(Ordering::Acquire));
        let ret = read_one(fd);
        if ret != 1 {
            word(RET).store(ret as u32, Ordering::Release);
        }
        word(6).fetch_add(1, Ordering::AcqRel);
        while word(6).load(Ordering::Acquire) < THREADS as u32 {
            sys(libc::SYS_sched_yield, &[]);
        }
    });
    for i in 0..THREADS {
        rig.wait_for_home_in(i, libc::SYS_read);
    }
    for n in 1..=SIGNALS {
        signal_home(&rig, libc::SIGUSR1);
        wait_until("the handler", || word(HITS).load(Ordering::Acquire) == n);
    }
    for _ in 0..THREADS {
        feed(&rig);
    }
    assert_eq!(outcome(rig), (0, SIGNALS));
}

fn blocked_calls() {
    const BLOCKED: usize = 100;
    const { assert!(BLOCKED < THREADS_MAX) };
    let rig = Rig::start(BLOCKED + 1, |i| {
        if i == 0 {
            open_pipe();
            word(READY).store(1, Ordering::Release);
        }
        while word(READY).load(Ordering::Acquire) == 0 {
            sys(libc::SYS_sched_yield, &[]);
        }
        let fd = u64::from(word(PIPE).load(Ordering::Acquire));
        if i < BLOCKED {
            word(RET).fetch_add(read_one(fd) as u32, Ordering::AcqRel);
            word(6).fetch_add(1, Ordering::AcqRel);
            return forever(i);
        }
        while word(7).load(Ordering::Acquire) == 0 {
            sys(libc::SYS_sched_yield, &[]);
        }
        for _ in 0..1000 {
            sys(libc::SYS_getppid, &[]);
        }
        word(8).store(1, Ordering::Release);
        while word(6).load(Ordering::Acquire) < BLOCKED as u32 {
            sys(libc::SYS_sched_yield, &[]);
        }
        sys(libc::SYS_exit_group, &[0]);
    });
    for i in 0..BLOCKED {
        rig.wait_for_home_in(i, libc::SYS_read);
    }
    assert_eq!(rig.calls.in_flight(), BLOCKED);
    word(7).store(1, Ordering::Release);
    wait_until("a thousand calls beside a hundred blocked", || {
        word(8).load(Ordering::Acquire) == 1
    });
    for _ in 0..BLOCKED {
        feed(&rig);
    }
    assert_eq!(outcome(rig), (BLOCKED as i32, 0));
}

/// Lets another thread end the process.
fn forever(_: usize) {
    let never = AtomicU32::new(0);
    loop {
        sys(libc::SYS_futex, &[never.as_ptr() as u64, 0, 0, 0]);
    }
}

fn reads_answered(rig: &Rig) -> u64 {
    let stats = rig.calls.stats().snapshot();
    stats.iter().find(|s| s.name == "read").map_or(0, |s| s.calls)
}

fn cancelled() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, counting(), 0);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    rig.board.cancel.store(1, Ordering::Release);
    signal_home(&rig, libc::SIGUSR1);
    wait_until("the call's return", || reads_answered(&rig) == 1);
    rig.wait_for_home_in(0, libc::SYS_read);
    feed(&rig);
    assert_eq!(outcome(rig), (1, 0));
}

/// The way of a move: interrupt, stop taking, cancel, quiet; then go on as if nothing had been.
fn cancel_for_a_move() {
    let rig = Rig::start(1, |i| {
        on(libc::SIGUSR1, counting(), 0);
        read_and_note(i);
    });
    rig.wait_for_home_in(0, libc::SYS_read);
    rig.calls.stop_taking();
    let ((to_us, told), (quiet, is_quiet), (held, is_held)) = (channel(), channel(), channel());
    rig.trace(move |tracer| {
        tracer.close().expect("nothing is under way");
        let all = tracer.interrupt_all().expect("told");
        to_us.send(()).expect("who waits");
        is_quiet.recv().expect("the test");
        let frozen = tracer.freeze(all).expect("held");
        let regs = frozen.leader().regs;
        frozen.resume().expect("it runs on");
        tracer.open();
        held.send(regs).expect("who waits");
    });
    told.recv().expect("the tracer");
    rig.calls.told();
    assert!(rig.calls.quiesce(std::time::Duration::ZERO).is_err(), "the read still waits");
    rig.board.cancel.store(1, Ordering::Release);
    signal_home(&rig, libc::SIGUSR1);
    rig.calls.quiesce(std::time::Duration::from_secs(5)).expect("cancelled");
    quiet.send(()).expect("the tracer");
    let regs = is_held.recv().expect("the tracer");
    // At its beginning, as nothing but the freeze interrupted it.
    assert_eq!((regs.orig_rax as i64, regs.rax), (-1, libc::SYS_read as u64));
    rig.calls.resume();
    rig.wait_for_home_in(0, libc::SYS_read);
    feed(&rig);
    assert_eq!(outcome(rig), (1, 0));
}

fn quiesce() {
    let rig = Rig::start(1, |_| {
        for _ in 0..2000 {
            let ret = sys(libc::SYS_getuid, &[]);
            assert!(ret >= 0);
            word(RET).fetch_add(1, Ordering::AcqRel);
        }
    });
    for _ in 0..20 {
        rig.calls.quiesce(std::time::Duration::from_secs(5)).expect("no call waits");
        let before = rig.calls.stats().snapshot().iter().map(|s| s.calls).sum::<u64>();
        std::thread::yield_now();
        assert_eq!(rig.calls.in_flight(), 0);
        let after = rig.calls.stats().snapshot().iter().map(|s| s.calls).sum::<u64>();
        assert_eq!(before, after, "a call was served while quiescent");
        rig.calls.resume();
        let seen = word(RET).load(Ordering::Acquire);
        wait_until("progress", || word(RET).load(Ordering::Acquire) > seen.min(1999));
    }
    assert_eq!(outcome(rig), (2000, 0));
}

/// Says what a call costs here; no bound, the machine is shared.
fn speed() {
    const ROUNDS: u32 = 20_000;
    let rig = Rig::start(1, |_| {
        let begun = std::time::Instant::now();
        for _ in 0..ROUNDS {
            sys(libc::SYS_getppid, &[]);
        }
        let ns = begun.elapsed().as_nanos() as u32 / ROUNDS;
        word(RET).store(ns, Ordering::Release);
    });
    println!("getppid: {} ns a call, all in all", outcome(rig).0);
}
