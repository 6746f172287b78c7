//! The tree as a table: path, kind, mode, what may be written, what it means.

/// One directory, file or link, or one family of them.
#[derive(Debug)]
pub struct Entry {
    pub item: Item,
    pub role: Role,
    /// Without the mount point; a component in braces is a [`Wildcard`].
    pub path: &'static str,
    pub kind: Kind,
    /// Permission bits. Bits that are absent hold for root too.
    pub mode: u16,
    pub write: Option<Grammar>,
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Dir,
    File,
    Link,
}

/// The part of a node that an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Node,
    /// Core node: home.
    Ccn,
    /// Execution node.
    Pen,
}

/// What an entry is, whichever role it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Root,
    /// A directory whose content the table gives.
    Fixed,
    NodeId,
    NodeName,
    NodeVersion,
    NodeFeatures,
    Listen,
    Listeners,
    Listener,
    ListenerSockname,
    ListenerStop,
    Trust,
    Connect,
    Peers,
    PeerCount,
    Peer,
    PeerByName,
    PeerId,
    PeerName,
    PeerState,
    PeerAddress,
    PeerLoad,
    PeerFeatures,
    PeerStop,
    PeerKill,
    PeerMigrateHomeAll,
    Emigrate,
    EmigrateNpm,
    MigrateHome,
    Checkpoint,
    Explain,
    Processes,
    Process,
    ProcessNode,
    ProcessRemotePid,
    ProcessState,
    ProcessStats,
    ProcessLastError,
}

/// The form of one command. One `write` is one command: it starts at offset 0, is
/// at most 4096 bytes long and may end in one newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    Address,
    KeyLines,
    AddressKey,
    PidNode,
    PidNodeTree,
    Pid,
    PidPath,
    PidMaybeNode,
    One,
}

impl Grammar {
    pub const fn text(self) -> &'static str {
        match self {
            Grammar::Address => "tcp:ADDR:PORT",
            Grammar::KeyLines => "lines of KEY or -KEY",
            Grammar::AddressKey => "tcp:ADDR:PORT KEY",
            Grammar::PidNode => "PID NODE",
            Grammar::PidNodeTree => "PID NODE [tree]",
            Grammar::Pid => "PID",
            Grammar::PidPath => "PID PATH",
            Grammar::PidMaybeNode => "PID [NODE [tree]]",
            Grammar::One => "1",
        }
    }
}

/// A path component that stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wildcard {
    /// `{N}`: counts up and is never reused.
    Number,
    /// `{PID}`: a process id at home.
    Pid,
    /// `{NAME}`: a node's name.
    Name,
}

impl Wildcard {
    pub fn of(component: &str) -> Option<Self> {
        match component {
            "{N}" => Some(Self::Number),
            "{PID}" => Some(Self::Pid),
            "{NAME}" => Some(Self::Name),
            _ => None,
        }
    }
}

impl Entry {
    pub fn is_readable(&self) -> bool {
        self.mode & 0o444 != 0
    }

