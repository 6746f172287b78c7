//! Threads that a guest begins: a worker asks, the main loop has home make the shadow.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tcmi_call::table::errno::EAGAIN;
use tcmi_ckpt::birth;
use tcmi_kkc::Stream;
use tcmi_shadow::{Begun, CallStream, NoThread};

use crate::rooms::NextId;

/// Longest that home may take: then the guest hears that there is no thread.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Ids of home's that cannot be had here, one after the other.
const TAKEN_MAX: u32 = 4;
const PID_1: i32 = 1;

/// Thread ids: (here, at home).
pub type Name = (i32, i32);

pub struct Births {
    state: Mutex<State>,
    changed: Condvar,
    names: Mutex<Vec<Name>>,
    next_id: NextId,
    /// Id that the steward has in the guest.
    steward: i32,
}

enum State {
    Idle,
    /// By this thread at home.
    Asked(i32),
    /// Home has been told.
    Sent,
    Answered(Option<(i32, Stream)>),
    /// The guest is on its way home.
    Closed,
}

impl Births {
    pub fn new(names: Vec<Name>, next_id: NextId, steward: i32) -> Self {
        let (state, changed) = (Mutex::new(State::Idle), Condvar::new());
        Self { state, changed, names: Mutex::new(names), next_id, steward }
    }

    /// Worker, one at a time: of thread `by`, as it is called here. `ring` wakes the main loop.
    pub fn ask(&self, by: i32, ring: impl Fn()) -> Result<Begun, NoThread> {
        let by = self.at_home(by).ok_or(NoThread::Failed(EAGAIN))?;
        for _ in 0..TAKEN_MAX {
            let (tid, stream) = self.ask_home(by, &ring)?;
            if tid <= PID_1 || birth::expect_room_for(tid).is_err() {
                return Err(NoThread::Failed(EAGAIN));
            }
            // Dropped with its stream, the shadow thread of an id that is in use serves nobody.
            if tid == self.steward || self.names.lock().iter().any(|n| n.1 == tid) {
                tracing::debug!(tid, "an id that is in use here");
                continue;
            }
            if let Err(error) = self.next_id.set(tid) {
                tracing::warn!(tid, %error, "an id that cannot be had here");
                return Err(NoThread::Failed(EAGAIN));
            }
            let (fd, tx, rx) = stream.into_parts();
            return Ok(Begun { tid, stream: CallStream::new(fd, &tx, &rx) });
        }
        Err(NoThread::Failed(EAGAIN))
    }

    fn ask_home(&self, by: i32, ring: &impl Fn()) -> Result<(i32, Stream), NoThread> {
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            return Err(NoThread::Leaving);
        }
        *state = State::Asked(by);
        ring();
        loop {
            let in_time = !self.changed.wait_for(&mut state, ANSWER_MAX).timed_out();
            match &*state {
                State::Closed => return Err(NoThread::Leaving),
                State::Asked(_) | State::Sent if in_time => {}
                _ => break,
            }
        }
        match std::mem::replace(&mut *state, State::Idle) {
            State::Answered(Some(answer)) => Ok(answer),
            _ => Err(NoThread::Failed(EAGAIN)),
        }
    }

    /// Main loop: who asks, once.
    pub fn asked(&self) -> Option<i32> {
        let mut state = self.state.lock();
        let State::Asked(by) = *state else { return None };
        *state = State::Sent;
        Some(by)
    }

    /// None: there is no shadow thread. An answer that nobody waits for any more is dropped, and
    /// its stream with it.
    pub fn answer(&self, answer: Option<(i32, Stream)>) {
        let mut state = self.state.lock();
        if matches!(*state, State::Sent) {
            *state = State::Answered(answer);
            self.changed.notify_all();
        }
    }

    /// Nobody begins a thread until [`Births::open`].
    pub fn close(&self) {
        *self.state.lock() = State::Closed;
        self.changed.notify_all();
    }

    pub fn open(&self) {
        *self.state.lock() = State::Idle;
    }

    pub fn begun(&self, here: i32, tid: i32) {
        if birth::inner_tid(here, here) != Some(tid) {
            tracing::error!(here, tid, "a thread has another id here than at home");
        }
        let mut names = self.names.lock();
        // Of one that has ended, which nobody said.
        names.retain(|n| n.0 != here);
        names.push((here, tid));
    }

    pub fn ended(&self, here: i32) {
        self.names.lock().retain(|n| n.0 != here);
    }

    pub fn at_home(&self, here: i32) -> Option<i32> {
        self.names.lock().iter().find(|n| n.0 == here).map(|n| n.1)
    }

    pub fn names(&self) -> Vec<Name> {
        self.names.lock().clone()
    }
}
