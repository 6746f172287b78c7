//! `cargo xtask programs`: all real programs of the catalogue, and the README's table of them.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tcmi_tests::Scratch;
use tcmi_tests::catalogue::{self, table};

use crate::{packages, tool};

const TIMEOUT: Duration = Duration::from_secs(60 * 60);

pub fn run() -> Result<ExitCode> {
    packages::install_missing(&catalogue::packages(false))?;
    tool::build_release()?;
    let scratch = Scratch::new("table")?;
    let written = scratch.join("table");
    let mut tests = tool::cargo();
    tests.args(["test", "--package", "tcmi-tests", "--test", "programs"]);
    tests.env("TCMI_PROGRAMS_TABLE", &written);
    let status = tool::watch(&mut tests, TIMEOUT, |line| println!("{line}"))?;
    let path = tool::repository().join("README.md");
    let table = fs::read_to_string(&written).context("no table was made")?;
    print!("{table}");
    let readme = table::replaced(&fs::read_to_string(&path)?, &table);
    fs::write(&path, readme.context("the README has no place for the table")?)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
