//! `tcmi`: reads and writes the files of a control filesystem, nothing else.
#![forbid(unsafe_code)]

pub mod args;
pub mod failure;
pub mod moves;
pub mod node;
pub mod show;
