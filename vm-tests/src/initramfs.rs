//! The root of a machine: our programs, busybox, the victims and the modules that are needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kernels::{Kernel, plain_module};
use crate::wire::{MODULE_ORDER, MODULES, VICTIMS};

/// Loaded by PID 1 in this order, with what they need.
const NEEDED: &[&str] =
    &["virtio_pci", "virtio_net", "fuse", "tls", "gcm", "ctr", "ghash_generic", "virtio_rng"];
/// Loaded on demand.
const TCMI_MODULE: &str = "lib/modules/tcmi.ko";
/// Into `bin`.
const PROGRAMS: &[&str] = &["tcmid", "tcmi"];
/// Of busybox, into `bin`; its shell finds the others by itself.
const APPLETS: &[&str] = &["sh", "echo"];
/// Tests that were built to run in a machine, into `tests`.
const TESTS: &[&str] = &[
    "kmod-load",
    "kmod-bench",
    "kmod-freezer",
    "kmod-send",
    "kmod-peer",
    "kmod-ctlfs",
    "kmod-fuzz",
    "freezers",
    "ctlfs-server",
    "ctlfs-conformance",
];

const DIRECTORY: u32 = 0o040755;
const PROGRAM: u32 = 0o100755;
const PLAIN: u32 = 0o100644;
const LINK: u32 = 0o120777;

/// A cpio archive in the form that the kernel unpacks ("newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// With the directories above it.
    fn put(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        for parent in Path::new(path).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if parent != Path::new("") && self.directories.insert(parent.to_owned()) {
                self.entry(&parent.display().to_string(), DIRECTORY, &[]);
            }
        }
        self.entry(path, mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (len, name_len) = (content.len() as u32, path.len() as u32 + 1);
        // inode, mode, uid, gid, links, mtime, size, device (2), node (2), name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Writes the archive for one kernel to `out`. `programs` is where cargo put ours.
pub fn build(
    kernel: &Kernel,
    module: &Path,
    programs: &Path,
    victims: &Path,
    out: &Path,
) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["proc", "sys", "dev", "tmp", "run", "mnt", "usr", "usr/lib", "var", "var/tmp"]
    {
        archive.put(directory, DIRECTORY, &[]);
        archive.directories.insert(directory.into());
    }
    archive.put(
        "etc/passwd",
        PLAIN,
        b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    archive.put("bin/busybox", PROGRAM, &fs::read("/bin/busybox")?);
    archive.put("init", PROGRAM, &stripped(&programs.join("tcmi-vm-guest"))?);
    for applet in APPLETS {
        archive.put(&format!("bin/{applet}"), LINK, b"busybox");
    }
    for (directory, names) in [("bin", PROGRAMS), ("tests", TESTS)] {
        for name in names {
            let program = stripped(&programs.join(name))?;
            archive.put(&format!("{directory}/{name}"), PROGRAM, &program);
        }
    }
    put_victims(&mut archive, victims)?;
    let mut order = String::new();
    for path in kernel.modules(NEEDED)? {
        let stem = path.file_stem().context("a module's name")?.to_string_lossy();
        let name = format!("{}.ko", stem.trim_end_matches(".ko"));
        archive.put(&format!("{MODULES}/{name}"), PLAIN, &plain_module(&path)?);
        order += &format!("{name}\n");
    }
    archive.put(&format!("{MODULES}/{MODULE_ORDER}"), PLAIN, order.as_bytes());
    archive.put(TCMI_MODULE, PLAIN, &stripped_of_debug(module)?);
    Ok(fs::write(out, archive.finish())?)
}

/// The victims with the libraries that they were linked with.
fn put_victims(archive: &mut Archive, victims: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for entry in fs::read_dir(victims)? {
        let entry = entry?;
        let path = entry.path();
        if !entry.metadata()?.is_file() {
            continue;
        }
        let name = format!("{VICTIMS}/{}", entry.file_name().to_string_lossy());
        archive.put(&name, PROGRAM, &stripped(&path)?);
        libraries.extend(libraries_of(&path)?);
    }
    for library in libraries {
        archive.put(&library, PROGRAM, &fs::read(&library)?);
    }
    Ok(())
}

fn libraries_of(program: &Path) -> Result<Vec<String>> {
    // It fails for a static program.
    let out = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text
        .lines()
        .filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')))
        .map(str::to_owned)
        .collect())
}

fn stripped(program: &Path) -> Result<Vec<u8>> {
    strip(program, "--strip-all")
}

/// A module is linked when it is loaded, by its symbols.
fn stripped_of_debug(module: &Path) -> Result<Vec<u8>> {
    strip(module, "--strip-debug")
}

fn strip(program: &Path, what: &str) -> Result<Vec<u8>> {
    let copy = tcmi_tests::Scratch::new("strip")?;
    let to = copy.join("program");
    let status = Command::new("strip").arg(what).arg("-o").arg(&to).arg(program).status()?;
    ensure!(status.success(), "strip {}: {status}", program.display());
    Ok(fs::read(to)?)
}
