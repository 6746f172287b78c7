//! `cargo xtask`: what the repository does with itself.

mod bench;
mod demo;
mod packages;
mod papers;
mod programs;
mod suite;
mod tool;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    /// Move a real program out and home, and show it
    Demo,
    /// Format check, clippy, all tests, the decoders under fuzz
    Test {
        /// Seconds for each fuzz target
        #[arg(long, default_value_t = 15)]
        fuzz_seconds: u32,
        /// Only end-to-end tests whose name holds this
        #[arg(long)]
        only: Option<String>,
    },
    /// Ratios against yardsticks, as text, JSON and SVG in target/bench
    Bench {
        /// MiB of the bulk transfer's process
        #[arg(long, default_value_t = 1024)]
        bulk_mib: u32,
    },
    /// All real programs of the catalogue, moved; writes the README's table of them
    Programs,
    /// Cases on Debian's kernels, in machines of QEMU
    VmTest(vm::VmTest),
    /// Write the man pages
    Man {
        #[arg(default_value = "target/man")]
        directory: PathBuf,
    },
    /// Write the shell completions
    Completions {
        #[arg(default_value = "target/completions")]
        directory: PathBuf,
    },
    /// Write the kernel module's table of the control filesystem
    KmodTable,
}

fn main() -> ExitCode {
    let done: Result<ExitCode> = match Task::parse() {
        Task::Demo => demo::run().map(|()| ExitCode::SUCCESS),
        Task::Test { fuzz_seconds, only } => suite::run(fuzz_seconds, only.as_deref()),
        Task::Bench { bulk_mib } => bench::run(bulk_mib),
        Task::Programs => programs::run(),
        Task::VmTest(asked) => vm::run(asked),
        Task::Man { directory } => papers::man(&directory).map(|()| ExitCode::SUCCESS),
        Task::Completions { directory } => {
            papers::completions(&directory).map(|()| ExitCode::SUCCESS)
        }
        Task::KmodTable => papers::kmod_table().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::FAILURE
    })
}
