//! `kmod-bench MODULE`: what the module costs while it is idle, and what a freeze takes. It
//! is not loaded before. Only prints: on an emulated machine whose host is busy the same code
//! takes from half to twice its time, so a limit would test the host.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tcmi_kmod_tests::{Outcome, Shared, Victim, ensure, pause_for_ever, system, wait_until};
use tcmi_sys::kmod::{Extent, Session};

const ROUNDS: usize = 15;
/// What a round measures, in this order; the third without the module again.
const WITH: usize = 0;
const WITHOUT: usize = 1;
const AGAIN: usize = 2;

fn load(file: &File) -> Outcome {
    // SAFETY: an open file and a NUL-terminated string.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    system("finit_module", ret).map(drop)
}

fn unload() -> Outcome {
    // SAFETY: a NUL-terminated string.
    let ret = unsafe { libc::syscall(libc::SYS_delete_module, c"tcmi".as_ptr(), libc::O_NONBLOCK) };
    system("delete_module", ret).map(drop)
}

fn null_syscalls() -> Outcome {
    for _ in 0..20_000 {
        // SAFETY: a plain call.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    Ok(())
}

fn forks() -> Outcome {
    for _ in 0..10 {
        let mut child = Victim::start(|| {
            let args = [c"/bin/true".as_ptr(), std::ptr::null()];
            // SAFETY: NUL-terminated strings and a NULL at the end of each array.
            unsafe { libc::execve(args[0], args.as_ptr(), args[1..].as_ptr()) };
        })?;
        child.wait()?;
    }
    Ok(())
}

fn signals() -> Outcome {
    for _ in 0..5_000 {
        // SAFETY: to ourselves, and ignored by default.
        unsafe { libc::raise(libc::SIGURG) };
    }
    Ok(())
}

type Work = (&'static str, fn() -> Outcome);

const WORKS: [Work; 3] =
    [("null syscalls", null_syscalls), ("fork, exec, wait", forks), ("signals", signals)];

/// The second time: what was just loaded or unloaded leaves cold caches behind.
fn times() -> Result<Vec<Duration>, String> {
    let time = |(_, work): &Work| {
        work()?;
        let begin = Instant::now();
        work()?;
        Ok(begin.elapsed())
    };
    WORKS.iter().map(time).collect()
}

fn middle(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// In turns, so that what else the machine does hits both. Any load or unload of a module slows
/// down what comes after it for a while; so the time without it is taken after an unload.
fn idle(module: &File) -> Outcome {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        load(module)?;
        let with = times()?;
        wait_until("unload", || unload().is_ok())?;
        let without = times()?;
        rounds.push([with, without, times()?]);
    }
    for (at, (name, _)) in WORKS.iter().enumerate() {
        let ratio = |one: usize| {
            let seconds = |times: &Vec<Duration>| times[at].as_secs_f64();
            let ratios = rounds.iter().map(|r: &[_; 3]| seconds(&r[one]) / seconds(&r[WITHOUT]));
            middle(ratios.collect())
        };
        let (cost, noise) = (ratio(WITH), ratio(AGAIN));
        println!(
            "{name}: with the module in {cost:.3} of the time without; without it a second time \
             in {noise:.3}"
        );
    }
    Ok(())
}

fn freezes(threads: usize) -> Outcome {
    let shared = Shared::new()?;
    let mine = shared.clone();
    let victim = Victim::start(move || {
        for _ in 1..threads {
            std::thread::spawn(|| pause_for_ever());
        }
        mine.set(0, 1);
        pause_for_ever();
    })?;
    wait_until("threads", || shared.get(0) == 1)?;
    let mut best = [Duration::MAX; 3];
    let mut session = Session::open().map_err(|e| e.to_string())?;
    for _ in 0..20 {
        let begin = Instant::now();
        let frozen = session.freeze(victim.pid, Extent::Process, 5000);
        let frozen = frozen.map_err(|(_, e)| e.to_string())?;
        best[0] = best[0].min(begin.elapsed());
        let begin = Instant::now();
        let captured = frozen.capture().map_err(|e| e.to_string())?;
        best[1] = best[1].min(begin.elapsed());
        ensure(captured.threads.len() == threads, || "threads are missing".to_owned())?;
        let begin = Instant::now();
        session = frozen.thaw().map_err(|e| e.to_string())?;
        best[2] = best[2].min(begin.elapsed());
    }
    let [freeze, capture, thaw] = best;
    println!("{threads} threads: freeze {freeze:?}, capture {capture:?}, thaw {thaw:?}");
    Ok(())
}

fn bench(module: &str) -> Outcome {
    let module = File::open(module).map_err(|e| e.to_string())?;
    idle(&module)?;
    load(&module)?;
    for threads in [1, 10, 100, 1000] {
        freezes(threads)?;
    }
    wait_until("unload", || unload().is_ok())
}

fn main() -> ExitCode {
    let Some(module) = std::env::args().nth(1) else {
        println!("FAIL bench: kmod-bench MODULE");
        return ExitCode::FAILURE;
    };
    match bench(&module) {
        Ok(()) => {
            println!("PASS bench");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAIL bench: {why}");
            ExitCode::FAILURE
        }
    }
}
