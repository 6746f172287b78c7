//! What a machine and the host say to each other on the second serial port, a line each.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// A machine's address on the network of two.
pub const HOME_ADDRESS: &str = "10.77.0.1";
pub const DESK_ADDRESS: &str = "10.77.0.2";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Home,
    Desk,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Home => "home",
            Self::Desk => "desk",
        })
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "home" => Ok(Self::Home),
            "desk" => Ok(Self::Desk),
            _ => bail!("no role: {s:?}"),
        }
    }
}

/// What only the host can do to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The desk loses its power.
    QuitDesk,
    /// It is switched on again, with nothing on it.
    BootDesk,
    /// The desk's cable.
    Link { up: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Progress(String),
    /// With the token that the machine was booted with.
    Passed(String),
    Failed(String),
    /// Answered by [`DONE`] when it is carried out.
    Please(Order),
}

pub const DONE: &str = "done";

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Progress(text) => write!(f, "progress {}", text.escape_default()),
            Self::Passed(token) => write!(f, "passed {token}"),
            Self::Failed(text) => write!(f, "failed {}", text.escape_default()),
            Self::Please(Order::QuitDesk) => write!(f, "please quit desk"),
            Self::Please(Order::BootDesk) => write!(f, "please boot desk"),
            Self::Please(Order::Link { up: true }) => write!(f, "please link up"),
            Self::Please(Order::Link { up: false }) => write!(f, "please link down"),
        }
    }
}

impl FromStr for Said {
    type Err = anyhow::Error;
    fn from_str(line: &str) -> Result<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Ok(match (word, rest) {
            ("progress", text) => Self::Progress(text.to_owned()),
            ("passed", token) => Self::Passed(token.to_owned()),
            ("failed", text) => Self::Failed(text.replace("\\n", "\n")),
            ("please", "quit desk") => Self::Please(Order::QuitDesk),
            ("please", "boot desk") => Self::Please(Order::BootDesk),
            ("please", "link up") => Self::Please(Order::Link { up: true }),
            ("please", "link down") => Self::Please(Order::Link { up: false }),
            _ => bail!("a machine says {line:?}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives() -> Result<()> {
        for said in [
            Said::Progress("booted".into()),
            Said::Passed("17".into()),
            Said::Failed("one\ntwo".into()),
            Said::Please(Order::QuitDesk),
            Said::Please(Order::BootDesk),
            Said::Please(Order::Link { up: true }),
            Said::Please(Order::Link { up: false }),
        ] {
            let line = said.to_string();
            assert!(!line.contains('\n'));
            assert_eq!(line.parse::<Said>()?, said);
        }
        assert!("passe".parse::<Said>().is_err());
        Ok(())
    }
}
