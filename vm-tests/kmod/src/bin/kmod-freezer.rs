//! What only the module does: trees, whose a freeze is, watches. `tests/freezers.rs` has the rest.

use std::process::ExitCode;
use tcmi_kmod_tests::{
    Case, Outcome, SPINNING_THREADS, Shared, Victim, ensure, pause_for_ever, run, spinning,
    wait_until,
};
use tcmi_sys::kmod::{Captured, Event, Extent, Frozen, Message, Session, abi};

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
    ensure(captured.threads.len() == 1 + SPINNING_THREADS, || "threads are missing".to_owned())?;
    thaw(frozen)?;
    shared.moves()
}

fn held_by_its_tracer() -> Outcome {
    let shared = Shared::new()?;
    let victim = spinning(&shared)?;
    let text = |e: tcmi_ckpt::Error| e.to_string();
    for _ in 0..20 {
        let held = tcmi_ckpt::freeze::freeze(victim.pid).map_err(text)?;
        let frozen = freeze(victim.pid, Extent::Process)?;
        let captured = capture(&frozen)?;
        for thread in &held.threads {
            let seen = captured.threads.iter().find(|t| t.tid == thread.tid);
            let seen = seen.ok_or_else(|| format!("{} is missing", thread.tid))?;
            ensure(seen.regs.rip == thread.regs.rip, || format!("{:x}", seen.regs.rip))?;
        }
        held.thaw().map_err(text)?;
        shared.stands_still()?;
        thaw(frozen)?;
        shared.moves()?;
    }
    Ok(())
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
        ("forking-tree", forking_tree),
        ("stopped-by-job-control", stopped_by_job_control),
        ("held-by-its-tracer", held_by_its_tracer),
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
