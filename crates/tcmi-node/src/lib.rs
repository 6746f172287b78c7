//! `tcmid`: the control files, the peers behind them, and who carries commands out.
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod facts;
pub mod peers;
pub mod state_dir;
pub mod tasks;
pub mod trusted;
