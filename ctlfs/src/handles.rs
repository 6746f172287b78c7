//! Open files and directories.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tcmi_core::error::Errno;
use tcmi_core::limits::{CONTROL_HANDLES_MAX, EXPLAIN_ANSWERS_MAX};

use crate::place::Place;

/// Every update below is one statement, so a panic elsewhere leaves no half of one.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct OpenFile {
    pub place: Place,
    /// Fixed when the file was opened, or by the last answer on this handle.
    value: Mutex<Value>,
    /// A command went through this handle.
    used: AtomicBool,
}

struct Value {
    text: Arc<str>,
    /// How far a handle without a file position has been read.
    read: usize,
}

impl OpenFile {
    pub fn new(place: Place, text: Arc<str>) -> Self {
        Self { place, value: Mutex::new(Value { text, read: 0 }), used: AtomicBool::new(false) }
    }

    pub fn read_at(&self, offset: u64, size: usize) -> Vec<u8> {
        let text = Arc::clone(&lock(&self.value).text);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(size).min(text.len());
        text.as_bytes()[start..end].to_vec()
    }

    pub fn read_next(&self, size: usize) -> Vec<u8> {
        let mut value = lock(&self.value);
        let start = value.read;
        value.read = start.saturating_add(size).min(value.text.len());
        value.text.as_bytes()[start..value.read].to_vec()
    }

    pub fn answer(&self, text: Arc<str>) {
        *lock(&self.value) = Value { text, read: 0 };
    }

    /// False if this is the second command.
    pub fn use_once(&self) -> bool {
        !self.used.swap(true, Ordering::Relaxed)
    }
}

/// Numbered open things of one kind.
pub struct Handles<T> {
    open: Mutex<(u64, HashMap<u64, Arc<T>>)>,
}

impl<T> Handles<T> {
    pub fn new() -> Self {
        Self { open: Mutex::new((1, HashMap::new())) }
    }

    /// Root is not held to the bound: others must not lock it out.
    pub fn insert(&self, thing: T, by_root: bool) -> Result<u64, Errno> {
        let mut open = lock(&self.open);
        if open.1.len() >= CONTROL_HANDLES_MAX && !by_root {
            return Err(Errno::TooManyOpen);
        }
        let number = open.0;
        open.0 += 1;
        open.1.insert(number, Arc::new(thing));
        Ok(number)
    }

    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        lock(&self.open).1.get(&number).cloned()
    }

    pub fn remove(&self, number: u64) {
        lock(&self.open).1.remove(&number);
    }
}

/// The last answer that each user got, for shells: `echo PID > explain; cat explain`.
pub struct LastAnswers {
    by_uid: Mutex<Recent<u32, Arc<str>>>,
}

struct Recent<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    fn remove(&mut self, key: K) {
        self.values.remove(&key);
        self.order.retain(|k| *k != key);
    }

    fn insert(&mut self, key: K, value: V, bound: usize) {
        self.remove(key);
        if self.order.len() >= bound
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
        self.order.push_back(key);
        self.values.insert(key, value);
    }
}

impl LastAnswers {
    pub fn new() -> Self {
        let recent = Recent { values: HashMap::new(), order: VecDeque::new() };
        Self { by_uid: Mutex::new(recent) }
    }

    pub fn of(&self, uid: u32) -> Arc<str> {
        lock(&self.by_uid).values.get(&uid).cloned().unwrap_or_else(|| Arc::from(""))
    }

    pub fn keep(&self, uid: u32, text: Arc<str>) {
        lock(&self.by_uid).insert(uid, text, EXPLAIN_ANSWERS_MAX);
    }

    /// So that a refused question does not show the answer to an earlier one.
    pub fn clear(&self, uid: u32) {
        lock(&self.by_uid).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let file = OpenFile::new(Place::root(), Arc::from(""));
        file.answer(Arc::from("may move\n"));
        assert_eq!(file.read_next(4), b"may ");
        assert_eq!(file.read_next(100), b"move\n");
        assert_eq!(file.read_next(100), b"");
        file.answer(Arc::from("no\n"));
        assert_eq!(file.read_next(100), b"no\n");
        assert_eq!(file.read_at(u64::MAX, usize::MAX), b"");
        assert_eq!(file.read_at(1, usize::MAX), b"o\n");
    }

    #[test]
    fn answers_are_bounded_and_the_oldest_goes() {
        let answers = LastAnswers::new();
        for uid in 0..=EXPLAIN_ANSWERS_MAX as u32 {
            answers.keep(uid, Arc::from("yes"));
        }
        assert_eq!(&*answers.of(0), "");
        assert_eq!(&*answers.of(1), "yes");
    }
}
