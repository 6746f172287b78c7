//! The control files' daemon side over a link of two endpoints and tasks that pretend.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::unbounded;
use tcmi_core::command::{Command, NodeRef, Pid};
use tcmi_core::error::{Errno, MigrateError};
use tcmi_core::lifecycle::State;
use tcmi_ctlfs::tree::{Entry, TREE};
use tcmi_ctlfs::{Answer, Caller, Capture, Control, Owner, Place, Reply};
use tcmi_kkc::{Control as Message, Endpoint, Identity, Link, LinkId};
use tcmi_node::control::{Done, Node, Side, TaskView, Tasks};
use tcmi_node::peers::Peers;
use tcmi_node::trusted::Trusted;

const USER: u32 = 1000;
const AWAY: i32 = 400_000_001;
const GUEST: i32 = 400_000_002;

#[derive(Default)]
struct Pretender {
    asked: Mutex<Vec<(Pid, Option<Side>)>>,
    all_home: Mutex<Vec<Done>>,
    armed: Mutex<Vec<Pid>>,
}

fn pid(raw: i32) -> Pid {
    Pid::new(raw).unwrap()
}

impl Tasks for Pretender {
    fn emigrate(&self, pid: Pid, _: LinkId, _: Caller, reply: Done) {
        self.asked.lock().unwrap().push((pid, None));
        reply(Ok(()));
    }
    fn arm(&self, pid: Pid, _: LinkId, _: Caller, reply: Done) {
        self.armed.lock().unwrap().push(pid);
        reply(Ok(()));
    }
    fn disarm(&self, pid: Pid, _: Caller, reply: Done) -> Option<Done> {
        let mut armed = self.armed.lock().unwrap();
        let Some(at) = armed.iter().position(|p| *p == pid) else { return Some(reply) };
        armed.remove(at);
        reply(Ok(()));
        None
    }
    fn armed(&self) -> Vec<(Pid, LinkId)> {
        self.armed.lock().unwrap().iter().map(|pid| (*pid, LinkId(7))).collect()
    }
    fn migrate_home(&self, pid: Pid, side: Side, _: Caller, reply: Done) {
        self.asked.lock().unwrap().push((pid, Some(side)));
        reply(Err(MigrateError::TimedOut { phase: State::Returning, limit_ms: 1 }));
    }
    fn migrate_all_home(&self, _: LinkId, _: Side, reply: Done) {
        self.all_home.lock().unwrap().push(reply);
    }
    fn emigrate_tree(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done) {
        self.emigrate(pid, node, caller, reply);
    }
    fn checkpoint(&self, pid: Pid, _: String, _: Caller, reply: Done) {
        self.asked.lock().unwrap().push((pid, None));
        reply(Ok(()));
    }
    fn explain(
        &self,
        pid: Pid,
        _: Option<LinkId>,
        _: bool,
        _: Caller,
    ) -> Result<String, MigrateError> {
        Ok(format!("{pid} may move"))
    }
    fn list(&self, side: Side) -> Vec<TaskView> {
        vec![TaskView {
            pid: pid(if side == Side::Home { AWAY } else { GUEST }),
            uid: USER,
            gid: USER + 1,
            node: LinkId(7),
            remote_pid: 31,
            state: State::Emigrated,
            stats: "bytes-sent 5".to_owned(),
            last_error: String::new(),
        }]
    }
    fn give_up_moves(&self, _: LinkId) {}
    fn link_up(&self, _: Link) {}
    fn link_down(&self, _: LinkId, _: &str) {}
    fn message(&self, _: LinkId, _: Message) {}
    fn shut_down(&self) {}
}

struct Rig {
    node: Node,
    tasks: Arc<Pretender>,
    /// Keeps the link up.
    _desk: Endpoint,
    _dir: tempfile::TempDir,
}

