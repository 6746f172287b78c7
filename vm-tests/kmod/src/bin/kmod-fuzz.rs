//! `kmod-fuzz [SECONDS [SEED [MODULE]]]`: everything wrong that can be done to the module
//! at once, by processes that are killed at any point. With MODULE it is unloaded and
//! loaded again whenever that is possible. What the kernel says to it is its log's.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tcmi_kmod_tests::{
    Outcome, Shared, Victim, ensure, pause_for_ever, system, udp_socket, wait_until,
};
use tcmi_sys::kmod::{DEVICE, Extent, Message, Session, abi};

const VICTIMS: usize = 4;
const WORKERS: usize = 9;
/// Of peers.
const PORTS: usize = 4;
const LAST_PORT: u16 = 20_009;
const MOUNT: &str = "/tmp/tcmi-fuzz";

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

const COMMANDS: [u64; 14] = [
    abi::TCMI_CHARGE,
    abi::TCMI_PEER_SET,
    abi::TCMI_PEER_ASK,
    abi::TCMI_PEER_FORGET,
    abi::TCMI_SEND,
    abi::TCMI_VERSION,
    abi::TCMI_FREEZE,
    abi::TCMI_CAPTURE,
    abi::TCMI_THAW,
    abi::TCMI_WATCH,
    abi::TCMI_UNWATCH,
    abi::TCMI_CTL_SERVE,
    abi::TCMI_CTL_ADD,
    abi::TCMI_CTL_REMOVE,
];

/// Pids of what may be frozen: not the supervisor, which would wait for itself.
fn pid(random: &mut Random, shared: &Shared) -> i32 {
    match random.below(8) {
        0 => random.next() as i32,
        1 => -1,
        2 => 1,
        3 => 2,
        n => shared.get(n % (VICTIMS + WORKERS)) as i32,
    }
}

fn pointer(random: &mut Random, room: &mut [u8; 4096]) -> u64 {
    match random.below(6) {
        0 => 0,
        1 => random.next(),
        2 => 0xffff_8880_0000_0000,
        3 => room.as_ptr() as u64 + 4090,
        _ => room.as_mut_ptr() as u64,
    }
}

/// Mostly well-formed, so that it gets further than the first check.
fn argument(random: &mut Random, shared: &Shared, room: &mut [u8; 4096]) {
    room.fill(0);
    let words = 1 + random.below(4);
    for word in 0..words {
        let value = match random.below(4) {
            0 => random.next() as u32,
            1 => random.below(80) as u32,
            2 => pid(random, shared) as u32,
            _ => 0,
        };
        room[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }
}

fn random_ioctl(random: &mut Random, shared: &Shared, session: &fs::File) {
    let mut room = [0; 4096];
    argument(random, shared, &mut room);
    let command = if random.one_in(8) { random.next() } else { random.pick(&COMMANDS) };
    if command == abi::TCMI_FREEZE {
        room[..4].copy_from_slice(&pid(random, shared).to_le_bytes());
        room[4..32].fill(0);
        room[4] = random.below(2) as u8;
        room[8] = random.below(64) as u8;
    }
    if command == abi::TCMI_CAPTURE {
        let at = pointer(random, &mut room);
        room[..8].copy_from_slice(&at.to_le_bytes());
        room[8..24].fill(0);
        room[8..16].copy_from_slice(&(random.next() >> random.below(64)).to_le_bytes());
    }
    if command == abi::TCMI_PEER_SET && !random.one_in(4) {
        peer(random, &mut room);
    }
    if command == abi::TCMI_PEER_ASK && !random.one_in(4) {
        room[..4].copy_from_slice(&(random.below(300) as u32).to_le_bytes());
    }
    let arg = if random.one_in(10) { pointer(random, &mut room) } else { room.as_mut_ptr() as u64 };
    // SAFETY: whatever the module writes there is in `room`, or a wild pointer's, whose page is
    // no memory of this program but by a chance of 2^-30; a worker may die of it.
    unsafe { libc::ioctl(session.as_raw_fd(), command as _, arg) };
}

/// Of few addresses and one key, so that many ask each other.
fn peer(random: &mut Random, room: &mut [u8; 4096]) {
    room.fill(0);
    for at in [64, 92] {
        let port = LAST_PORT - random.below(PORTS) as u16;
        room[at..][..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        room[at + 2..][..2].copy_from_slice(&port.to_be_bytes());
        room[at + 4..][..4].copy_from_slice(&[127, 0, 0, 1]);
    }
}

/// Garbage, and what others have said, whole and spoilt, from and to where peers are.
fn datagrams(mut random: Random) {
    let mut heard = vec![0; 48];
    loop {
        let port = |random: &mut Random| LAST_PORT - random.below(PORTS) as u16;
        let (local, remote) = (port(&mut random), port(&mut random));
        let Ok(socket) = udp_socket(local, remote) else { continue };
        for _ in 0..100 {
            let mut room = [0; 100];
            if let Ok(length @ 1..) = socket.recv(&mut room) {
                heard = room[..length].to_vec();
            }
            let mut said = heard.clone();
            let length = random.below(2000);
            match random.below(4) {
                0 => said = random.bytes(length),
                1 => said.truncate(length / 20),
                2 => said[length % heard.len()] ^= 1,
                _ => {}
            }
            socket.send(&said).ok();
        }
    }
}

fn open_device() -> Option<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE).ok()
}

