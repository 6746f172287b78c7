//! Our own process's heap.

/// Blocks of so many bytes and more are mapped each by itself, and go back to the system when they
/// are freed. A size that the C library does not take changes nothing.
pub fn map_blocks_from(bytes: i32) {
    // SAFETY: plain call.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}
