//! Freezing, capturing, thawing, watching.

use std::arch::asm;
use std::process::ExitCode;
use std::thread;
use tcmi_kmod_tests::{
    Case, Outcome, Shared, Victim, ensure, pause_for_ever, run, system, wait_until,
};
use tcmi_sys::kmod::{Captured, Event, Extent, Frozen, Message, Session, abi};

const THREADS: usize = 8;

fn session() -> Result<Session, String> {
    Session::open().map_err(|e| e.to_string())
}

fn freeze(pid: i32, extent: Extent) -> Result<Frozen, String> {
    session()?.freeze(pid, extent, 5000).map_err(|(_, e)| e.to_string())
}

fn capture(frozen: &Frozen) -> Result<Captured, String> {
    frozen.capture().map_err(|e| e.to_string())
}

fn thaw(frozen: Frozen) -> Outcome {
    frozen.thaw().map(drop).map_err(|e| e.to_string())
}

fn refused(pid: i32, extent: Extent, timeout_ms: u32, errno: i32) -> Outcome {
    match session()?.freeze(pid, extent, timeout_ms) {
        Ok(_) => Err(format!("{pid} was frozen")),
        Err((_, e)) => ensure(e.code == errno, || format!("{pid}: {e}, not {errno}")),
    }
}

fn spinning(shared: &Shared) -> Result<Victim, String> {
    let mine = shared.clone();
    let victim = Victim::start(move || {
        for i in 1..=THREADS {
            let mine = mine.clone();
            thread::spawn(move || {
                loop {
                    mine.count(i);
                }
            });
        }
        pause_for_ever();
    })?;
    wait_until("threads", || (1..=THREADS).all(|i| shared.get(i) > 0))?;
    Ok(victim)
}

fn spinning_threads() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    for _ in 0..10 {
        let frozen = freeze(victim.pid, Extent::Process)?;
        ensure(frozen.threads == 1 + THREADS as u32, || format!("{} threads", frozen.threads))?;
        shared.stands_still()?;
        let captured = capture(&frozen)?;
        ensure(captured.threads.len() == 1 + THREADS, || "threads are missing".to_owned())?;
        ensure(captured.processes.len() == 1, || "no process".to_owned())?;
        for thread in &captured.threads {
            ensure(thread.regs.rip != 0 && thread.xstate.len() >= 576, || format!("{thread:?}"))?;
            ensure(thread.pid == victim.pid, || format!("pid {}", thread.pid))?;
        }
        thaw(frozen)?;
        shared.moves()?;
    }
    Ok(())
}

fn closing_the_session_thaws() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    drop(freeze(victim.pid, Extent::Process)?);
    shared.moves()
}

fn death_of_the_freezer_thaws() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    let ready = Shared::new()?;
    let mine = ready.clone();
    let pid = victim.pid;
    let mut freezer = Victim::start(move || {
        let held = freeze(pid, Extent::Process);
        mine.set(0, if held.is_ok() { 1 } else { 2 });
        pause_for_ever();
    })?;
    wait_until("freezer", || ready.get(0) != 0)?;
    ensure(ready.get(0) == 1, || "not frozen".to_owned())?;
    shared.stands_still()?;
    freezer.kill(libc::SIGKILL)?;
    freezer.wait()?;
    shared.moves()
}

fn killed_while_frozen() -> Outcome {
    let shared = Shared::new()?;
    let mut victim = spinning(&shared)?;
    let frozen = freeze(victim.pid, Extent::Process)?;
    victim.kill(libc::SIGKILL)?;
    let status = victim.wait()?;
    ensure(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, || {
        format!("status {status:x}")
    })?;
    match frozen.capture() {
        Err(e) if e.is_gone() => {}
        other => return Err(format!("captured the dead: {other:?}")),
    }
    thaw(frozen)
}

