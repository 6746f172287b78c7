//! Threads that a guest begins, and calls that it goes home for: a worker asks, the main loop
//! asks home.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use tcmi_call::table::errno::EAGAIN;
use tcmi_ckpt::birth;
use tcmi_kkc::Stream;
use tcmi_shadow::{Begun, CallStream, Denied};

use crate::rooms::NextId;

/// Ids of home's that cannot be had here, one after the other.
const TAKEN_MAX: u32 = 4;
const PID_1: i32 = 1;

/// Thread ids: (here, at home).
pub type Name = (i32, i32);

pub struct Births {
    state: Mutex<State>,
    changed: Condvar,
    /// The return for a visit failed, and nobody has asked for another since.
    stayed: AtomicBool,
    names: Mutex<Vec<Name>>,
    next_id: NextId,
    /// Id that the steward has in the guest.
    steward: i32,
}

/// What home is asked for, with the thread there that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Thread(i32),
    Visit(i32),
}

enum State {
    Idle,
    Asked(Question),
    /// Home has been told.
    Sent(Question),
    Answered(Option<(i32, Stream)>),
    /// The guest is on its way home, because it `visits` or for another reason.
    Closed {
        visits: bool,
    },
}

impl Births {
    pub fn new(names: Vec<Name>, next_id: NextId, steward: i32) -> Self {
        let (state, changed) = (Mutex::new(State::Idle), Condvar::new());
        let stayed = AtomicBool::new(false);
        Self { state, changed, stayed, names: Mutex::new(names), next_id, steward }
    }

    /// Worker, one at a time: of thread `by`, as it is called here. `ring` wakes the main loop.
    pub fn ask(&self, by: i32, ring: impl Fn()) -> Result<Begun, Denied> {
        let by = self.at_home(by).ok_or(Denied::Failed(EAGAIN))?;
        for _ in 0..TAKEN_MAX {
            let answer = self.ask_home(Question::Thread(by), &ring)?;
            let (tid, stream) = answer.ok_or(Denied::Failed(EAGAIN))?;
            if tid <= PID_1 || birth::expect_room_for(tid).is_err() {
                return Err(Denied::Failed(EAGAIN));
            }
            // Dropped with its stream, the shadow thread of an id that is in use serves nobody.
            if tid == self.steward || self.names.lock().iter().any(|n| n.1 == tid) {
                tracing::debug!(tid, "an id that is in use here");
                continue;
            }
            if let Err(error) = self.next_id.set(tid) {
                tracing::warn!(tid, %error, "an id that cannot be had here");
                return Err(Denied::Failed(EAGAIN));
            }
            let (fd, tx, rx) = stream.into_parts();
            return Ok(Begun { tid, stream: CallStream::new(fd, &tx, &rx) });
        }
        Err(Denied::Failed(EAGAIN))
    }

    /// Worker: thread `by`, as it is called here, has to go home. A return that failed is not tried
    /// again for the same call.
    pub fn ask_visit(&self, by: i32, ring: impl Fn()) -> Denied {
        let Some(by) = self.at_home(by) else { return Denied::Failed(EAGAIN) };
        if self.stayed.swap(false, Ordering::Relaxed) {
            return Denied::Failed(EAGAIN);
        }
        match self.ask_home(Question::Visit(by), &ring) {
            Err(denied) => denied,
            Ok(_) => Denied::Failed(EAGAIN),
        }
    }

    /// Some: home's answer. None: it has none, or nobody is there any more to give one. As with
    /// other calls, home may take its time.
    fn ask_home(
        &self,
        question: Question,
        ring: &impl Fn(),
    ) -> Result<Option<(i32, Stream)>, Denied> {
        let mut state = self.state.lock();
        if matches!(*state, State::Closed { .. }) {
            return Err(Denied::Leaving);
        }
        *state = State::Asked(question);
        ring();
        loop {
            self.changed.wait(&mut state);
            match &*state {
                State::Closed { .. } => return Err(Denied::Leaving),
                State::Asked(_) | State::Sent(_) => {}
                _ => break,
            }
        }
        match std::mem::replace(&mut *state, State::Idle) {
            State::Answered(answer) => Ok(answer),
            _ => Err(Denied::Failed(EAGAIN)),
        }
    }

    /// Main loop: what is asked, once.
    pub fn asked(&self) -> Option<Question> {
        let mut state = self.state.lock();
        let State::Asked(question) = *state else { return None };
        *state = State::Sent(question);
        Some(question)
    }

    /// None: there is no shadow thread. An answer that nobody waits for any more is dropped, and
    /// its stream with it.
    pub fn answer(&self, answer: Option<(i32, Stream)>) {
        let mut state = self.state.lock();
        if matches!(*state, State::Asked(_) | State::Sent(_)) {
            *state = State::Answered(answer);
            self.changed.notify_all();
        }
    }

    /// Nobody begins a thread until [`Births::open`]; who goes home goes now.
    pub fn close(&self) {
        let mut state = self.state.lock();
        let visits =
            matches!(*state, State::Asked(Question::Visit(_)) | State::Sent(Question::Visit(_)));
        *state = State::Closed { visits };
        self.changed.notify_all();
    }

    /// After a return that failed.
    pub fn open(&self) {
        let closed = std::mem::replace(&mut *self.state.lock(), State::Idle);
        if matches!(closed, State::Closed { visits: true }) {
            self.stayed.store(true, Ordering::Relaxed);
        }
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
