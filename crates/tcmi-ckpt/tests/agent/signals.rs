//! Signals that reach a shadow.

use crate::peer::{Call, Reply};
use crate::shadow::{Shadow, spin_at_random, wait_until};
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use tcmi_call::abi::{POKE_CODE, ThreadArea};
use tcmi_call::frame::{SignalFrame, disposition, kind, out_rule, reply_flags};

const EINTR: i64 = -(libc::EINTR as i64);

fn siginfo(frame: &SignalFrame) -> libc::siginfo_t {
    // SAFETY: 128 bytes, and any are valid for a siginfo_t.
    unsafe { std::ptr::read_unaligned(frame.siginfo.as_ptr().cast()) }
}

fn sender(info: &libc::siginfo_t) -> i32 {
    // SAFETY: asked only of signals that a process sent.
    unsafe { info.si_pid() }
}

fn payload(frame: &SignalFrame) -> usize {
    // SAFETY: asked only of queued signals.
    unsafe { siginfo(frame).si_value().sival_ptr as usize }
}

/// A call that only a signal ends.
fn pause() -> Call {
    Call::new(libc::SYS_pause, &[])
}

fn assert_interrupted(reply: &Reply, signals: u32) {
    assert_eq!(reply.header.ret, EINTR);
    assert_eq!(reply.header.flags & !reply_flags::NOT_STARTED, reply_flags::INTERRUPTED);
    assert_eq!(reply.header.signals, signals);
}

#[test]
fn ends_a_blocking_read() {
    let mut shadow = Shadow::spawn();
    let fds = Call::new(libc::SYS_pipe2, &[0, 0]).buffer(0, &[], 8);
    let reply = shadow.calls.call(&fds.out(0, 8, out_rule::ON_SUCCESS, 0));
    let fd = u64::from(u32::from_le_bytes(reply.outs[0][..4].try_into().unwrap()));
    let read = Call::new(libc::SYS_read, &[fd, 0, 100]).buffer(1, &[], 100);
    shadow.calls.send(&read.out(0, 100, out_rule::BY_RETURN, 1).seq(9));
    shadow.wait_in_call();
    shadow.wait_asleep();
    shadow.child.kill(libc::SIGUSR1);
    let frame = shadow.events.receive_signal();
    assert_eq!((frame.seq, frame.signo, frame.tid), (1, libc::SIGUSR1 as u32, 0));
    let info = siginfo(&frame);
    assert_eq!((info.si_signo, info.si_code), (libc::SIGUSR1, libc::SI_USER));
    assert_eq!(sender(&info), std::process::id() as i32);
    let reply = shadow.calls.receive();
    assert_interrupted(&reply, 1);
    assert_eq!(reply.header.flags & reply_flags::NOT_STARTED, 0, "it was waiting");
    assert_eq!((reply.header.seq, reply.outs.concat().len()), (9, 0));
}

#[test]
fn carries_payload_and_target_thread() {
    let mut shadow = Shadow::spawn();
    shadow.child.queue(libc::SIGRTMIN() + 3, 0x1234_5678_9abc);
    let frame = shadow.events.receive_signal();
    assert_eq!((siginfo(&frame).si_code, payload(&frame)), (libc::SI_QUEUE, 0x1234_5678_9abc));
    let pid = shadow.child.pid;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGHUP) }, 0);
    let frame = shadow.events.receive_signal();
    assert_eq!((frame.seq, frame.signo, frame.tid), (2, libc::SIGHUP as u32, pid as u32));
}

#[test]
fn what_comes_while_idle_interrupts_no_later_call() {
    let mut shadow = Shadow::spawn();
    for round in 1..=200u32 {
        shadow.wait_asleep();
        shadow.child.kill(libc::SIGTERM);
        assert_eq!(shadow.events.receive_signal().seq, round);
        let reply = shadow.calls.call(&Call::new(libc::SYS_getpid, &[]));
        assert_eq!((reply.header.ret, reply.header.flags), (shadow.child.pid.into(), 0));
        assert_eq!(reply.header.signals, round);
    }
}

/// A signal at any instruction from "about to call" to "asleep in the call" ends it: nothing
/// else would.
#[test]
fn no_signal_is_left_behind_a_call_that_blocks() {
    let mut shadow = Shadow::spawn();
    let mut random = 0x2545_f491u32;
    for round in 1..=5000 {
        shadow.calls.send(&pause().seq(round.into()));
        shadow.wait_in_call();
        spin_at_random(&mut random);
        shadow.child.kill(libc::SIGUSR2);
        let reply = shadow.calls.receive();
        assert_eq!(reply.header.seq, u64::from(round));
        assert_interrupted(&reply, round);
        assert_eq!(shadow.events.receive_signal().seq, round);
    }
}

