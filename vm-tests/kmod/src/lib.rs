//! Cases and their victims. As root, in a machine with the module loaded.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a case failed.
pub type Outcome = Result<(), String>;

pub type Case = (&'static str, fn() -> Outcome);

/// Runs those whose name holds the program's first argument, if there is one.
pub fn run(cases: &[Case]) -> ExitCode {
    let mut failed = false;
    for (name, case) in cases {
        failed |= !passes(name, case);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether it does, or was not asked for.
pub fn passes(name: &str, case: impl FnOnce() -> Outcome) -> bool {
    let only = std::env::args().nth(1).unwrap_or_default();
    if !name.contains(&only) {
        return true;
    }
    match case() {
        Ok(()) => println!("PASS {name}"),
        Err(why) => {
            println!("FAIL {name}: {why}");
            return false;
        }
    }
    true
}

pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(why()) }
}

pub fn system(what: &str, ret: i64) -> Result<i64, String> {
    if ret < 0 { Err(format!("{what}: {}", io::Error::last_os_error())) } else { Ok(ret) }
}

/// Until `condition` holds, at most 20 s.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() > end {
            return Err(format!("{what}: not in 20 s"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// At a loopback port that others may have as well, and connected to another; does not wait.
pub fn udp_socket(local: u16, remote: u16) -> Result<UdpSocket, String> {
    let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain call.
    let fd = system("socket", unsafe { libc::socket(libc::AF_INET, flags, 0) }.into())?;
    // SAFETY: a new descriptor, and nobody else's.
    let socket = unsafe { UdpSocket::from_raw_fd(fd as i32) };
    let one: i32 = 1;
    // SAFETY: `one` is as long as is said.
    let set = unsafe {
        let value = (&raw const one).cast();
        libc::setsockopt(fd as i32, libc::SOL_SOCKET, libc::SO_REUSEADDR, value, 4)
    };
    system("setsockopt", set.into())?;
    let address = |port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    let (local, length) = (address(local), size_of::<libc::sockaddr_in>() as u32);
    // SAFETY: an address of this length.
    let bound = unsafe { libc::bind(fd as i32, (&raw const local).cast(), length) };
    system("bind", bound.into())?;
    socket.connect((Ipv4Addr::LOCALHOST, remote)).map_err(|e| e.to_string())?;
    Ok(socket)
}

/// Words that a victim and its test share.
pub struct Shared {
    words: &'static [AtomicU64],
}

impl Shared {
    pub fn new() -> Result<Self, String> {
        // SAFETY: a fresh anonymous mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(format!("mmap: {}", io::Error::last_os_error()));
        }
        // SAFETY: the page is zeroed, aligned, as long as 512 words, and never unmapped.
        Ok(Self { words: unsafe { std::slice::from_raw_parts(page.cast(), 512) } })
    }

    pub fn get(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::SeqCst)
    }
    pub fn set(&self, at: usize, value: u64) {
        self.words[at].store(value, Ordering::SeqCst);
    }
    pub fn count(&self, at: usize) {
        self.words[at].fetch_add(1, Ordering::SeqCst);
    }
    pub fn sum(&self) -> u64 {
        self.words.iter().fold(0, |sum, word| sum.wrapping_add(word.load(Ordering::SeqCst)))
    }

    /// What counts, counts no more.
    pub fn stands_still(&self) -> Outcome {
        self.stands_still_for(Duration::from_millis(30))
    }

    pub fn stands_still_for(&self, time: Duration) -> Outcome {
        let before = self.sum();
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::yield_now();
        }
        let after = self.sum();
        ensure(before == after, || format!("{} steps while frozen", after.wrapping_sub(before)))
    }

    pub fn moves(&self) -> Outcome {
        let before = self.sum();
        wait_until("it does not go on", || self.sum() != before)
    }
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self { words: self.words }
    }
}

/// A child that is killed and waited for at the end.
pub struct Victim {
    pub pid: i32,
    waited: bool,
}

impl Victim {
    /// The caller has one thread.
    pub fn start(body: impl FnOnce()) -> Result<Self, String> {
        // SAFETY: this program has one thread, so the child may do what it likes.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            body();
            // SAFETY: ends the child without running the test's destructors.
            unsafe { libc::_exit(0) };
        }
        system("fork", pid.into())?;
        Ok(Self { pid, waited: false })
    }

    pub fn kill(&self, signal: i32) -> Outcome {
        // SAFETY: our own child, not waited for yet.
        system("kill", unsafe { libc::kill(self.pid, signal) }.into()).map(drop)
    }

    /// Its wait status.
    pub fn wait(&mut self) -> Result<i32, String> {
        let mut status = 0;
        // SAFETY: status is a live int.
        let ret = unsafe { libc::waitpid(self.pid, &mut status, 0) };
        system("waitpid", ret.into())?;
        self.waited = true;
        Ok(status)
    }

    /// 'R', 'S', 'T' and so on, of its main thread.
    pub fn state(&self) -> Option<char> {
        state(&format!("/proc/{}/stat", self.pid))
    }

    /// All its threads have.
    pub fn has_stopped(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return false;
        };
        threads
            .flatten()
            .all(|thread| state(&thread.path().join("stat").to_string_lossy()) == Some('T'))
    }
}

fn state(stat: &str) -> Option<char> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

impl Drop for Victim {
    fn drop(&mut self) {
        if self.waited {
            return;
        }
        let killed = self.kill(libc::SIGKILL);
        if let Err(why) = killed.and_then(|()| self.wait().map(drop)) {
            println!("FAIL cleaning up: {why}");
        }
    }
}

pub const SPINNING_THREADS: usize = 8;

/// A process with threads that count, each its own word from 1 on.
pub fn spinning(shared: &Shared) -> Result<Victim, String> {
    let mine = shared.clone();
    let victim = Victim::start(move || {
        for i in 1..=SPINNING_THREADS {
            let mine = mine.clone();
            std::thread::spawn(move || {
                loop {
                    mine.count(i);
                }
            });
        }
        pause_for_ever();
    })?;
    wait_until("threads", || (1..=SPINNING_THREADS).all(|i| shared.get(i) > 0))?;
    Ok(victim)
}

/// Blocks the calling thread for ever.
pub fn pause_for_ever() -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
    }
}
