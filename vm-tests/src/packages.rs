//! Debian packages of the tools that are used here.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// (a file that tells that the package is there, the package)
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/modprobe", "kmod"),
    ("/usr/bin/xz", "xz-utils"),
    ("/usr/bin/zstd", "zstd"),
    ("/usr/bin/lz4", "lz4"),
    ("/usr/bin/pahole", "pahole"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/bin/sparse", "sparse"),
];

pub fn apt(program: &str, arguments: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program} {}: {}\n{said}", arguments.join(" "), out.status);
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

pub fn install_missing() -> Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(f, _)| !Path::new(f).exists()).map(|(_, p)| *p).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let install = [&["install", "--yes", "--no-install-recommends"], &missing[..]].concat();
    if apt("apt-get", &install).is_err() {
        apt("apt-get", &["update"])?;
        apt("apt-get", &install)?;
    }
    Ok(())
}