fn values_in_vector_registers() -> Outcome {
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
    let frozen = loop {
        let frozen = freeze(victim.pid, Extent::Process)?;
        let xstate = &capture(&frozen)?.threads[0].xstate;
        // The legacy area has xmm0 at 160, 16 bytes each.
        let xmm9 = xstate[160 + 9 * 16..][..8].try_into().map(u64::from_le_bytes);
        if matches!(xmm9, Ok(PATTERN)) {
            break frozen;
        }
        thaw(frozen)?;
    };
    thaw(frozen)
}

/// `call` returns what goes into word 1 when it ends; word 0 says that it is about to begin.
fn frozen_in_a_call(
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
        let frozen = freeze(victim.pid, Extent::Process)?;
        let captured = capture(&frozen)?;
        let regs = captured.threads[0].regs;
        let restarts = [-512, -513, -514, -516].contains(&(regs.rax as i64));
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

fn in_epoll_wait() -> Outcome {
    let call = |fd| {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        // SAFETY: event is live in both calls.
        unsafe {
            let epoll = libc::epoll_create1(0);
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event);
            errno_or(libc::syscall(libc::SYS_epoll_wait, epoll, &raw mut event, 1, -1))
        }
    };
    frozen_in_a_call(call, libc::SYS_epoll_wait, write_byte, 1)
}

fn in_read() -> Outcome {
    let call = |fd| {
        let mut byte = 0u8;
        // SAFETY: byte is live.
        errno_or(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as i64)
    };
    frozen_in_a_call(call, libc::SYS_read, write_byte, 1)
}

fn in_poll() -> Outcome {
    let call = |fd| {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: poll is live.
        errno_or(unsafe { libc::syscall(libc::SYS_poll, &raw mut poll, 1, 100_000) })
    };
    frozen_in_a_call(call, libc::SYS_poll, write_byte, 1)
}

fn in_sigtimedwait() -> Outcome {
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
    frozen_in_a_call(call, libc::SYS_rt_sigtimedwait, wake, libc::SIGUSR1.into())
}

fn forking_tree() -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        loop {
            // SAFETY: the child only counts and exits.
            unsafe {
                if libc::fork() == 0 {
                    mine.count(1);
                    libc::_exit(0);
                }
            }
            mine.count(2);
            let mut status = 0;
            // Leaves some unwaited for, so that several live at once.
            // SAFETY: status is live.
            while unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } > 0 {
                mine.count(3);
            }
        }
    })?;
    for _ in 0..30 {
        shared.moves()?;
        let frozen = freeze(victim.pid, Extent::Tree)?;
        shared.stands_still()?;
        let captured = capture(&frozen)?;
        ensure(captured.processes.iter().any(|p| p.pid == victim.pid), || {
            "the root is missing".to_owned()
        })?;
        thaw(frozen)?;
    }
    Ok(())
}

fn stopped_by_job_control() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    victim.kill(libc::SIGSTOP)?;
    wait_until("stop", || victim.has_stopped())?;
    let frozen = freeze(victim.pid, Extent::Process)?;
    let captured = capture(&frozen)?;
    ensure(captured.processes[0].group_stop == Some(libc::SIGSTOP), || "no stop".to_owned())?;
    ensure(captured.threads.iter().all(|t| t.is_stopped), || "a thread is not".to_owned())?;
    victim.kill(libc::SIGCONT)?;
    shared.stands_still()?;
    let captured = capture(&frozen)?;
    ensure(captured.threads.len() == 1 + THREADS, || "threads are missing".to_owned())?;
    thaw(frozen)?;
    shared.moves()
}

fn stopped_stays_stopped() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    victim.kill(libc::SIGSTOP)?;
    wait_until("stop", || victim.state() == Some('T'))?;
    thaw(freeze(victim.pid, Extent::Process)?)?;
    shared.stands_still()?;
    ensure(victim.state() == Some('T'), || format!("{:?}", victim.state()))?;
    victim.kill(libc::SIGCONT)?;
    shared.moves()
}

