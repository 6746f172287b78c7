//! Debian's cloud kernels with their headers, unpacked and not installed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::{apt, candidates};

mod debug;

const MEMORY_MIB: u32 = 640;

pub struct Kernel {
    /// As `uname -r` in the machine says.
    pub release: String,
    /// What to build modules against.
    pub headers: PathBuf,
    /// What the packages hold, from their `/` on. None: it has everything built in.
    root: Option<PathBuf>,
    /// What QEMU boots: an ELF, which it enters without unpacking it, or a bzImage.
    pub image: PathBuf,
    /// That a machine needs.
    pub memory_mib: u32,
}

/// The package that depends on the newest of a series. Bookworm's own series has no number.
fn meta(kind: &str, series: &str) -> String {
    match series {
        "6.1" => format!("linux-{kind}-cloud-amd64"),
        _ => format!("linux-{kind}-{series}-cloud-amd64"),
    }
}

impl Kernel {
    /// From the cache under `directory`, else from the archive.
    pub fn fetch(series: &str, directory: &Path) -> Result<Self> {
        let root = directory.join(series);
        let mut names = package_names(series)?;
        let stamp = root.join("packages");
        if !fs::read_to_string(&stamp).is_ok_and(|had| had == names.join(" ")) {
            println!("fetching kernel {series}");
            if let Err(error) = unpack_packages(&root, &names) {
                println!("{error:#}\nasking for newer ones");
                apt("apt-get", &["update"])?;
                names = package_names(series)?;
                unpack_packages(&root, &names).with_context(|| format!("kernel {series}"))?;
            }
            prepare(&root).with_context(|| format!("kernel {series}"))?;
            fs::write(&stamp, names.join(" "))?;
        }
        let modules = root.join("lib/modules");
        let release = only_entry(&modules)?;
        let image = root.join("vmlinux");
        let headers = root.join(format!("usr/src/linux-headers-{release}"));
        Ok(Self { release, headers, root: Some(root), image, memory_mib: MEMORY_MIB })
    }

    /// As [`Kernel::fetch`], of the same source, but watching its own memory and locks: built here
    /// with all that a machine needs in it (`debug.config`).
    pub fn build_debug(series: &str, directory: &Path) -> Result<Self> {
        let root = directory.join(format!("{series}-debug"));
        let build = root.join("build");
        debug::build(series, &root, &build)?;
        let release = fs::read_to_string(build.join("include/config/kernel.release"))?;
        let release = release.trim().to_owned();
        // With KASAN the ELF's entry touches what is not mapped yet.
        let image = build.join("arch/x86/boot/bzImage");
        Ok(Self { release, headers: build, root: None, image, memory_mib: 3 * MEMORY_MIB })
    }

    /// Paths of the modules to load for these, in this order.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let Some(root) = &self.root else { return Ok(paths) };
        for name in names {
            let out = Command::new("/sbin/modprobe")
                .arg("-d")
                .arg(root)
                .args(["-S", &self.release, "--show-depends", name])
                .output()?;
            let said = String::from_utf8_lossy(&out.stderr);
            ensure!(out.status.success(), "modprobe --show-depends {name}: {said}");
            for line in String::from_utf8(out.stdout)?.lines() {
                let Some(path) = line.strip_prefix("insmod ") else { continue };
                let path = PathBuf::from(path.trim());
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        Ok(paths)
    }
}

/// The packages of a series' image and headers, with their versions: name=version.
fn package_names(series: &str) -> Result<Vec<String>> {
    let (image, headers) = (meta("image", series), meta("headers", series));
    let listing = ["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"];
    let ask = [&listing[..], &["--no-breaks", "--no-replaces", &image, &headers]].concat();
    let tree = match apt("apt-cache", &ask) {
        Ok(tree) if tree.contains("linux-kbuild") => tree,
        _ => {
            apt("apt-get", &["update"])?;
            apt("apt-cache", &ask)?
        }
    };
    let mut names: Vec<&str> = tree
        .lines()
        .filter(|l| !l.starts_with([' ', '<']))
        .map(str::trim)
        .filter(|n| {
            ["linux-image-", "linux-headers-", "linux-kbuild-"].iter().any(|p| n.starts_with(p))
        })
        .filter(|n| !n.ends_with("-unsigned") && **n != image && **n != headers)
        .collect();
    names.sort_unstable();
    names.dedup();
    ensure!(names.len() >= 4, "packages of kernel {series}: {names:?}");
    candidates(&names)
}

/// Of what was in `root` before, nothing is left.
fn unpack_packages(root: &Path, names: &[String]) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    let archives = root.join("archives");
    fs::create_dir_all(&archives)?;
    let out = Command::new("apt-get")
        .args(["download", "-o", "APT::Sandbox::User=root"])
        .args(names)
        .current_dir(&archives)
        .output()?;
    ensure!(out.status.success(), "apt-get download: {}", String::from_utf8_lossy(&out.stderr));
    for archive in fs::read_dir(&archives)? {
        let archive = archive?.path();
        let status = Command::new("dpkg-deb").arg("-x").arg(&archive).arg(root).status()?;
        ensure!(status.success(), "dpkg-deb -x {}: {status}", archive.display());
    }
    Ok(fs::remove_dir_all(&archives)?)
}

