//! The agent blob in processes of its own: a forked child that is all shadow, or all
//! steward, or frozen under ptrace.

mod batch;
mod calls;
mod ends;
mod peer;
mod shadow;
mod signals;
mod steward;
mod victim;
mod window;
