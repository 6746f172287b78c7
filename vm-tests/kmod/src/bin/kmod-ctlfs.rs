//! What only the kernel's control filesystem does; the tree's conformance test does the rest.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use tcmi_ctlfs::tree::TREE;
use tcmi_kmod_tests::{
    Case, Outcome, Shared, Victim, ensure, pause_for_ever, run, system, wait_until,
};
use tcmi_sys::kmod::{Message, Request, Session, abi};

const DIR: &str = "/tmp/tcmi-ctlfs";

/// The kernel's tree at [`DIR`], for one case.
struct Mount;

impl Mount {
    fn new() -> Result<Self, String> {
        fs::create_dir_all(DIR).map_err(|e| e.to_string())?;
        let dir = CString::new(DIR).map_err(|e| e.to_string())?;
        let kind = c"tcmictlfs".as_ptr();
        // SAFETY: NUL-terminated strings, no data.
        let ret = unsafe { libc::mount(kind, dir.as_ptr(), kind, 0, std::ptr::null()) };
        system("mount", ret.into())?;
        Ok(Self)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Ok(dir) = CString::new(DIR) else { return };
        // SAFETY: a NUL-terminated string.
        let ret = unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) };
        if let Err(why) = system("umount", ret.into()) {
            println!("FAIL cleaning up: {why}");
        }
    }
}

fn entry(path: &str) -> Result<u32, String> {
    let found = TREE.iter().zip(0..).find(|(entry, _)| entry.path == path);
    found.map(|(_, index)| index).ok_or(format!("no {path} in the table"))
}

fn at(path: &str) -> String {
    format!("{DIR}/{path}")
}

