//! Counters of the calls that a guest forwarded, added up over its visits home.

use std::collections::BTreeMap;

use tcmi_call::table;
use tcmi_migr::messages::CallCount;

#[derive(Default)]
pub struct Calls {
    /// Of the guest that is, as told last.
    now: Vec<CallCount>,
    /// Of those that it was before, by number.
    before: BTreeMap<u32, CallCount>,
}

fn add(all: &mut BTreeMap<u32, CallCount>, more: &[CallCount]) {
    for one in more {
        let sum = all.entry(one.nr).or_insert(CallCount { nr: one.nr, ..CallCount::default() });
        sum.calls = sum.calls.saturating_add(one.calls);
        sum.errors = sum.errors.saturating_add(one.errors);
        sum.us = sum.us.saturating_add(one.us);
        sum.here = sum.here.saturating_add(one.here);
    }
}

impl Calls {
    pub fn told(&mut self, now: Vec<CallCount>) {
        self.now = now;
    }
    /// Another guest of the same process counts from 0.
    pub fn begin_anew(&mut self) {
        add(&mut self.before, &std::mem::take(&mut self.now));
    }

    fn sums(&self) -> Vec<CallCount> {
        let mut sums = self.before.clone();
        add(&mut sums, &self.now);
        sums.into_values().collect()
    }
    pub fn total(&self) -> u64 {
        self.sums().iter().fold(0, |sum, c| sum.saturating_add(c.calls))
    }
    /// Lines for `stats`, what took longest first.
    pub fn text(&self) -> String {
        let mut all = self.sums();
        all.sort_by_key(|c| std::cmp::Reverse(c.us));
        let name = |nr| table::row(nr).map_or("unknown", |row| row.name);
        let line = |c: &CallCount| {
            let here = if c.here > 0 { format!(" here={}", c.here) } else { String::new() };
            let CallCount { calls, errors, us, .. } = c;
            format!("call-{} calls={calls} errors={errors} us={us}{here}\n", name(c.nr))
        };
        all.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(nr: u32, calls: u64) -> CallCount {
        CallCount { nr, calls, errors: 1, us: calls.saturating_mul(10), here: u64::from(nr) }
    }

    #[test]
    fn counters_go_on_behind_a_visit_and_what_a_peer_says_twice_counts_once() {
        let mut calls = Calls::default();
        calls.told(vec![count(0, 5)]);
        calls.told(vec![count(0, 7), count(1, 9)]);
        calls.begin_anew();
        calls.told(vec![count(0, 1), count(u32::MAX, u64::MAX)]);
        let text = calls.text();
        assert!(text.starts_with("call-unknown calls=18446744073709551615"), "{text}");
        assert!(text.contains("call-read calls=8 errors=2 us=80\n"), "{text}");
        assert!(text.contains("call-write calls=9 errors=1 us=90 here=1\n"), "{text}");
        assert_eq!(calls.total(), u64::MAX);
    }
}