/// What was unpacked there becomes a kernel that boots, and builds modules.
fn prepare(root: &Path) -> Result<()> {
    let release = only_entry(&root.join("lib/modules"))?;
    relocate_headers(root, &release)?;
    let status = Command::new("/sbin/depmod").arg("-b").arg(root).arg(&release).status()?;
    ensure!(status.success(), "depmod: {status}");
    let image = fs::read(root.join(format!("boot/vmlinuz-{release}")))?;
    let elf = decompress(payload(&image)?)?;
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel's payload is no ELF file");
    Ok(fs::write(root.join("vmlinux"), elf)?)
}

/// The headers' Makefile names the common ones by an absolute path.
fn relocate_headers(root: &Path, release: &str) -> Result<()> {
    let makefile = root.join(format!("usr/src/linux-headers-{release}/Makefile"));
    let text = fs::read_to_string(&makefile).with_context(|| makefile.display().to_string())?;
    let sources = format!("{}/", root.join("usr/src").display());
    Ok(fs::write(&makefile, text.replace("/usr/src/", &sources))?)
}

/// The compressed kernel in a bzImage; see the x86 boot protocol, 2.08.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).context("a bzImage header")?;
        anyhow::Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let setup = (usize::from(image[0x1f1]) + 1) * 512;
    let (offset, len) = (word(0x248)?, word(0x24c)?);
    // The last four bytes are the length of what comes out.
    image
        .get(setup + offset..setup + offset + len.saturating_sub(4))
        .context("a bzImage that ends too early")
}

fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let program: &[&str] = match bytes {
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-dc"],
        [0xfd, b'7', b'z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dc"],
        [0x1f, 0x8b, ..] => &["gzip", "-dc"],
        _ => bail!("unknown compression"),
    };
    filter(Command::new(program[0]).args(&program[1..]), bytes)
}

/// What a program writes for what it reads.
fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let out = std::thread::scope(|s| {
        let writer = s.spawn(move || stdin.write_all(input));
        let out = child.wait_with_output();
        // A program that ends early says so by its status.
        drop(writer.join());
        out
    })?;
    ensure!(out.status.success(), "{command:?}: {}", out.status);
    Ok(out.stdout)
}

/// A module as the kernel takes it, without what only a debugger reads.
pub fn plain_module(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    if path.extension().is_some_and(|e| e != "ko") {
        bytes = decompress(&bytes)?;
    }
    Ok(bytes)
}

fn only_entry(directory: &Path) -> Result<String> {
    let mut names = fs::read_dir(directory)
        .with_context(|| directory.display().to_string())?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(names.len() == 1, "one entry in {}: {names:?}", directory.display());
    names.pop().context("an entry")
}

/// Held while kernels are fetched: two runs of the tests share the cache.
pub fn lock(directory: &Path) -> Result<File> {
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join("lock"))?;
    file.lock()?;
    Ok(file)
}
