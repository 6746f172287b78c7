//! One concrete place in the tree: an entry, and what its wildcard stands for.

use std::fmt;

use tcmi_core::command::{NodeName, Pid, decimal};

use crate::tree::{self, Entry, Wildcard};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Capture {
    None,
    Number(u64),
    Pid(Pid),
    Name(NodeName),
}

impl Capture {
    fn parse(wildcard: Wildcard, component: &str) -> Option<Self> {
        match wildcard {
            Wildcard::Number => decimal(component).map(Self::Number),
            Wildcard::Pid => component.parse().ok().map(Self::Pid),
            Wildcard::Name => component.parse().ok().map(Self::Name),
        }
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Number(number) => number.fmt(f),
            Self::Pid(pid) => pid.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Place {
    pub entry: &'static Entry,
    /// Of this entry or of a directory above it.
    pub capture: Capture,
}

impl Place {
    pub fn root() -> Self {
        Self { entry: tree::root(), capture: Capture::None }
    }

    /// What `name` in this directory would be. Whether a captured thing exists is
    /// the daemon's to say.
    pub fn child(&self, name: &str) -> Option<Self> {
        if Wildcard::of(name).is_some() {
            return None;
        }
        if let Some(entry) = tree::children(self.entry).find(|entry| entry.component() == name) {
            return Some(Self { entry, capture: self.capture.clone() });
        }
        tree::children(self.entry).find_map(|entry| {
            let capture = Capture::parse(entry.wildcard()?, name)?;
            Some(Self { entry, capture })
        })
    }

    /// As it stands in its directory.
    pub fn name(&self) -> String {
        match self.entry.wildcard() {
            Some(_) => self.capture.to_string(),
            None => self.entry.component().to_owned(),
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.entry.path == other.entry.path && self.capture == other.capture
    }
}

impl Eq for Place {}

impl std::hash::Hash for Place {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.entry.path.hash(state);
        self.capture.hash(state);
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capture = self.capture.to_string();
        for (i, component) in self.entry.path.split('/').enumerate() {
            let slash = if i == 0 { "" } else { "/" };
            let shown =
                if Wildcard::of(component).is_some() { capture.as_str() } else { component };
            write!(f, "{slash}{shown}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(path: &str) -> Option<Place> {
        path.split('/').try_fold(Place::root(), |place, name| place.child(name))
    }

    #[test]
    fn numbers_and_names_do_not_mix() {
        let number = walk("ccn/nodes/3/state").unwrap();
        assert_eq!(number.entry.item, tree::Item::PeerState);
        assert_eq!(number.capture, Capture::Number(3));
        assert_eq!(walk("ccn/nodes/desk").unwrap().entry.item, tree::Item::PeerByName);
        assert_eq!(walk("ccn/nodes/count").unwrap().entry.item, tree::Item::PeerCount);
        assert_eq!(number.to_string(), "ccn/nodes/3/state");
        assert_eq!(number.name(), "state");
    }

    #[test]
    fn what_no_pattern_matches_is_nowhere() {
        for path in [
            "x",
            "ccn/nodes/03",
            "ccn/nodes/{N}",
            "ccn/nodes/desk/state",
            "ccn/mig/migproc/0",
            "ccn/mig/migproc/desk",
            "ccn/mig/migproc/-1",
            "ccn/mig/move",
            "policy",
            "pen/restart",
        ] {
            assert!(walk(path).is_none(), "{path}");
        }
    }
}
