//! Freeze, capture and rebuild of processes.
//!
//! [`freeze::Frozen`] is a process of which every thread is held; dropping it
//! without [`freeze::Frozen::thaw`] lets it run on as it was (the kernel detaches). What
//! must never be: a frozen process left with registers that are not its own.

pub mod birth;
pub mod blob;
pub mod capture;
pub mod copies;
pub mod descriptors;
pub mod devices;
pub mod error;
pub mod freeze;
pub mod freezer;
pub mod image;
pub mod layout;
pub mod live;
pub mod mapped;
pub mod memory_files;
pub mod reach;
pub mod rebuild;
pub mod remote;
pub mod signalfds;
pub mod snapshot;
pub mod sysv;
pub mod texts;
pub mod usage;
pub mod vdso;
pub mod watched;

pub use error::{Error, Result};
