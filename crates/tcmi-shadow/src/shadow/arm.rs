//! Arming: what each thread of a held process goes on with by itself, whichever way the one word
//! for all of them is written, and whether its keeper lives or dies.

use std::collections::BTreeMap;
use std::mem::offset_of;

use tcmi_call::abi::{Batch, POKE_SIGNAL, ProcArea, ThreadArea, UserRegs, decision};
use tcmi_call::frame::CALL_BUFFER_INLINE_BYTES;
use tcmi_ckpt::freeze::{Frozen, Thread, restartable};
use tcmi_ckpt::image::{ProcessImage, ThreadImage};
use tcmi_ckpt::rebuild;
use tcmi_ckpt::remote::{Agent, Script, bytes_of};
use tcmi_ckpt::{Error, Result};
use tcmi_sys::affinity::Cores;
use tcmi_sys::memory;
use tcmi_sys::signal::{self, KernelAction};

use super::births::Seat;
use super::{Job, Places, Shadow, StreamAt};
use crate::word::WORD_BYTES;

/// A held original of which every thread, should its keeper die, goes on by itself: at home as
/// it was, until [`Armed::decide`]; as a shadow from then on.
pub struct Armed(Shadow);

/// Arms a held original.
///
/// Err: it may be let go as it was.
pub fn arm(
    f: &mut Frozen,
    image: &ProcessImage,
    places: Places,
    events: StreamAt,
    calls: &[StreamAt],
    reserved: (i32, i32),
) -> Result<Armed> {
    write_areas(f, &places, events, calls, reserved, &masks(image))?;
    let fds = calls.iter().map(|s| s.fd).chain(places.spare_fds.iter().copied());
    let mut all = places.thread_areas.iter().zip(fds).map(|(&area, fd)| Seat { area, fd });
    let shadow = Shadow {
        pid: f.pid,
        seats: f.threads.iter().map(|t| t.tid).zip(all.by_ref()).collect(),
        free: all.collect(),
        running: BTreeMap::new(),
        cores: f.threads.iter().map(|t| Ok((t.tid, Cores::of(t.tid)?))).collect::<Result<_>>()?,
        private: image.mm.vmas.clone(),
        kept: (image.mm.arg_start & !4095, image.mm.env_end),
        actions: agent_actions(&places.agent, image),
        reserved,
        places,
        job: if image.stopped_by == 0 { Job::Runs } else { Job::Stopped },
        passing: 0,
        missed: Vec::new(),
    };
    let timers = timers(f.pid)?;
    for t in &f.threads {
        let own = image.threads.iter().find(|i| i.tid == t.tid);
        let rseq = t.stopped()?.rseq()?.map(|q| (q.ptr, q.size, q.signature));
        shadow.lay_out(t, (restartable(&t.regs), t.mask), |s| {
            unregister_rseq(s, rseq);
            // What was pending has moved with the image; what came since is the agent's to send.
            take_pending(s, own.map_or(&[], |i| i.pending.as_slice()));
            if t.tid == shadow.pid {
                take_pending(s, &image.pending);
                shadow.settle_process(s, &timers, image.descriptor_signals);
            }
        })?;
    }
    shadow.to_gates(f)?;
    Ok(Armed(shadow))
}

impl Armed {
    /// The commit point at home of one that moves alone: it is a shadow from here on, whoever
    /// lives or dies.
    ///
    /// Err: it has ended.
    pub fn decide(&self) -> Result<()> {
        self.0.decide(decision::AWAY)
    }
    /// Gives home's memory back, as far as that can be done.
    pub fn release_memory(&self, f: &mut Frozen) {
        if let Err(error) = self.0.release_memory(f) {
            tracing::warn!(pid = self.0.pid, %error, "memory of a shadow not given back");
        }
    }
    /// Lets it serve. Err: it has ended.
    pub fn run(mut self, mut f: Frozen) -> Result<Shadow> {
        self.0.pass_gates(&mut f)?;
        Ok(self.0)
    }
}

fn write_areas(
    f: &Frozen,
    places: &Places,
    events: StreamAt,
    calls: &[StreamAt],
    reserved: (i32, i32),
    masks: &BTreeMap<i32, u64>,
) -> Result<()> {
    let area = ProcArea {
        reserved_first: reserved.0,
        reserved_last: reserved.1,
        tgid: f.pid,
        event_lock: 0,
        signal_seq: 0,
        calls_begun: 0,
        blob: places.agent.base,
        events_broken: 0,
        decision: decision::HOME,
        settled: 0,
        serving: 0,
        decision_at: places.word.unwrap_or(places.own_word()),
        events: events.for_agent(),
    };
    // SAFETY: the structure's own bytes; padding is written as whatever it is, to our own agent.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const area).cast::<u8>(), std::mem::size_of::<ProcArea>())
    };
    memory::write(f.pid, places.proc_area, bytes)?;
    for ((t, &at), stream) in f.threads.iter().zip(&places.thread_areas).zip(calls) {
        let mask = masks.get(&t.tid).copied().unwrap_or(0);
        write_thread_area(f.pid, at, places.proc_area, mask, *stream)?;
        memory::write(f.pid, at + offset_of!(ThreadArea, tid) as u64, &t.tid.to_le_bytes())?;
    }
    Ok(())
}

