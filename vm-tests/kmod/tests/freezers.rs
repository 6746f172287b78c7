//! Every way to freeze a process, put to the same test: ptrace anywhere, the module's where it
//! is loaded. The program has one thread, for its victims are forks.

use std::arch::asm;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tcmi_ckpt::Error;
use tcmi_ckpt::freezer::{Freezer, Held, Look, Module, Ptrace};
use tcmi_kmod_tests::{
    Outcome, SPINNING_THREADS, Shared, Victim, ensure, passes, pause_for_ever, spinning, system,
    wait_until,
};

fn freeze(freezer: &dyn Freezer, pid: i32) -> Result<Box<dyn Held>, String> {
    freezer.freeze(pid).map_err(|e| e.to_string())
}

fn look(held: &dyn Held) -> Result<Look, String> {
    held.look().map_err(|e| e.to_string())
}

fn thaw(held: Box<dyn Held>) -> Outcome {
    held.thaw().map_err(|e| e.to_string())
}

fn spinning_threads(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    for _ in 0..10 {
        let held = freeze(freezer, victim.pid)?;
        shared.stands_still()?;
        let seen = look(&*held)?;
        ensure(seen.threads.len() == 1 + SPINNING_THREADS, || "threads are missing".to_owned())?;
        for thread in &seen.threads {
            ensure(thread.regs.rip != 0 && thread.xstate.len() >= 576, || format!("{thread:?}"))?;
        }
        thaw(held)?;
        shared.moves()?;
    }
    Ok(())
}

fn dropping_thaws(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    drop(freeze(freezer, victim.pid)?);
    shared.moves()
}

fn death_of_the_freezer_thaws(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    let ready = Shared::new()?;
    let (mine, pid) = (ready.clone(), victim.pid);
    let mut holder = Victim::start(|| {
        let held = freeze(freezer, pid);
        mine.set(0, if held.is_ok() { 1 } else { 2 });
        pause_for_ever();
    })?;
    wait_until("freezer", || ready.get(0) != 0)?;
    ensure(ready.get(0) == 1, || "not frozen".to_owned())?;
    shared.stands_still()?;
    holder.kill(libc::SIGKILL)?;
    holder.wait()?;
    shared.moves()
}

/// Its parent waits for it once its freezer has ended: of threads that were traced the tracer is
/// told first.
fn killed_while_frozen(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let mut victim = spinning(&shared)?;
    let said = Shared::new()?;
    let (mine, pid) = (said.clone(), victim.pid);
    let mut holder = Victim::start(|| {
        let Ok(held) = freeze(freezer, pid) else { return mine.set(0, 2) };
        mine.set(0, 1);
        let gone = wait_until("its end", || held.look().is_err_and(|e| e.is_gone()));
        mine.set(1, if gone.is_ok() && thaw(held).is_ok() { 1 } else { 2 });
    })?;
    wait_until("freezer", || said.get(0) != 0)?;
    ensure(said.get(0) == 1, || "not frozen".to_owned())?;
    victim.kill(libc::SIGKILL)?;
    holder.wait()?;
    ensure(said.get(1) == 1, || "the dead were seen, or not let go".to_owned())?;
    let status = victim.wait()?;
    ensure(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, || {
        format!("status {status:x}")
    })
}

/// What it forks runs on; it does not.
fn forking_loop(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        loop {
            // SAFETY: the child only exits, and the parent takes its status.
            unsafe {
                match libc::fork() {
                    0 => libc::_exit(0),
                    child => libc::waitpid(child, std::ptr::null_mut(), 0),
                };
            }
            mine.count(1);
        }
    })?;
    for _ in 0..30 {
        shared.moves()?;
        let held = freeze(freezer, victim.pid)?;
        shared.stands_still()?;
        ensure(look(&*held)?.threads.len() == 1, || "threads".to_owned())?;
        thaw(held)?;
    }
    Ok(())
}

