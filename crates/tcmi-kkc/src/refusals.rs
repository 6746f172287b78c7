//! One log line a minute for each source that is refused, however often it tries.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::limits::{REFUSAL_LOG_INTERVAL, REFUSAL_SOURCES_MAX};

#[derive(Default)]
pub(crate) struct Refusals {
    sources: HashMap<IpAddr, Source>,
    total: u64,
}

struct Source {
    logged: Instant,
    unlogged: u64,
}

impl Refusals {
    /// Some(n): log it now, and that n earlier ones were not logged.
    pub fn note(&mut self, source: IpAddr, now: Instant) -> Option<u64> {
        self.total += 1;
        if let Some(seen) = self.sources.get_mut(&source) {
            if now.duration_since(seen.logged) < REFUSAL_LOG_INTERVAL {
                seen.unlogged += 1;
                return None;
            }
            seen.logged = now;
            return Some(std::mem::take(&mut seen.unlogged));
        }
        if self.sources.len() >= REFUSAL_SOURCES_MAX {
            self.sources.retain(|_, s| now.duration_since(s.logged) < REFUSAL_LOG_INTERVAL);
        }
        if self.sources.len() >= REFUSAL_SOURCES_MAX {
            return None;
        }
        self.sources.insert(source, Source { logged: now, unlogged: 0 });
        Some(0)
    }

    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn a_source_is_logged_once_an_interval() {
        let (mut r, t0) = (Refusals::default(), Instant::now());
        let a = IpAddr::from(Ipv4Addr::LOCALHOST);
        let b = IpAddr::from(Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(r.note(a, t0), Some(0));
        for i in 0..100 {
            assert_eq!(r.note(a, t0 + Duration::from_millis(i)), None);
        }
        assert_eq!(r.note(b, t0), Some(0));
        assert_eq!(r.note(a, t0 + REFUSAL_LOG_INTERVAL), Some(100));
        assert_eq!(r.total(), 103);
    }

    #[test]
    fn many_sources_do_not_grow_it() {
        let (mut r, t0) = (Refusals::default(), Instant::now());
        for i in 0..5000u32 {
            r.note(IpAddr::from(Ipv4Addr::from(i)), t0);
        }
        assert_eq!(r.sources.len(), REFUSAL_SOURCES_MAX);
        assert_eq!(r.note(IpAddr::from(Ipv4Addr::from(9999)), t0 + REFUSAL_LOG_INTERVAL), Some(0));
        assert_eq!(r.sources.len(), 1);
    }
}
