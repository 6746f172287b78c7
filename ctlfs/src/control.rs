//! What a daemon does for the filesystem in front of it.

use tcmi_core::command::Command;
use tcmi_core::error::Errno;

use crate::place::{Capture, Place};
use crate::tree::Entry;

/// Who made a request, in the daemon's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The calling thread; 0 if it is in a pid namespace that the daemon cannot see.
    pub tid: i32,
}

impl Caller {
    pub fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// Whose a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub const ROOT: Owner = Owner { uid: 0, gid: 0 };
}

/// Served by several threads at once. Everything but `write` is called in the path of
/// a request: it may take a short lock, and waits for nothing else.
pub trait Control: Send + Sync + 'static {
    /// What the wildcard `family` stands for now. `within` is the capture of its directory.
    fn list(&self, family: &'static Entry, within: &Capture) -> Vec<Capture>;

    /// None: it does not exist (any more). Asked for places with a capture only.
    fn owner(&self, place: &Place) -> Option<Owner>;

    /// The whole value, with its newline. An open file has one call's, so a reader never sees
    /// parts of two; others are for its size.
    fn read(&self, caller: Caller, place: &Place) -> Result<String, Errno>;

    /// Relative to the link's directory.
    fn readlink(&self, place: &Place) -> Result<String, Errno>;

    /// On a thread of its own: may wait. `reply` may be kept and answered later from
    /// anywhere; the writer waits for it, and nobody else does.
    fn write(&self, caller: Caller, place: &Place, command: Command, reply: Reply);
}

/// What a command that was done has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// To be read back: `explain`.
    Text(String),
}

/// The open end of a write. Dropped without an answer it is EIO.
pub struct Reply(Option<AnswerWriter>);

type AnswerWriter = Box<dyn FnOnce(Result<Answer, Errno>) + Send>;

impl Reply {
    pub fn new(answer: impl FnOnce(Result<Answer, Errno>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    pub fn send(mut self, result: Result<Answer, Errno>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(Errno::Io));
        }
    }
}
