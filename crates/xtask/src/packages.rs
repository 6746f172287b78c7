//! Debian packages of the programs that the tests move or use.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tcmi_tests::program::is_installed;

/// A program, or a file that tells that a package is there.
const NEEDED: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("python3", "python3"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("sqlite3", "sqlite3"),
    ("openssl", "openssl"),
    ("bash", "bash"),
    ("find", "findutils"),
    ("grep", "grep"),
    ("tar", "tar"),
    ("sort", "coreutils"),
];

fn is_there(needed: &str) -> bool {
    if needed.starts_with('/') { Path::new(needed).exists() } else { is_installed(needed) }
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()?;
    ensure!(status.success(), "apt-get {}: {status}", arguments.join(" "));
    Ok(())
}

/// Does nothing where nothing is missing.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
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
