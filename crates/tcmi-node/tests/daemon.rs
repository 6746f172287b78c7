//! `tcmid` as a program: bring-up, control files, links, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Daemon {
    child: Child,
    ctlfs: PathBuf,
}

fn program(state: &Path, ctlfs: &Path, name: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tcmid"));
    program.args(["--name", name]).env_remove("NOTIFY_SOCKET").env("TCMI_LOG", "off");
    program.arg("--state").arg(state).arg("--ctlfs").arg(ctlfs);
    program
}

/// Its files are at `dir`/state and `dir`/ctl.
fn start(dir: &Path, name: &str) -> Daemon {
    fs::create_dir_all(dir).unwrap();
    let mut program = program(&dir.join("state"), &dir.join("ctl"), name);
    let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ctlfs = dir.join("ctl");
    assert_eq!(line, format!("tcmid: ready name={name} ctlfs={}\n", ctlfs.display()));
    Daemon { child, ctlfs }
}

impl Daemon {
    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.ctlfs.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// 0 or the errno.
    fn write(&self, path: &str, text: &str) -> i32 {
        match fs::write(self.ctlfs.join(path), text) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap(),
        }
    }

    fn names(&self, path: &str) -> Vec<String> {
        let listing = fs::read_dir(self.ctlfs.join(path)).unwrap();
        let names = listing.map(|item| item.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// `listen` on any port and where it listens.
    fn listen(&self) -> String {
        assert_eq!(self.write("ccn/listen", "tcp:127.0.0.1:0\n"), 0);
        let number = self.names("ccn/listening-on").pop().unwrap();
        self.read(&format!("ccn/listening-on/{number}/sockname")).trim().to_owned()
    }

    fn connect(&self, address: &str, key: &str) -> i32 {
        self.write("pen/connect", &format!("{address} {key}"))
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end(Signal::SIGTERM);
        }
    }
}

fn pair(dir: &Path) -> (Daemon, Daemon) {
    let home = start(&dir.join("home"), "home");
    let desk = start(&dir.join("desk"), "desk");
    assert_eq!(home.write("ccn/trust", &desk.read("node/id")), 0);
    assert_eq!(desk.connect(&home.listen(), &home.read("node/id")), 0);
    (home, desk)
}

#[test]
fn two_nodes_find_each_other_under_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let (home, desk) = pair(dir.path());
    assert_eq!(desk.read("pen/nodes/home/name"), "home\n");
    assert_eq!(desk.read("pen/nodes/home/id"), home.read("node/id"));
    assert_eq!(desk.read("pen/nodes/count"), "1\n");
    assert_eq!(desk.names("ccn/nodes"), ["count"]);
    assert_eq!(desk.read("pen/nodes/home/features"), home.read("node/features"));
    assert_eq!(desk.read("pen/nodes/home/state"), "connected\n");
}

#[test]
fn a_listener_stops_and_its_port_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let home = start(dir.path(), "home");
    let address = home.listen();
    assert_eq!(home.write("ccn/listen", &address), libc::EADDRINUSE);
    let number = home.names("ccn/listening-on").pop().unwrap();
    assert_eq!(home.write(&format!("ccn/listening-on/{number}/stop"), "1"), 0);
    assert!(home.names("ccn/listening-on").is_empty());
    assert_eq!(home.write("ccn/listen", &address), 0);
}

#[test]
fn strangers_and_wrong_keys_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let home = start(&dir.path().join("home"), "home");
    let desk = start(&dir.path().join("desk"), "desk");
    let address = home.listen();
    assert_eq!(desk.connect(&address, &home.read("node/id")), libc::EACCES);
    assert_eq!(home.write("ccn/trust", &desk.read("node/id")), 0);
    assert_eq!(desk.connect(&address, &desk.read("node/id")), libc::EACCES);
    assert_eq!(desk.connect(&address, "ed25519:short"), libc::EINVAL);
    assert_eq!(desk.connect("tcp:127.0.0.1:1", &home.read("node/id")), libc::ECONNREFUSED);
    assert_eq!(home.read("ccn/nodes/count"), "0\n");
    assert_eq!(desk.connect(&address, &home.read("node/id")), 0);
}

#[test]
fn trust_is_all_or_nothing_and_outlives_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = start(dir.path(), "home");
    let own = home.read("node/id");
    let key = own.trim();
    assert_eq!(home.write("ccn/trust", &format!("-{key}")), libc::ENOENT);
    assert_eq!(home.write("ccn/trust", &format!("{key}\ned25519:short\n")), libc::EINVAL);
    assert_eq!(home.read("ccn/trust"), "");
    assert_eq!(home.write("ccn/trust", &own), 0);
    assert_eq!(home.end(Signal::SIGKILL).signal(), Some(libc::SIGKILL));

    let home = start(dir.path(), "home");
    assert_eq!(home.read("node/id"), own, "the identity outlives it too");
    assert_eq!(home.read("ccn/trust"), own);
    assert_eq!(home.write("ccn/trust", &format!("-{key}\n")), 0);
    assert_eq!(home.read("ccn/trust"), "");
}

