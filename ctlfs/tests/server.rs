//! What both servers promise beyond the tree's shape.

mod rig;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command as Program, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tcmi_core::command::Command;
use tcmi_ctlfs::{Owner, unmount_stale};

use rig::{FEATURES_BYTES, MISSING, PROCESS, Rig, SLOW, USER};

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

fn shell(rig: &Rig, user: Owner, script: &str) -> Program {
    let mut program = Program::new("/bin/sh");
    program.args(["-c", script]).current_dir(rig.root()).uid(user.uid).gid(user.gid);
    program.stderr(Stdio::piped()).stdout(Stdio::piped());
    program
}

#[test]
fn a_command_arrives_with_its_caller() {
    let rig = Rig::new();
    let status = shell(&rig, USER, "echo 12 desk > ccn/mig/emigrate-ppm-p").status().unwrap();
    assert!(status.success());
    let commands = rig.control.commands.lock().unwrap();
    let (caller, place, command) = &commands[0];
    assert_eq!((caller.uid, caller.gid), (USER.uid, USER.gid));
    assert!(caller.tid > 0);
    assert_eq!(place, "ccn/mig/emigrate-ppm-p");
    assert_eq!(
        *command,
        Command::Emigrate {
            pid: "12".parse().unwrap(),
            node: "desk".parse().unwrap(),
            tree: false
        }
    );
}

#[test]
fn every_shell_redirection_is_one_command() {
    let rig = Rig::new();
    let script = "echo 12 > ccn/mig/migrate-home && echo 13 >> ccn/mig/migrate-home \
                  && printf 14 > ccn/mig/migrate-home && echo 15 >> ccn/mig/migrate-home";
    assert!(shell(&rig, Owner::ROOT, script).status().unwrap().success());
    let pids = [12, 13, 14, 15].map(|n| n.to_string().parse().unwrap());
    assert_eq!(rig.control.commands(), pids.map(Command::MigrateHome));
}

#[test]
fn the_second_write_of_a_descriptor_is_not_a_command() {
    let rig = Rig::new();
    let path = rig.path("ccn/mig/migrate-home");
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"12").unwrap();
    assert_eq!(errno(file.write(b"34")), Some(libc::EINVAL));
    assert_eq!(file.write_at(b"56", 0).unwrap(), 2);
    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    appending.write_all(b"78").unwrap();
    assert_eq!(errno(appending.write(b"9")), Some(libc::EINVAL));
    let pids = [12, 56, 78].map(|n| n.to_string().parse().unwrap());
    assert_eq!(rig.control.commands(), pids.map(Command::MigrateHome));
}

#[test]
fn the_daemon_s_refusal_is_the_errno() {
    let rig = Rig::new();
    let result = fs::write(rig.path("ccn/mig/emigrate-ppm-p"), format!("{MISSING} desk"));
    assert_eq!(errno(result), Some(libc::ESRCH));
}

#[test]
fn ordinary_users_are_kept_from_what_is_root_s() {
    let rig = Rig::new();
    for file in ["ccn/listen", "ccn/trust", "pen/connect", "pen/mig/migrate-home"] {
        let status = shell(&rig, USER, &format!("echo 1 > {file}")).status().unwrap();
        assert!(!status.success(), "{file}");
    }
    assert!(!shell(&rig, USER, "cat ccn/trust").status().unwrap().success());
    assert!(shell(&rig, USER, "cat node/id").status().unwrap().success());
    assert_eq!(rig.control.commands(), []);
}

#[test]
fn slow_commands_hold_up_nobody_even_on_the_same_file() {
    let rig = Rig::new();
    let path = rig.path("ccn/mig/migrate-home");
    thread::scope(|scope| {
        let slow: Vec<_> =
            (0..8).map(|_| scope.spawn(|| fs::write(&path, format!("{SLOW}\n")))).collect();
        rig.control.await_waiting(slow.len());
        fs::write(&path, format!("{PROCESS}\n")).unwrap();
        assert!(fs::read_to_string(rig.path("node/name")).is_ok());
        assert!(slow.iter().all(|writer| !writer.is_finished()));
        rig.control.let_go();
        for writer in slow {
            writer.join().unwrap().unwrap();
        }
    });
}

#[test]
fn as_many_commands_wait_as_may_and_root_gets_through() {
    let rig = Rig::new();
    let mut users =
        shell(&rig, USER, "for i in $(seq 64); do echo 5000 > ccn/mig/migrate-home & done; wait")
            .spawn()
            .unwrap();
    rig.control.await_waiting(64);
    let refused =
        shell(&rig, USER, "LC_ALL=C /bin/echo 12 > ccn/mig/migrate-home").output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("busy"), "{refused:?}");
    fs::write(rig.path("ccn/mig/migrate-home"), "12").unwrap();
    rig.control.let_go();
    assert!(users.wait().unwrap().success());
    fs::write(rig.path("ccn/mig/migrate-home"), "12").unwrap();
}

