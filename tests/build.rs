//! Compiles the victims: C with the system's cc, Rust with our rustc, each for
//! the running system and not with the workspace's static flags.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Victims that are also built as static, static-pie and non-PIE programs: those
/// whose state depends on where and how a program is loaded.
const EVERY_LINK: &[&str] = &["memory", "regs", "tls", "threads", "vdso", "brk", "ptimers"];

const LINKS: &[(&str, &[&str])] = &[
    ("", &["-pie", "-fPIE"]),
    ("-static", &["-static", "-no-pie", "-fno-pie"]),
    ("-static-pie", &["-static-pie", "-fPIE"]),
    ("-no-pie", &["-no-pie", "-fno-pie"]),
];

const C_FLAGS: &[&str] =
    &["-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-result", "-fno-strict-aliasing", "-pthread"];
const NO_LIBC_FLAGS: &[&str] =
    &["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector"];

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn compile_c(source: &Path, out: &Path) {
    let name = source.file_stem().expect("a source has a name").to_str().expect("ASCII names");
    if name == "nolibc" {
        run(Command::new("cc").args(NO_LIBC_FLAGS).arg(source).arg("-o").arg(out.join(name)));
        return;
    }
    let links = if EVERY_LINK.contains(&name) { LINKS } else { &LINKS[..1] };
    for (suffix, flags) in links {
        let program = out.join(format!("{name}{suffix}"));
        run(Command::new("cc").args(C_FLAGS).args(*flags).arg(source).arg("-o").arg(program));
    }
}

fn main() {
    println!("cargo::rerun-if-changed=victims");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    for entry in std::fs::read_dir("victims").expect("the victims' directory") {
        let source = entry.expect("a readable directory").path();
        match source.extension().and_then(|e| e.to_str()) {
            Some("c") => compile_c(&source, &out),
            Some("rs") => {
                let rustc = std::env::var_os("RUSTC").expect("set by cargo");
                let name = format!("rust-{}", source.file_stem().expect("a name").display());
                run(Command::new(rustc)
                    .args(["-O", "--edition", "2024", "-o"])
                    .arg(out.join(name))
                    .arg(&source));
            }
            _ => {}
        }
    }
    println!("cargo::rustc-env=VICTIMS={}", out.display());
}
