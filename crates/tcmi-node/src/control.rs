//! The control files' daemon side: values from what the node knows, commands to who
//! carries them out.

use std::path::Path;
use std::sync::Arc;

use tcmi_core::command::{Command, Pid};
use tcmi_core::error::{Errno, MigrateError};
use tcmi_core::lifecycle::State;
use tcmi_ctlfs::tree::{Entry, Item, Role, Wildcard};
use tcmi_ctlfs::{Answer, Caller, Capture, Control, Owner, Place, Reply};
use tcmi_kkc::{Control as Message, Link, LinkId};
use tracing::{debug, info, warn};

use crate::peers::{Peer, Peers, link_lost};

/// How a command ended. Called once, from any thread.
pub type Done = Box<dyn FnOnce(Result<(), MigrateError>) + Send>;

/// Which end of a migration we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The process is ours.
    Home,
    /// It is a guest.
    Guest,
}

impl Side {
    fn of(role: Role) -> Option<Self> {
        match role {
            Role::Ccn => Some(Self::Home),
            Role::Pen => Some(Self::Guest),
            Role::Node => None,
        }
    }
}

/// A process that is away, on its way, or a guest: what its directory shows.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// At home.
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    /// The other end.
    pub node: LinkId,
    /// As the execution node's initial namespace counts; 0 before it has one.
    pub remote_pid: i32,
    pub state: State,
    /// Lines of `NAME VALUE`; [`tcmi_core::stats`] has the names that programs read.
    pub stats: String,
    /// One line, or empty.
    pub last_error: String,
}

/// Moves processes, and keeps those that are away or guests.
///
/// `list` and `view` are called in the path of a file request: they take a short lock and
/// wait for nothing else. The others may wait.
pub trait Tasks: Send + Sync + 'static {
    /// Ok: the process runs on `node`. Err: it runs at home.
    ///
    /// Whether `caller` may is the callee's to decide, once it holds the process: an
    /// earlier look at its owner could be at another process of the same id.
    fn emigrate(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done);

    /// Ok: it and all processes below it run on `node`. Err: all of them run at home.
    fn emigrate_tree(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done);

    /// Ok: it goes to `node` when it executes another program. Err: it does not.
    fn arm(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done);

    /// Some: it is not armed, and nobody is told.
    fn disarm(&self, pid: Pid, caller: Caller, reply: Done) -> Option<Done>;

    /// What is armed, and for which node.
    fn armed(&self) -> Vec<(Pid, LinkId)>;

    /// Ok: it runs at home. Err: it runs where it ran. `caller` owns it or is root.
    fn migrate_home(&self, pid: Pid, side: Side, caller: Caller, reply: Done);

    /// Everything that this link's other end has of ours, or we of it. Ok: all are home.
    fn migrate_all_home(&self, node: LinkId, side: Side, reply: Done);

    /// Moves out over this link that have not ended fail: their processes run at home.
    fn give_up_moves(&self, node: LinkId);

    /// Writes an image of it to the file `path`, with the caller's rights. Ok: it is on disk. Err:
    /// there is no new file. It runs on in either case.
    fn checkpoint(&self, pid: Pid, path: String, caller: Caller, reply: Done);

    /// Lines for people: may it move, what stays home and why. `tree`: all below it, too.
    fn explain(
        &self,
        pid: Pid,
        node: Option<LinkId>,
        tree: bool,
        caller: Caller,
    ) -> Result<String, MigrateError>;

    fn list(&self, side: Side) -> Vec<TaskView>;

    fn view(&self, side: Side, pid: Pid) -> Option<TaskView> {
        self.list(side).into_iter().find(|task| task.pid == pid)
    }

    /// Called in order for each link: `link_up`, messages, `link_down`. They delay other
    /// links' events while they run. `link_down` may come for a link that never came up.
    fn link_up(&self, link: Link);
    fn message(&self, link: LinkId, message: Message);
    fn link_down(&self, link: LinkId, reason: &str);

    /// The daemon ends: afterwards nothing of a migration runs in it.
    fn shut_down(&self);
}

/// A node in front of its control files.
pub struct Node {
    /// With a newline, as the files show them.
    pub name: String,
    pub version: String,
    pub features: String,
    pub peers: Arc<Peers>,
    pub tasks: Arc<dyn Tasks>,
}

