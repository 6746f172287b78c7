//! Words of the project that every other part shares. No I/O.

pub mod limits;
