//! A node as its control files show it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tcmi_core::command::{NodeRef, Pid, decimal};

use crate::failure::{Failure, is_daemon_gone};

/// The two roles, which have directories of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ccn,
    Pen,
}

impl Role {
    pub const BOTH: [Role; 2] = [Role::Ccn, Role::Pen];

    fn dir(self) -> &'static str {
        match self {
            Role::Ccn => "ccn",
            Role::Pen => "pen",
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Peer {
    pub number: u64,
    pub name: String,
    /// Our role towards it.
    pub role: Role,
    pub state: String,
    pub address: String,
    pub load: String,
    pub key: String,
}

#[derive(Debug, Serialize)]
pub struct Process {
    pub pid: i32,
    /// Our role towards it: `pen` is a guest here.
    pub role: Role,
    /// None: its node is not connected.
    pub node: Option<String>,
    pub state: String,
    /// 0 before it has one.
    pub remote_pid: i32,
    pub uid: u32,
    pub last_error: String,
}

/// A control directory that a daemon serves, or served when it was opened.
pub struct Node {
    root: PathBuf,
}

impl Node {
    /// Err: nobody serves `root`.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(root.join("node/name")) {
            Ok(_) => Ok(Self { root: root.to_owned() }),
            Err(source) => Err(Failure::NoDaemon { dir: root.to_owned(), source }),
        }
    }

    /// One line, without its newline.
    pub fn line(&self, path: &str) -> Result<String, Failure> {
        let text = fs::read_to_string(self.root.join(path));
        text.map(|text| text.trim_end().to_owned()).map_err(|error| self.failure(path, error))
    }

    fn failure(&self, doing: &str, error: io::Error) -> Failure {
        if is_daemon_gone(&error) {
            Failure::NoDaemon { dir: self.root.clone(), source: error }
        } else {
            Failure::local(doing, &error)
        }
    }

    /// One write(2), which returns when the thing is done or refused.
    pub fn command(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(self.root.join(path))?;
        let line = format!("{text}\n");
        let written = file.write(line.as_bytes())?;
        if written == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Ok: the daemon's answer, several lines.
    pub fn explain(&self, pid: Pid, node: Option<&NodeRef>, tree: bool) -> io::Result<String> {
        let question = match node {
            Some(node) if tree => format!("{pid} {node} tree\n"),
            Some(node) => format!("{pid} {node}\n"),
            None => format!("{pid}\n"),
        };
        let path = self.root.join("ccn/mig/explain");
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let written = file.write(question.as_bytes())?;
        if written != question.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub fn peers(&self) -> Result<Vec<Peer>, Failure> {
        let mut peers = Vec::new();
        for role in Role::BOTH {
            for name in self.names(&format!("{}/nodes", role.dir()))? {
                let Some(number) = decimal(&name) else { continue };
                peers.extend(self.there(self.peer(role, number))?);
            }
        }
        peers.sort_by_key(|peer| (peer.role.dir(), peer.number));
        Ok(peers)
    }

    fn peer(&self, role: Role, number: u64) -> io::Result<Peer> {
        let value = |file| self.value(&format!("{}/nodes/{number}/{file}", role.dir()));
        Ok(Peer {
            number,
            name: value("name")?,
            role,
            state: value("state")?,
            address: value("address")?,
            load: value("load")?,
            key: value("id")?,
        })
    }

    pub fn processes(&self) -> Result<Vec<Process>, Failure> {
        let mut processes = Vec::new();
        for role in Role::BOTH {
            for name in self.names(&format!("{}/mig/migproc", role.dir()))? {
                let Ok(pid) = name.parse() else { continue };
                processes.extend(self.there(self.process(role, pid))?);
            }
        }
        processes.sort_by_key(|process| (process.role.dir(), process.pid));
        Ok(processes)
    }

    /// None: not away and not on its way.
    pub fn find(&self, pid: Pid) -> Result<Option<Process>, Failure> {
        for role in Role::BOTH {
            if let Some(process) = self.there(self.process(role, pid))? {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    fn process(&self, role: Role, pid: Pid) -> io::Result<Process> {
        let dir = format!("{}/mig/migproc/{pid}", role.dir());
        Ok(Process {
            pid: pid.raw(),
            role,
            uid: fs::metadata(self.root.join(&dir))?.uid(),
            node: absent(self.value(&format!("{dir}/node/name")))?,
            state: self.value(&format!("{dir}/state"))?,
            remote_pid: number(&self.value(&format!("{dir}/remote-pid"))?)?,
            last_error: self.value(&format!("{dir}/last-error"))?,
        })
    }

    /// Empty if there is none (any more).
    pub fn stats(&self, role: Role, pid: Pid) -> Result<String, Failure> {
        let path = format!("{}/mig/migproc/{pid}/stats", role.dir());
        let stats = self.there(self.value(&path))?;
        Ok(stats.unwrap_or_else(String::new))
    }

    fn value(&self, path: &str) -> io::Result<String> {
        let text = fs::read_to_string(self.root.join(path))?;
        Ok(text.trim_end().to_owned())
    }

    /// What went between the listing and the reading is not an error.
    fn there<T>(&self, value: io::Result<T>) -> Result<Option<T>, Failure> {
        absent(value).map_err(|error| self.failure("cannot read", error))
    }

    fn names(&self, dir: &str) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        let listing = fs::read_dir(self.root.join(dir)).map_err(|e| self.failure(dir, e))?;
        for item in listing {
            let name = item.map_err(|e| self.failure(dir, e))?.file_name();
            names.extend(name.into_string().ok());
        }
        Ok(names)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn absent<T>(value: io::Result<T>) -> io::Result<Option<T>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn number(text: &str) -> io::Result<i32> {
    text.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?}: {e}")))
}
