//! The way home of processes that share memory: the memory is where they are, so all of them come,
//! or none.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::MutexGuard;
use tcmi_ckpt::image::Segment;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_kkc::BulkReader;
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::source::has_ended;
use tcmi_migr::{Error, Result};

use super::Party;
use crate::control::Done;
use crate::task::Task;

/// What a process has reached on its way home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Homeward {
    #[default]
    Away,
    /// Its guest is held, and its shadow.
    Quiet,
    /// It is whole at home. Behind this it is decided that all of them are.
    Rebuilt,
}

/// What a process comes home for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A call of this thread. Then it goes out again.
    Call(i32),
    Stay,
}

#[derive(Default)]
pub(super) struct Back {
    away: BTreeMap<Pid, Away>,
    /// Since when they are away.
    since: Option<Instant>,
    /// All are to come: what for, and since when.
    wanted: Option<(Purpose, Instant)>,
    /// They are home, and go out again.
    next: Option<Arc<Party>>,
    passed: Homeward,
    failed: Option<String>,
    /// Keepers that are on the way.
    inside: usize,
    /// Those whose process is home, and that still hold it.
    holding: usize,
    /// To be told when all are home, and may move again.
    waiting: Vec<Done>,
}

struct Away {
    task: Arc<Task>,
    /// As they left home.
    left_with: Vec<Segment>,
    step: Homeward,
    /// As the node has them.
    segments: Vec<Segment>,
    /// What others of them bring.
    skip: Vec<(u64, u64)>,
}

impl Back {
    pub(super) fn went(&mut self, all: impl Iterator<Item = (Arc<Task>, Vec<Segment>)>) {
        self.since = Some(Instant::now());
        self.away.extend(all.map(|(task, left_with)| {
            let (step, segments, skip) = Default::default();
            (task.pid, Away { task, left_with, step, segments, skip })
        }));
    }

    fn ring(&self) {
        self.away.values().for_each(|a| a.task.bell.ring());
    }

    fn fail(&mut self, why: String) {
        if self.passed < Homeward::Rebuilt {
            self.failed.get_or_insert(why);
        }
        self.ring();
    }

    /// When the last that was on a way that failed is back where it was, another may be tried.
    fn leave(&mut self) {
        self.inside -= 1;
        if self.inside == 0 && self.failed.take().is_some() {
            (self.wanted, self.passed) = (None, Homeward::Away);
            self.away.values_mut().for_each(|a| a.step = Homeward::Away);
        }
        self.ring();
    }

    /// Shares out who brings what.
    fn share_out(&mut self) -> std::result::Result<(), String> {
        let mut brought: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        for (pid, a) in &mut self.away {
            for s in &a.segments {
                let was = a.left_with.iter().find(|w| w.covers(s.start, s.end));
                if was.is_none_or(|w| w.offset + (s.start - w.start) != s.offset) {
                    return Err(format!("process {pid} has moved memory that it shares"));
                }
                let (from, to) = (s.offset, s.offset + (s.end - s.start));
                let known = brought.entry(s.id).or_default();
                match known.iter().any(|k| k.0 <= from && to <= k.1) {
                    true => a.skip.push((s.start, s.end)),
                    false => known.push((from, to)),
                }
            }
        }
        Ok(())
    }
}

/// Tells those who wait for it that all are home, if they are.
fn tell(mut back: MutexGuard<'_, Back>) {
    if back.away.is_empty() && back.holding == 0 {
        let waiting = std::mem::take(&mut back.waiting);
        drop(back);
        waiting.into_iter().for_each(|done| done(Ok(())));
    }
}

/// Err: the node has given up, or is gone.
fn expect_silence(wire: &mut BulkReader) -> Result<()> {
    let mut fds = [PollFd::new(wire.as_fd(), PollFlags::POLLIN)];
    if !wire.has_buffered() && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n == 0) {
        return Ok(());
    }
    match msg::expect::<msg::Gone>(wire) {
        Err(e) => Err(e),
        Ok(_) => Err(Error::Protocol { want: "nothing", got: msg::Gone::KIND }),
    }
}

impl Party {
    /// What this one, which is away, is to come home for with the others.
    pub fn returns(&self) -> Option<Purpose> {
        let back = self.back.lock();
        back.wanted.filter(|_| back.failed.is_none()).map(|(purpose, _)| purpose)
    }

    /// Calls all of them home, this one first: to stay, if one does. Err: they are giving up one
    /// return.
    pub fn call_home(&self, purpose: Purpose) -> Result<()> {
        let mut back = self.back.lock();
        if back.failed.is_some() {
            return Err(Error::Together("its others are on their way back".to_owned()));
        }
        let (first, since) = back.wanted.unwrap_or((purpose, Instant::now()));
        let purpose = if purpose == Purpose::Stay { purpose } else { first };
        back.wanted = Some((purpose, since));
        back.inside += 1;
        back.ring();
        Ok(())
    }

