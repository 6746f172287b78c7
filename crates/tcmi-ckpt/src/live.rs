//! Files that a guest may write to by shared mappings of a memfd: one memory on both nodes.

use std::fs::File;

/// Of a guest that is born: nothing in it has changed yet.
pub struct LiveFile {
    /// The guest maps it.
    pub memfd: File,
    /// What home has of it, of one that other guests have, too: whose monitor sends home what is
    /// written, whichever guest wrote it, tells the others so.
    pub kept: Option<File>,
    /// As `fstat` at home has them.
    pub dev: u64,
    pub ino: u64,
    pub windows: Vec<Window>,
}

/// Where home has a live file mapped shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Address in the shadow.
    pub home: u64,
    /// Of the file, in bytes, as `len`.
    pub offset: u64,
    pub len: u64,
    /// Home can be written to there.
    pub is_writable: bool,
}
