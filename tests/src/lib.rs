//! What the end-to-end tests, the demo and the bench stand on: nodes on this
//! host, victims and real programs to move, and an account of what leaks.

pub mod account;
mod bare;
pub mod catalogue;
pub mod mapped;
pub mod node;
pub mod pair;
pub mod program;
pub mod rights;
pub mod scratch;
pub mod started;
pub mod terminal;
pub mod victim;
pub mod wait;

pub use account::Account;
pub use mapped::Mapped;
pub use node::{Launch, Node, Root};
pub use pair::Pair;
pub use program::Program;
pub use scratch::Scratch;
pub use started::Started;
pub use terminal::Terminal;
pub use victim::{Victim, VictimKind, Wake};
pub use wait::{wait_until, wait_until_it_reads};