fn values_in_vector_registers(freezer: &dyn Freezer) -> Outcome {
    const PATTERN: u64 = 0x7463_6d69_0bad_cafe;
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        mine.set(0, 1);
        // SAFETY: loops for ever with a value in xmm9 and touches no memory.
        unsafe {
            asm!("movq xmm9, {0}", "2:", "pause", "jmp 2b", in(reg) PATTERN, options(noreturn))
        }
    })?;
    wait_until("victim", || shared.get(0) == 1)?;
    // Between the word and the loop there are a few instructions.
    let held = loop {
        let held = freeze(freezer, victim.pid)?;
        let xstate = &look(&*held)?.threads[0].xstate;
        // The legacy area has xmm0 at 160, 16 bytes each.
        let xmm9 = xstate[160 + 9 * 16..][..8].try_into().map(u64::from_le_bytes);
        if matches!(xmm9, Ok(PATTERN)) {
            break held;
        }
        thaw(held)?;
    };
    thaw(held)
}

/// `call` returns what goes into word 1 when it ends; word 0 says that it is about to begin.
fn frozen_in_a_call(
    freezer: &dyn Freezer,
    call: impl FnOnce(i32) -> i64,
    nr: i64,
    wake: impl FnOnce(i32, i32) -> Outcome,
    expected: i64,
) -> Outcome {
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    system("pipe", unsafe { libc::pipe(pipe.as_mut_ptr()) }.into())?;
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        mine.set(0, 1);
        mine.set(1, call(pipe[0]) as u64);
        mine.set(0, 2);
        pause_for_ever();
    })?;
    wait_until("victim", || shared.get(0) == 1 && victim.state() == Some('S'))?;
    for _ in 0..10 {
        let frozen = freeze(freezer, victim.pid)?;
        let seen = look(&*frozen)?;
        let regs = seen.threads[0].regs;
        let restarts =
            [-512, -513, -514, -516, -i64::from(libc::EINTR)].contains(&(regs.rax as i64));
        ensure(regs.orig_rax as i64 == nr && restarts, || {
            format!("in call {} with {}", regs.orig_rax as i64, regs.rax as i64)
        })?;
        thaw(frozen)?;
        ensure(shared.get(0) == 1, || format!("call ended: {}", shared.get(1) as i64))?;
        wait_until("sleeps again", || victim.state() == Some('S'))?;
    }
    wake(pipe[1], victim.pid)?;
    wait_until("call ends", || shared.get(0) == 2)?;
    ensure(shared.get(1) as i64 == expected, || format!("returned {}", shared.get(1) as i64))?;
    for end in pipe {
        // SAFETY: ours.
        unsafe { libc::close(end) };
    }
    Ok(())
}

fn errno_or(ret: i64) -> i64 {
    if ret >= 0 {
        ret
    } else {
        -std::io::Error::last_os_error().raw_os_error().map_or(0, i64::from)
    }
}

fn write_byte(to: i32, _: i32) -> Outcome {
    // SAFETY: one byte of a literal.
    system("write", unsafe { libc::write(to, b"x".as_ptr().cast(), 1) } as i64).map(drop)
}

fn in_epoll_wait(freezer: &dyn Freezer) -> Outcome {
    let call = |fd| {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        // SAFETY: event is live in both calls.
        unsafe {
            let epoll = libc::epoll_create1(0);
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event);
            errno_or(libc::syscall(libc::SYS_epoll_wait, epoll, &raw mut event, 1, -1))
        }
    };
    frozen_in_a_call(freezer, call, libc::SYS_epoll_wait, write_byte, 1)
}

fn in_read(freezer: &dyn Freezer) -> Outcome {
    let call = |fd| {
        let mut byte = 0u8;
        // SAFETY: byte is live.
        errno_or(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as i64)
    };
    frozen_in_a_call(freezer, call, libc::SYS_read, write_byte, 1)
}

fn in_poll(freezer: &dyn Freezer) -> Outcome {
    let call = |fd| {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: poll is live.
        errno_or(unsafe { libc::syscall(libc::SYS_poll, &raw mut poll, 1, 100_000) })
    };
    frozen_in_a_call(freezer, call, libc::SYS_poll, write_byte, 1)
}

fn in_sigtimedwait(freezer: &dyn Freezer) -> Outcome {
    let set = 1u64 << (libc::SIGUSR1 - 1);
    let call = move |_| {
        // SAFETY: set is live; no siginfo and no timeout are asked for.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const set, 0, 8);
            errno_or(libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, 0, 0, 8))
        }
    };
    let wake = |_, pid| {
        // SAFETY: our victim's pid.
        system("kill", unsafe { libc::kill(pid, libc::SIGUSR1) }.into()).map(drop)
    };
    frozen_in_a_call(freezer, call, libc::SYS_rt_sigtimedwait, wake, libc::SIGUSR1.into())
}

