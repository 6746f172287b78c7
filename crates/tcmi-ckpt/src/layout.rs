//! From the mappings a process has to the mappings it is to have. Pure.

use crate::image::{Backing, Vma, vma_flags};

/// One step towards the wanted address space. Steps are carried out in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Unmap { start: u64, end: u64 },
    Map(Vma),
    Protect { start: u64, end: u64, prot: i32 },
}

/// Steps that turn `have` into `want`; both are sorted and without overlap.
///
/// What is mapped alike in both stays untouched, with its contents.
pub fn reconcile(have: &[Vma], want: &[Vma]) -> Vec<Step> {
    let mut cuts: Vec<u64> = have.iter().chain(want).flat_map(|v| [v.start, v.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut unmap, mut rest) = (Vec::new(), Vec::new());
    let (mut h, mut w) = (0, 0);
    for piece in cuts.windows(2) {
        let (start, end) = (piece[0], piece[1]);
        while have.get(h).is_some_and(|v| v.end <= start) {
            h += 1;
        }
        while want.get(w).is_some_and(|v| v.end <= start) {
            w += 1;
        }
        let old = have.get(h).filter(|v| v.start <= start).map(|v| part(v, start, end));
        let new = want.get(w).filter(|v| v.start <= start).map(|v| part(v, start, end));
        match (old, new) {
            (None, None) => {}
            (Some(_), None) => join(&mut unmap, Step::Unmap { start, end }),
            (None, Some(n)) => join(&mut rest, Step::Map(n)),
            (Some(o), Some(n)) if !same_memory(&o, &n) => {
                join(&mut unmap, Step::Unmap { start, end });
                join(&mut rest, Step::Map(n));
            }
            (Some(o), Some(n)) if o.prot != n.prot => {
                join(&mut rest, Step::Protect { start, end, prot: n.prot });
            }
            (Some(_), Some(_)) => {}
        }
    }
    // Unmapping first keeps the number of mappings under the kernel's limit.
    unmap.append(&mut rest);
    unmap
}

fn part(v: &Vma, start: u64, end: u64) -> Vma {
    let backing = match v.backing {
        Backing::Anonymous => Backing::Anonymous,
        Backing::File { file, offset } => {
            Backing::File { file, offset: offset + (start - v.start) }
        }
    };
    Vma { start, end, backing, ..*v }
}

fn same_memory(a: &Vma, b: &Vma) -> bool {
    // What madvise set does not change where bytes are.
    let kind =
        vma_flags::GROWS_DOWN | vma_flags::SHARED | vma_flags::NO_RESERVE | vma_flags::HUGE_TLB;
    a.backing == b.backing && a.flags & kind == b.flags & kind
}

fn join(steps: &mut Vec<Step>, s: Step) {
    match (steps.last_mut(), s) {
        (Some(Step::Unmap { end, .. }), Step::Unmap { start, end: e }) if *end == start => *end = e,
        (Some(Step::Protect { end, prot, .. }), Step::Protect { start, end: e, prot: p })
            if *end == start && *prot == p =>
        {
            *end = e
        }
        (Some(Step::Map(a)), Step::Map(b)) if continues(a, &b) => a.end = b.end,
        _ => steps.push(s),
    }
}

fn continues(a: &Vma, b: &Vma) -> bool {
    let next = Vma { start: b.start, end: b.end, ..part_at_end(a) };
    a.end == b.start && next == *b
}

fn part_at_end(a: &Vma) -> Vma {
    part(a, a.end, a.end)
}

/// A gap of `len` bytes in none of `taken` (which may overlap), from high addresses down, with
/// room around it.
pub fn gap(taken: &[(u64, u64)], len: u64) -> Option<u64> {
    const TOP: u64 = 0x7fff_0000_0000;
    const LOWEST: u64 = 0x10_0000;
    const GUARD: u64 = 1 << 20;
    let mut by_end: Vec<(u64, u64)> = taken.to_vec();
    by_end.sort_unstable_by_key(|&(_, end)| std::cmp::Reverse(end));
    let mut top = TOP;
    for (start, end) in by_end.into_iter().chain([(0, LOWEST)]) {
        if top.saturating_sub(end) >= len + 2 * GUARD {
            return Some(top - len - GUARD);
        }
        top = top.min(start);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anon(start: u64, end: u64, prot: i32) -> Vma {
        Vma { start: start << 12, end: end << 12, prot, backing: Backing::Anonymous, flags: 0 }
    }
    fn file(start: u64, end: u64, offset: u64) -> Vma {
        let backing = Backing::File { file: 1, offset: offset << 12 };
        Vma { backing, ..anon(start, end, 1) }
    }
    /// Carries steps out page by page on a model.
    fn apply(have: &[Vma], steps: &[Step]) -> Vec<Vma> {
        let mut pages: std::collections::BTreeMap<u64, Vma> = std::collections::BTreeMap::new();
        let put = |pages: &mut std::collections::BTreeMap<u64, Vma>, v: &Vma| {
            for p in (v.start..v.end).step_by(4096) {
                assert!(pages.insert(p, part(v, p, p + 4096)).is_none(), "mapped over {p:x}");
            }
        };
        have.iter().for_each(|v| put(&mut pages, v));
        for s in steps {
            match s {
                Step::Unmap { start, end } => {
                    (*start..*end).step_by(4096).for_each(|p| assert!(pages.remove(&p).is_some()));
                }
                Step::Map(v) => put(&mut pages, v),
                Step::Protect { start, end, prot } => (*start..*end)
                    .step_by(4096)
                    .for_each(|p| pages.get_mut(&p).expect("mapped").prot = *prot),
            }
        }
        pages.into_values().collect()
    }
    fn pages(all: &[Vma]) -> Vec<Vma> {
        apply(all, &[])
    }

    #[test]
    fn splits_growth_and_moves() {
        let have = [anon(1, 5, 3), file(8, 12, 0), anon(20, 30, 3)];
        let want = [anon(1, 2, 1), anon(2, 7, 3), file(8, 10, 0), file(10, 12, 5), anon(25, 26, 0)];
        let steps = reconcile(&have, &want);
        assert_eq!(apply(&have, &steps), pages(&want));
        assert!(reconcile(&want, &want).is_empty());
        assert_eq!(reconcile(&[], &want).len(), 5);
    }

    #[test]
    fn random_layouts_arrive() {
        let mut seed = 7u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..2000 {
            let mut layout = || {
                let mut at = 1;
                let mut all = Vec::new();
                for _ in 0..random(6) {
                    at += random(3);
                    let end = at + 1 + random(4);
                    all.push(match random(3) {
                        0 => file(at, end, random(4)),
                        n => anon(at, end, n as i32),
                    });
                    at = end;
                }
                all
            };
            let (have, want) = (layout(), layout());
            assert_eq!(apply(&have, &reconcile(&have, &want)), pages(&want), "{have:?} {want:?}");
        }
    }

    #[test]
    fn gaps_avoid_what_is_taken() {
        let taken = [
            (0x7ffe_0000_0000, 0x7fff_0000_0000),
            (0x7ff0_0000_0000, 0x7ffe_1000_0000),
            (0x7ff0_1000_0000, 0x7ff0_2000_0000),
        ];
        let at = gap(&taken, 0x10_0000).expect("there is room");
        assert!(taken.iter().all(|&(s, e)| at + 0x10_0000 <= s || at >= e));
        assert_eq!(gap(&[(0, 0x7fff_0000_0000)], 4096), None);
    }
}
