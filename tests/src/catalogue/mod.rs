//! The table of real programs: what is moved in the midst of what, in the tests and in the
//! README, which `cargo xtask programs` writes.

mod batch;
mod inputs;
mod scenes;

use std::path::Path;

use anyhow::Result;

use crate::Program;

pub use inputs::{Inputs, PI_SCRIPT, project};
pub use scenes::{connect, free_port, start_redis};

/// Moves what a scene has begun, or does nothing: where nothing is moved, the scene is the same.
pub trait Moves {
    /// To the other node.
    fn out(&mut self, pid: u32) -> Result<()>;
    /// With all that it has begun, at one instant.
    fn tree_out(&mut self, pid: u32) -> Result<()>;
    /// Ok: all that it has begun since is there, too, after a call that it made at home.
    fn tree_out_again(&mut self, pid: u32) -> Result<()>;
    fn home(&mut self, pid: u32) -> Result<()>;
}

/// A program with others around it: clients, a terminal. It works in a directory of its own and
/// returns what is to be the same moved and unmoved.
pub type Scene = fn(&Path, &mut dyn Moves) -> Result<String>;

pub enum Work {
    /// Compared in output, files and status.
    Batch(Program),
    Scene(Scene),
}

/// A row of the table.
pub struct Entry {
    pub name: &'static str,
    /// What it is doing while it is moved, and what is compared.
    pub shows: &'static str,
    /// Programs that it takes, or files, with their Debian packages.
    pub needs: &'static [(&'static str, &'static str)],
    /// Run with each change. Others take long, or take large packages.
    pub quick: bool,
    pub work: Work,
}

/// All of them, on what [`Inputs`] has made in a directory.
pub fn entries(inputs: &Path) -> Vec<Entry> {
    let mut all = batch::entries(inputs);
    all.extend(scenes::entries());
    all
}

/// Packages that the quick ones take, or all.
pub fn packages(only_quick: bool) -> Vec<(&'static str, &'static str)> {
    let chosen = entries(Path::new("")).into_iter().filter(|e| e.quick || !only_quick);
    chosen.flat_map(|e| e.needs).copied().collect()
}

/// Lines of the README's table.
pub mod table {
    use super::Entry;

    pub const BEGIN: &str = "<!-- The table is made by `cargo xtask programs`. -->";
    pub const END: &str = "<!-- End of the table. -->";
    const HEAD: &str = "| program | moved out and home while | result |\n|---|---|---|\n";

    fn row(entry: &Entry, result: &str) -> String {
        let by_hand = if entry.quick { "" } else { " ¹" };
        format!("| {}{by_hand} | {} | {result} |\n", entry.name, entry.shows)
    }

    /// `failed` are names of entries.
    pub fn text(entries: &[Entry], failed: &[String]) -> String {
        let rows = entries.iter().map(|entry| {
            let fails = failed.iter().any(|name| name == entry.name);
            row(entry, if fails { "**fails**" } else { "same" })
        });
        HEAD.to_owned() + &rows.collect::<String>()
    }

    /// `readme` with `table` in its place.
    pub fn replaced(readme: &str, table: &str) -> Option<String> {
        let (before, rest) = readme.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_table_and_nothing_in_it_fails() {
        let readme = include_str!("../../../README.md");
        let table = table::text(&entries(Path::new("")), &[]);
        let replaced = table::replaced(readme, &table).expect("the README has a place for it");
        assert!(replaced == readme, "run `cargo xtask programs`");
    }

    #[test]
    fn a_program_that_fails_is_told_in_the_table() {
        let entries = entries(Path::new(""));
        let failed = [entries[0].name.to_owned()];
        let told = table::text(&entries, &failed);
        assert!(told.lines().any(|l| l.contains(entries[0].name) && l.contains("fails")), "{told}");
    }
}
