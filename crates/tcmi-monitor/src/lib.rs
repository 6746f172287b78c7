//! The monitor: one process for each guest, apart from the daemon so that a guest outlives it.
//!
//! It builds the guest from what home sends ([`guest`]), serves its calls, and captures it for
//! the way home. [`ipc`] is what it and the daemon say to each other; [`rooms`] are the
//! namespaces it puts the guest in.

mod guest;
pub mod ipc;
mod limits;
mod rooms;

pub use guest::run;
