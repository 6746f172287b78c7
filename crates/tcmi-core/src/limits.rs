//! Every bound has its home and its unit here.

/// Rescans of /proc/PID/task until no new thread appears.
pub const FREEZE_RESCAN_ATTEMPTS_MAX: u32 = 64;
/// Longest that the module waits for threads that cannot be frozen now, in milliseconds.
pub const FREEZE_TIMEOUT_MS: u32 = 5_000;
/// Processes that are away because one that is away began them, and that one, where the
/// configuration does not say otherwise. Others stay at home.
pub const FAMILY_PROCESSES: u64 = 128;
/// Processes of a tree that moves at once.
pub const TREE_PROCESSES_MAX: usize = 128;
/// Longest that a tree of processes may take until all of it is held, in milliseconds.
pub const TREE_HOLD_TIMEOUT_MS: u64 = 5_000;
/// Longest that a node waits for home to let a guest run, in milliseconds: others of its tree may
/// have more memory.
pub const COMMIT_TIMEOUT_MS: u64 = 600_000;
/// Longest that a peer may take for one step of a migration, in milliseconds.
pub const PHASE_TIMEOUT_MS: u64 = 30_000;
/// Longest value written to a control file, in bytes.
pub const CONTROL_WRITE_BYTES_MAX: usize = 4096;
/// Largest control message on a link, in bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest name of a node, in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 64;
/// Longest host name in an address (RFC 1035), in bytes.
pub const HOST_NAME_BYTES_MAX: usize = 253;
/// Longest public key written as text, in bytes.
pub const KEY_TEXT_BYTES_MAX: usize = 128;
/// Control commands that may wait for their end at the same time; one more gets EBUSY.
pub const CONTROL_COMMANDS_MAX: usize = 64;
/// Files of the control filesystem that may be open at the same time; one more gets ENFILE.
pub const CONTROL_HANDLES_MAX: usize = 4096;
/// Users whose last `explain` answer is kept; beyond it the oldest is forgotten.
pub const EXPLAIN_ANSWERS_MAX: usize = 256;
