//! With the kernel module.

use std::process::Command;

use anyhow::{Result, ensure};

use super::moves;
use crate::port::Port;
use crate::system::{CommandLine, TCMI_MODULE};

/// A program of `tests` in the initramfs; what it says goes to the console.
fn passes(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(format!("/tests/{program}"))
        .args(arguments)
        .envs(environment.iter().copied())
        .status()?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

pub fn load(_: &Port) -> Result<()> {
    passes("kmod-load", &[TCMI_MODULE], &[])
}

pub fn freezers(port: &Port) -> Result<()> {
    passes("freezers", &[], &[])?;
    port.progress("both freezers hold")?;
    passes("kmod-freezer", &[], &[])
}

/// The tests of the FUSE server as they are: once against it, once against the kernel's tree.
pub fn ctlfs(port: &Port) -> Result<()> {
    for kernel in [&[][..], &[("TCMI_CTLFS_KERNEL", "1")]] {
        for program in ["ctlfs-conformance", "ctlfs-server"] {
            // One daemon at a time serves the kernel's.
            passes(program, &["--test-threads=1"], kernel)?;
            port.progress(program)?;
        }
    }
    passes("kmod-ctlfs", &[], &[])
}

/// Each node takes the module where it is, and says so to the other.
pub fn pair(port: &Port, words: &CommandLine) -> Result<()> {
    moves::with_pair(port, |pair| {
        let says = |module| if module { "ctlfs=kernel" } else { "ctlfs=fuse" };
        let has = |text: &str, line: &str| text.lines().any(|l| l == line);
        for (text, module) in [
            (pair.home.read("node/features")?, words.home_module),
            (pair.desk.read("pen/nodes/home/features")?, words.home_module),
            (pair.desk.read("node/features")?, words.desk_module),
            (pair.home.read("ccn/nodes/desk/features")?, words.desk_module),
        ] {
            ensure!(has(&text, says(module)), "not {}: {text}", says(module));
        }
        port.progress("served as it should be")?;
        moves::everything_well(port, pair)
    })
}