/// All but the thread's id. Another thread may have had the place.
pub(super) fn write_thread_area(
    pid: i32,
    at: u64,
    proc_area: u64,
    mask: u64,
    stream: StreamAt,
) -> Result<()> {
    let put = |offset: usize, bytes: &[u8]| memory::write(pid, at + offset as u64, bytes);
    put(0, &[0; offset_of!(ThreadArea, mask)])?;
    put(offset_of!(ThreadArea, me), &at.to_le_bytes())?;
    put(offset_of!(ThreadArea, proc_area), &proc_area.to_le_bytes())?;
    put(offset_of!(ThreadArea, mask), &mask.to_le_bytes())?;
    put(offset_of!(ThreadArea, calls), bytes_of(&stream.for_agent())).map_err(Error::from)
}

/// The kernel writes to it whenever the thread goes on, and the page is the guest's.
pub(super) fn unregister_rseq(s: &mut Script, rseq: Option<(u64, u32, u32)>) {
    const UNREGISTER: u64 = 1;
    if let Some((at, len, signature)) = rseq {
        s.call(libc::SYS_rseq, [at, len.into(), UNREGISTER, signature.into(), 0, 0]);
    }
}

/// What each shadow thread blocks: what its guest thread did when it left, so that signals which
/// one thread takes alone stay in their order. What no thread would take is the leader's, but for
/// what is read from descriptors: that stays pending here.
fn masks(image: &ProcessImage) -> BTreeMap<i32, u64> {
    let nobody = image.threads.iter().fold(signal::ALL, |all, t| all & t.mask);
    let nobody = nobody & !image.descriptor_signals;
    let blocked = |t: &ThreadImage| match t.tid == image.pid {
        true => t.mask & !nobody,
        false => t.mask,
    };
    let poke = signal::bit(POKE_SIGNAL);
    image.threads.iter().map(|t| (t.tid, blocked(t) & !poke)).collect()
}

pub(super) fn take_pending(s: &mut Script, pending: &[Vec<u8>]) {
    let now = s.data(&[0; 16]);
    for info in pending {
        let Some(Ok(number)) = info.get(..4).map(<[u8; 4]>::try_from) else { continue };
        let set = s.data(&signal::bit(i32::from_le_bytes(number)).to_le_bytes());
        s.call(libc::SYS_rt_sigtimedwait, [set, 0, now, 8, 0, 0]);
    }
}

pub(super) fn timers(pid: i32) -> Result<Vec<i32>> {
    Ok(tcmi_sys::proc::timers(pid)?.iter().map(|t| t.id).collect())
}

/// The guest's timers run with the guest.
fn disarm(s: &mut Script, timers: &[i32]) {
    let never = s.data(&[0; 32]);
    for which in 0..3 {
        s.call(libc::SYS_setitimer, [which, never, 0, 0, 0, 0]);
    }
    for &id in timers {
        // Not deleted: before 6.15 a kernel never gives an id again.
        s.call(libc::SYS_timer_settime, [id as u64, 0, never, 0, 0, 0]);
    }
}

/// Dispositions of the shadow: what the guest ignores is ignored here, what stops a process
/// stops this one, everything else goes to the agent.
fn agent_actions(agent: &Agent, image: &ProcessImage) -> Vec<(i32, KernelAction)> {
    const SA_RESTORER: u64 = 0x0400_0000;
    const SIG_IGN: u64 = 1;
    let child = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
    (1..=64)
        .filter(|n| ![libc::SIGKILL, libc::SIGSTOP].contains(n))
        .map(|n| {
            let own = image.actions.iter().find(|a| a.signal == n);
            let (handler, flags) = own.map_or((0, 0), |a| (a.handler, a.flags));
            let kernel_acts = signal::ignored_by_default(n)
                || [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&n);
            let kept = flags & child;
            let action = match handler {
                SIG_IGN => KernelAction { handler: SIG_IGN, flags: kept, ..Default::default() },
                0 if kernel_acts => KernelAction { flags: kept, ..Default::default() },
                _ => KernelAction {
                    handler: agent.entry(agent.blob.on_signal),
                    flags: libc::SA_SIGINFO as u64 | SA_RESTORER | kept,
                    restorer: agent.entry(agent.blob.restorer),
                    mask: signal::ALL,
                },
            };
            (n, action)
        })
        .collect()
}

