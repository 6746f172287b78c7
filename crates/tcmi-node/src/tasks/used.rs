//! What processes at home have used on other nodes, where their next guests go on counting.

use std::collections::HashMap;

use parking_lot::Mutex;
use tcmi_ckpt::usage::Used;
use tcmi_core::command::Pid;
use tcmi_sys::proc;

/// By process, with the time that it began at: ids come again.
#[derive(Default)]
pub struct Elsewhere(Mutex<HashMap<Pid, (u64, Used)>>);

impl Elsewhere {
    pub fn of(&self, pid: Pid) -> Used {
        let (began, used) = self.0.lock().get(&pid).cloned().unwrap_or_default();
        match proc::start_time(pid.raw()) {
            Ok(now) if now == began => used,
            _ => Used::default(),
        }
    }

    /// Of those that are no more, nothing is kept.
    pub fn keep(&self, pid: Pid, used: Used) {
        let mut all = self.0.lock();
        all.retain(|pid, (began, _)| proc::start_time(pid.raw()).is_ok_and(|now| now == *began));
        all.remove(&pid);
        if used != Used::default()
            && let Ok(began) = proc::start_time(pid.raw())
        {
            all.insert(pid, (began, used));
        }
    }
}