#[test]
fn a_non_blocking_write_returns_at_once() {
    let rig = Rig::new();
    let open = |file: &str| {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK).open(rig.path(file)).unwrap()
    };
    open("ccn/mig/migrate-home").write_all(format!("{SLOW}").as_bytes()).unwrap();
    rig.control.await_waiting(1);
    let mut emigrate = open("ccn/mig/emigrate-ppm-p");
    assert_eq!(errno(emigrate.write(b"rubbish")), Some(libc::EINVAL));
    let refused = emigrate.write_at(format!("{MISSING} desk").as_bytes(), 0);
    assert_eq!(errno(refused), Some(libc::ESRCH), "what is known at once is told at once");
    rig.control.let_go();
}

#[test]
fn a_killed_writer_disturbs_nobody() {
    let rig = Rig::new();
    let mut child = shell(&rig, Owner::ROOT, "echo 5000 > ccn/mig/migrate-home").spawn().unwrap();
    rig.control.await_waiting(1);
    child.kill().unwrap();
    fs::write(rig.path("ccn/mig/migrate-home"), "12").unwrap();
    assert!(fs::read_to_string(rig.path("node/name")).is_ok());
    rig.control.let_go();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn explain_answers_on_the_handle_that_asked() {
    let rig = Rig::new();
    let path = rig.path("ccn/mig/explain");
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for pid in [12, 13] {
        file.write_all(format!("{pid}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        file.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{pid} may move, says 0\n"));
    }
    assert_eq!(errno(file.write(format!("{MISSING}").as_bytes())), Some(libc::ESRCH));
    let mut answer = String::new();
    file.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "", "a refused question has no answer");
}

#[test]
fn explain_keeps_each_user_s_last_answer_for_shells() {
    let rig = Rig::new();
    fs::write(rig.path("ccn/mig/explain"), "12").unwrap();
    let script = "cat ccn/mig/explain; echo 13 > ccn/mig/explain && cat ccn/mig/explain";
    let output = shell(&rig, USER, script).output().unwrap();
    assert_eq!(output.stdout, b"13 may move, says 65534\n", "{output:?}");
    let mine = fs::read_to_string(rig.path("ccn/mig/explain")).unwrap();
    assert_eq!(mine, "12 may move, says 0\n");
}

#[test]
fn a_reader_never_sees_parts_of_two_values() {
    let rig = Rig::new();
    let path = rig.path("node/features");
    for _ in 0..20 {
        let file = File::open(&path).unwrap();
        let mut value = vec![0; FEATURES_BYTES];
        for (i, part) in value.chunks_mut(1000).enumerate() {
            // Another open in between changes what the daemon would say.
            assert!(File::open(&path).is_ok());
            file.read_exact_at(part, i as u64 * 1000).unwrap();
        }
        let first = value[0];
        assert!(value[..FEATURES_BYTES - 1].iter().all(|&b| b == first));
        assert_eq!(file.read_at(&mut [0], FEATURES_BYTES as u64).unwrap(), 0);
    }
}

#[test]
fn a_waiting_writer_is_let_go_when_the_daemon_ends() {
    let mut rig = Rig::new();
    let path = rig.path("ccn/mig/migrate-home");
    let (ended, end) = mpsc::channel();
    let writer = thread::spawn(move || {
        ended.send(errno(fs::write(path, format!("{SLOW}")))).unwrap();
    });
    rig.control.await_waiting(1);
    rig.server.take().unwrap().unmount().unwrap();
    let errno = end.recv_timeout(Duration::from_secs(20)).expect("the writer still waits");
    assert!(matches!(errno, Some(libc::ECONNABORTED | libc::ENOTCONN)), "{errno:?}");
    writer.join().unwrap();
    rig.control.let_go();
    assert_eq!(fs::read_dir(rig.root()).unwrap().count(), 0, "still mounted");
}

#[test]
fn a_busy_mount_goes_away_all_the_same() {
    let mut rig = Rig::new();
    let open = File::open(rig.path("node/name")).unwrap();
    rig.server.take().unwrap().unmount().unwrap();
    assert_eq!(fs::read_dir(rig.root()).unwrap().count(), 0, "still mounted");
    drop(open);
}

#[test]
fn a_mount_namespace_that_has_the_mount_holds_up_nobody() {
    let mut rig = Rig::new();
    let (made, is_made) = mpsc::channel();
    let (end_it, is_over) = mpsc::channel::<()>();
    // A thread can have one of its own, where no program is there to run.
    let other = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        made.send(()).unwrap();
        let _ = is_over.recv();
    });
    is_made.recv().unwrap();
    let server = rig.server.take().unwrap();
    let (ended, end) = mpsc::channel();
    let ending = thread::spawn(move || ended.send(server.unmount()).unwrap());
    let unmounted = end.recv_timeout(Duration::from_secs(20));
    drop(end_it);
    other.join().unwrap();
    ending.join().unwrap();
    unmounted.expect("the server does not end").unwrap();
}

#[test]
fn a_live_mount_is_not_stale() {
    let rig = Rig::new();
    let error = unmount_stale(rig.root()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(fs::read_to_string(rig.path("node/name")).is_ok());
}

#[test]
fn a_mount_can_follow_another() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.server.take().unwrap().unmount().unwrap();
        unmount_stale(rig.root()).unwrap();
        rig.server = Some(rig::mount(rig.root(), rig.control.clone()).unwrap());
        assert!(fs::read_to_string(rig.path("node/name")).is_ok());
    }
}