fn pending_signals_are_captured() -> Outcome {
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
    let frozen = freeze(victim.pid, Extent::Process)?;
    let captured = capture(&frozen)?;
    let pending = &captured.processes[0].pending;
    ensure(pending.len() == 1, || format!("{} pending", pending.len()))?;
    let word = |at: usize| i32::from_le_bytes(pending[0][at..at + 4].try_into().unwrap_or([0; 4]));
    ensure(word(0) == libc::SIGUSR2 && word(24) == 0x1234, || format!("{:?}", pending[0]))?;
    ensure(captured.threads[0].mask == 1 << (libc::SIGUSR2 - 1), || "mask".to_owned())?;
    thaw(frozen)
}

fn a_freeze_is_one_session_s() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    let frozen = freeze(victim.pid, Extent::Process)?;
    refused(victim.pid, Extent::Process, 100, libc::EBUSY)?;
    shared.stands_still()?;
    thaw(frozen)?;
    shared.moves()?;
    thaw(freeze(victim.pid, Extent::Process)?)
}

fn what_may_not_be_frozen() -> Outcome {
    let me = std::process::id() as i32;
    refused(1, Extent::Process, 100, libc::EPERM)?;
    refused(2, Extent::Process, 100, libc::EPERM)?;
    refused(me, Extent::Process, 100, libc::EDEADLK)?;
    refused(0, Extent::Process, 100, libc::EINVAL)?;
    refused(-1, Extent::Process, 100, libc::EINVAL)?;
    refused(i32::MAX, Extent::Process, 100, libc::ESRCH)?;
    let zombie = Victim::start(|| ())?;
    wait_until("zombie", || zombie.state() == Some('Z'))?;
    refused(zombie.pid, Extent::Process, 100, libc::ESRCH)
}

fn a_vfork_parent_is_busy() -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        // SAFETY: the child shares this memory and only calls pause; the parent waits for it.
        unsafe {
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            mine.set(1, 1);
            if libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                pause_for_ever();
            }
        }
    })?;
    wait_until("vfork", || shared.get(1) == 1 && victim.state() == Some('D'))?;
    refused(victim.pid, Extent::Process, 100, libc::EBUSY)
}

/// As a user, who may open the device here.
fn as_user(check: impl FnOnce() -> Outcome) -> Outcome {
    let anyone = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(tcmi_sys::kmod::DEVICE, anyone).map_err(|e| e.to_string())?;
    let verdict = Shared::new()?;
    let mine = verdict.clone();
    let mut user = Victim::start(move || {
        // SAFETY: plain calls; this process has one thread.
        unsafe {
            libc::setgid(1000);
            libc::setuid(1000);
        }
        match check() {
            Ok(()) => mine.set(0, 1),
            Err(why) => println!("as user: {why}"),
        }
    })?;
    user.wait()?;
    ensure(verdict.get(0) == 1, || "see above".to_owned())
}

fn anothers_process() -> Outcome {
    let shared = Shared::new()?;
    let roots = spinning(&shared)?;
    as_user(|| refused(roots.pid, Extent::Process, 100, libc::EPERM))
}

fn anothers_child() -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let users = Victim::start(move || {
        let counter = mine.clone();
        let roots = Victim::start(move || {
            loop {
                counter.count(1);
            }
        });
        // SAFETY: plain calls; this process has one thread.
        unsafe {
            libc::setgid(1000);
            libc::setuid(1000);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        mine.set(0, if roots.is_ok() { 1 } else { 2 });
        pause_for_ever();
    })?;
    wait_until("victim", || shared.get(0) == 1)?;
    as_user(|| {
        refused(users.pid, Extent::Tree, 100, libc::EPERM)?;
        shared.moves()?;
        thaw(freeze(users.pid, Extent::Process)?)
    })
}

