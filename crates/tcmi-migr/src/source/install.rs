//! The guest's streams become descriptors of the shadow.

use crate::error::{Error, Result};
use crate::source::Attached;
use std::os::fd::OwnedFd;
use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::descriptors::{Beyond, PASSED_AT_ONCE, Way};
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::rebuild::Batcher;
use tcmi_ckpt::remote::{Agent, Ids};
use tcmi_kkc::Stream;
use tcmi_sys::proc;

/// The reserved descriptors are put behind the process's own limit, if that is no higher: to keep
/// its descriptor table small. Else, or if it may have no more, below it.
const HIGHEST: u64 = 4096;
/// One in so many of the descriptors below its limit is kept for threads to come.
const SPARE_SHARE: u64 = 8;

/// A stream as it stands in the shadow.
pub struct InstalledStream {
    pub id: u64,
    pub fd: i32,
    pub tx: DirectionKeys,
    pub rx: DirectionKeys,
}

/// All streams of one guest in its shadow.
pub struct Installed {
    pub events: InstalledStream,
    pub calls: Vec<InstalledStream>,
    /// Descriptors for threads to come: open, and of no use until then.
    pub spare: Vec<i32>,
}

fn batcher<'a>(f: &'a mut Frozen, agent: &'a Agent) -> Batcher<'a> {
    let pid = f.pid;
    Batcher::new(agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid })
}

impl Installed {
    /// Hands the sockets of `streams` (events first) to a held process, and has it keep room for
    /// `to_come` more if it can spare that.
    ///
    /// Err: there is none.
    pub fn install(
        f: &mut Frozen,
        a: &Attached,
        streams: Vec<Stream>,
        to_come: usize,
    ) -> Result<Self> {
        let mut sockets: Vec<OwnedFd> = Vec::with_capacity(streams.len());
        let mut keys = Vec::with_capacity(streams.len());
        for s in streams {
            let id = s.id;
            let (fd, tx, rx) = s.into_parts();
            sockets.push(fd);
            keys.push((id, tx, rx));
        }
        let mut fds = pass(f, &a.agent, &sockets, to_come)?;
        let spare = fds.split_off(sockets.len());
        let mut all =
            fds.into_iter().zip(keys).map(|(fd, (id, tx, rx))| InstalledStream { id, fd, tx, rx });
        let events = all.next().ok_or(Error::Unsteady("no streams"))?;
        Ok(Self { events, calls: all.collect(), spare })
    }

    pub fn range(&self) -> (i32, i32) {
        let last = self.calls.last().map_or(self.events.fd, |c| c.fd);
        (self.events.fd, self.spare.last().copied().unwrap_or(last))
    }

    pub fn close(&self, f: &mut Frozen, agent: &Agent) -> Result<()> {
        let (first, last) = self.range();
        let mut b = batcher(f, agent);
        let args = [first as u64, last as u64, 0, 0, 0, 0];
        b.push("close_range", libc::SYS_close_range, args)?;
        Ok(b.flush().map(drop)?)
    }
}

/// Copies descriptors into the process, to a contiguous range that ends with those for `to_come`
/// more; the numbers of all of them there.
fn pass(f: &mut Frozen, agent: &Agent, sockets: &[OwnedFd], to_come: usize) -> Result<Vec<i32>> {
    let (soft, hard) = proc::limit(f.pid, libc::RLIMIT_NOFILE)?;
    let open = proc::descriptors(f.pid)?;
    let open: Vec<u64> = open.iter().map(|(fd, _)| *fd as u64).collect();
    let below = |spare: usize| {
        let needed = (sockets.len() + spare) as u64;
        let top = soft.min(HIGHEST.max(needed * 2));
        highest_gap(&open, needed, top.saturating_sub(1)).map(|base| (base, spare, None))
    };
    let behind = || {
        // It may have opened some before it lowered its limit.
        let base = soft.max(open.last().map_or(0, |last| last + 1));
        let end = base + (sockets.len() + to_come) as u64;
        let beyond = Beyond { soft, hard, end };
        (soft <= HIGHEST && end <= hard).then_some((base, to_come, Some(beyond)))
    };
    let (base, spare, beyond) = behind()
        .or_else(|| below(to_come.min((soft / SPARE_SHARE) as usize)))
        .or_else(|| below(0))
        .ok_or_else(|| tcmi_ckpt::Error::unsupported("it has too many open files"))?;
    let last = base + (sockets.len() + spare) as u64 - 1;
    let mut b = batcher(f, agent);
    let moved = Way::with(&mut b, |b, way| move_all(b, way, (base, beyond), sockets, spare));
    if moved.is_err() {
        // Whatever is there now, we put there.
        b.push("close_range", libc::SYS_close_range, [base, last, 0, 0, 0, 0])?;
        b.flush()?;
    }
    moved
}

/// Where the highest `needed` numbers below `top` begin of which none is in `open`, which ascends.
fn highest_gap(open: &[u64], needed: u64, top: u64) -> Option<u64> {
    let mut end = top;
    for &fd in open.iter().rev().filter(|fd| **fd < top) {
        if end - fd > needed {
            break;
        }
        end = fd;
    }
    end.checked_sub(needed)
}

fn move_all(
    b: &mut Batcher,
    way: &Way,
    place: (u64, Option<Beyond>),
    sockets: &[OwnedFd],
    spare: usize,
) -> Result<Vec<i32>> {
    let mut all = Vec::with_capacity(sockets.len() + spare);
    for chunk in sockets.chunks(PASSED_AT_ONCE) {
        let low = way.pass(b, chunk)?;
        all.extend(move_up(b, &low, place)?);
        for fd in low {
            b.push("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
        }
        b.flush()?;
    }
    for chunk in vec![way.end(); spare].chunks(PASSED_AT_ONCE) {
        all.extend(move_up(b, chunk, place)?);
    }
    if all.windows(2).any(|w| w[1] != w[0] + 1) || all.first().is_some_and(|&fd| fd < 0) {
        return Err(tcmi_ckpt::Error::unsupported("it has too few free descriptors").into());
    }
    Ok(all)
}

/// Copies of `fds`, from `base` on.
fn move_up(
    b: &mut Batcher,
    fds: &[i32],
    (base, beyond): (u64, Option<Beyond>),
) -> Result<Vec<i32>> {
    let mut dups = Vec::new();
    let mut copy = |b: &mut Batcher| {
        for &fd in fds {
            let args = [fd as u64, libc::F_DUPFD_CLOEXEC as u64, base, 0, 0, 0];
            dups.push(b.attempt("fcntl dup", libc::SYS_fcntl, args)?);
        }
        Ok(())
    };
    let r = match beyond {
        Some(beyond) => beyond.calls(b, copy)?,
        None => {
            copy(b)?;
            b.flush()?
        }
    };
    Ok(dups.iter().map(|&op| r.ret(op) as i32).collect())
}

#[cfg(test)]
mod tests {
    use super::highest_gap;

    #[test]
    fn the_highest_gap_that_is_wide_enough_is_found() {
        assert_eq!(highest_gap(&[0, 1, 2], 10, 100), Some(90));
        assert_eq!(highest_gap(&[0, 1, 2, 95], 10, 100), Some(85));
        assert_eq!(highest_gap(&[0, 1, 2, 89], 10, 100), Some(90));
        assert_eq!(highest_gap(&[0, 1, 2, 79, 90], 10, 100), Some(80));
        assert_eq!(highest_gap(&[0, 1, 200], 8, 10), Some(2));
        assert_eq!(highest_gap(&[0, 1, 200], 9, 10), None);
        assert_eq!(highest_gap(&[], 11, 10), None);
    }
}
