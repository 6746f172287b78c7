//! The control filesystem.
//!
//! [`tree`] declares it once, as a table that needs neither `std` nor any other
//! crate: the kernel module's table and the reference page are made from it.
//! With the feature `fuse`, [`Server`] serves it, by FUSE or through the kernel
//! module, and a daemon implements [`Control`].
#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "fuse"), no_std)]

pub mod ctable;
pub mod tree;

#[cfg(feature = "fuse")]
mod commands;
#[cfg(feature = "fuse")]
mod control;
#[cfg(feature = "fuse")]
mod fuse;
#[cfg(feature = "fuse")]
mod handles;
#[cfg(feature = "fuse")]
mod inodes;
#[cfg(feature = "fuse")]
mod kernel;
#[cfg(feature = "fuse")]
mod mount;
#[cfg(feature = "fuse")]
mod place;

#[cfg(feature = "fuse")]
pub use control::{Answer, Caller, Control, Owner, Reply};
#[cfg(feature = "fuse")]
pub use kernel::{Module, NoModule};
#[cfg(feature = "fuse")]
pub use mount::{Server, unmount_stale};
#[cfg(feature = "fuse")]
pub use place::{Capture, Place};
