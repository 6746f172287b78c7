//! The tree as the kernel module has it.

use core::fmt::{self, Display, Formatter};

use crate::tree::{Entry, Grammar, Kind, Role, TREE};

/// `kmod/ctlfs_table.h`.
pub struct CTable;

/// Index in [`TREE`], which is how the module names entries.
pub fn index(entry: &Entry) -> Option<u32> {
    TREE.iter().zip(0..).find(|(known, _)| known.path == entry.path).map(|(_, index)| index)
}

/// A table with another hash is another tree. FNV-1a of what the module has of it.
pub fn hash() -> u64 {
    struct Fnv(u64);
    impl fmt::Write for Fnv {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0 = s
                .bytes()
                .fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            Ok(())
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    for entry in TREE {
        // Fnv takes everything.
        let Ok(()) = fmt::write(&mut fnv, format_args!("{}\n", Row(entry))) else { return 0 };
    }
    fnv.0
}

/// Whether a command's first word is a process of this machine: at home, pids are its own.
pub fn names_process(entry: &Entry) -> bool {
    use Grammar::{Pid, PidMaybeNode, PidNode, PidNodeTree, PidPath};
    let grammar = matches!(entry.write, Some(PidNode | PidNodeTree | Pid | PidPath | PidMaybeNode));
    grammar && entry.role == Role::Ccn
}

fn flags(entry: &Entry) -> &'static str {
    let answers = entry.write == Some(Grammar::PidMaybeNode);
    match (names_process(entry), answers) {
        (false, false) => "0",
        (true, false) => "CTL_PID",
        (false, true) => "CTL_ANSWERS",
        (true, true) => "CTL_PID | CTL_ANSWERS",
    }
}

struct Row(&'static Entry);

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.0.kind {
            Kind::Dir => "S_IFDIR",
            Kind::File => "S_IFREG",
            Kind::Link => "S_IFLNK",
        };
        let parent = TREE.iter().position(|dir| self.0.is_child_of(dir)).unwrap_or(0);
        match self.0.wildcard() {
            Some(_) => write!(f, "{{ NULL, ")?,
            None => write!(f, "{{ \"{}\", ", self.0.component())?,
        }
        write!(f, "{kind} | 0{:03o}, {parent}, {} }},", self.0.mode, flags(self.0))
    }
}

impl Display for CTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "/* SPDX-License-Identifier: GPL-2.0-only */")?;
        writeln!(f, "/* Made from ctlfs/src/tree.rs by `cargo xtask kmod-table`. */\n")?;
        writeln!(f, "#define CTL_TABLE_HASH 0x{:016x}ULL\n", hash())?;
        writeln!(f, "static const struct ctl_entry ctl_table[] = {{")?;
        for (i, entry) in TREE.iter().enumerate() {
            writeln!(f, "\t/* {i:2} {} */\n\t{}", entry.path, Row(entry))?;
        }
        writeln!(f, "}};")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_module_has_this_tree() {
        let theirs = include_str!("../../kmod/ctlfs_table.h");
        assert!(CTable.to_string() == theirs, "run `cargo xtask kmod-table`");
    }

    #[test]
    fn parents_come_before_children() {
        for (i, entry) in TREE.iter().enumerate().skip(1) {
            assert!(TREE[..i].iter().any(|dir| entry.is_child_of(dir)), "{}", entry.path);
        }
    }
}
