//! The phases of a move. [`source`] runs at home, [`destination`] in the monitor on the
//! execution node; [`messages`] is what they say to each other on the migration's bulk stream.
//!
//! What must never be: two copies that both act. Until COMMIT the frozen original is whole;
//! after it home releases the original's memory only when the guest has said that it runs, and
//! no forwarded call is served before that.

pub mod destination;
pub mod error;
pub mod fault;
pub mod files;
pub mod messages;
pub mod module;
pub mod pages;
pub mod source;

pub use error::{Error, Result};
