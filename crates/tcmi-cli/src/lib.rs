//! `tcmi`: reads and writes the files of a control filesystem; `doctor` looks at the machine too.
#![forbid(unsafe_code)]

pub mod args;
pub mod doctor;
pub mod failure;
pub mod image;
pub mod moves;
pub mod node;
pub mod show;
