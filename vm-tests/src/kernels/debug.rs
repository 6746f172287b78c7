//! A kernel of Debian's source that watches its own memory and locks: tinyconfig and
//! `debug.config`. Takes some 10 minutes of two cores, once.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::unpack_packages;
use crate::packages::{apt, candidates, install_missing_for_kernels};

const CONFIG: &str = include_str!("../../debug.config");

/// Does nothing where it is built of the newest source already.
pub fn build(series: &str, root: &Path, build: &Path) -> Result<()> {
    let name = format!("linux-source-{series}");
    let package = match candidates(&[&name]) {
        Ok(found) => found,
        Err(_) => {
            apt("apt-get", &["update"])?;
            candidates(&[&name])?
        }
    };
    let wanted = format!("{}\n{CONFIG}", package.join(" "));
    let stamp = root.join("built");
    if fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
        return Ok(());
    }
    install_missing_for_kernels()?;
    println!("fetching the source of kernel {series}");
    unpack_packages(root, &package)?;
    let source = root.join("source");
    fs::create_dir_all(&source)?;
    let archive = root.join("usr/src").join(format!("{name}.tar.xz"));
    done(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source).arg("--strip=1"))?;
    fs::create_dir_all(build)?;
    make(&source, build, &["tinyconfig"])?;
    let fragment = root.join("debug.config");
    fs::write(&fragment, CONFIG)?;
    let merge = source.join("scripts/kconfig/merge_config.sh");
    done(Command::new(merge).arg("-m").arg(".config").arg(&fragment).current_dir(build))?;
    make(&source, build, &["olddefconfig"])?;
    has_all(build)?;
    println!("building a debug kernel {series}, some 10 minutes of two cores");
    let jobs = format!("-j{}", std::thread::available_parallelism()?);
    make(&source, build, &[&jobs, "bzImage", "modules"])?;
    Ok(fs::write(&stamp, wanted)?)
}

/// What this series does not know is left out of a configuration in silence.
fn has_all(build: &Path) -> Result<()> {
    let config = fs::read_to_string(build.join(".config"))?;
    let missing: Vec<&str> = CONFIG
        .lines()
        .filter(|line| line.ends_with("=y") && !config.lines().any(|had| had == *line))
        .collect();
    ensure!(missing.is_empty(), "this kernel's configuration has no {}", missing.join(", "));
    Ok(())
}

fn make(source: &Path, build: &Path, what: &[&str]) -> Result<()> {
    done(
        Command::new("make").arg("-C").arg(source).arg(format!("O={}", build.display())).args(what),
    )
}

fn done(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?}: {}\n{said}", out.status);
    Ok(())
}
