//! The kernel module for a kernel that is only unpacked, built the way that DKMS builds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kernels::Kernel;

/// What dkms makes of our dkms.conf: its make line, in a copy of the sources; with all warnings
/// and sparse.
const BUILD: &str = r#"set -e; . ./dkms.conf; ${MAKE[0]} W=1 C=2; echo "${BUILT_MODULE_NAME[0]}""#;

/// `directory` is ours alone; the module is somewhere in it.
pub fn build(kernel: &Kernel, directory: &Path) -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("kmod");
    let out = Command::new("make")
        .arg("-C")
        .arg(&sources)
        .arg(format!("DESTDIR={}", directory.display()))
        .arg("dkms-source")
        .output()?;
    ensure!(out.status.success(), "dkms-source: {}", String::from_utf8_lossy(&out.stderr));
    let copy = directory.join("usr/src").join(format!("tcmi-{}", env!("CARGO_PKG_VERSION")));
    let out = Command::new("bash")
        .args(["-c", BUILD])
        .env("kernel_source_dir", &kernel.headers)
        .current_dir(&copy)
        .output()
        .with_context(|| format!("{}: is dkms.conf of this version?", copy.display()))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "the module for {}: {said}", kernel.release);
    ensure!(!said.contains("warning:"), "the module for {}: {said}", kernel.release);
    let text = String::from_utf8(out.stdout)?;
    let module = copy.join(format!("{}.ko", text.lines().next_back().context("a name")?));
    ensure!(fs::exists(&module)?, "make builds no {}", module.display());
    Ok(module)
}