/// Ignores every refusal: that the module survives is the test.
fn ioctls(mut random: Random, shared: &Shared) {
    loop {
        let Some(mut session) = open_device() else {
            thread::yield_now();
            continue;
        };
        for _ in 0..random.below(40) {
            match random.below(8) {
                0 => drop(session.read(&mut [0; 100])),
                1 => drop(session.read(&mut [0; 8192])),
                2 => {
                    let length = random.below(200);
                    drop(session.write(&random.bytes(length)));
                }
                _ => random_ioctl(&mut random, shared, &session),
            }
        }
    }
}

/// Freezes and lets go, or leaves that to the end of the file.
fn closer(mut random: Random, shared: &Shared) {
    loop {
        let Ok(session) = Session::open() else {
            thread::yield_now();
            continue;
        };
        let extent = random.pick(&[Extent::Process, Extent::Tree]);
        let pid = pid(&mut random, shared);
        let Ok(frozen) = session.freeze(pid, extent, 20) else { continue };
        // Fails if it was killed.
        frozen.capture().ok();
        if random.one_in(2) {
            frozen.thaw().ok();
        }
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found);
        }
        found.push(path);
    }
}

fn control_files(mut random: Random) {
    loop {
        let mut found = Vec::new();
        files(Path::new(MOUNT), &mut found);
        for path in found {
            if random.one_in(2) {
                fs::read(&path).ok();
                fs::read_link(&path).ok();
            } else {
                let length = random.pick(&[0, 1, 5, 4096, 4097, 100_000]);
                let text = match random.below(3) {
                    0 => random.bytes(length),
                    1 => format!("{} 1\n", random.below(500)).into_bytes(),
                    _ => b"1\n".to_vec(),
                };
                if let Ok(mut file) = fs::File::options().write(true).open(&path) {
                    file.write_all(&text).ok();
                    file.write_all(&text).ok();
                }
            }
        }
        thread::yield_now();
    }
}

/// Serves badly: late, wrong, twice, too much, not at all.
fn server(mut random: Random) {
    loop {
        let Ok(session) = Session::open_with(libc::O_NONBLOCK) else {
            thread::yield_now();
            continue;
        };
        if session.serve().is_err() {
            thread::yield_now();
            continue;
        }
        for _ in 0..2000 {
            let entry = random.below(70) as u32;
            let key = random.below(5) as u64;
            let name = random.pick(&["1", "2", "desk", "count", "a/b", "..", "", "77"]);
            match random.below(6) {
                0 => drop(session.add(entry, key, name, 0, 0)),
                1 => drop(session.remove(entry, key)),
                2 => drop(session.answer(random.next() % 1000, Ok(b"stray"))),
                _ => {}
            }
            let Ok(Message::Request(request)) = session.read() else { continue };
            let length = random.pick(&[0, 1, 10, 70_000]);
            let text = vec![b'x'; length];
            match random.below(4) {
                0 => {}
                1 => drop(session.answer(request.id, Err(random.below(5000) as i32))),
                _ => drop(session.answer(request.id, Ok(&text))),
            }
        }
    }
}

