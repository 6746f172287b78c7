//! Builds the agent blob with the same toolchain and flattens it into one image.

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::reloc::R_X86_64_RELATIVE;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PAGE_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest directory")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no output directory")?);
    let agent = package.join("agent");
    for watched in ["Cargo.toml", "Cargo.lock", "image.ld", "src"] {
        println!("cargo::rerun-if-changed={}", agent.join(watched).display());
    }
    println!("cargo::rerun-if-changed={}", package.join("../tcmi-call/src").display());
    println!("cargo::rerun-if-changed=build.rs");
    let elf = fs::read(build_agent(&agent, &out)?)?;
    let image = Image::flatten(&elf)?;
    fs::write(out.join("agent.image"), &image.bytes)?;
    fs::write(
        out.join("agent.rs"),
        format!(
            "const CODE_BYTES: usize = {};\nconst RELOCATIONS: &[(u32, u32)] = &{:?};\n",
            image.code_bytes, image.relocations
        ),
    )?;
    Ok(())
}

/// Runs cargo for the agent's own workspace; returns the linked file.
fn build_agent(agent: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let flags = [
        "-Crelocation-model=pie",
        "-Ctarget-feature=+crt-static",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-static-pie",
        "-Clink-arg=-Wl,--no-dynamic-linker,-z,norelro,-z,noexecstack,--build-id=none,--gc-sections",
        "--cfg=chacha20_avx512",
        // The AVX2 one needs over a microsecond to begin, more than most records take in all.
        "--cfg=poly1305_backend=\"soft\"",
    ]
    .map(String::from)
    .into_iter()
    .chain([format!("-Clink-arg=-Wl,-T,{}", agent.join("image.ld").display())])
    .collect::<Vec<_>>();
    let target_dir = out.join("agent");
    let status = Command::new(env::var_os("CARGO").ok_or("not run by cargo")?)
        .current_dir(agent)
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        // Whatever the outer build is made with does not concern the blob.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .status()?;
    if !status.success() {
        return Err(format!("building the agent failed: {status}").into());
    }
    Ok(target_dir.join(TARGET).join("release/tcmi-agent"))
}

struct Image {
    bytes: Vec<u8>,
    code_bytes: usize,
    /// Where the image's address is to be added: (place, offset in the image).
    relocations: Vec<(u32, u32)>,
}

impl Image {
    fn flatten(file: &[u8]) -> Result<Self, Box<dyn Error>> {
        let elf = Elf::parse(file)?;
        let symbol = |name: &str| {
            elf.syms
                .iter()
                .find(|s| elf.strtab.get_at(s.st_name) == Some(name))
                .map(|s| s.st_value as usize)
                .ok_or(format!("the agent has no symbol {name}"))
        };
        let (code_bytes, end) = (symbol("blob_data")?, symbol("blob_end")?);
        if symbol("blob_start")? != 0 || code_bytes % PAGE_BYTES != 0 || end % PAGE_BYTES != 0 {
            return Err("the agent's image is not laid out in pages from 0".into());
        }
        let mut bytes = vec![0; end];
        for segment in elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD) {
            let at = segment.p_vaddr as usize;
            bytes
                .get_mut(at..at + segment.p_filesz as usize)
                .ok_or("a segment of the agent lies outside its image")?
                .copy_from_slice(&file[segment.file_range()]);
        }
        let relocations = elf.dynrelas.iter().chain(elf.dynrels.iter()).chain(elf.pltrelocs.iter());
        let relocations = relocations
            .map(|r| match (r.r_type, r.r_addend) {
                (R_X86_64_RELATIVE, Some(addend)) => {
                    Ok((u32::try_from(r.r_offset)?, u32::try_from(addend)?))
                }
                (kind, _) => Err(format!("relocation of kind {kind} in the agent").into()),
            })
            .collect::<Result<_, Box<dyn Error>>>()?;
        Ok(Self { bytes, code_bytes, relocations })
    }
}