#[test]
fn each_arrives_once_and_each_call_is_answered_once() {
    const SIGNALS: usize = 20_000;
    let mut shadow = Shadow::spawn();
    let pid = i64::from(shadow.child.pid);
    let (calls, events, child) = (&mut shadow.calls, &mut shadow.events, &shadow.child);
    let image = vec![1; 100_000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 0x9e37_79b9;
            for n in 0..SIGNALS {
                child.queue(libc::SIGRTMIN() + 1, n);
                spin_at_random(&mut random);
            }
        });
        let received = scope.spawn(|| {
            for n in 0..SIGNALS {
                let frame = events.receive_signal();
                assert_eq!((frame.seq as usize, payload(&frame)), (n + 1, n));
            }
        });
        let mut seen = 0;
        let mut refused = 0;
        for seq in 0.. {
            // A large image keeps the thread busy between the request and the call.
            let call = Call::new(libc::SYS_getpid, &[]).buffer(0, &image, image.len());
            let reply = calls.call(&call.seq(seq));
            assert!(reply.header.signals >= seen);
            seen = reply.header.signals;
            if reply.header.flags == 0 {
                assert_eq!(reply.header.ret, pid);
                if seen as usize == SIGNALS {
                    break;
                }
            } else {
                assert_interrupted(&reply, seen);
                assert_ne!(reply.header.flags & reply_flags::NOT_STARTED, 0, "getpid cannot wait");
                refused += 1;
            }
        }
        received.join().unwrap();
        assert!(refused > 0, "the race was never met");
    });
}

#[test]
fn threads_share_the_event_stream() {
    const EACH: usize = 5000;
    let mut shadow = Shadow::spawn_threads(2);
    let pid = shadow.child.pid;
    let tids = [shadow.tid(0), shadow.tid(1)];
    let (first, second) = (&mut shadow.calls, &mut shadow.others[0]);
    let events = &mut shadow.events;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for peer in [first, second] {
            let done = &done;
            scope.spawn(move || {
                for seq in (0..).take_while(|_| !done.load(Ordering::SeqCst)) {
                    peer.call(&Call::new(libc::SYS_gettid, &[]).seq(seq));
                }
            });
        }
        scope.spawn(|| {
            for n in 0..2 * EACH {
                // SAFETY: a thread of our own child.
                let sent =
                    unsafe { libc::syscall(libc::SYS_tgkill, pid, tids[n % 2], libc::SIGRTMIN()) };
                assert_eq!(sent, 0);
            }
        });
        let mut arrived = [0; 2];
        for n in 1..=2 * EACH {
            let frame = events.receive_signal();
            assert_eq!(frame.seq as usize, n);
            arrived[tids.iter().position(|&tid| tid as u32 == frame.tid).unwrap()] += 1;
        }
        done.store(true, Ordering::SeqCst);
        assert_eq!(arrived, [EACH; 2]);
    });
}

#[test]
fn dispositions_are_mirrored() {
    let mut shadow = Shadow::spawn();
    let set = |signo: i32, how: u64, flags: i32| {
        Call::of_kind(kind::DISPOSITION, &[signo as u64, how, flags as u64])
    };
    let status = |pid: i32, field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let bit = |signo: i32| 1u64 << (signo - 1);
    let pid = shadow.child.pid;
    assert_eq!(shadow.calls.call(&set(libc::SIGINT, disposition::IGNORE, 0)).header.ret, 0);
    assert_ne!(status(pid, "SigIgn") & bit(libc::SIGINT), 0);
    shadow.calls.call(&set(libc::SIGINT, disposition::DEFAULT, 0));
    assert_ne!(status(pid, "SigCgt") & bit(libc::SIGINT), 0, "its default is the guest's to do");
    shadow.calls.call(&set(libc::SIGTSTP, disposition::DEFAULT, 0));
    assert_eq!(status(pid, "SigCgt") & bit(libc::SIGTSTP), 0, "home stops");
    shadow.calls.call(&set(libc::SIGTSTP, disposition::HANDLE, 0));
    assert_ne!(status(pid, "SigCgt") & bit(libc::SIGTSTP), 0);
    let reply = shadow.calls.call(&set(libc::SIGKILL, disposition::IGNORE, 0));
    assert_eq!(reply.header.ret, -i64::from(libc::EINVAL));
    shadow.calls.call(&set(libc::SIGCHLD, disposition::HANDLE, libc::SA_NOCLDWAIT));
    let flags = action_flags(&mut shadow, libc::SIGCHLD);
    assert_eq!(flags & (libc::SA_NOCLDWAIT | libc::SA_RESTART) as u64, libc::SA_NOCLDWAIT as u64);
    shadow.child.kill(libc::SIGTSTP);
    assert_eq!(shadow.events.receive_signal().signo, libc::SIGTSTP as u32);
}