fn set_actions<'a>(s: &mut Script, actions: impl Iterator<Item = &'a (i32, KernelAction)>) {
    for (n, a) in actions {
        let at = s.data(bytes_of(a));
        s.call(libc::SYS_rt_sigaction, [*n as u64, at, 0, 8, 0, 0]);
    }
}

impl Shadow {
    /// What the leader does for its process before it serves. Signals in `kept` that are ignored
    /// are so already: to ignore one anew drops what is pending of it.
    pub(super) fn settle_process(&self, s: &mut Script, timers: &[i32], kept: u64) {
        const HIGHEST_KERNEL_HANDLER: u64 = 1;
        disarm(s, timers);
        let is_set = |&&(n, a): &&(i32, KernelAction)| {
            kept & signal::bit(n) == 0 || a.handler > HIGHEST_KERNEL_HANDLER
        };
        set_actions(s, self.actions.iter().filter(is_set));
    }

    /// Writes what thread `t` does behind its gate: to be itself, with these registers and this
    /// mask, or to serve. It is held, with no call under way.
    pub(super) fn lay_out(
        &self,
        t: &Thread,
        (regs, mask): (UserRegs, u64),
        away: impl FnOnce(&mut Script),
    ) -> Result<()> {
        let area = self.area(t.tid)?;
        let start = area + offset_of!(ThreadArea, buffer) as u64;
        let mut s = Script::new(start, CALL_BUFFER_INLINE_BYTES);
        const ARCH_SET_GS: u64 = 0x1001;
        const ARCH_SET_FS: u64 = 0x1002;
        s.call(libc::SYS_arch_prctl, [ARCH_SET_GS, regs.gs_base, 0, 0, 0, 0]);
        s.call(libc::SYS_arch_prctl, [ARCH_SET_FS, regs.fs_base, 0, 0, 0, 0]);
        if t.tid == self.pid {
            // Without its streams the guest can do nothing, and ends.
            let (first, last) = (self.reserved.0 as u64, self.reserved.1 as u64);
            s.call(libc::SYS_close_range, [first, last, 0, 0, 0, 0]);
            if let Some(word) = self.places.word {
                // Zeros: for the other threads HOME, as before.
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let read = libc::PROT_READ as u64;
                s.call(libc::SYS_mmap, [word, WORD_BYTES, read, flags as u64, u64::MAX, 0]);
            }
        }
        let (home, end) = s.write(self.pid)?;
        let home = Batch { regs, mask, ..home };
        let mut s = Script::new(end, CALL_BUFFER_INLINE_BYTES - (end - start) as usize);
        away(&mut s);
        let (away, _) = s.write(self.pid)?;
        let serve = self.at_entry(t, self.places.agent.blob.serve)?;
        let away = Batch { regs: serve, mask: signal::ALL, ..away };
        let put =
            |offset: usize, b: &Batch| memory::write(self.pid, area + offset as u64, bytes_of(b));
        put(offset_of!(ThreadArea, home), &home)?;
        Ok(put(offset_of!(ThreadArea, away), &away)?)
    }

    /// From here on every thread goes on at its gate if its keeper dies.
    pub(super) fn to_gates(&self, f: &mut Frozen) -> Result<()> {
        for word in [offset_of!(ProcArea, settled), offset_of!(ProcArea, serving)] {
            memory::write(self.pid, self.places.proc_area + word as u64, &0u32.to_le_bytes())?;
        }
        for t in &mut f.threads {
            let gate = self.at_entry(t, self.places.agent.blob.gate)?;
            t.fall_back_to(gate)?;
        }
        Ok(())
    }

    /// Arms a held shadow for its return as `image`: should its keeper die, it serves again,
    /// until [`Shadow::decide_home`]; from then on it is the process of `image`. Not `alone`: until
    /// the word of its party says so.
    pub fn arm_return(&self, f: &mut Frozen, image: &ProcessImage, alone: bool) -> Result<()> {
        let timers: Vec<i32> = image.timers.iter().map(|t| t.id).collect();
        if alone {
            self.decide_alone()?;
        }
        for t in &f.threads {
            let state = rebuild::thread_of(image, t.tid)?;
            let own = (restartable(&rebuild::registers_of(state)?), state.mask);
            self.lay_out(t, own, |s| {
                unregister_rseq(s, state.rseq);
                if t.tid == self.pid {
                    self.settle_process(s, &timers, 0);
                }
            })?;
        }
        self.to_gates(f)
    }
}