    /// The last component, or a wildcard's spelling.
    pub fn component(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    pub fn wildcard(&self) -> Option<Wildcard> {
        Wildcard::of(self.component())
    }

    pub fn is_child_of(&self, dir: &Entry) -> bool {
        if self.path.is_empty() {
            return false;
        }
        let parent = self.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        parent == dir.path
    }
}

/// The entries directly in `dir`, in the order of the table.
pub fn children(dir: &'static Entry) -> impl Iterator<Item = &'static Entry> {
    TREE.iter().filter(move |entry| entry.is_child_of(dir))
}

pub fn root() -> &'static Entry {
    &TREE[0]
}

const fn dir(item: Item, role: Role, path: &'static str, meaning: &'static str) -> Entry {
    Entry { item, role, path, kind: Kind::Dir, mode: 0o555, write: None, meaning }
}

const fn link(item: Item, role: Role, path: &'static str, meaning: &'static str) -> Entry {
    Entry { item, role, path, kind: Kind::Link, mode: 0o777, write: None, meaning }
}

const fn value(item: Item, role: Role, path: &'static str, meaning: &'static str) -> Entry {
    Entry { item, role, path, kind: Kind::File, mode: 0o444, write: None, meaning }
}

const fn command(
    item: Item,
    role: Role,
    path: &'static str,
    mode: u16,
    write: Grammar,
    meaning: &'static str,
) -> Entry {
    Entry { item, role, path, kind: Kind::File, mode, write: Some(write), meaning }
}

use Role::{Ccn, Node, Pen};

#[rustfmt::skip]
pub static TREE: &[Entry] = &[
    dir(Item::Root, Node, "", "the control filesystem"),

    dir(Item::Fixed, Node, "node", "this node"),
    value(Item::NodeId, Node, "node/id", "its public key as text: what peers pin"),
    value(Item::NodeName, Node, "node/name", "its name"),
    value(Item::NodeVersion, Node, "node/version", "versions of the program, the protocol and the checkpoint format, one a line"),
    value(Item::NodeFeatures, Node, "node/features", "what it can do, one a line"),

    dir(Item::Fixed, Ccn, "ccn", "the home role"),
    command(Item::Listen, Ccn, "ccn/listen", 0o200, Grammar::Address, "listen for execution nodes; port 0 takes any free one"),
    dir(Item::Listeners, Ccn, "ccn/listening-on", "one directory a listening address"),
    dir(Item::Listener, Ccn, "ccn/listening-on/{N}", "a listening address"),
    value(Item::ListenerSockname, Ccn, "ccn/listening-on/{N}/sockname", "where it listens, as tcp:ADDR:PORT"),
    command(Item::ListenerStop, Ccn, "ccn/listening-on/{N}/stop", 0o200, Grammar::One, "close it; peers that came through it stay"),
    command(Item::Trust, Ccn, "ccn/trust", 0o600, Grammar::KeyLines, "public keys that may connect, one a line; -KEY takes one back"),
    dir(Item::Peers, Ccn, "ccn/nodes", "execution nodes that are connected, or were lost"),
    value(Item::PeerCount, Ccn, "ccn/nodes/count", "how many"),
    dir(Item::Peer, Ccn, "ccn/nodes/{N}", "one of them"),
    value(Item::PeerId, Ccn, "ccn/nodes/{N}/id", "its public key"),
    value(Item::PeerName, Ccn, "ccn/nodes/{N}/name", "its name"),
    value(Item::PeerState, Ccn, "ccn/nodes/{N}/state", "connected, leaving, or lost and what its kernel says of it"),
    value(Item::PeerAddress, Ccn, "ccn/nodes/{N}/address", "the other end of the link, as tcp:ADDR:PORT"),
    value(Item::PeerLoad, Ccn, "ccn/nodes/{N}/load", "its one-minute load average, as of the last report"),
    value(Item::PeerFeatures, Ccn, "ccn/nodes/{N}/features", "what it can do, one a line"),
    command(Item::PeerStop, Ccn, "ccn/nodes/{N}/stop", 0o200, Grammar::One, "let it go; its processes come home first"),
    command(Item::PeerKill, Ccn, "ccn/nodes/{N}/kill", 0o200, Grammar::One, "drop it now"),
    link(Item::PeerByName, Ccn, "ccn/nodes/{NAME}", "the same node by its name"),
    dir(Item::Fixed, Ccn, "ccn/mig", "migration"),
    command(Item::Emigrate, Ccn, "ccn/mig/emigrate-ppm-p", 0o222, Grammar::PidNodeTree, "move PID to NODE now, with all processes below it if `tree` is said; returns when it runs there"),
    command(Item::EmigrateNpm, Ccn, "ccn/mig/emigrate-npm", 0o666, Grammar::PidNode, "PID goes to NODE when it executes another program; reads as those that wait for that, one a line"),
    command(Item::MigrateHome, Ccn, "ccn/mig/migrate-home", 0o222, Grammar::Pid, "bring PID home; returns when it runs here; one that waits in emigrate-npm does so no more"),
    command(Item::Checkpoint, Ccn, "ccn/mig/checkpoint", 0o222, Grammar::PidPath, "write an image of PID to PATH, an absolute name; returns when it is on disk, the process goes on"),
    command(Item::Explain, Ccn, "ccn/mig/explain", 0o666, Grammar::PidMaybeNode, "write PID, PID NODE or PID NODE tree; then read: may it move, or all of its tree, what stays home and why"),
    dir(Item::Processes, Ccn, "ccn/mig/migproc", "processes of this home that are away or on their way"),
    dir(Item::Process, Ccn, "ccn/mig/migproc/{PID}", "one of them; its owner is the process's"),
    link(Item::ProcessNode, Ccn, "ccn/mig/migproc/{PID}/node", "where it runs"),
    value(Item::ProcessRemotePid, Ccn, "ccn/mig/migproc/{PID}/remote-pid", "its process id as the execution node sees it; 0 before it has one"),
    value(Item::ProcessState, Ccn, "ccn/mig/migproc/{PID}/state", "running, preparing, freezing, transferring, committing, emigrated, returning, failed or gone"),
    value(Item::ProcessStats, Ccn, "ccn/mig/migproc/{PID}/stats", "times, bytes and forwarded calls, one a line"),
    value(Item::ProcessLastError, Ccn, "ccn/mig/migproc/{PID}/last-error", "why the last move failed; empty if none did"),

    dir(Item::Fixed, Pen, "pen", "the execution role"),
    command(Item::Connect, Pen, "pen/connect", 0o200, Grammar::AddressKey, "offer this machine to the home at ADDR whose public key is KEY"),
    dir(Item::Peers, Pen, "pen/nodes", "homes that are connected, or were lost"),
    value(Item::PeerCount, Pen, "pen/nodes/count", "how many"),
    dir(Item::Peer, Pen, "pen/nodes/{N}", "one of them"),
    value(Item::PeerId, Pen, "pen/nodes/{N}/id", "its public key"),
    value(Item::PeerName, Pen, "pen/nodes/{N}/name", "its name"),
    value(Item::PeerState, Pen, "pen/nodes/{N}/state", "connected, leaving, or lost and what its kernel says of it"),
    value(Item::PeerAddress, Pen, "pen/nodes/{N}/address", "the other end of the link, as tcp:ADDR:PORT"),
    value(Item::PeerLoad, Pen, "pen/nodes/{N}/load", "its one-minute load average, as of the last report"),
    value(Item::PeerFeatures, Pen, "pen/nodes/{N}/features", "what it can do, one a line"),
    command(Item::PeerStop, Pen, "pen/nodes/{N}/stop", 0o200, Grammar::One, "leave it; its guests go home first"),
    command(Item::PeerKill, Pen, "pen/nodes/{N}/kill", 0o200, Grammar::One, "drop it now"),
    command(Item::PeerMigrateHomeAll, Pen, "pen/nodes/{N}/migrate-home-all", 0o200, Grammar::One, "send all its guests home; the link stays"),
    link(Item::PeerByName, Pen, "pen/nodes/{NAME}", "the same node by its name"),
    dir(Item::Fixed, Pen, "pen/mig", "migration"),
    command(Item::MigrateHome, Pen, "pen/mig/migrate-home", 0o200, Grammar::Pid, "send the guest with home process id PID home"),
    dir(Item::Processes, Pen, "pen/mig/migproc", "guests here"),
    dir(Item::Process, Pen, "pen/mig/migproc/{PID}", "one of them, by its process id at home"),
    link(Item::ProcessNode, Pen, "pen/mig/migproc/{PID}/node", "its home"),
    value(Item::ProcessRemotePid, Pen, "pen/mig/migproc/{PID}/remote-pid", "its process id on this node; 0 before it has one"),
    value(Item::ProcessState, Pen, "pen/mig/migproc/{PID}/state", "as at home"),
    value(Item::ProcessStats, Pen, "pen/mig/migproc/{PID}/stats", "times, bytes and forwarded calls, one a line"),
    value(Item::ProcessLastError, Pen, "pen/mig/migproc/{PID}/last-error", "why the last move failed; empty if none did"),
];

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;
    use std::vec::Vec;

