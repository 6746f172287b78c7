//! `tcmi` against a control filesystem whose daemon only pretends.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command as Program, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tcmi_core::command::{Command, NodeName, Pid};
use tcmi_core::error::Errno;
use tcmi_ctlfs::tree::{Entry, Item, Role, Wildcard};
use tcmi_ctlfs::{Answer, Caller, Capture, Control, Owner, Place, Reply, Server};

/// On node 1, named desk, as `owner` says.
const AWAY: i32 = 1234;
const AT_HOME: i32 = 77;
const MISSING: i32 = 88;
const IMMOVABLE: i32 = 99;
/// On its way home until `let_go`.
const SLOW: i32 = 1235;

#[derive(Default)]
struct Pretender {
    waiting: Mutex<Vec<Reply>>,
}

impl Control for Pretender {
    fn list(&self, family: &'static Entry, _: &Capture) -> Vec<Capture> {
        let away = Capture::Pid(pid(AWAY));
        match (family.role, family.wildcard().unwrap()) {
            (Role::Ccn, Wildcard::Number) => vec![Capture::Number(1)],
            (Role::Ccn, Wildcard::Name) => vec![Capture::Name("desk".parse().unwrap())],
            (Role::Ccn, Wildcard::Pid) => vec![away],
            (Role::Pen | Role::Node, _) => vec![],
        }
    }

    fn owner(&self, place: &Place) -> Option<Owner> {
        let exists = match &place.capture {
            Capture::None => true,
            Capture::Number(number) => *number == 1,
            Capture::Pid(pid) => [AWAY, SLOW].contains(&pid.raw()),
            Capture::Name(name) => *name == "desk".parse::<NodeName>().unwrap(),
        };
        (exists && place.entry.role != Role::Pen).then_some(Owner { uid: 1000, gid: 1000 })
    }

    fn read(&self, _: Caller, place: &Place) -> Result<String, Errno> {
        Ok(match place.entry.item {
            Item::NodeName => "home\n".into(),
            Item::NodeId => "ed25519:mine\n".into(),
            Item::NodeFeatures => "arch=x86_64\nctlfs=kernel\n".into(),
            Item::PeerId => "ed25519:theirs\n".into(),
            Item::PeerName => "desk\n".into(),
            Item::PeerState => "connected\n".into(),
            Item::PeerAddress => "tcp:10.0.0.7:41000\n".into(),
            Item::PeerLoad => "0.25\n".into(),
            Item::ProcessState if place.capture == Capture::Pid(pid(SLOW)) => "returning\n".into(),
            Item::ProcessState => "emigrated\n".into(),
            Item::ProcessStats => "bytes-total 4096\nbytes-sent 1024\n".into(),
            Item::ProcessRemotePid => "31\n".into(),
            Item::ProcessLastError => "the return took too long\n".into(),
            _ => String::new(),
        })
    }

    fn readlink(&self, place: &Place) -> Result<String, Errno> {
        Ok(if place.entry.item == Item::ProcessNode { "../../../nodes/1" } else { "1" }.into())
    }

    fn write(&self, _: Caller, _: &Place, command: Command, reply: Reply) {
        if command == Command::MigrateHome(pid(SLOW)) {
            return self.waiting.lock().unwrap().push(reply);
        }
        let result = match command {
            Command::Emigrate { pid, .. } | Command::Explain { pid, .. }
                if pid.raw() == MISSING =>
            {
                Err(Errno::NoProcess)
            }
            Command::Emigrate { pid, .. } if pid.raw() == IMMOVABLE => Err(Errno::NotSupported),
            Command::Emigrate { node, .. } if node.to_string() != "desk" => {
                Err(Errno::HostUnreachable)
            }
            Command::Explain { .. } => Ok(Answer::Text("no: it has an io_uring\n".into())),
            Command::MigrateHome(pid) if pid.raw() == AWAY => Err(Errno::TimedOut),
            _ => Ok(Answer::Done),
        };
        reply.send(result);
    }
}

fn pid(raw: i32) -> Pid {
    Pid::new(raw).unwrap()
}

struct Rig {
    server: Server,
    control: Arc<Pretender>,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let control = Arc::new(Pretender::default());
    let server = Server::mount(dir.path(), control.clone());
    Rig { server: server.expect("mounting needs root and /dev/fuse"), control, _dir: dir }
}

fn tcmi(dir: &Path, args: &[&str]) -> Output {
    let mut program = Program::new(env!("CARGO_BIN_EXE_tcmi"));
    program.arg("--ctlfs").arg(dir).args(args).output().unwrap()
}

impl Rig {
    /// Exit status, standard output, standard error.
    fn run(&self, line: &str) -> (i32, String, String) {
        let args: Vec<&str> = line.split(' ').collect();
        let output = tcmi(self.server.mount_point(), &args);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, line: &str) -> (i32, Value) {
        let (status, out, _) = self.run(&format!("--json {line}"));
        (status, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}")))
    }
}