/// A home with one execution node, called desk.
fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let (events, link_events) = unbounded();
    let endpoint =
        |name, events| Endpoint::new(Identity::ephemeral().unwrap(), name, vec![], events).unwrap();
    let home = endpoint("home", events);
    let (desk_events, _) = unbounded();
    let desk = endpoint("desk", desk_events);
    home.trust(desk.key());
    let listener = home.listen("tcp:127.0.0.1:0").unwrap();
    let key = home.key();
    let peers =
        Arc::new(Peers::new(home, Trusted::load(dir.path()).unwrap(), &[], false, Arc::default()));
    let tasks = Arc::new(Pretender::default());
    let (follower, follows) = (Arc::clone(&peers), tasks.clone() as Arc<dyn Tasks>);
    thread::spawn(move || follower.follow(&link_events, &follows));
    desk.connect(&format!("tcp:{}", listener.sockname), key).unwrap();
    let node = Node {
        name: "home\n".to_owned(),
        version: String::new(),
        features: String::new(),
        peers,
        tasks: tasks.clone(),
    };
    let rig = Rig { node, tasks, _desk: desk, _dir: dir };
    // The dialer is up first; our side follows.
    while rig.node.peers.list(tcmi_ctlfs::tree::Role::Ccn).is_empty() {
        thread::yield_now();
    }
    rig
}

fn at(path: &str) -> Place {
    path.split('/').try_fold(Place::root(), |place, name| place.child(name)).unwrap()
}

fn by(uid: u32) -> Caller {
    Caller { uid, gid: uid, tid: 1 }
}

impl Rig {
    fn write(
        &self,
        caller: Caller,
        path: &str,
        command: Command,
    ) -> Receiver<Result<Answer, Errno>> {
        let (answer, answered) = mpsc::channel();
        let reply = Reply::new(move |result| answer.send(result).unwrap());
        self.node.write(caller, &at(path), command, reply);
        answered
    }

    fn read(&self, path: &str) -> Result<String, Errno> {
        self.node.read(by(0), &at(path))
    }
}

fn desk() -> NodeRef {
    "desk".parse().unwrap()
}

#[test]
fn a_user_brings_home_what_is_his_and_root_all() {
    let rig = rig();
    let home = |caller, pid_raw| {
        let command = Command::MigrateHome(pid(pid_raw));
        rig.write(caller, "ccn/mig/migrate-home", command).recv().unwrap()
    };
    assert_eq!(home(by(USER + 1), AWAY), Err(Errno::NotPermitted));
    assert_eq!(home(by(USER), GUEST), Err(Errno::NoProcess), "a guest is not ours");
    assert_eq!(*rig.tasks.asked.lock().unwrap(), []);
    assert_eq!(home(by(USER), AWAY), Err(Errno::TimedOut), "the tasks' own answer");
    assert_eq!(home(by(0), AWAY), Err(Errno::TimedOut));
}

#[test]
fn a_guest_s_owner_is_nobody_here() {
    let rig = rig();
    let home = |caller| {
        let command = Command::MigrateHome(pid(GUEST));
        rig.write(caller, "pen/mig/migrate-home", command).recv().unwrap()
    };
    assert_eq!(home(by(USER)), Err(Errno::NotPermitted));
    assert_eq!(home(by(0)), Err(Errno::TimedOut));
    assert_eq!(*rig.tasks.asked.lock().unwrap(), [(pid(GUEST), Some(Side::Guest))]);
}

#[test]
fn a_process_s_files_are_its_owner_s() {
    let rig = rig();
    let dir = format!("ccn/mig/migproc/{AWAY}");
    let owner = Owner { uid: USER, gid: USER + 1 };
    assert_eq!(rig.node.owner(&at(&dir)), Some(owner));
    assert_eq!(rig.node.owner(&at(&format!("pen/mig/migproc/{AWAY}"))), None);
    assert_eq!(rig.read(&format!("{dir}/state")).as_deref(), Ok("emigrated\n"));
    assert_eq!(rig.read(&format!("{dir}/stats")).as_deref(), Ok("bytes-sent 5\n"));
    assert_eq!(rig.read(&format!("{dir}/last-error")).as_deref(), Ok(""));
    let link = rig.node.readlink(&at(&format!("{dir}/node")));
    assert_eq!(link.as_deref(), Ok("../../../nodes/7"));
}

