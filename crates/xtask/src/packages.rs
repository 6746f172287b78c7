//! Debian packages of the programs that the tests move or use.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use tcmi_tests::program::is_there;

/// What the tests take beside the programs of the catalogue.
const NEEDED: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("python3", "python3"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("bash", "bash"),
    ("find", "findutils"),
    ("grep", "grep"),
    ("sort", "coreutils"),
];

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()?;
    ensure!(status.success(), "apt-get {}: {status}", arguments.join(" "));
    Ok(())
}

/// With `more` of what a task takes. Does nothing where nothing is missing.
pub fn install_missing(more: &[(&'static str, &'static str)]) -> Result<()> {
    let needed = NEEDED.iter().chain(more);
    let missing: BTreeSet<&str> =
        needed.filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
    let missing = Vec::from_iter(missing);
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let install = [&["install", "--yes", "--no-install-recommends"], &missing[..]].concat();
    // The package lists may be absent or too old for the archive.
    if apt_get(&install).is_err() {
        apt_get(&["update"])?;
        apt_get(&install)?;
    }
    Ok(())
}