    /// It has come home, or `failed` to and goes on away.
    pub fn came(&self, pid: Pid, failed: Option<String>) {
        let mut back = self.back.lock();
        match failed {
            Some(why) => back.fail(why),
            None => {
                back.away.remove(&pid);
                back.holding += 1;
            }
        }
        back.leave();
    }

    /// Those that came home for a call, which go out again.
    pub fn next(&self) -> Option<Arc<Self>> {
        self.back.lock().next.clone()
    }

    /// What came home is let go. `done` is told when all of them are.
    pub fn released(&self, done: Option<Done>) {
        let mut back = self.back.lock();
        back.holding -= 1;
        back.waiting.extend(done);
        tell(back);
    }

    /// It has ended, or is lost. `inside`: on its way home.
    pub fn gone(&self, pid: Pid, inside: bool) {
        let mut back = self.back.lock();
        let was_away = back.away.remove(&pid);
        if let Some(a) = &was_away
            && back.passed == Homeward::Quiet
            && a.skip.len() < a.segments.len()
            && a.step < Homeward::Rebuilt
        {
            back.fail(format!("process {pid} ended with memory that it was to bring"));
        }
        // Before the others go on without it.
        let next = back.next.clone().filter(|_| was_away.is_some());
        if inside {
            back.leave();
        }
        self.advance_home(&mut back);
        tell(back);
        if let Some(next) = next {
            next.ended(pid, Err(MigrateError::NoSuchProcess(pid)));
        }
    }

    /// Waits until all of them have reached `step`, this one with its `segments`.
    ///
    /// Ok: what it need not bring. Err: they stay away, or this one ended.
    pub fn meet_home(
        &self,
        task: &Task,
        step: Homeward,
        segments: &[Segment],
        wire: &mut BulkReader,
    ) -> Result<Vec<(u64, u64)>> {
        let mut arrived = false;
        loop {
            task.bell.quiet();
            // A guest that runs again writes to what others of them still have to bring.
            expect_silence(wire)?;
            {
                let mut back = self.back.lock();
                if !arrived && let Some(a) = back.away.get_mut(&task.pid) {
                    a.step = step;
                    if step == Homeward::Quiet {
                        (a.segments, a.skip) = (segments.to_vec(), Vec::new());
                    }
                    arrived = true;
                    self.advance_home(&mut back);
                }
                if back.passed >= step {
                    return Ok(back.away.get(&task.pid).map_or_else(Vec::new, |a| a.skip.clone()));
                }
                if let Some(why) = &back.failed {
                    return Err(Error::Together(why.clone()));
                }
            }
            let mut fds = [
                PollFd::new(task.bell.as_fd(), PollFlags::POLLIN),
                PollFd::new(wire.as_fd(), PollFlags::POLLIN),
            ];
            // An interruption is a ring for nothing.
            poll(&mut fds, PollTimeout::NONE).ok();
            if has_ended(task.pid.raw()) {
                return Err(tcmi_ckpt::Error::Ended.into());
            }
        }
    }

    fn advance_home(&self, back: &mut Back) {
        let next = match back.passed {
            Homeward::Away => Homeward::Quiet,
            Homeward::Quiet => Homeward::Rebuilt,
            Homeward::Rebuilt => return,
        };
        let late = back.away.values().any(|a| a.step < next);
        if late || back.away.is_empty() || back.failed.is_some() {
            return;
        }
        let taken = match next {
            Homeward::Rebuilt => self.word.decide_home().map_err(|e| e.to_string()),
            _ => back.share_out(),
        };
        match taken {
            Ok(()) => back.passed = next,
            Err(why) => back.fail(why),
        }
        if back.passed == Homeward::Rebuilt {
            back.next = self.next_way_out(back);
        }
        back.ring();
    }

    /// The next way out of those that are home now. None: they stay.
    fn next_way_out(&self, back: &Back) -> Option<Arc<Self>> {
        let (Purpose::Call(_), called) = back.wanted? else { return None };
        let pace = self.pace.next(back.since?, called, Instant::now());
        let mut tasks = back.away.values().map(|a| Arc::clone(&a.task));
        match Self::again(&self.shared, &self.link, &tasks.next()?, tasks, pace) {
            Ok(next) => Some(next),
            Err(error) => {
                tracing::warn!(%error, "processes that share memory stay at home");
                None
            }
        }
    }
}