fn ones_own_process() -> Outcome {
    as_user(|| {
        let shared = Shared::new()?;
        let mine = shared.clone();
        // setuid made us and ours undumpable until execve, or until one says otherwise.
        let victim = Victim::start(move || {
            mine.set(0, 1);
            while mine.get(1) == 0 {}
            // SAFETY: a plain call.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
            mine.set(0, 2);
            pause_for_ever();
        })?;
        refused(victim.pid, Extent::Process, 100, libc::EPERM)?;
        shared.set(1, 1);
        wait_until("dumpable", || shared.get(0) == 2)?;
        thaw(freeze(victim.pid, Extent::Process)?)
    })
}

fn next_event(session: &Session) -> Result<Event, String> {
    match session.read() {
        Ok(Message::Event(event)) => Ok(event),
        other => Err(format!("{other:?}")),
    }
}

fn watching() -> Outcome {
    let shared = Shared::new()?;
    let mut victim = spinning(&shared)?;
    let session = session()?;
    session.watch(victim.pid).map_err(|e| e.to_string())?;
    victim.kill(libc::SIGSTOP)?;
    let event = next_event(&session)?;
    ensure(event.what == abi::TCMI_EVENT_STOP && event.stop_signal == libc::SIGSTOP, || {
        format!("{event:?}")
    })?;
    wait_until("stop", || victim.state() == Some('T'))?;
    victim.kill(libc::SIGCONT)?;
    let event = next_event(&session)?;
    ensure(event.what == abi::TCMI_EVENT_CONTINUE, || format!("{event:?}"))?;
    shared.moves()?;
    victim.kill(libc::SIGKILL)?;
    let mut what = 0;
    while what & abi::TCMI_EVENT_EXIT == 0 {
        let event = next_event(&session)?;
        ensure(event.pid == victim.pid, || format!("{event:?}"))?;
        what |= event.what;
        if what & abi::TCMI_EVENT_EXIT != 0 {
            ensure(event.status == libc::SIGKILL, || format!("{event:?}"))?;
        }
    }
    ensure(what & abi::TCMI_EVENT_KILL != 0, || "no kill".to_owned())?;
    victim.wait()?;
    let gone = session.unwatch(victim.pid);
    ensure(gone.is_err_and(|e| e.is_gone()), || "it is watched still".to_owned())
}

fn an_exit_is_told() -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let mut victim = Victim::start(move || {
        while mine.get(0) == 0 {}
        // SAFETY: a plain call.
        unsafe { libc::_exit(42) };
    })?;
    let session = session()?;
    session.watch(victim.pid).map_err(|e| e.to_string())?;
    shared.set(0, 1);
    let event = next_event(&session)?;
    ensure(event.what == abi::TCMI_EVENT_EXIT && event.status == 42 << 8, || format!("{event:?}"))?;
    victim.wait().map(drop)
}

fn main() -> ExitCode {
    const CASES: &[Case] = &[
        ("spinning-threads", spinning_threads),
        ("closing-the-session-thaws", closing_the_session_thaws),
        ("death-of-the-freezer-thaws", death_of_the_freezer_thaws),
        ("killed-while-frozen", killed_while_frozen),
        ("vector-registers", values_in_vector_registers),
        ("in-read", in_read),
        ("in-poll", in_poll),
        ("in-epoll-wait", in_epoll_wait),
        ("in-sigtimedwait", in_sigtimedwait),
        ("forking-tree", forking_tree),
        ("stopped-by-job-control", stopped_by_job_control),
        ("stopped-stays-stopped", stopped_stays_stopped),
        ("pending-signals", pending_signals_are_captured),
        ("one-session", a_freeze_is_one_session_s),
        ("what-may-not-be-frozen", what_may_not_be_frozen),
        ("vfork-parent", a_vfork_parent_is_busy),
        ("anothers-process", anothers_process),
        ("anothers-child", anothers_child),
        ("ones-own-process", ones_own_process),
        ("watching", watching),
        ("exit-is-told", an_exit_is_told),
    ];
    run(CASES)
}
