//! The command line's definition, and what is generated from it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tcmi_core::command::{NodeRef, Pid};

/// Move running processes between machines and bring them home
///
/// Talks to the node whose control filesystem is at --ctlfs.
///
/// Exit status: 0 done; 1 refused or failed, the process still runs where it was;
/// 2 wrong usage; 3 no daemon serves that directory.
#[derive(Debug, Parser)]
#[command(name = "tcmi", version, max_term_width = 100)]
pub struct Args {
    /// Where the control filesystem is mounted
    #[arg(
        long,
        global = true,
        env = "TCMI_CTLFS",
        default_value = "/run/tcmi",
        value_name = "DIR"
    )]
    pub ctlfs: PathBuf,
    /// Print JSON instead of a table or a sentence
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List connected nodes
    Nodes,
    /// List processes that are away, and guests that are here
    Ps,
    /// Move a process to a node; returns when it runs there
    Migrate {
        pid: Pid,
        node: NodeRef,
        /// Move all processes below it, too, at the same instant: all of them or none
        #[arg(long)]
        tree: bool,
    },
    /// Run a command on a node, with this terminal, directory and exit status
    ///
    /// It begins here and goes on there, where it can; what it begins goes with it.
    /// Exit status: that of the command; 127 not found, 126 not executable.
    Run {
        #[arg(long, value_name = "NODE")]
        on: NodeRef,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Bring a process home, or send a guest home
    Home { pid: Pid },
    /// Write an image of a process to a file, while it goes on
    Checkpoint { pid: Pid, file: PathBuf },
    /// Run the process of an image again, from where it was, with this terminal and directory tree
    ///
    /// It has its old process id. Standard streams that were a terminal, or led to other
    /// processes, are those of this command. Needs no daemon.
    /// Exit status: that of the process, or 128 and the number of the signal that ended it.
    Restart {
        file: PathBuf,
        /// Cut files that it writes back to the length that they had
        #[arg(long)]
        truncate: bool,
    },
    /// Look at images of processes
    #[command(subcommand)]
    Image(ImageVerb),
    /// Tell whether a process may move, what stays home, and why
    Explain {
        pid: Pid,
        node: Option<NodeRef>,
        /// Tell of all processes below it, too
        #[arg(long, requires = "node")]
        tree: bool,
    },
    /// Print this node's public key, which a peer has to trust
    Key,
    /// Tell what this machine has of what tcmi needs, and what would make it better
    Doctor,
}

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Check an image, and tell what is in it
    Show { file: PathBuf },
}

pub fn definition() -> clap::Command {
    Args::command()
}

/// Writes `tcmi.1` and one page for each subcommand.
pub fn write_man_pages(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(definition(), dir)
}

/// Writes completions for bash, zsh and fish.
pub fn write_completions(dir: &Path) -> io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut definition(), "tcmi", dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn pages_and_completions_name_every_verb() {
        let dir = tempfile::tempdir().unwrap();
        write_man_pages(dir.path()).unwrap();
        write_completions(dir.path()).unwrap();
        let bash = std::fs::read_to_string(dir.path().join("tcmi.bash")).unwrap();
        for verb in definition().get_subcommands() {
            assert!(bash.contains(verb.get_name()));
            assert!(dir.path().join(format!("tcmi-{}.1", verb.get_name())).exists());
        }
        let page = std::fs::read_to_string(dir.path().join("tcmi.1")).unwrap();
        assert!(page.contains("Exit status"));
    }
}
