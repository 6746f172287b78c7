//! Shadow and guest. At home, [`shadow`] is the original process while it serves. On the
//! execution node the monitor holds the guest's forwarded calls and its signals.
//!
//! [`Calls`] takes system calls from the guest's listener, executes them at home over one
//! [`CallStream`] a thread, and answers. [`Events`] brings the shadow's signals to the guest
//! through the [`Steward`], a helper thread in the guest.

mod births;
mod callers;
mod calls;
mod children;
mod clone3;
mod devices;
mod events;
mod files;
mod interrupt;
mod limits;
mod live;
mod mapping;
mod memory;
mod memory_files;
mod messenger;
mod others;
mod placement;
mod selves;
pub mod shadow;
mod signalfds;
mod stats;
mod steward;
mod stream;
mod tracer;
mod usage;
mod visit;
pub mod word;
mod worker;

pub use callers::Callers;
pub use calls::{Begun, Calls, Denied, Guest, GuestThread, Hooks, QuiesceError, UnderWay};
pub use events::{Events, News, SignalStream};
pub use files::Files;
pub use mapping::{MappedFile, MappedFiles};
pub use memory::ProcessMemory;
pub use selves::{Names, Processors};
pub use stats::{CallStats, Stats};
pub use steward::{GuestGone, Steward};
pub use stream::{CallStream, Records, StreamError};
pub use tracer::{Orders, Tracer};