fn action_flags(shadow: &mut Shadow, signo: i32) -> u64 {
    let get = Call::new(libc::SYS_rt_sigaction, &[signo as u64, 0, 0, 8]).buffer(2, &[], 32);
    let reply = shadow.calls.call(&get.out(0, 32, out_rule::ON_SUCCESS, 0));
    u64::from_le_bytes(reply.outs[0][8..16].try_into().unwrap())
}

fn send_coded(shadow: &Shadow, signo: i32, code: i32, value: u64) {
    let mut info = [0u8; 128];
    info[8..12].copy_from_slice(&code.to_le_bytes());
    info[24..32].copy_from_slice(&value.to_le_bytes());
    let pid = shadow.child.pid;
    let info = info.as_ptr();
    // SAFETY: our own child; 128 bytes are a siginfo_t.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, pid, signo, info) };
    assert_eq!(sent, 0);
}

fn poke(shadow: &Shadow, seq: u64) {
    send_coded(shadow, libc::SIGURG, POKE_CODE, seq);
}

#[test]
fn a_timer_that_expires_too_late_is_the_guests_own_affair() {
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&pause());
    shadow.wait_in_call();
    shadow.wait_asleep();
    send_coded(&shadow, libc::SIGRTMIN(), libc::SI_TIMER, 7);
    assert_interrupted(&shadow.calls.receive(), 0);
    shadow.child.kill(libc::SIGUSR1);
    let frame = shadow.events.receive_signal();
    assert_eq!((frame.seq, frame.signo), (1, libc::SIGUSR1 as u32));
}

#[test]
fn a_poke_ends_its_call_and_no_other() {
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&pause().seq(70));
    shadow.wait_in_call();
    shadow.wait_asleep();
    poke(&shadow, 70);
    let reply = shadow.calls.receive();
    assert_interrupted(&reply, 0);
    assert_eq!(reply.header.flags & reply_flags::NOT_STARTED, 0);

    shadow.wait_asleep();
    poke(&shadow, 72);
    shadow.wait_asleep();
    let begun = shadow.calls.call(&Call::new(libc::SYS_getpid, &[]).seq(71));
    assert_eq!(begun.header.flags, 0);
    let refused = shadow.calls.call(&pause().seq(72));
    assert_eq!(refused.header.flags, reply_flags::INTERRUPTED | reply_flags::NOT_STARTED);

    poke(&shadow, 72);
    shadow.wait_asleep();
    let late = shadow.calls.call(&Call::new(libc::SYS_getpid, &[]).seq(73));
    assert_eq!((late.header.flags, late.header.signals), (0, 0));

    // Of a call before: this one is to be made again, as no signal came for it.
    shadow.calls.send(&pause().seq(74));
    shadow.wait_in_call();
    shadow.wait_asleep();
    poke(&shadow, 73);
    assert_interrupted(&shadow.calls.receive(), 0);
}

#[test]
fn a_broken_pipe_is_told_to_the_thread_that_met_it() {
    let mut shadow = Shadow::spawn();
    let fds = Call::new(libc::SYS_pipe2, &[0, 0]).buffer(0, &[], 8);
    let reply = shadow.calls.call(&fds.out(0, 8, out_rule::ON_SUCCESS, 0));
    let fd = |i: usize| {
        u64::from(u32::from_le_bytes(reply.outs[0][4 * i..4 * i + 4].try_into().unwrap()))
    };
    shadow.calls.call(&Call::new(libc::SYS_close, &[fd(0)]));
    let write = Call::new(libc::SYS_write, &[fd(1), 0, 1]).buffer(1, b"x", 1);
    let reply = shadow.calls.call(&write);
    assert_eq!((reply.header.ret, reply.header.signals), (-i64::from(libc::EPIPE), 1));
    let frame = shadow.events.receive_signal();
    assert_eq!((frame.signo, frame.tid), (libc::SIGPIPE as u32, shadow.child.pid as u32));
}

#[test]
fn the_keeper_takes_a_call_back() {
    let mut shadow = Shadow::spawn();
    shadow.calls.send(&pause());
    shadow.wait_in_call();
    shadow.wait_asleep();
    let pid = shadow.child.pid;
    // SAFETY: our own child, seized, stopped and released again in this thread.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0), 0);
        assert_eq!(libc::waitpid(pid, &mut 0, libc::__WALL), pid);
        let mut regs: libc::user_regs_struct = std::mem::zeroed();
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &mut regs), 0);
        regs.rax = EINTR as u64;
        regs.orig_rax = u64::MAX;
        assert_eq!(libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &regs), 0);
    }
    shadow.thread_word(offset_of!(ThreadArea, cancelled)).store(1, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0), 0) };
    let reply = shadow.calls.receive();
    assert_eq!((reply.header.ret, reply.header.flags), (EINTR, reply_flags::CANCELLED));
    let cancelled = shadow.thread_word(offset_of!(ThreadArea, cancelled));
    wait_until(|| cancelled.load(Ordering::SeqCst) == 0);
}
