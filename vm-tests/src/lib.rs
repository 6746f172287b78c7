//! Boots Debian's kernels in QEMU with our programs in an initramfs, and gives a verdict on each
//! case. `guest/` is what runs inside of a machine, as its PID 1.

pub mod cases;
mod initramfs;
mod kernels;
mod machine;
mod module;
mod packages;
mod suite;
pub mod wire;

pub use suite::{FLAKY, Options, run, shell};
