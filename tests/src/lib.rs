//! What the end-to-end tests, the demo and the bench stand on: nodes on this
//! host, victims and real programs to move, and an account of what leaks.

pub mod account;
pub mod node;
pub mod program;
pub mod scratch;
pub mod victim;
pub mod wait;

pub use account::Account;


pub use scratch::Scratch;
pub use victim::{Victim, VictimKind, Wake};
pub use wait::wait_until;
