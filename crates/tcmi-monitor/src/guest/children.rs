//! Children that a guest has waited for: a worker asks what they used, the main loop asks home.

use parking_lot::{Condvar, Mutex};
use tcmi_ckpt::usage::Usage;

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Asked(i32),
    /// Home has been told.
    Sent,
    Answered(Usage),
    /// The guest is on its way home.
    Closed,
}

#[derive(Default)]
pub struct Children {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by the one who asks.
    turn: Mutex<()>,
}

impl Children {
    /// Worker: what a child used on other nodes than home. Nothing, where home does not answer.
    pub fn ask(&self, pid: i32, ring: impl Fn()) -> Usage {
        let _turn = self.turn.lock();
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            return Usage::default();
        }
        *state = State::Asked(pid);
        ring();
        loop {
            self.changed.wait(&mut state);
            match *state {
                State::Answered(used) => {
                    *state = State::Idle;
                    return used;
                }
                State::Closed => return Usage::default(),
                State::Idle | State::Asked(_) | State::Sent => {}
            }
        }
    }

    /// Main loop: what is asked, once.
    pub fn asked(&self) -> Option<i32> {
        let mut state = self.state.lock();
        let State::Asked(pid) = *state else { return None };
        *state = State::Sent;
        Some(pid)
    }

    /// One that nobody waits for any more is dropped.
    pub fn answer(&self, used: Usage) {
        let mut state = self.state.lock();
        if matches!(*state, State::Asked(_) | State::Sent) {
            *state = State::Answered(used);
            self.changed.notify_all();
        }
    }

    /// Nobody waits for an answer until [`Children::open`].
    pub fn close(&self) {
        *self.state.lock() = State::Closed;
        self.changed.notify_all();
    }

    pub fn open(&self) {
        *self.state.lock() = State::Idle;
    }
}