fn stopped_stays_stopped(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    victim.kill(libc::SIGSTOP)?;
    wait_until("stop", || victim.state() == Some('T'))?;
    thaw(freeze(freezer, victim.pid)?)?;
    shared.stands_still()?;
    ensure(victim.state() == Some('T'), || format!("{:?}", victim.state()))?;
    victim.kill(libc::SIGCONT)?;
    shared.moves()
}

fn pending_signals_are_told(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        let set = 1u64 << (libc::SIGUSR2 - 1);
        // SAFETY: set is live.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const set, 0, 8) };
        mine.set(0, 1);
        pause_for_ever();
    })?;
    wait_until("victim", || shared.get(0) == 1)?;
    let value = libc::sigval { sival_ptr: 0x1234 as *mut _ };
    // SAFETY: our victim's pid.
    system("sigqueue", unsafe { libc::sigqueue(victim.pid, libc::SIGUSR2, value) }.into())?;
    let held = freeze(freezer, victim.pid)?;
    let seen = look(&*held)?;
    let pending = &seen.pending;
    ensure(pending.len() == 1, || format!("{} pending", pending.len()))?;
    let word = |at: usize| i32::from_le_bytes(pending[0][at..at + 4].try_into().unwrap_or([0; 4]));
    ensure(word(0) == libc::SIGUSR2 && word(24) == 0x1234, || format!("{:?}", pending[0]))?;
    ensure(seen.threads[0].mask == 1 << (libc::SIGUSR2 - 1), || "mask".to_owned())?;
    thaw(held)
}

/// Counts, begins the next thread like it, and ends.
fn chain(mine: Shared) {
    mine.count(1);
    std::thread::spawn(move || chain(mine));
}

/// Never the same threads twice. Ptrace takes them one by one, and may give up; but nothing of
/// what it holds runs, not even on the way from the module to a tracer.
fn thread_storm(freezer: &dyn Freezer) -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        for _ in 0..4 {
            let mine = mine.clone();
            std::thread::spawn(move || chain(mine));
        }
        pause_for_ever();
    })?;
    // A step takes some 30 us where nothing is emulated.
    let steps = Duration::from_millis(3);
    for _ in 0..500 {
        shared.moves()?;
        match freezer.freeze(victim.pid) {
            Ok(held) => {
                let before = shared.sum();
                let frozen = held.trace().map_err(|e| e.to_string())?;
                let stood = shared.stands_still_for(steps);
                let same = shared.sum() == before;
                frozen.thaw().map_err(|e| e.to_string())?;
                stood?;
                ensure(same, || "ran on the way to its tracer".to_owned())?;
            }
            // Of ptrace alone.
            Err(Error::ThreadStorm) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    shared.moves()
}

type Case = fn(&dyn Freezer) -> Outcome;

const CASES: &[(&str, Case)] = &[
    ("spinning-threads", spinning_threads),
    ("dropping-thaws", dropping_thaws),
    ("death-of-the-freezer-thaws", death_of_the_freezer_thaws),
    ("killed-while-frozen", killed_while_frozen),
    ("forking-loop", forking_loop),
    ("thread-storm", thread_storm),
    ("vector-registers", values_in_vector_registers),
    ("in-read", in_read),
    ("in-poll", in_poll),
    ("in-epoll-wait", in_epoll_wait),
    ("in-sigtimedwait", in_sigtimedwait),
    ("stopped-stays-stopped", stopped_stays_stopped),
    ("pending-signals", pending_signals_are_told),
];

fn main() -> ExitCode {
    let mut freezers: Vec<(&str, &dyn Freezer)> = vec![("ptrace", &Ptrace)];
    if Path::new(tcmi_sys::kmod::DEVICE).exists() {
        freezers.push(("module", &Module));
    }
    let mut failed = false;
    for (which, freezer) in freezers {
        for (name, case) in CASES {
            failed |= !passes(&format!("{which} {name}"), || case(freezer));
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