fn text(e: tcmi_sys::Errno) -> String {
    e.to_string()
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn serving() -> Result<Session, String> {
    let session = Session::open().map_err(text)?;
    session.serve().map_err(text)?;
    Ok(session)
}

fn request(session: &Session) -> Result<Request, String> {
    match session.read().map_err(text)? {
        Message::Request(request) => Ok(request),
        other => Err(format!("{other:?}")),
    }
}

/// A child that writes to a command and keeps its errno in word 1.
fn writer(path: &str, command: &str, shared: &Shared) -> Result<Victim, String> {
    let (path, command, mine) = (at(path), command.to_owned(), shared.clone());
    Victim::start(move || {
        mine.set(1, errno(fs::write(path, command)) as u64);
        mine.set(0, 1);
    })
}

fn without_a_daemon() -> Outcome {
    let _mount = Mount::new()?;
    ensure(errno(fs::read(at("node/id"))) == libc::ENOTCONN, || "read".to_owned())?;
    let write = errno(fs::write(at("ccn/mig/migrate-home"), "1"));
    ensure(write == libc::ENOTCONN, || format!("write: {write}"))
}

fn one_serves() -> Outcome {
    let first = serving()?;
    let second = Session::open().map_err(text)?;
    ensure(second.serve().is_err_and(|e| e.code == libc::EBUSY), || "two serve".to_owned())?;
    drop(first);
    second.serve().map_err(text)
}

fn a_killed_daemon_lets_writers_go() -> Outcome {
    let _mount = Mount::new()?;
    let shared = Shared::new()?;
    let mine = shared.clone();
    let mut daemon = Victim::start(move || {
        let Ok(session) = serving() else { return };
        mine.set(2, 1);
        // Takes one of two requests and answers none.
        if request(&session).is_ok() {
            mine.set(3, 1);
        }
        pause_for_ever();
    })?;
    wait_until("daemon", || shared.get(2) == 1)?;
    let other = Shared::new()?;
    let mut writers =
        [writer("ccn/mig/migrate-home", "1", &shared)?, writer("ccn/listen", "x", &other)?];
    wait_until("request", || shared.get(3) == 1)?;
    daemon.kill(libc::SIGKILL)?;
    daemon.wait()?;
    for writer in &mut writers {
        writer.wait()?;
    }
    for words in [&shared, &other] {
        ensure(words.get(1) == libc::ENOTCONN as u64, || format!("errno {}", words.get(1)))?;
    }
    Ok(())
}

fn a_killed_writer_is_forgotten() -> Outcome {
    let _mount = Mount::new()?;
    let session = serving()?;
    let shared = Shared::new()?;
    let mut killed = writer("ccn/mig/migrate-home", "1", &shared)?;
    let asked = request(&session)?;
    killed.kill(libc::SIGKILL)?;
    killed.wait()?;
    let late = session.answer(asked.id, Ok(b""));
    ensure(late.is_err_and(|e| e.code == libc::ENOENT), || "somebody waits".to_owned())
}

fn directories_come_and_go() -> Outcome {
    let _mount = Mount::new()?;
    let session = serving()?;
    let (peer, name) = (entry("ccn/nodes/{N}")?, entry("ccn/nodes/{NAME}")?);
    let process = entry("ccn/mig/migproc/{PID}")?;
    session.add(peer, 3, "7", 0, 0).map_err(text)?;
    session.add(name, 4, "desk", 0, 0).map_err(text)?;
    session.add(process, 5, "4242", 1000, 1001).map_err(text)?;
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(at("ccn/mig/migproc/4242/state")).map_err(|e| e.to_string())?;
    ensure((meta.uid(), meta.gid()) == (1000, 1001), || "owner".to_owned())?;
    let again = session.add(peer, 9, "7", 0, 0).map_err(|e| e.code);
    ensure(again == Err(libc::EEXIST), || format!("{again:?}"))?;
    let taken = session.add(name, 10, "count", 0, 0).map_err(|e| e.code);
    ensure(taken == Err(libc::EEXIST), || format!("{taken:?}"))?;
    let fixed = session.add(entry("node")?, 11, "x", 0, 0).map_err(|e| e.code);
    ensure(fixed == Err(libc::EINVAL), || format!("{fixed:?}"))?;
    // One that is in use goes all the same.
    let open = fs::File::options().write(true).open(at("ccn/nodes/7/stop"));
    let mut open = open.map_err(|e| e.to_string())?;
    session.remove(peer, 3).map_err(text)?;
    ensure(errno(fs::metadata(at("ccn/nodes/7"))) == libc::ENOENT, || "still there".to_owned())?;
    drop(session);
    ensure(errno(fs::metadata(at("ccn/mig/migproc/4242"))) == libc::ENOENT, || {
        "outlives its daemon".to_owned()
    })?;
    ensure(errno(open.write(b"1")) == libc::ENOTCONN, || "served by nobody".to_owned())
}

fn pids_are_the_writer_s() -> Outcome {
    let _mount = Mount::new()?;
    let session = serving()?;
    let mut outside = Victim::start(|| {
        // SAFETY: plain calls; the children only write and exit.
        unsafe {
            libc::unshare(libc::CLONE_NEWPID);
            if libc::fork() == 0 {
                drop(fs::write(at("ccn/mig/migrate-home"), "1"));
                drop(fs::write(at("ccn/mig/migrate-home"), "77"));
                drop(fs::write(at("pen/mig/migrate-home"), "1"));
                pause_for_ever();
            }
            libc::wait(std::ptr::null_mut());
        }
    })?;
    let own = request(&session)?;
    ensure(own.target == own.tid && own.target > 1, || format!("{own:?}"))?;
    ensure(own.data == b"1", || format!("{own:?}"))?;
    session.answer(own.id, Ok(b"")).map_err(text)?;
    let nobody = request(&session)?;
    ensure(nobody.target == 0, || format!("{nobody:?}"))?;
    session.answer(nobody.id, Err(libc::ESRCH)).map_err(text)?;
    // There it is a pid of another home.
    let guest = request(&session)?;
    ensure(guest.target == 0 && guest.data == b"1", || format!("{guest:?}"))?;
    session.answer(guest.id, Ok(b"")).map_err(text)?;
    // SAFETY: the pid of our grandchild, which waits for ever.
    system("kill", unsafe { libc::kill(own.tid, libc::SIGKILL) }.into())?;
    // It has the session open as well, and serves as long as it is there.
    outside.wait().map(drop)
}

fn a_non_blocking_write_says_so() -> Outcome {
    use std::os::unix::fs::OpenOptionsExt;
    let _mount = Mount::new()?;
    let session = serving()?;
    let writer = Victim::start(|| {
        let mut options = fs::File::options();
        let file = options.write(true).custom_flags(libc::O_NONBLOCK);
        if let Ok(mut file) = file.open(at("ccn/mig/migrate-home")) {
            drop(file.write(b"1"));
        }
    })?;
    let asked = request(&session)?;
    ensure(!asked.waits && asked.op == abi::TCMI_CTL_WRITE, || format!("{asked:?}"))?;
    drop(writer);
    Ok(())
}

/// A writer that is asked to freeze itself is busy until it is answered.
fn a_waiting_writer_is_busy() -> Outcome {
    use tcmi_sys::kmod::Extent;
    let _mount = Mount::new()?;
    let session = serving()?;
    let shared = Shared::new()?;
    let mut writer = writer("ccn/mig/migrate-home", "1", &shared)?;
    let asked = request(&session)?;
    let freezer = Session::open().map_err(text)?;
    match freezer.freeze(writer.pid, Extent::Process, 100) {
        Err((_, e)) => ensure(e.code == libc::EBUSY, || e.to_string())?,
        Ok(_) => return Err("frozen in a write".to_owned()),
    }
    session.answer(asked.id, Ok(b"")).map_err(text)?;
    writer.wait()?;
    ensure(shared.get(1) == 0, || format!("errno {}", shared.get(1)))
}

fn readers_get_whole_values() -> Outcome {
    let _mount = Mount::new()?;
    let session = serving()?;
    let shared = Shared::new()?;
    let mine = shared.clone();
    let mut reader = Victim::start(move || {
        let length = fs::read(at("node/features")).map_or(0, |text| text.len());
        mine.set(0, length as u64);
    })?;
    let asked = request(&session)?;
    ensure(asked.op == abi::TCMI_CTL_READ && asked.entry == entry("node/features")?, || {
        format!("{asked:?}")
    })?;
    session.answer(asked.id, Ok(&vec![b'x'; 300_000])).map_err(text)?;
    reader.wait()?;
    ensure(shared.get(0) == 300_000, || format!("{} bytes", shared.get(0)))
}

fn bad_answers_are_refused() -> Outcome {
    let session = serving()?;
    // SAFETY: a fresh descriptor of the session's file.
    let fd = unsafe { libc::dup(std::os::fd::AsFd::as_fd(&session).as_raw_fd()) };
    // SAFETY: just made, and nobody else's.
    let mut file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    for bytes in [&[][..], &[0; 15], &[0; 17], &[0xff; 16], &[0xff; 100]] {
        let got = errno(file.write(bytes));
        ensure(got == libc::EINVAL, || format!("{} bytes: {got}", bytes.len()))?;
    }
    ensure(errno(file.write(&[0; 16])) == libc::ENOENT, || "answered nobody".to_owned())
}

fn main() -> ExitCode {
    const CASES: &[Case] = &[
        ("without-a-daemon", without_a_daemon),
        ("one-serves", one_serves),
        ("killed-daemon", a_killed_daemon_lets_writers_go),
        ("killed-writer", a_killed_writer_is_forgotten),
        ("directories", directories_come_and_go),
        ("pid-namespaces", pids_are_the_writer_s),
        ("non-blocking", a_non_blocking_write_says_so),
        ("waiting-writer-is-busy", a_waiting_writer_is_busy),
        ("whole-values", readers_get_whole_values),
        ("bad-answers", bad_answers_are_refused),
    ];
    run(CASES)
}
