//! `kmod-load MODULE`: loads and unloads it, idle and in use. It is not loaded before.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tcmi_kmod_tests::{Outcome, Victim, ensure, pause_for_ever, system, wait_until};
use tcmi_sys::kmod::{Extent, Peer, PeerState, Session};

const ROUNDS: u32 = 8;
const FREEZES: u32 = 100;
/// What a leak of one object a thread and freeze would exceed.
const GROWTH_KIB_MAX: u64 = 512;

fn load(module: &Path) -> Outcome {
    let file = File::open(module).map_err(|e| e.to_string())?;
    // SAFETY: an open file and a NUL-terminated string.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    system("finit_module", ret).map(drop)
}

fn unload() -> Outcome {
    // SAFETY: a NUL-terminated string.
    let ret = unsafe { libc::syscall(libc::SYS_delete_module, c"tcmi".as_ptr(), libc::O_NONBLOCK) };
    system("delete_module", ret).map(drop)
}

fn slab_kib() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).ok_or("no SUnreclaim".to_owned())
}

/// Frozen, closed at once, unloaded: threads that were thawed may not have left yet.
fn freeze_and_unload(module: &Path, victim: &Victim) -> Outcome {
    load(module)?;
    let mut session = Session::open().map_err(|e| e.to_string())?;
    ensure(unload().is_err(), || "unloaded with a session".to_owned())?;
    for _ in 0..FREEZES {
        let frozen = session.freeze(victim.pid, Extent::Process, 5000);
        let frozen = frozen.map_err(|(_, e)| e.to_string())?;
        session = frozen.thaw().map_err(|e| e.to_string())?;
    }
    let frozen = session.freeze(victim.pid, Extent::Tree, 5000);
    let frozen = frozen.map_err(|(_, e)| e.to_string())?;
    frozen.capture().map_err(|e| e.to_string())?;
    ensure(unload().is_err(), || "unloaded while frozen".to_owned())?;
    drop(frozen);
    wait_until("unload", || unload().is_ok())
}

/// What was frozen stopped is unloaded from under at once, and goes on all the same.
fn unload_under_stopped(module: &Path, victim: &Victim) -> Outcome {
    load(module)?;
    victim.kill(libc::SIGSTOP)?;
    wait_until("stop", || victim.has_stopped())?;
    let session = Session::open().map_err(|e| e.to_string())?;
    let frozen =
        session.freeze(victim.pid, Extent::Process, 5000).map_err(|(_, e)| e.to_string())?;
    drop(frozen.thaw().map_err(|e| e.to_string())?);
    unload()?;
    victim.kill(libc::SIGCONT)?;
    wait_until("go on", || victim.state() == Some('S'))
}

/// A peer outlives who set it, and hinders nobody.
fn unload_under_peer(module: &Path) -> Outcome {
    load(module)?;
    let [here, there] = [20_001, 20_002].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let answers = |from, to| Peer::set(from, to, [7; 32], [7; 32]).map_err(|e| e.to_string());
    let victim = Victim::start(|| {
        let _peer = answers(there, here);
        pause_for_ever();
    })?;
    let peer = answers(here, there)?;
    let asked = |state| {
        wait_until("an answer", || peer.ask(Duration::from_secs(1)).is_ok_and(|a| a == Some(state)))
    };
    asked(PeerState::Served)?;
    ensure(unload().is_err(), || "unloaded with a peer's session".to_owned())?;
    drop(victim);
    asked(PeerState::Abandoned)?;
    drop(peer);
    unload()
}

fn rounds(module: &Path) -> Outcome {
    let victim = Victim::start(|| {
        for _ in 0..16 {
            std::thread::spawn(|| {
                loop {
                    std::thread::yield_now();
                }
            });
        }
        pause_for_ever();
    })?;
    for _ in 0..2 {
        freeze_and_unload(module, &victim)?;
        unload_under_peer(module)?;
    }
    let before = slab_kib()?;
    for _ in 0..ROUNDS {
        freeze_and_unload(module, &victim)?;
        unload_under_stopped(module, &victim)?;
        unload_under_peer(module)?;
    }
    let after = slab_kib()?;
    // A kernel that looks for leaks itself, and keeps what was freed for KASAN, tells in the end.
    let counts = !Path::new("/sys/kernel/debug/kmemleak").exists();
    ensure(!counts || after < before + GROWTH_KIB_MAX, || {
        format!("slab from {before} to {after} KiB")
    })?;
    println!("unreclaimable slab {before} KiB before, {after} KiB after {ROUNDS} rounds");
    Ok(())
}

fn main() -> ExitCode {
    let Some(module) = std::env::args().nth(1) else {
        println!("FAIL load: kmod-load MODULE");
        return ExitCode::FAILURE;
    };
    match rounds(Path::new(&module)) {
        Ok(()) => {
            println!("PASS load");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAIL load: {why}");
            ExitCode::FAILURE
        }
    }
}
