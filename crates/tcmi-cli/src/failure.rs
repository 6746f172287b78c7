//! Why `tcmi` did not do what it was asked.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use tcmi_core::error::Errno;

/// Error numbers of Linux that need to be told apart here.
const ENOTCONN: i32 = 107;
const ECONNABORTED: i32 = 103;

#[derive(Debug)]
pub enum Failure {
    /// Nobody answers at the control directory.
    NoDaemon { dir: PathBuf, source: io::Error },
    /// The node said no, or could not.
    Refused { text: String, errno: Option<i32> },
    /// A command that could not be executed.
    Command { program: OsString, source: io::Error },
}

impl Failure {
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::NoDaemon { .. } => 3,
            // As shells have it.
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
        }
    }

    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::NoDaemon { source, .. } | Self::Command { source, .. } => source.raw_os_error(),
        }
    }

    pub fn local(doing: &str, source: &io::Error) -> Self {
        Self::Refused { text: format!("{doing}: {source}"), errno: source.raw_os_error() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDaemon { dir, source } => {
                write!(f, "no daemon serves {}: {}", dir.display(), without_number(source))
            }
            Self::Refused { text, .. } => f.write_str(text),
            Self::Command { program, source } => {
                write!(f, "{}: {}", program.display(), without_number(source))
            }
        }
    }
}

/// The daemon is not there, or went away while we waited for it.
pub fn is_daemon_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTCONN | ECONNABORTED))
}

/// What an error number of the control filesystem means to a person.
pub fn in_words(error: &io::Error) -> String {
    let meanings = [
        (Errno::NotPermitted, "it belongs to another user"),
        (Errno::Access, "this user may not ask for it"),
        (Errno::Busy, "it is on its way already, or the daemon has too much to do"),
        (Errno::TimedOut, "it took too long"),
        (Errno::HostUnreachable, "that node is not connected"),
    ];
    let known = meanings.iter().find(|(errno, _)| error.raw_os_error() == Some(errno.raw()));
    known.map_or_else(|| without_number(error), |(_, words)| (*words).to_owned())
}

/// `io::Error` without "(os error 3)".
fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