#[test]
fn two_nodes_of_one_name_can_both_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let desk = start(&dir.path().join("desk"), "desk");
    let homes = ["one", "two"].map(|each| start(&dir.path().join(each), "home"));
    for home in &homes {
        assert_eq!(home.write("ccn/trust", &desk.read("node/id")), 0);
        assert_eq!(desk.connect(&home.listen(), &home.read("node/id")), 0);
    }
    assert_eq!(desk.read("pen/nodes/home/id"), homes[0].read("node/id"));
    assert_eq!(desk.read("pen/nodes/home-2/id"), homes[1].read("node/id"));
    assert_eq!(desk.read("pen/nodes/home-2/name"), "home-2\n");
}

#[test]
fn a_node_that_is_let_go_is_gone_and_its_number_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let (home, desk) = pair(dir.path());
    let first = fs::read_link(desk.ctlfs.join("pen/nodes/home")).unwrap();
    assert_eq!(desk.connect(&home.listen(), &home.read("node/id")), libc::EEXIST);
    assert_eq!(desk.write("pen/nodes/home/stop", "1"), 0);
    let address = home.listen();
    // The link may take a moment to end; until then there is one to that home.
    let again = std::iter::repeat_with(|| desk.connect(&address, &home.read("node/id")));
    assert_eq!(again.into_iter().find(|errno| *errno != libc::EEXIST), Some(0));
    let second = fs::read_link(desk.ctlfs.join("pen/nodes/home")).unwrap();
    assert_ne!(first, second);
}

#[test]
fn a_killed_daemon_s_mount_does_not_stop_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut killed = start(dir.path(), "home");
    killed.end(Signal::SIGKILL);
    let stale = fs::metadata(dir.path().join("ctl")).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(libc::ENOTCONN));
    let mut home = start(dir.path(), "home");
    assert_eq!(home.read("node/name"), "home\n");
    assert_eq!(home.end(Signal::SIGTERM).code(), Some(0));
    assert!(home_is_unmounted(&home));
}

#[test]
fn a_mount_that_nobody_answers_does_not_stop_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut silent = start(&dir.path().join("one"), "one");
    kill(Pid::from_raw(silent.child.id() as i32), Signal::SIGSTOP).unwrap();
    let mut program = program(&dir.path().join("two"), &silent.ctlfs, "two");
    let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let next = Daemon { child, ctlfs: silent.ctlfs.clone() };
    assert_eq!(next.read("node/name"), "two\n");
    silent.child.kill().unwrap();
    silent.child.wait().unwrap();
    assert_eq!(next.read("node/name"), "two\n");
}

fn home_is_unmounted(daemon: &Daemon) -> bool {
    fs::read_dir(&daemon.ctlfs).unwrap().next().is_none()
}

#[test]
fn every_ending_signal_unmounts_even_what_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut home = start(dir.path(), "home");
        let open = fs::File::open(home.ctlfs.join("node/name")).unwrap();
        assert_eq!(home.end(signal).code(), Some(0), "{signal}");
        assert!(home_is_unmounted(&home), "{signal}");
        drop(open);
    }
}

#[test]
fn a_second_daemon_is_refused_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let home = start(dir.path(), "home");
    let other = dir.path().join("other");
    for (state, ctlfs, why) in [
        (&dir.path().join("state"), &other, "in use by another daemon"),
        (&other, &home.ctlfs, "is served already"),
    ] {
        let output = program(state, ctlfs, "other").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("tcmid: ") && text.contains(why), "{text}");
    }
    assert_eq!(home.read("node/name"), "home\n", "the first is undisturbed");
}

#[test]
fn bad_commands_have_their_errno() {
    let dir = tempfile::tempdir().unwrap();
    let home = start(dir.path(), "home");
    let pid = std::process::id();
    for (path, text, errno) in [
        ("ccn/mig/emigrate-ppm-p", format!("{pid} nowhere"), libc::EHOSTUNREACH),
        ("ccn/mig/emigrate-ppm-p", format!("{pid} 17"), libc::EHOSTUNREACH),
        ("ccn/mig/emigrate-ppm-p", "0 nowhere".to_owned(), libc::EINVAL),
        ("ccn/mig/migrate-home", pid.to_string(), libc::ESRCH),
        ("pen/mig/migrate-home", pid.to_string(), libc::ESRCH),
        ("ccn/mig/explain", format!("{pid} nowhere"), libc::EHOSTUNREACH),
    ] {
        assert_eq!(home.write(path, &text), errno, "{text:?} to {path}");
    }
}
