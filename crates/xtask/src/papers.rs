//! What is made from a definition elsewhere: man pages and completions of `tcmi` from its
//! command line, the kernel module's table from the control filesystem's tree.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tcmi_cli::args;
use tcmi_ctlfs::ctable::CTable;

pub fn man(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    args::write_man_pages(directory)?;
    println!("man pages: {}", directory.display());
    Ok(())
}

pub fn completions(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    args::write_completions(directory)?;
    println!("completions: {}", directory.display());
    Ok(())
}

pub fn kmod_table() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kmod/ctlfs_table.h");
    fs::write(&path, CTable.to_string()).with_context(|| path.display().to_string())
}
