//! A fresh process becomes a guest: emptied of what it was forked with, filled by
//! an image, shut in behind its seccomp filter.

use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::freeze::{Frozen, GUEST_OPTIONS, Thread, freeze, settle};
use crate::image::*;
use crate::layout::{gap, reconcile};
use crate::rebuild::{self, Batcher};
use crate::remote::{Agent, Ids, call, find_syscall, page_up};
use crate::vdso;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use tcmi_call::abi::StewardArea;
use tcmi_sys::Errno;
use tcmi_sys::maps::{self, Mapping};
use tcmi_sys::namespace::CloneArgs;
use tcmi_sys::ptrace::Running;
use tcmi_sys::{proc, signal};

/// Last address of user space on x86-64 with 47 bits.
const USER_END: u64 = 0x7fff_ffff_f000;

/// An empty directory in the monitor's root, which becomes the guest's root.
pub const EMPTY_ROOT: &std::ffi::CStr = c"/empty";

/// A guest under construction. Dropping it leaves a stopped child that dies with its monitor;
/// [`Newborn::kill`] ends it at once.
pub struct Newborn {
    pub frozen: Frozen,
    /// The temporary agent that builds; unmapped by the steward at the end.
    pub agent: Agent,
    pid: i32,
    /// The guest's own tid of each of `frozen.threads`.
    tids: Vec<i32>,
    /// The steward and its id in the guest's pid namespace.
    steward: Option<(Thread, i32)>,
    vdso: Vdso,
}

/// This kernel's vDSO in the newborn, with its data pages below it.
struct Vdso {
    parts: Vec<(u64, u64)>,
    code: (u64, u64),
}

impl Vdso {
    fn of(pid: i32) -> Result<Self> {
        let all = maps::read(pid)?;
        let is_part = |m: &&Mapping| m.name == "[vdso]" || m.name.starts_with("[vvar");
        let parts: Vec<_> = all.iter().filter(is_part).map(|m| (m.start, m.end)).collect();
        let code = all.iter().find(|m| m.name == "[vdso]").map(|m| (m.start, m.end));
        let code = code.filter(|code| parts.last() == Some(code));
        let code = code.ok_or_else(|| Error::unsupported("this node's kernel maps no vDSO"))?;
        Ok(Self { parts, code })
    }
    fn start(&self) -> u64 {
        self.parts[0].0
    }
    fn len(&self) -> u64 {
        self.code.1 - self.start()
    }
    fn text(&self, pid: i32) -> Result<Vec<u8>> {
        let mut text = vec![0; (self.code.1 - self.code.0) as usize];
        tcmi_sys::memory::read(pid, self.code.0, &mut text)?;
        Ok(text)
    }
    fn moved_to(&mut self, to: u64) {
        let by = to.wrapping_sub(self.start());
        for (start, end) in self.parts.iter_mut().chain([&mut self.code]) {
            (*start, *end) = (start.wrapping_add(by), end.wrapping_add(by));
        }
    }
}

