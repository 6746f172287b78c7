//! The one place for raw Linux interfaces: ptrace, /proc, process memory,
//! namespaces. Policy-free: every function does one thing and reports errno.
#![allow(clippy::missing_safety_doc)]

pub mod access;
pub mod affinity;
pub mod cpu;
pub mod errno;
pub mod heap;
pub mod kmod;
pub mod maps;
pub mod memory;
pub mod namespace;
pub mod pages;
pub mod proc;
pub mod ptrace;
pub mod seccomp;
pub mod signal;
pub mod userfault;
pub mod waker;

pub use errno::{Errno, Result};
