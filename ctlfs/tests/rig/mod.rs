//! A mounted tree over a daemon that only pretends.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use tcmi_core::command::{Command, NodeName, Pid};
use tcmi_core::error::Errno;
use tcmi_ctlfs::tree::{Entry, Item, Wildcard};
use tcmi_ctlfs::{Answer, Caller, Capture, Control, Module, Owner, Place, Reply, Server};

/// Owner of the one process in the tree.
pub const USER: Owner = Owner { uid: 65534, gid: 65534 };
pub const PROCESS: i32 = 4242;
/// `migrate-home` of it waits until [`Pretender::let_go`].
pub const SLOW: i32 = 5000;
/// `emigrate-ppm-p` of it is refused by the daemon.
pub const MISSING: i32 = 6000;
/// Longer than one page, so that a value read in parts would show.
pub const FEATURES_BYTES: usize = 3 * 4096;

#[derive(Default)]
pub struct Pretender {
    pub commands: Mutex<Vec<(Caller, String, Command)>>,
    pub waiting: Mutex<Vec<Reply>>,
    pub changed: Condvar,
    reads: AtomicU64,
}

impl Pretender {
    /// Blocks until `count` slow commands wait for their answer.
    pub fn await_waiting(&self, count: usize) {
        let waiting = self.waiting.lock().unwrap();
        drop(self.changed.wait_while(waiting, |waiting| waiting.len() < count).unwrap());
    }

    pub fn let_go(&self) {
        for reply in self.waiting.lock().unwrap().drain(..) {
            reply.send(Ok(Answer::Done));
        }
    }

    pub fn commands(&self) -> Vec<Command> {
        self.commands.lock().unwrap().iter().map(|(_, _, command)| command.clone()).collect()
    }
}

impl Control for Pretender {
    fn list(&self, family: &'static Entry, _: &Capture) -> Vec<Capture> {
        match family.wildcard().unwrap() {
            Wildcard::Number => vec![Capture::Number(1)],
            Wildcard::Pid => vec![Capture::Pid(Pid::new(PROCESS).unwrap())],
            Wildcard::Name => vec![Capture::Name(desk())],
        }
    }

    fn owner(&self, place: &Place) -> Option<Owner> {
        match &place.capture {
            Capture::None | Capture::Number(1) => Some(Owner::ROOT),
            Capture::Pid(pid) if pid.raw() == PROCESS => Some(USER),
            Capture::Name(name) if *name == desk() => Some(Owner::ROOT),
            Capture::Number(_) | Capture::Pid(_) | Capture::Name(_) => None,
        }
    }

    fn read(&self, _: Caller, place: &Place) -> Result<String, Errno> {
        if place.entry.item != Item::NodeFeatures {
            return Ok(format!("{place}\n"));
        }
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        let letter = if reads.is_multiple_of(2) { "a" } else { "b" };
        Ok(letter.repeat(FEATURES_BYTES - 1) + "\n")
    }

    fn readlink(&self, place: &Place) -> Result<String, Errno> {
        match place.entry.item {
            Item::PeerByName => Ok("1".to_owned()),
            Item::ProcessNode => Ok("../../../nodes/1".to_owned()),
            _ => Err(Errno::Invalid),
        }
    }

    fn write(&self, caller: Caller, place: &Place, command: Command, reply: Reply) {
        self.commands.lock().unwrap().push((caller, place.to_string(), command.clone()));
        match command {
            Command::MigrateHome(pid) if pid.raw() == SLOW => {
                self.waiting.lock().unwrap().push(reply);
                self.changed.notify_all();
            }
            Command::Emigrate { pid, .. } | Command::Explain { pid, .. }
                if pid.raw() == MISSING =>
            {
                reply.send(Err(Errno::NoProcess));
            }
            Command::Explain { pid, .. } => {
                reply.send(Ok(Answer::Text(format!("{pid} may move, says {}\n", caller.uid))));
            }
            _ => reply.send(Ok(Answer::Done)),
        }
    }
}

fn desk() -> NodeName {
    "desk".parse().unwrap()
}

/// By FUSE, or through the kernel module where `TCMI_CTLFS_KERNEL` is set.
pub fn mount(dir: &Path, control: Arc<Pretender>) -> std::io::Result<Server> {
    match std::env::var_os("TCMI_CTLFS_KERNEL") {
        Some(_) => {
            let module = Module::claim().map_err(std::io::Error::other)?;
            Server::mount_kernel(dir, control, module)
        }
        None => Server::mount(dir, control),
    }
}

/// Field order matters: unmounted before its directory is removed.
pub struct Rig {
    pub server: Option<Server>,
    pub control: Arc<Pretender>,
    pub dir: tempfile::TempDir,
}

impl Rig {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users are to reach the mount.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let control = Arc::new(Pretender::default());
        let server = mount(dir.path(), control.clone()).expect("mounting needs root and /dev/fuse");
        Self { server: Some(server), control, dir }
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }
}
