//! What the two ends of a forwarded system call agree on.
//!
//! The guest side (the monitor on the execution node) flattens a call by the
//! syscall table into one [`frame::CallHeader`] with a buffer image; the shadow
//! side (the agent blob in the original process) executes it without knowing
//! what the call means, and answers with a [`frame::ReplyHeader`]. Both speak
//! TLS 1.3 records ([`record`]) with keys that a full handshake made.
//!
//! This crate is `no_std` and does no I/O: the agent blob is built from it. Only
//! [`engine`], a feature that the blob does not ask for, allocates.
#![no_std]

#[cfg(feature = "engine")]
extern crate alloc;

pub mod abi;
#[cfg(feature = "engine")]
pub mod engine;
pub mod frame;
pub mod record;
#[cfg(feature = "table")]
pub mod table;
