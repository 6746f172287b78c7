//! Man pages and completions of `tcmi`, made from the definition of its command line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tcmi_cli::args;

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