impl Node {
    fn peer(&self, place: &Place) -> Option<(LinkId, Peer)> {
        let Capture::Number(number) = place.capture else { return None };
        let id = LinkId(number);
        Some((id, self.peers.get(place.entry.role, id)?))
    }

    fn task(&self, place: &Place) -> Option<TaskView> {
        let Capture::Pid(pid) = place.capture else { return None };
        self.tasks.view(Side::of(place.entry.role)?, pid)
    }

    fn has_listener(&self, number: u64) -> bool {
        self.peers.endpoint().listeners().iter().any(|listener| listener.id == number)
    }

    fn sockname(&self, place: &Place) -> Option<String> {
        let Capture::Number(number) = place.capture else { return None };
        let listeners = self.peers.endpoint().listeners();
        let listener = listeners.into_iter().find(|listener| listener.id == number)?;
        Some(format!("tcp:{}\n", listener.sockname))
    }

    fn trusted(&self) -> String {
        self.peers.endpoint().trusted().iter().map(|key| format!("{key}\n")).collect()
    }

    /// None: the peer is gone.
    fn peer_value(&self, place: &Place) -> Option<String> {
        let (_, peer) = self.peer(place)?;
        let link = peer.link;
        Some(match place.entry.item {
            Item::PeerId => format!("{}\n", link.peer_key()),
            Item::PeerName => format!("{}\n", peer.name),
            Item::PeerState => match peer.lost {
                Some(sign) => format!("lost{sign}\n"),
                None if peer.leaving => "leaving\n".to_owned(),
                None => "connected\n".to_owned(),
            },
            Item::PeerAddress => format!("tcp:{}\n", link.peer_address()),
            Item::PeerLoad => {
                let load = link.peer_load();
                format!("{}.{:02}\n", load / 1000, load % 1000 / 10)
            }
            Item::PeerFeatures => link.peer_features().iter().map(|f| format!("{f}\n")).collect(),
            _ => return None,
        })
    }

    fn task_value(&self, place: &Place) -> Option<String> {
        let task = self.task(place)?;
        Some(match place.entry.item {
            Item::ProcessRemotePid => format!("{}\n", task.remote_pid),
            Item::ProcessState => format!("{}\n", task.state),
            Item::ProcessStats => lines(task.stats),
            Item::ProcessLastError => lines(task.last_error),
            _ => return None,
        })
    }

    fn value(&self, place: &Place) -> Option<String> {
        match place.entry.item {
            Item::NodeId => Some(format!("{}\n", self.peers.endpoint().key())),
            Item::NodeName => Some(self.name.clone()),
            Item::NodeVersion => Some(self.version.clone()),
            Item::NodeFeatures => Some(self.features.clone()),
            Item::Trust => Some(self.trusted()),
            Item::EmigrateNpm => {
                let line = |(pid, node): (Pid, LinkId)| format!("{pid} {node}\n");
                Some(self.tasks.armed().into_iter().map(line).collect())
            }
            Item::ListenerSockname => self.sockname(place),
            Item::PeerCount => Some(format!("{}\n", self.peers.list(place.entry.role).len())),
            Item::PeerId
            | Item::PeerName
            | Item::PeerState
            | Item::PeerAddress
            | Item::PeerLoad
            | Item::PeerFeatures => self.peer_value(place),
            Item::ProcessRemotePid
            | Item::ProcessState
            | Item::ProcessStats
            | Item::ProcessLastError => self.task_value(place),
            // No values: directories, links, and files that are only written.
            _ => None,
        }
    }