    #[test]
    fn every_entry_hangs_in_the_tree_once() {
        let mut paths = HashSet::new();
        let mut kinds = HashSet::new();
        for entry in TREE {
            assert!(paths.insert(entry.path), "{} twice", entry.path);
            if entry.item != Item::Fixed {
                assert!(kinds.insert((entry.item, entry.role)), "{:?} twice", entry.item);
            }
            let parents = TREE.iter().filter(|dir| dir.kind == Kind::Dir && entry.is_child_of(dir));
            assert_eq!(parents.count(), usize::from(!entry.path.is_empty()), "{}", entry.path);
        }
        assert_eq!(root().item, Item::Root);
    }

    #[test]
    fn modes_say_what_can_be_done() {
        for entry in TREE {
            let writable = entry.mode & 0o222 != 0;
            match entry.kind {
                Kind::File => assert_eq!(writable, entry.write.is_some(), "{}", entry.path),
                Kind::Dir => assert_eq!((entry.mode, entry.write), (0o555, None)),
                Kind::Link => assert_eq!(entry.write, None),
            }
        }
    }

    #[test]
    fn a_path_has_one_wildcard_at_most_and_a_directory_one_of_a_kind() {
        for entry in TREE {
            let wildcards = entry.path.split('/').filter_map(Wildcard::of);
            assert!(wildcards.count() <= 1, "{}", entry.path);
            let own: Vec<_> = children(entry).filter_map(Entry::wildcard).collect();
            assert_eq!(own.iter().collect::<HashSet<_>>().len(), own.len());
            assert!(own.len() <= 2, "{}", entry.path);
        }
    }
}