impl Newborn {
    /// Holds `child`, a process that only waits. It is a fork of a program with one thread, and
    /// has `pid` in its own pid namespace. On Err it is killed.
    pub fn take(child: i32, pid: i32) -> Result<Self> {
        let frozen = freeze(child).inspect_err(|_| kill(child))?;
        let vdso = Vdso::of(child).inspect_err(|_| kill(child))?;
        let agent = Agent::none();
        Ok(Self { frozen, agent, pid, tids: vec![pid], steward: None, vdso })
    }
    /// Whether this kernel's vDSO is the one that the image was made with.
    pub fn has_vdso_of(&self, mm: &AddressSpace) -> Result<bool> {
        let alike = mm.vdso.1.checked_sub(mm.vvar.0) == Some(self.vdso.len());
        Ok(!mm.has_vdso() || (alike && self.vdso.text(self.frozen.pid)? == mm.vdso_text))
    }
    /// The guest's leader as this node numbers it.
    pub fn host_pid(&self) -> i32 {
        self.frozen.pid
    }
    fn ids(&self, tid: i32) -> Ids {
        Ids { tgid: self.pid, tid }
    }
    pub fn leader(&mut self) -> Batcher<'_> {
        let (ids, host) = (self.ids(self.pid), self.frozen.pid);
        Batcher::new(&self.agent, self.frozen.leader_mut(), host, ids)
    }

    /// Replaces everything that is mapped by the agent and the vDSO at its new place. Unless
    /// `alike`, home's vDSO stands there and leads to ours, which goes to the end of the reserved
    /// region.
    pub fn take_over(&mut self, mm: &AddressSpace, blob: &Blob, alike: bool) -> Result<()> {
        let is_ordered = mm.vvar.0 < mm.vvar.1 && mm.vvar.1 <= mm.vdso.0;
        if mm.has_vdso() && !is_ordered {
            return Err(Error::Image("a vDSO without its data"));
        }
        let host = self.frozen.pid;
        let vdso_call = find_syscall(host, self.vdso.code.0, self.vdso.code.1)?;
        let mut taken: Vec<(u64, u64)> =
            maps::read(host)?.iter().map(|m| (m.start, m.end)).collect();
        taken.extend(mm.vmas.iter().map(|v| (v.start, v.end)));
        taken.extend([mm.vvar, mm.vdso, mm.reserved]);
        let len = Agent::room(blob);
        let base = gap(&taken, len).ok_or(Error::Image("no room for the agent"))?;
        taken.push((base, base + len));
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let args = [base, len, prot, flags, u64::MAX, 0];
        let leader = self.frozen.leader_mut();
        call(leader, vdso_call, "mmap agent", libc::SYS_mmap, args)?;
        self.agent = Agent::write_at(host, base, len, blob, libc::SIGURG)?;
        let seal = self.agent.seal_args(blob);
        call(self.frozen.leader_mut(), vdso_call, "mprotect", libc::SYS_mprotect, seal)?;
        self.empty((base, base + len))?;
        if !mm.has_vdso() {
            return Ok(());
        }
        if alike {
            return self.move_vdso(mm.vvar.0, &taken);
        }
        let to = mm.reserved.1.checked_sub(self.vdso.len());
        let to = to.filter(|&to| to > mm.reserved.0).ok_or(Error::Image("reserved region"))?;
        let text = self.vdso.text(host)?;
        self.move_vdso(to, &taken)?;
        self.place_text(mm, &vdso::redirected(&mm.vdso_text, &text, self.vdso.code.0)?)
    }

    /// Unmaps all but the agent and the vDSO.
    fn empty(&mut self, agent: (u64, u64)) -> Result<()> {
        let mut kept = [agent, (self.vdso.start(), self.vdso.code.1)];
        kept.sort_unstable();
        let rseq = self.frozen.leader().stopped()?.rseq()?;
        let mut b = self.leader();
        if let Some(q) = rseq {
            // The kernel writes there on every way to user mode, and kills where it cannot.
            const UNREGISTER: u64 = 1;
            let args = [q.ptr, q.size as u64, UNREGISTER, q.signature as u64, 0, 0];
            b.push("rseq", libc::SYS_rseq, args)?;
        }
        let mut at = 0;
        for (start, stop) in kept.into_iter().chain([(USER_END, USER_END)]) {
            if start > at {
                b.push("munmap", libc::SYS_munmap, [at, start - at, 0, 0, 0, 0])?;
            }
            at = stop;
        }
        b.flush().map(drop)
    }

    /// Moves the vDSO with its data pages, which it finds by their distance, to begin at `to`.
    fn move_vdso(&mut self, to: u64, taken: &[(u64, u64)]) -> Result<()> {
        let first = self.vdso.start();
        // By way of a place that is neither its old nor its new one.
        let via = gap(taken, self.vdso.len()).ok_or(Error::Image("no room for the vDSO"))?;
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let parts = self.vdso.parts.clone();
        let mut b = self.leader();
        for (from, to) in [(first, via), (via, to)] {
            for &(start, end) in &parts {
                let (offset, len) = (start - first, end - start);
                let args = [from + offset, len, len, flags, to + offset, 0];
                b.push("mremap vdso", libc::SYS_mremap, args)?;
            }
        }
        b.flush()?;
        self.vdso.moved_to(to);
        Ok(())
    }

    /// Home's vDSO, over data pages of zeros.
    fn place_text(&mut self, mm: &AddressSpace, text: &[u8]) -> Result<()> {
        let host = self.frozen.pid;
        let (at, len) = (mm.vdso.0, mm.vdso.1 - mm.vdso.0);
        if text.len() as u64 != len {
            return Err(Error::Image("a vDSO that is not as long as its mapping"));
        }
        let (r, w, x) = (libc::PROT_READ as u64, libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let mut b = self.leader();
        let args = [mm.vvar.0, at - mm.vvar.0, r, flags as u64, u64::MAX, 0];
        b.push("mmap vvar", libc::SYS_mmap, args)?;
        b.push("mmap vdso", libc::SYS_mmap, [at, len, r | w, flags as u64, u64::MAX, 0])?;
        b.flush()?;
        tcmi_sys::memory::write(host, at, text)?;
        let mut b = self.leader();
        b.push("mprotect vdso", libc::SYS_mprotect, [at, len, r | x, 0, 0, 0])?;
        b.flush().map(drop)
    }

    /// Maps what the image maps. `fds[i]` is `files[i]` in this process and its children.
    pub fn build_space(&mut self, have: &[Vma], want: &[Vma], fds: &[RawFd]) -> Result<()> {
        let steps = reconcile(have, want);
        let fd_of = |file: u32| {
            fds.get(file as usize).copied().ok_or(Error::Image("a mapping of an unknown file"))
        };
        rebuild::apply(&mut self.leader(), &steps, &fd_of)
    }

    /// Puts segments where shared memory of its own is mapped. `fds[i]` is `segments[i]` there.
    pub fn attach(&mut self, segments: &[Segment], fds: &[RawFd]) -> Result<()> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
        let mut b = self.leader();
        for (s, fd) in segments.iter().zip(fds) {
            let args = [s.start, s.end - s.start, prot, flags, *fd as u64, s.offset];
            b.push("mmap segment", libc::SYS_mmap, args)?;
        }
        b.flush().map(drop)
    }

    /// Shared memory has its pages.
    pub fn protect_shared(&mut self, vmas: &[Vma]) -> Result<()> {
        rebuild::protect_shared(&mut self.leader(), vmas)
    }

    /// What was locked is locked.
    pub fn lock(&mut self, mm: &AddressSpace) -> Result<()> {
        rebuild::lock(&mut self.leader(), mm)
    }

    pub fn populate(&mut self, runs: &[std::ops::Range<u64>], vmas: &[Vma]) -> Result<()> {
        rebuild::populate(&mut self.leader(), runs, vmas)
    }

    /// The steward's code and its page, shared with us by `area`, at the reserved place.
    pub fn place_steward(&mut self, reserved: (u64, u64), blob: &Blob, area: RawFd) -> Result<()> {
        let host = self.frozen.pid;
        let code = page_up(blob.code_bytes() as u64);
        let area_len = page_up(std::mem::size_of::<StewardArea>() as u64);
        let rest = reserved.0 + code + area_len;
        let end = match self.vdso.start() {
            start if (reserved.0..reserved.1).contains(&start) => start,
            _ => reserved.1,
        };
        if rest > end {
            return Err(Error::Image("reserved region too small"));
        }
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let fixed = libc::MAP_FIXED_NOREPLACE;
        let private = (fixed | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let shared = (fixed | libc::MAP_SHARED) as u64;
        let mut b = self.leader();
        b.push("mmap steward", libc::SYS_mmap, [reserved.0, code, rw, private, u64::MAX, 0])?;
        let args = [reserved.0 + code, area_len, rw, shared, area as u64, 0];
        b.push("mmap steward area", libc::SYS_mmap, args)?;
        if end > rest {
            let args = [rest, end - rest, 0, private, u64::MAX, 0];
            b.push("mmap reserved", libc::SYS_mmap, args)?;
        }
        b.flush()?;
        let image = blob.image_for(reserved.0);
        tcmi_sys::memory::write(host, reserved.0, &image[..blob.code_bytes()])?;
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let mut b = self.leader();
        b.push("mprotect steward", libc::SYS_mprotect, [reserved.0, code, rx, 0, 0, 0])?;
        b.flush().map(drop)
    }

    /// Creates the other threads with their home ids, and the steward with one that none of them
    /// has and without privilege; all stopped.
    pub fn create_threads(&mut self, tids: &[i32], uid: u32, gid: u32) -> Result<()> {
        let (pid, host) = (self.pid, self.frozen.pid);
        let taken = |tid: &i32| *tid == pid || tids.contains(tid);
        let free = (2..tcmi_sys::proc::pid_max()?).rev().find(|tid| !taken(tid));
        let steward_tid = free.ok_or_else(|| Error::unsupported("as many threads as ids"))?;
        self.create_all(tids, Some(steward_tid))?;
        let (steward, tid) = self.steward.as_mut().ok_or(Error::Ended)?;
        let mut b = Batcher::new(&self.agent, steward, host, Ids { tgid: pid, tid: *tid });
        drop_privilege(&mut b, uid, gid)?;
        b.flush().map(drop)
    }

    /// Creates the other threads of a process that is no guest, with their ids; all stopped.
    pub fn create_own_threads(&mut self, tids: &[i32]) -> Result<()> {
        match tids {
            [] => Ok(()),
            tids => self.create_all(tids, None),
        }
    }

    fn create_all(&mut self, tids: &[i32], steward: Option<i32>) -> Result<()> {
        tids.iter().try_for_each(|&tid| expect_room_for(tid))?;
        self.frozen.leader().stopped()?.set_options(GUEST_OPTIONS)?;
        let host = self.frozen.pid;
        let all: Vec<i32> = tids.iter().copied().chain(steward).collect();
        for t in self.create(&all)? {
            match inner_tid(host, t.tid).ok_or(Error::Ended)? {
                tid if Some(tid) == steward => self.steward = Some((t, tid)),
                tid => {
                    self.tids.push(tid);
                    self.frozen.threads.push(t);
                }
            }
        }
        Ok(())
    }

    /// The steward's id as the guest counts.
    pub fn steward_tid(&self) -> Result<i32> {
        self.steward.as_ref().map(|(_, tid)| *tid).ok_or(Error::Ended)
    }

    fn create(&mut self, tids: &[i32]) -> Result<Vec<Thread>> {
        const FLAGS: i32 = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let mut b = self.leader();
        for tid in tids {
            let set_tid = b.data(&tid.to_le_bytes())?;
            let args =
                CloneArgs { flags: FLAGS as u64, set_tid, set_tid_size: 1, ..CloneArgs::default() };
            let at = b.data(crate::remote::bytes_of(&args))?;
            let size = std::mem::size_of::<CloneArgs>() as u64;
            b.push("clone3", libc::SYS_clone3, [at, size, 0, 0, 0, 0])?;
        }
        b.flush()?;
        let known = self.frozen.threads.iter().map(|t| t.tid);
        let known: HashSet<i32> = known.collect();
        let new = tcmi_sys::proc::tids(self.frozen.pid)?
            .into_iter()
            .filter(|t| !known.contains(t))
            .map(Running::attached_by_kernel)
            .collect();
        settle_all(new)
    }

    /// A userfaultfd of its, for us; it loses its own with its other descriptors. None: this
    /// kernel gives none.
    pub fn userfault(&mut self) -> Result<Option<OwnedFd>> {
        let host = self.frozen.pid;
        let mut b = self.leader();
        let args = [tcmi_sys::userfault::FLAGS, 0, 0, 0, 0, 0];
        let op = b.attempt("userfaultfd", libc::SYS_userfaultfd, args)?;
        match b.flush()?.ret(op) {
            fd @ 0.. => take_descriptor(host, fd as i32).map(Some),
            _ => Ok(None),
        }
    }

    /// See [`Agent::done_by`].
    pub fn done_by(&mut self, signal: i32) {
        self.agent = self.agent.done_by(signal);
    }

    /// The guest's own tid of each thread, in the order of `frozen.threads`.
    pub fn tids(&self) -> &[i32] {
        &self.tids
    }

    /// Restores all state but registers. With `shut_in` it also gives up every privilege and
    /// descriptor and gets its filter, all in one batch a thread: each costs two switches while
    /// the process stands still.
    ///
    /// Ok: the filter's listener, and its number in the guest, where the steward has to close
    /// it. From here on forwarded calls wait for the monitor.
    pub fn restore(
        &mut self,
        image: &ProcessImage,
        shut_in: Option<&ShutIn>,
    ) -> Result<Option<(OwnedFd, i32)>> {
        let (pid, host) = (self.pid, self.frozen.pid);
        for (t, &tid) in self.frozen.threads.iter_mut().zip(&self.tids).skip(1) {
            let mut b = Batcher::new(&self.agent, t, host, Ids { tgid: pid, tid });
            rebuild::set_thread(&mut b, rebuild::thread_of(image, tid)?)?;
            if let Some(s) = shut_in {
                drop_privilege(&mut b, s.uid, s.gid)?;
            }
            b.flush()?;
        }
        let mut b = self.leader();
        rebuild::set_thread(&mut b, rebuild::thread_of(image, pid)?)?;
        let args = [image.personality as u64, 0, 0, 0, 0, 0];
        b.push("personality", libc::SYS_personality, args)?;
        for &(resource, soft, hard) in &image.limits {
            let at = b.data(crate::remote::bytes_of(&[soft, hard]))?;
            // Without privilege a node cannot go above its own limits.
            b.attempt("prlimit", libc::SYS_prlimit64, [0, resource as u64, at, 0, 0, 0])?;
        }
        rebuild::set_mm(&mut b, &image.mm, None)?;
        rebuild::set_process(&mut b, image, &[], 0)?;
        let Some(s) = shut_in else { return b.flush().map(|_| None) };
        let listener = s.apply(&mut b)?;
        Ok(Some((take_descriptor(host, listener)?, listener)))
    }

    /// Has each thread but the steward make calls, which `push` adds.
    pub fn in_each_thread(
        &mut self,
        push: &mut dyn FnMut(&mut Batcher) -> Result<()>,
    ) -> Result<()> {
        let (tgid, host) = (self.pid, self.frozen.pid);
        for (t, &tid) in self.frozen.threads.iter_mut().zip(&self.tids) {
            let mut b = Batcher::new(&self.agent, t, host, Ids { tgid, tid });
            push(&mut b)?;
            b.flush()?;
        }
        Ok(())
    }

    /// Lets a process run that is no guest: nothing of ours is left in it. Its pid.
    pub fn run_freely(mut self, image: &ProcessImage) -> Result<i32> {
        let host = self.frozen.pid;
        let (start, end) = self.vdso.code;
        let at = find_syscall(host, start, end)?;
        for (t, tid) in self.frozen.threads.iter_mut().zip(&self.tids) {
            rebuild::set_registers(t, rebuild::thread_of(image, *tid)?)?;
        }
        let gone = [self.agent.base, self.agent.len, 0, 0, 0, 0];
        let leader = self.frozen.leader_mut();
        call(leader, at, "munmap agent", libc::SYS_munmap, gone)?;
        leader.own_again()?;
        if image.stopped_by != 0 {
            // Before it runs: the stop is there when the first thread is let go.
            // SAFETY: plain call.
            unsafe { libc::kill(host, libc::SIGSTOP) };
        }
        rebuild::let_go(self.frozen)?;
        Ok(host)
    }

    /// Lets the steward begin its loop, while the guest's own threads are held. Its tid on this
    /// node.
    pub fn run_steward(&mut self, image: &ProcessImage, area: u64) -> Result<i32> {
        let (mut steward, _) = self.steward.take().ok_or(Error::Ended)?;
        let mut regs = steward.regs;
        regs.rip = image.mm.reserved.0 + self.agent.blob.steward;
        regs.rdi = area;
        regs.orig_rax = u64::MAX;
        let s = steward.take()?;
        s.set_sigmask(signal::ALL)?;
        s.set_regs(&regs)?;
        s.detach(0)?;
        Ok(steward.tid)
    }

    /// Gives the other threads their registers and lets them run. The steward does, and does
    /// nothing: of a stopped process it stops, too.
    ///
    /// Ok: the guest runs. All its threads but the steward are traced by the calling OS thread, and
    /// so will be those that they begin.
    pub fn run(mut self, image: &ProcessImage, steward: i32) -> Result<Guest> {
        let tids = std::mem::take(&mut self.tids);
        for (t, tid) in self.frozen.threads.iter_mut().zip(&tids) {
            rebuild::set_registers(t, rebuild::thread_of(image, *tid)?)?;
        }
        let host_tids = self.frozen.threads.iter().map(|t| t.tid).collect::<Vec<_>>();
        let guest = Guest {
            host_pid: self.frozen.pid,
            steward,
            threads: host_tids.into_iter().zip(tids).collect(),
        };
        if image.stopped_by != 0 {
            // Before it runs: the stop is there when the first thread is let go.
            // SAFETY: plain call.
            unsafe { libc::kill(guest.host_pid, libc::SIGSTOP) };
        }
        rebuild::set_going(self.frozen)?;
        Ok(guest)
    }

    pub fn kill(self) {
        kill(self.frozen.pid);
    }
}