    /// What is done when this returns. None: `reply` is answered later.
    fn act(
        &self,
        caller: Caller,
        place: &Place,
        command: Command,
        reply: &mut Option<Reply>,
    ) -> Option<Result<Answer, MigrateError>> {
        let done = |result: Result<(), MigrateError>| Some(result.map(|()| Answer::Done));
        match (place.entry.item, command) {
            (Item::Listen, Command::Listen(address)) => done(self.peers.listen(&address)),
            (Item::Trust, Command::Trust(changes)) => done(self.peers.change_trust(&changes)),
            (Item::Connect, Command::Connect { address, key }) => {
                done(self.peers.connect(&address, &key))
            }
            (Item::ListenerStop, Command::Go) => done(self.stop_listening(place)),
            (Item::PeerKill, Command::Go) => done(self.kill(place)),
            (Item::Explain, Command::Explain { pid, node, tree }) => {
                let node = node.map(|node| self.peers.destination(&node)).transpose();
                let text = node.and_then(|node| self.tasks.explain(pid, node, tree, caller));
                Some(text.map(|text| Answer::Text(lines(text))))
            }
            (Item::Emigrate, Command::Emigrate { pid, node, tree }) => {
                let node = self.peers.destination(&node);
                match node.and_then(|node| not_its_own_writer(caller, pid).map(|()| node)) {
                    Ok(node) => {
                        let answer = later(caller, place, reply.take()?);
                        match tree {
                            true => self.tasks.emigrate_tree(pid, node, caller, answer),
                            false => self.tasks.emigrate(pid, node, caller, answer),
                        }
                        None
                    }
                    Err(error) => done(Err(error)),
                }
            }
            (Item::EmigrateNpm, Command::Emigrate { pid, node, .. }) => {
                match self.peers.destination(&node) {
                    Ok(node) => {
                        self.tasks.arm(pid, node, caller, later(caller, place, reply.take()?));
                        None
                    }
                    Err(error) => done(Err(error)),
                }
            }
            (Item::MigrateHome, Command::MigrateHome(pid)) => {
                let answer = later(caller, place, reply.take()?);
                let answer = match place.entry.role {
                    Role::Ccn => self.tasks.disarm(pid, caller, answer)?,
                    _ => answer,
                };
                match self.may_bring_home(place, pid, caller) {
                    Ok(side) => self.tasks.migrate_home(pid, side, caller, answer),
                    Err(error) => answer(Err(error)),
                }
                None
            }
            (Item::Checkpoint, Command::Checkpoint { pid, path }) => {
                if let Err(error) = not_its_own_writer(caller, pid) {
                    return done(Err(error));
                }
                let answer = later(caller, place, reply.take()?);
                self.tasks.checkpoint(pid, path, caller, answer);
                None
            }
            (Item::PeerStop | Item::PeerMigrateHomeAll, Command::Go) => {
                match self.send_home(caller, place, reply) {
                    Ok(()) => None,
                    Err(error) => done(Err(error)),
                }
            }
            // The tree's table gives each file its one kind of command.
            (_, _) => done(Err(gone(place))),
        }
    }

    fn may_bring_home(
        &self,
        place: &Place,
        pid: Pid,
        caller: Caller,
    ) -> Result<Side, MigrateError> {
        let side = Side::of(place.entry.role).ok_or_else(|| gone(place))?;
        let task = self.tasks.view(side, pid).ok_or(MigrateError::NotAway(pid))?;
        // The owner of a guest is a user of its home, not of this machine.
        let is_owner = side == Side::Home && caller.uid == task.uid;
        if !caller.is_root() && !is_owner {
            return Err(MigrateError::NotYours(pid));
        }
        if side == Side::Home {
            not_its_own_writer(caller, pid)?;
        }
        Ok(side)
    }

    fn stop_listening(&self, place: &Place) -> Result<(), MigrateError> {
        match place.capture {
            Capture::Number(id) if self.peers.stop_listening(id) => Ok(()),
            _ => Err(gone(place)),
        }
    }

    fn kill(&self, place: &Place) -> Result<(), MigrateError> {
        let (id, peer) = self.peer(place).ok_or_else(|| gone(place))?;
        match peer.lost {
            Some(_) => self.peers.forget(id),
            None => peer.link.close("dropped by its operator"),
        }
        if place.entry.role == Role::Ccn {
            self.tasks.give_up_moves(id);
        }
        Ok(())
    }

    fn send_home(
        &self,
        caller: Caller,
        place: &Place,
        reply: &mut Option<Reply>,
    ) -> Result<(), MigrateError> {
        let (id, peer) = self.peer(place).ok_or_else(|| gone(place))?;
        let side = Side::of(place.entry.role).ok_or_else(|| gone(place))?;
        if let Some(sign) = peer.lost {
            return Err(link_lost(&peer.name, sign));
        }
        let link = self.peers.link(place.entry.role, id).ok_or_else(|| gone(place))?;
        let stops = place.entry.item == Item::PeerStop;
        if stops && !self.peers.set_leaving(id) {
            return Err(MigrateError::Exists("it is leaving already".to_owned()));
        }
        let Some(reply) = reply.take() else { return Ok(()) };
        let answer = later(caller, place, reply);
        let peers = Arc::clone(&self.peers);
        let done = move |result: Result<(), MigrateError>| {
            match (&result, stops) {
                (Ok(()), true) => link.close("it was let go"),
                // Processes are still there: it stays, and may be asked again.
                (Err(_), true) => peers.set_staying(id),
                (_, false) => {}
            }
            answer(result);
        };
        self.tasks.migrate_all_home(id, side, Box::new(done));
        Ok(())
    }
}

