//! What a worker asks home for its guest, by the main loop.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

enum State<Q, A> {
    Idle,
    Asked(Q),
    /// Home has been told.
    Sent,
    Answered(A),
    /// The guest is on its way home.
    Closed,
}

/// Questions `Q`, one at a time, and their answers `A`.
pub struct Inquiry<Q, A> {
    state: Mutex<(State<Q, A>, u64)>,
    changed: Condvar,
    /// Held by the one who asks.
    turn: Mutex<()>,
}

impl<Q, A> Default for Inquiry<Q, A> {
    fn default() -> Self {
        let (changed, turn) = Default::default();
        Self { state: Mutex::new((State::Idle, 0)), changed, turn }
    }
}

impl<Q, A> Inquiry<Q, A> {
    /// Worker: `ring` wakes the main loop. None: the guest is on its way home.
    pub fn ask(&self, question: Q, ring: impl Fn()) -> Option<A> {
        let _turn = self.turn.lock();
        let mut state = self.state.lock();
        if matches!(state.0, State::Closed) {
            return None;
        }
        *state = (State::Asked(question), state.1 + 1);
        ring();
        loop {
            self.changed.wait(&mut state);
            match std::mem::replace(&mut state.0, State::Idle) {
                State::Answered(answer) => return Some(answer),
                waiting @ (State::Asked(_) | State::Sent) => state.0 = waiting,
                // Or it was, and stays.
                left @ (State::Closed | State::Idle) => {
                    state.0 = left;
                    return None;
                }
            }
        }
    }

    /// Worker: until `time` has passed, or the guest is on its way home.
    pub fn pause(&self, time: Duration) {
        let mut state = self.state.lock();
        if !matches!(state.0, State::Closed) {
            self.changed.wait_for(&mut state, time);
        }
    }

    /// Main loop: what is asked, once, with its number.
    pub fn asked(&self) -> Option<(u64, Q)> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut state.0, State::Sent) {
            State::Asked(question) => Some((state.1, question)),
            other => {
                state.0 = other;
                None
            }
        }
    }

    /// Of question `number`. One that nobody waits for any more is dropped.
    pub fn answer(&self, number: u64, answer: A) {
        if self.state.lock().1 == number {
            self.answer_any(answer);
        }
    }

    /// Of whatever is asked.
    pub fn answer_any(&self, answer: A) {
        let mut state = self.state.lock();
        if matches!(state.0, State::Asked(_) | State::Sent) {
            state.0 = State::Answered(answer);
            self.changed.notify_all();
        }
    }

    /// Nobody waits for an answer until [`Inquiry::open`].
    pub fn close(&self) {
        self.state.lock().0 = State::Closed;
        self.changed.notify_all();
    }

    pub fn open(&self) {
        self.state.lock().0 = State::Idle;
    }
}