#[test]
fn lists_are_tables_or_json() {
    let rig = rig();
    let (status, table, _) = rig.run("nodes");
    assert_eq!(status, 0);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row.join(" "), "1 desk execution node connected tcp:10.0.0.7:41000 0.25");
    let (_, nodes) = rig.json("nodes");
    assert_eq!(nodes[0]["key"], "ed25519:theirs");
    let (status, processes) = rig.json("ps");
    assert_eq!(status, 0);
    let away = json!([{
        "pid": AWAY, "role": "ccn", "node": "desk", "state": "emigrated", "remote_pid": 31,
        "uid": 1000, "last_error": "the return took too long",
    }]);
    assert_eq!(processes, away);
    let (_, table, _) = rig.run("ps");
    assert!(table.contains("on desk"), "{table}");
}

#[test]
fn the_key_is_alone_on_its_line() {
    let rig = rig();
    assert_eq!(rig.run("key"), (0, "ed25519:mine\n".into(), String::new()));
    assert_eq!(rig.json("key"), (0, json!({ "name": "home", "key": "ed25519:mine" })));
}

#[test]
fn a_move_that_is_done_says_where_it_runs() {
    let rig = rig();
    let on_desk = (0, format!("process {AT_HOME} runs on desk\n"), String::new());
    assert_eq!(rig.run(&format!("migrate {AT_HOME} desk")), on_desk);
    assert_eq!(rig.json(&format!("home {AT_HOME}")), (0, json!({ "pid": AT_HOME, "node": null })));
}

#[test]
fn a_refusal_says_why_and_where_the_process_is() {
    let rig = rig();
    let cases = [
        (format!("migrate {MISSING} desk"), "there is no process 88"),
        (
            format!("migrate {IMMOVABLE} desk"),
            "process 99 still runs at home: no: it has an io_uring",
        ),
        (
            format!("migrate {AT_HOME} nowhere"),
            "process 77 still runs at home: that node is not connected",
        ),
        (format!("home {AWAY}"), "process 1234 still runs on desk: the return took too long"),
        (format!("explain {MISSING}"), "process 88: No such process"),
    ];
    for (line, text) in cases {
        let (status, out, error) = rig.run(&line);
        assert_eq!((status, out.as_str()), (1, ""), "{line}");
        assert_eq!(error, format!("tcmi: {text}\n"), "{line}");
    }
    let (status, refusal) = rig.json(&format!("migrate {MISSING} desk"));
    assert_eq!((status, &refusal["errno"]), (1, &json!(3)));
}

#[test]
fn an_explanation_is_printed_as_it_is() {
    let rig = rig();
    let expected = (0, "no: it has an io_uring\n".to_owned(), String::new());
    assert_eq!(rig.run(&format!("explain {IMMOVABLE} desk")), expected);
}

#[test]
fn a_long_transfer_shows_how_far_it_is() {
    let rig = rig();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut program = Program::new(env!("CARGO_BIN_EXE_tcmi"));
    program.args(["home", &SLOW.to_string()]).env("TCMI_CTLFS", rig.server.mount_point());
    program.env("TERM", "xterm").stdout(Stdio::piped()).stderr(terminal.slave);
    let child = program.spawn().unwrap();
    // Its end of the terminal, so that reading ends with it.
    drop(program);
    let mut screen = File::from(terminal.master);
    let (mut shown, mut part) = (String::new(), [0; 512]);
    while !(shown.contains("returning") && shown.contains("1.00 KiB/4.00 KiB")) {
        let n = screen.read(&mut part).expect("it ended without a bar");
        shown.push_str(&String::from_utf8_lossy(&part[..n]));
    }
    for reply in rig.control.waiting.lock().unwrap().drain(..) {
        reply.send(Ok(Answer::Done));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, format!("process {SLOW} runs at home\n").as_bytes());
}

#[test]
fn wrong_usage_is_2() {
    let rig = rig();
    for line in ["", "migrate", "migrate 0 desk", "migrate x desk", "home -1", "home 1 2", "fly"] {
        assert_eq!(rig.run(line).0, 2, "{line}");
    }
}

#[test]
fn no_daemon_is_3() {
    let empty = tempfile::tempdir().unwrap();
    for args in [["key"].as_slice(), &["nodes"], &["home", "1"]] {
        let output = tcmi(empty.path(), args);
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("tcmi: no daemon serves"));
    }
}

#[test]
fn the_doctor_tells_of_daemon_and_machine() {
    let (status, report) = rig().json("doctor");
    let findings = report["findings"].as_array().unwrap();
    let about = |what: &str| findings.iter().find(|f| f["what"] == what).unwrap();
    assert_eq!(about("daemon")["text"], "home answers");
    assert_eq!(about("ctlfs")["text"], "kernel");
    for what in ["module", "kernel", "seccomp", "namespaces", "PAGEMAP_SCAN"] {
        assert_ne!(about(what)["text"], "");
    }
    let bad = findings.iter().any(|f| f["health"] == "bad");
    assert_eq!((status, &report["status"]), (i32::from(bad), &json!(i32::from(bad))));
}

#[test]
fn the_doctor_looks_at_the_machine_without_a_daemon() {
    let empty = tempfile::tempdir().unwrap();
    let output = tcmi(empty.path(), &["doctor"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("no daemon serves") && text.contains("seccomp"), "{text}");
}
