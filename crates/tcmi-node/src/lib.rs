//! `tcmid`: the control files, the peers behind them, and who carries commands out.
#![forbid(unsafe_code)]

pub mod beat;
mod calls;
pub mod cgroup;
pub mod config;
pub mod control;
mod doorbell;
mod explain;
pub mod facts;
pub mod guests;
mod keeper;
pub mod peers;
pub mod state_dir;
mod task;
pub mod tasks;
pub mod tree;
pub mod trusted;
