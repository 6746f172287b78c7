//! Programs that give who executes them more rights.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::scratch::Scratch;

/// As a set.
pub const CAP_DAC_READ_SEARCH: u32 = 1 << 2;

/// A copy of a program for everybody, with the rights that `grant` gives it.
pub fn granted(
    scratch: &Scratch,
    program: &str,
    grant: impl Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let copy = scratch.join(Path::new(program).file_name().context("a name")?);
    // By another process: what a fork beside us has open for writing is not executed.
    let copied = Command::new("cp").arg(program).arg(&copy).status()?;
    ensure!(copied.success(), "cp {program}: {copied}");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
    grant(&copy)?;
    Ok(copy)
}

pub fn set_uid(program: &Path) -> Result<()> {
    Ok(fs::set_permissions(program, Permissions::from_mode(0o4755))?)
}

/// As `setcap cap_dac_read_search=ep`.
pub fn may_read_all(program: &Path) -> Result<()> {
    const VERSION_2_EFFECTIVE: u32 = 0x0200_0001;
    // Permitted and inheritable: of each the lower half and the upper.
    let words = [VERSION_2_EFFECTIVE, CAP_DAC_READ_SEARCH, 0, 0, 0];
    let value = words.map(u32::to_le_bytes).concat();
    let path = CString::new(program.as_os_str().as_bytes())?;
    let name = c"security.capability".as_ptr();
    // SAFETY: strings that end, and as many bytes as the value has.
    let set = unsafe { libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    ensure!(set == 0, "{}: {}", program.display(), io::Error::last_os_error());
    Ok(())
}