/// Counts in several threads and forks all the time.
fn victim(at: usize, shared: &Shared) -> Result<Victim, String> {
    let mine = shared.clone();
    Victim::start(move || {
        for i in 0..3 {
            let mine = mine.clone();
            thread::spawn(move || {
                loop {
                    mine.count(100 + at * 4 + i);
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        loop {
            mine.count(100 + at * 4 + 3);
            // SAFETY: the child only exits; status is live.
            unsafe {
                if libc::fork() == 0 {
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::waitpid(-1, &mut status, 0);
            }
        }
    })
}

fn worker(number: usize, seed: u64, shared: &Shared) -> Result<Victim, String> {
    let mine = shared.clone();
    let random = Random(seed | 1);
    Victim::start(move || match number {
        0..=2 => ioctls(random, &mine),
        3 | 4 => closer(random, &mine),
        5 | 6 => control_files(random),
        7 => server(random),
        8 => datagrams(random),
        _ => pause_for_ever(),
    })
}

fn mount() -> bool {
    let target = CString::new(MOUNT).expect("no NUL in a constant");
    // SAFETY: NUL-terminated strings, no data.
    unsafe {
        let kind = c"tcmictlfs".as_ptr();
        libc::mount(kind, target.as_ptr(), kind, 0, std::ptr::null()) == 0
    }
}

fn unmount() {
    let target = CString::new(MOUNT).expect("no NUL in a constant");
    // SAFETY: a NUL-terminated string. That nothing is mounted is as well.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}

fn unload() -> bool {
    // SAFETY: a NUL-terminated string.
    unsafe { libc::syscall(libc::SYS_delete_module, c"tcmi".as_ptr(), libc::O_NONBLOCK) == 0 }
}

fn load(module: &Path) -> Outcome {
    let file = fs::File::open(module).map_err(|e| e.to_string())?;
    // SAFETY: an open file and a NUL-terminated string.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    system("finit_module", ret).map(drop)
}

struct Counts {
    unloads: u64,
    kills: u64,
}

/// Kills and starts again, unmounts and unloads, until the time is over.
fn supervise(
    random: &mut Random,
    shared: &Shared,
    workers: &mut [Victim],
    module: Option<&Path>,
    end: Instant,
) -> Result<Counts, String> {
    let mut counts = Counts { unloads: 0, kills: 0 };
    while Instant::now() < end {
        let number = random.below(WORKERS);
        thread::sleep(Duration::from_millis(random.below(50) as u64));
        // The old one is killed and waited for when it is replaced.
        workers[number] = worker(number, random.next(), shared)?;
        shared.set(VICTIMS + number, workers[number].pid as u64);
        counts.kills += 1;
        if let Some(module) = module.filter(|_| random.one_in(4)) {
            unmount();
            if random.one_in(4) {
                for (number, old) in workers.iter_mut().enumerate() {
                    *old = Victim::start(pause_for_ever_quietly)?;
                    shared.set(VICTIMS + number, old.pid as u64);
                }
            }
            if unload() {
                counts.unloads += 1;
                load(module)?;
            }
            mount();
        }
    }
    Ok(counts)
}

fn pause_for_ever_quietly() {
    pause_for_ever();
}

fn fuzz(seconds: u64, seed: u64, module: Option<&Path>) -> Outcome {
    let mut random = Random(seed | 1);
    let shared = Shared::new()?;
    fs::create_dir_all(MOUNT).map_err(|e| e.to_string())?;
    ensure(mount(), || "cannot mount".to_owned())?;
    let mut victims = Vec::new();
    for at in 0..VICTIMS {
        let victim = victim(at, &shared)?;
        shared.set(at, victim.pid as u64);
        victims.push(victim);
    }
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let worker = worker(number, random.next(), &shared)?;
        shared.set(VICTIMS + number, worker.pid as u64);
        workers.push(worker);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let counts = supervise(&mut random, &shared, &mut workers, module, end)?;
    drop(workers);
    for at in 0..VICTIMS * 4 {
        let before = shared.get(100 + at);
        wait_until("a victim is left frozen", || shared.get(100 + at) != before)?;
    }
    drop(victims);
    unmount();
    println!("{} kills, {} unloads", counts.kills, counts.unloads);
    match module {
        Some(module) => {
            wait_until("the module does not unload", unload)?;
            load(module)
        }
        None => Ok(()),
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let mut number = |or| args.next().map_or(Ok(or), |a| a.parse::<u64>());
    let (Ok(seconds), Ok(seed)) = (number(10), number(1)) else {
        println!("FAIL fuzz: kmod-fuzz [SECONDS [SEED [MODULE]]]");
        return ExitCode::FAILURE;
    };
    let module = args.next().map(PathBuf::from);
    match fuzz(seconds, seed, module.as_deref()) {
        Ok(()) => {
            println!("PASS fuzz");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAIL fuzz: {why}");
            ExitCode::FAILURE
        }
    }
}
