//! Every bound has its home and its unit here.

/// Rescans of /proc/PID/task until no new thread appears.
pub const FREEZE_RESCAN_ATTEMPTS_MAX: u32 = 64;
/// Longest that a peer may take for one step of a migration, in milliseconds.
pub const PHASE_TIMEOUT_MS: u64 = 30_000;
/// Longest value written to a control file, in bytes.
pub const CONTROL_WRITE_BYTES_MAX: usize = 4096;
/// Largest control message on a link, in bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
