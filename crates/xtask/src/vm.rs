//! `cargo xtask vm-test`.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tcmi_vm_tests::Options;

use crate::tool;

pub fn run(kernel: Option<String>, case: Option<String>, shell: bool) -> Result<ExitCode> {
    let status = tool::cargo()
        .args(["build", "--release"])
        .args(["tcmi-node", "tcmi-cli", "tcmi-vm-tests"].map(|p| format!("--package={p}")))
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    let programs = tool::release_directory()?;
    let target = programs.ancestors().nth(2).context("a target directory")?;
    let options =
        Options { kernel, case, directory: target.join("vm"), programs: programs.clone() };
    if shell {
        return tcmi_vm_tests::shell(&options).map(|()| ExitCode::SUCCESS);
    }
    let failed = tcmi_vm_tests::run(&options)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