/// A running guest as its monitor knows it.
#[derive(Clone, Debug)]
pub struct Guest {
    pub host_pid: i32,
    /// The steward's tid on this node.
    pub steward: i32,
    /// (tid on this node, tid at home)
    pub threads: Vec<(i32, i32)>,
}

fn kill(host: i32) {
    // SAFETY: plain call on our own child, which is not reaped yet.
    unsafe { libc::kill(host, libc::SIGKILL) };
}

/// Refuses a process or thread id that this node cannot hand out.
pub fn expect_room_for(tid: i32) -> Result<()> {
    match tcmi_sys::proc::pid_max()? {
        limit if tid >= limit => Err(Error::unsupported(format!(
            "this node's kernel.pid_max of {limit} is too low for its id {tid}"
        ))),
        _ => Ok(()),
    }
}

fn settle_all(held: Vec<Running>) -> Result<Vec<Thread>> {
    held.into_iter().map(|t| settle(t)?.map(|(t, _)| t).ok_or(Error::Ended)).collect()
}

/// The id that a thread has in its own pid namespace.
pub fn inner_tid(host: i32, tid: i32) -> Option<i32> {
    proc::status_of_thread(host, tid).ok().map(|status| status.inner_pid)
}

fn drop_privilege(b: &mut Batcher, uid: u32, gid: u32) -> Result<()> {
    let (u, g) = (uid as u64, gid as u64);
    b.push("setresgid", libc::SYS_setresgid, [g, g, g, 0, 0, 0])?;
    b.push("setresuid", libc::SYS_setresuid, [u, u, u, 0, 0, 0])?;
    // Changing ids made it undumpable, and then its monitor could not read its memory.
    b.push("dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0])?;
    const CAPABILITY_VERSION_3: u64 = 0x2008_0522;
    let header = b.data(&CAPABILITY_VERSION_3.to_le_bytes())?;
    let none = b.data(&[0; 24])?;
    b.push("capset", libc::SYS_capset, [header, none, 0, 0, 0, 0])?;
    Ok(())
}

/// What a guest becomes before it may run.
pub struct ShutIn {
    pub uid: u32,
    pub gid: u32,
    /// `struct sock_filter` after `struct sock_filter`.
    pub filter: Vec<u8>,
}

impl ShutIn {
    /// Returns the number of the filter's listener in the process.
    fn apply(&self, b: &mut Batcher) -> Result<i32> {
        const SET_MODE_FILTER: u64 = 1;
        // TSYNC | NEW_LISTENER | TSYNC_ESRCH | WAIT_KILLABLE_RECV
        const FLAGS: u64 = 1 | 8 | 16 | 32;
        let empty = b.data(EMPTY_ROOT.to_bytes_with_nul())?;
        b.push("chroot", libc::SYS_chroot, [empty, 0, 0, 0, 0, 0])?;
        let root = b.data(b"/\0")?;
        b.push("chdir", libc::SYS_chdir, [root, 0, 0, 0, 0, 0])?;
        drop_privilege(b, self.uid, self.gid)?;
        b.push("close_range", libc::SYS_close_range, [0, u32::MAX as u64, 0, 0, 0, 0])?;
        let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0];
        b.push("no new privileges", libc::SYS_prctl, args)?;
        let code = b.data(&self.filter)?;
        let count = (self.filter.len() / 8) as u64;
        let program = b.data(crate::remote::bytes_of(&[count, code]))?;
        let args = [SET_MODE_FILTER, FLAGS, program, 0, 0, 0];
        let op = b.push("seccomp", libc::SYS_seccomp, args)?;
        Ok(b.flush()?.ret(op) as i32)
    }
}

/// A descriptor of another process, as our own.
pub fn take_descriptor(pid: i32, fd: i32) -> Result<OwnedFd> {
    // SAFETY: plain calls; results are checked before they become owned.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if pidfd < 0 {
            return Err(Errno::last("pidfd_open").into());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let got = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) as i32;
        if got < 0 {
            return Err(Errno::last("pidfd_getfd").into());
        }
        Ok(OwnedFd::from_raw_fd(got))
    }
}
