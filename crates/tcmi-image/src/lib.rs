//! Images of processes in files.
//!
//! [`save`] writes one while the process goes on; [`restart`] makes a process of one, at home: it
//! is no guest, all that it has is this system's. `docs/checkpoint-format.md` describes the format.

pub mod error;
pub mod format;
mod kernel;
pub mod look;
mod open;
pub mod read;
pub mod restart;
pub mod save;
pub mod state;
pub mod wire;

pub use error::{Error, Result};
