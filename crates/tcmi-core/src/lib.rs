//! Words of the project that every other part shares. No I/O.
#![forbid(unsafe_code)]

pub mod command;
pub mod error;
pub mod lifecycle;
pub mod limits;
pub mod stats;