/// A writer waits where it cannot be stopped, so nobody can move the process it is in:
/// `echo $$ desk > emigrate-ppm-p` has to be written by another process.
pub fn not_its_own_writer(caller: Caller, pid: Pid) -> Result<(), MigrateError> {
    if Path::new(&format!("/proc/{pid}/task/{}", caller.tid)).exists() {
        let reasons = vec!["it is the process that asks; let another one ask".to_owned()];
        return Err(MigrateError::Unsupported { pid, reasons });
    }
    Ok(())
}

fn gone(place: &Place) -> MigrateError {
    MigrateError::NoEntry(place.to_string())
}

/// Text ends in a newline unless it is empty.
fn lines(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Logged here and nowhere else; the writer has the errno only. What other users get
/// wrong is not the operator's business, and must not fill the log.
fn refused(caller: Caller, place: &Place, error: &MigrateError) -> Errno {
    let errno = error.errno();
    match errno {
        Errno::Io => warn!(uid = caller.uid, "{place}: {error}"),
        _ if caller.is_root() => info!("{place}: {error}"),
        _ => debug!(uid = caller.uid, "{place}: {error}"),
    }
    errno
}

fn later(caller: Caller, place: &Place, reply: Reply) -> Done {
    let place = place.clone();
    Box::new(move |result| {
        let result = result.map(|()| Answer::Done);
        reply.send(result.map_err(|error| refused(caller, &place, &error)));
    })
}

impl Control for Node {
    fn list(&self, family: &'static Entry, _: &Capture) -> Vec<Capture> {
        match (family.wildcard(), family.item) {
            (Some(Wildcard::Number), Item::Listener) => {
                let listeners = self.peers.endpoint().listeners();
                listeners.iter().map(|listener| Capture::Number(listener.id)).collect()
            }
            (Some(Wildcard::Number), _) => {
                let peers = self.peers.list(family.role);
                peers.iter().map(|(id, _)| Capture::Number(id.0)).collect()
            }
            (Some(Wildcard::Name), _) => {
                let peers = self.peers.list(family.role);
                peers.into_iter().map(|(_, peer)| Capture::Name(peer.name)).collect()
            }
            (Some(Wildcard::Pid), _) => {
                let tasks = Side::of(family.role).map(|side| self.tasks.list(side));
                tasks.into_iter().flatten().map(|task| Capture::Pid(task.pid)).collect()
            }
            (None, _) => Vec::new(),
        }
    }

    fn owner(&self, place: &Place) -> Option<Owner> {
        match (&place.capture, place.entry.item) {
            (Capture::None, _) => Some(Owner::ROOT),
            (
                Capture::Number(number),
                Item::Listener | Item::ListenerSockname | Item::ListenerStop,
            ) => self.has_listener(*number).then_some(Owner::ROOT),
            (Capture::Number(_), _) => self.peer(place).map(|_| Owner::ROOT),
            (Capture::Name(name), _) => {
                self.peers.by_name(place.entry.role, name).map(|_| Owner::ROOT)
            }
            (Capture::Pid(_), _) => {
                self.task(place).map(|task| Owner { uid: task.uid, gid: task.gid })
            }
        }
    }

    fn read(&self, _: Caller, place: &Place) -> Result<String, Errno> {
        self.value(place).ok_or(Errno::NoEntry)
    }

    fn readlink(&self, place: &Place) -> Result<String, Errno> {
        let target = match (&place.capture, place.entry.item) {
            (Capture::Name(name), Item::PeerByName) => {
                self.peers.by_name(place.entry.role, name).map(|id| id.to_string())
            }
            (Capture::Pid(_), Item::ProcessNode) => {
                self.task(place).map(|task| format!("../../../nodes/{}", task.node))
            }
            _ => None,
        };
        target.ok_or(Errno::NoEntry)
    }

    fn write(&self, caller: Caller, place: &Place, command: Command, reply: Reply) {
        let mut reply = Some(reply);
        let result = self.act(caller, place, command, &mut reply);
        if let (Some(result), Some(reply)) = (result, reply) {
            reply.send(result.map_err(|error| refused(caller, place, &error)));
        }
    }
}