#[test]
fn a_process_may_arm_itself_and_is_called_home_to_stay() {
    let rig = rig();
    let own = std::process::id() as i32;
    let caller = Caller { uid: USER, gid: USER, tid: own };
    let command = Command::Emigrate { pid: pid(own), node: desk(), tree: false };
    let answer = rig.write(caller, "ccn/mig/emigrate-npm", command).recv().unwrap();
    assert_eq!(answer, Ok(Answer::Done));
    assert_eq!(rig.read("ccn/mig/emigrate-npm"), Ok(format!("{own} 7\n")));
    let home = Command::MigrateHome(pid(own));
    let answer = rig.write(caller, "ccn/mig/migrate-home", home).recv().unwrap();
    assert_eq!(answer, Ok(Answer::Done));
    assert_eq!(rig.read("ccn/mig/emigrate-npm").as_deref(), Ok(""));
}

#[test]
fn nobody_moves_the_process_that_asks() {
    let rig = rig();
    let own = std::process::id() as i32;
    let caller = Caller { uid: 0, gid: 0, tid: own };
    let command = Command::Emigrate { pid: pid(own), node: desk(), tree: false };
    let answer = rig.write(caller, "ccn/mig/emigrate-ppm-p", command).recv().unwrap();
    assert_eq!(answer, Err(Errno::NotSupported));
    let child = Command::Emigrate { pid: pid(AWAY), node: desk(), tree: false };
    let answer = rig.write(caller, "ccn/mig/emigrate-ppm-p", child).recv().unwrap();
    assert_eq!(answer, Ok(Answer::Done));
}

#[test]
fn a_node_that_is_let_go_gets_no_more_processes_and_stays_if_they_cannot_come_home() {
    let rig = rig();
    let emigrate = || {
        let command = Command::Emigrate { pid: pid(AWAY), node: desk(), tree: false };
        rig.write(by(0), "ccn/mig/emigrate-ppm-p", command).recv().unwrap()
    };
    let number = rig.node.readlink(&at("ccn/nodes/desk")).unwrap();
    let dir = format!("ccn/nodes/{number}");
    let stop = || rig.write(by(0), &format!("{dir}/stop"), Command::Go);

    let first = stop();
    assert!(first.try_recv().is_err(), "it waits for its processes");
    assert_eq!(rig.read(&format!("{dir}/state")).as_deref(), Ok("leaving\n"));
    assert_eq!(emigrate(), Err(Errno::HostUnreachable));
    assert_eq!(stop().recv().unwrap(), Err(Errno::Exists));

    let failed = MigrateError::TimedOut { phase: State::Returning, limit_ms: 1 };
    rig.tasks.all_home.lock().unwrap().pop().unwrap()(Err(failed));
    assert_eq!(first.recv().unwrap(), Err(Errno::TimedOut));
    assert_eq!(rig.read(&format!("{dir}/state")).as_deref(), Ok("connected\n"));
    assert_eq!(emigrate(), Ok(Answer::Done));

    let second = stop();
    rig.tasks.all_home.lock().unwrap().pop().unwrap()(Ok(()));
    assert_eq!(second.recv().unwrap(), Ok(Answer::Done));
    assert_eq!(emigrate(), Err(Errno::HostUnreachable));
}

#[test]
fn every_readable_file_has_a_value_and_no_other() {
    let rig = rig();
    let number: u64 = rig.node.readlink(&at("ccn/nodes/desk")).unwrap().parse().unwrap();
    let listener = rig.node.peers.endpoint().listeners()[0].id;
    let place = |entry: &'static Entry| {
        let capture = if entry.path.contains("listening-on/{N}") {
            Capture::Number(listener)
        } else if entry.path.contains("{N}") {
            Capture::Number(number)
        } else if entry.path.contains("{PID}") {
            Capture::Pid(pid(if entry.path.starts_with("ccn") { AWAY } else { GUEST }))
        } else {
            Capture::None
        };
        Place { entry, capture }
    };
    let explain = "ccn/mig/explain";
    for entry in TREE.iter().filter(|entry| !entry.path.starts_with("pen/nodes/{N}")) {
        let readable = entry.kind == tcmi_ctlfs::tree::Kind::File
            && entry.is_readable()
            && entry.path != explain;
        assert_eq!(rig.node.read(by(0), &place(entry)).is_ok(), readable, "{}", entry.path);
    }
}
