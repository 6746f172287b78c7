//! Streams of one link that nobody uses yet.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::limits::STREAMS_PARKED_MAX;
use crate::message::StreamKind;
use crate::stream::Stream;

#[derive(Default)]
pub(super) struct Streams {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    parked: BTreeMap<(u16, u64), Stream>,
}

fn slot(kind: StreamKind, id: u64) -> (u16, u64) {
    (kind.into(), id)
}

impl Streams {
    /// May the peer park one more of this name?
    pub fn has_room(&self, kind: StreamKind, id: u64) -> Result<(), &'static str> {
        let inner = self.inner.lock();
        let (first, last) = (slot(kind, 0), slot(kind, u64::MAX));
        match inner.parked.range(first..=last).count() {
            _ if inner.closed => Err("the link is closed"),
            n if n >= STREAMS_PARKED_MAX as usize => Err("too many parked streams"),
            _ if inner.parked.contains_key(&slot(kind, id)) => Err("the stream's id is in use"),
            _ => Ok(()),
        }
    }

    pub fn park(&self, stream: Stream) {
        let mut inner = self.inner.lock();
        if !inner.closed {
            inner.parked.insert(slot(stream.kind, stream.id), stream);
            self.changed.notify_all();
        }
    }

    /// Listener: the oldest of its kind. None when `until` is over or the link closed.
    pub fn take(&self, kind: StreamKind, until: Instant) -> Option<Stream> {
        let (first, last) = (slot(kind, 0), slot(kind, u64::MAX));
        self.wait(until, |inner| {
            let at = *inner.parked.range(first..=last).next()?.0;
            inner.parked.remove(&at)
        })
    }

    /// Dialer: the one that the listener named.
    pub fn claim(&self, id: u64, until: Instant) -> Option<Stream> {
        self.wait(until, |inner| {
            let at = StreamKind::ALL
                .map(|kind| slot(kind, id))
                .into_iter()
                .find(|at| inner.parked.contains_key(at))?;
            inner.parked.remove(&at)
        })
    }

    fn wait(
        &self,
        until: Instant,
        mut find: impl FnMut(&mut Inner) -> Option<Stream>,
    ) -> Option<Stream> {
        let mut inner = self.inner.lock();
        loop {
            if let Some(stream) = find(&mut inner) {
                return Some(stream);
            }
            if inner.closed || self.changed.wait_until(&mut inner, until).timed_out() {
                return find(&mut inner);
            }
        }
    }

    /// Dialer: those that the listener dropped, taken or not, are dropped here too.
    pub fn drop_forsaken(&self) {
        self.inner.lock().parked.retain(|_, stream| !stream.is_hung_up());
    }

    pub fn parked(&self, kind: StreamKind) -> usize {
        self.inner.lock().parked.range(slot(kind, 0)..=slot(kind, u64::MAX)).count()
    }

    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.parked.clear();
        self.changed.notify_all();
    }
}
