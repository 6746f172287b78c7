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

/// What a kernel's build needs beside.
const FOR_KERNELS: &[(&str, &str)] = &[
    ("/usr/bin/make", "make"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/flex", "flex"),
    ("/usr/bin/bison", "bison"),
    ("/usr/bin/bc", "bc"),
    ("/usr/include/libelf.h", "libelf-dev"),
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

/// The packages with the versions that would be installed: name=version.
pub fn candidates(names: &[&str]) -> Result<Vec<String>> {
    let policy = apt("apt-cache", &[&["policy"], names].concat())?;
    let versions = policy.lines().filter_map(|l| l.trim().strip_prefix("Candidate: "));
    let named: Vec<String> = names.iter().zip(versions).map(|(n, v)| format!("{n}={v}")).collect();
    ensure!(named.len() == names.len(), "apt knows not all of {names:?}");
    Ok(named)
}

pub fn install_missing() -> Result<()> {
    install(NEEDED)
}

pub fn install_missing_for_kernels() -> Result<()> {
    install(FOR_KERNELS)
}

fn install(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(f, _)| !Path::new(f).exists()).map(|(_, p)| *p).collect();
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
