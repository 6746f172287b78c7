//! `cargo xtask vm-test`.

use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tcmi_vm_tests::Options;

use crate::tool;

const PACKAGES: [&str; 4] = ["tcmi-node", "tcmi-cli", "tcmi-vm-tests", "tcmi-kmod-tests"];

/// A test that runs in a machine, under another name there: (package, test, name).
type Test = (&'static str, &'static str, &'static str);

const TESTS: [Test; 3] = [
    ("tcmi-ctlfs", "server", "ctlfs-server"),
    ("tcmi-ctlfs", "conformance", "ctlfs-conformance"),
    ("tcmi-kmod-tests", "freezers", "freezers"),
];

/// Puts it among our programs.
fn build_test((package, test, name): Test, programs: &Path) -> Result<()> {
    let out = tool::cargo()
        .args(["test", "--release", "--no-run", "--message-format=json"])
        .args(["--package", package, "--test", test])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(out.status.success(), "cargo test --no-run: {}", out.status);
    let mut built = None;
    for line in String::from_utf8(out.stdout)?.lines() {
        let message: Value = serde_json::from_str(line)?;
        if message["target"]["name"] == test {
            built = message["executable"].as_str().map(str::to_owned).or(built);
        }
    }
    let built = built.with_context(|| format!("cargo names no program of {test}"))?;
    fs::copy(&built, programs.join(name)).with_context(|| built.clone())?;
    Ok(())
}

#[derive(clap::Args)]
pub struct VmTest {
    /// Only machines with this kernel: 6.1 or 6.12
    #[arg(long)]
    kernel: Option<String>,
    /// Only the case with this name
    #[arg(long)]
    case: Option<String>,
    /// A kernel that watches its own memory and locks (KASAN, lockdep, kmemleak), 6.12 unless
    /// --kernel says otherwise; built once, which takes some 10 minutes
    #[arg(long)]
    debug_kernel: bool,
    /// Seconds of each module-fuzz
    #[arg(long, default_value_t = 15)]
    fuzz_seconds: u32,
    /// Look inside one machine
    #[arg(long)]
    shell: bool,
}

const DEBUG_KERNEL: &str = "6.12";

pub fn run(mut asked: VmTest) -> Result<ExitCode> {
    if asked.debug_kernel {
        asked.kernel.get_or_insert_with(|| DEBUG_KERNEL.to_owned());
    }
    let status = tool::cargo()
        .args(["build", "--release"])
        .args(PACKAGES.map(|p| format!("--package={p}")))
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    let programs = tool::release_directory()?;
    for test in TESTS {
        build_test(test, &programs)?;
    }
    let target = programs.ancestors().nth(2).context("a target directory")?;
    let options = Options {
        kernel: asked.kernel,
        case: asked.case,
        debug_kernel: asked.debug_kernel,
        fuzz_seconds: asked.fuzz_seconds,
        directory: target.join("vm"),
        programs: programs.clone(),
    };
    if asked.shell {
        return tcmi_vm_tests::shell(&options).map(|()| ExitCode::SUCCESS);
    }
    let failed = tcmi_vm_tests::run(&options)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
