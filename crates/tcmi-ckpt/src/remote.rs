//! System calls made inside a frozen process: one at a time by its vDSO's `syscall`
//! instruction, or in batches by the agent blob once that is in place.

use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::freeze::{Frozen, Thread};
use tcmi_call::abi::{Batch, BatchOp, BlobHeader, UserRegs, batch_flags};
use tcmi_sys::ptrace::{Running, Stop, Stopped, Waited};
use tcmi_sys::{memory, signal};

/// Address of a `syscall` instruction in `[start, end)` of `pid`.
pub fn find_syscall(pid: i32, start: u64, end: u64) -> Result<u64> {
    let mut text = vec![0; (end - start) as usize];
    memory::read(pid, start, &mut text)?;
    text.windows(2)
        .position(|w| w == [0x0f, 0x05])
        .map(|at| start + at as u64)
        .ok_or_else(|| Error::unsupported("it has no vDSO"))
}

/// Registers for an in-process call at `rip`; the program's own are kept aside by [`Thread`].
fn call_regs(own: &UserRegs, rip: u64, nr: u64, args: [u64; 6]) -> UserRegs {
    UserRegs {
        rax: nr,
        rdi: args[0],
        rsi: args[1],
        rdx: args[2],
        r10: args[3],
        r8: args[4],
        r9: args[5],
        rip,
        // Not in a call: the kernel must not rewind these registers.
        orig_rax: u64::MAX,
        ..*own
    }
}

/// Makes one call in `thread` at the `syscall` instruction `at`. The thread stays stopped; its
/// registers are not its own until it is thawed.
pub fn call(
    thread: &mut Thread,
    at: u64,
    what: &'static str,
    nr: i64,
    args: [u64; 6],
) -> Result<u64> {
    let s = thread.take()?;
    s.set_sigmask(signal::ALL)?;
    s.set_regs(&call_regs(&thread.regs, at, nr as u64, args))?;
    let s = to_stop(s.to_syscall(0)?, Stop::Syscall, &mut thread.group_stop)?;
    let s = to_stop(s.to_syscall(0)?, Stop::Syscall, &mut thread.group_stop)?;
    let ret = s.regs()?.rax as i64;
    thread.put_back(s);
    thread.fall_back()?;
    returned(what, ret)
}

pub fn returned(what: &'static str, ret: i64) -> Result<u64> {
    match ret {
        -4095..=-1 => Err(Error::Remote { what, errno: -ret as i32 }),
        v => Ok(v as u64),
    }
}

/// Waits for one kind of stop; stops of other kinds are passed over. Job control, which cannot be
/// blocked, takes hold of the process; the thread goes on in spite of it.
fn to_stop(mut t: Running, want: Stop, group_stop: &mut Option<i32>) -> Result<Stopped> {
    loop {
        let (s, stop) = match t.wait()? {
            Waited::Ended(_) => return Err(Error::Ended),
            Waited::Stopped(s, stop) => (s, stop),
        };
        let deliver = match stop {
            stop if stop == want => return Ok(s),
            Stop::Signal(sig) if is_fault(sig) => {
                let mut addr = [0; 8];
                addr.copy_from_slice(&s.siginfo()?[16..24]);
                let address = u64::from_le_bytes(addr);
                return Err(Error::Fault { signal: sig, rip: s.regs()?.rip, address });
            }
            Stop::Signal(libc::SIGSTOP) => libc::SIGSTOP,
            Stop::Group(sig) => {
                *group_stop = Some(sig);
                0
            }
            _ => 0,
        };
        t = match want {
            Stop::Syscall => s.to_syscall(deliver)?,
            _ => s.cont(deliver)?,
        };
    }
}

fn is_fault(sig: i32) -> bool {
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS]
        .contains(&sig)
}

/// Room for a batch's operations and what they point to.
pub const SCRATCH_BYTES: u64 = 256 * 1024;
const OPS_AT: u64 = std::mem::size_of::<Batch>().next_multiple_of(64) as u64;
const OPS_MAX: usize = 1024;
const DATA_AT: u64 = OPS_AT + (OPS_MAX * std::mem::size_of::<BatchOp>()) as u64;
/// The agent's stack, at the end of the scratch memory.
const STACK_BYTES: u64 = 16 * 1024;
/// Bytes that the calls of a batch can point to, all together.
pub const DATA_MAX: usize = (SCRATCH_BYTES - DATA_AT - STACK_BYTES) as usize;

/// The agent blob in a process, with scratch memory behind it.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    pub base: u64,
    /// Bytes of the whole region: blob, scratch and what the caller asked for behind it.
    pub len: u64,
    scratch: u64,
    pub blob: BlobHeader,
    done_signal: i32,
}

/// Calls to be made together; data that they point to travels along.
#[derive(Default)]
pub struct Calls {
    ops: Vec<BatchOp>,
    names: Vec<&'static str>,
    data: Vec<u8>,
}

/// A place in a batch's data.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    at: u64,
    len: usize,
}

impl Calls {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    /// Whether another call with `bytes` of data still fits.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.ops.len() < OPS_MAX && self.data.len() + bytes < DATA_MAX
    }
    /// Puts bytes where calls can point; `Slot` is relative to the agent's scratch.
    pub fn data(&mut self, bytes: &[u8]) -> Slot {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let at = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        Slot { at, len: bytes.len() }
    }
    pub fn room(&mut self, len: usize) -> Slot {
        self.data(&vec![0; len])
    }
    /// A call whose failure ends the batch.
    pub fn push(&mut self, what: &'static str, nr: i64, args: [u64; 6]) -> usize {
        self.add(what, nr, args, batch_flags::STOP_ON_ERROR)
    }
    /// A call that may fail; the caller looks at its result.
    pub fn attempt(&mut self, what: &'static str, nr: i64, args: [u64; 6]) -> usize {
        self.add(what, nr, args, 0)
    }
    fn add(&mut self, what: &'static str, nr: i64, args: [u64; 6], flags: u64) -> usize {
        self.ops.push(BatchOp { nr: nr as u64, args, ret: 0, flags });
        self.names.push(what);
        self.ops.len() - 1
    }
}

/// Calls laid out in a process, for its agent to make by itself; their results do not matter.
pub struct Script {
    at: u64,
    room: usize,
    ops: Vec<BatchOp>,
    data: Vec<u8>,
}

impl Script {
    /// In `room` bytes at `at`, a multiple of 16.
    pub fn new(at: u64, room: usize) -> Self {
        Self { at, room, ops: Vec::new(), data: Vec::new() }
    }
    /// Puts bytes where the calls can point; gives their address.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.align();
        let at = self.at + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }
    pub fn call(&mut self, nr: i64, args: [u64; 6]) {
        self.ops.push(BatchOp { nr: nr as u64, args, ..BatchOp::default() });
    }
    fn align(&mut self) {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
    }
    /// Writes it; gives the batch that makes the calls, still without a way out of it and
    /// telling nobody of its end, and the address behind the script.
    pub fn write(mut self, pid: i32) -> Result<(Batch, u64)> {
        self.align();
        let batch = Batch {
            ops: self.at + self.data.len() as u64,
            count: self.ops.len() as u64,
            ..Batch::default()
        };
        for op in &self.ops {
            self.data.extend_from_slice(bytes_of(op));
        }
        self.align();
        if self.data.len() > self.room {
            return Err(Error::unsupported("it has too many timers and pending signals"));
        }
        memory::write(pid, self.at, &self.data)?;
        Ok((batch, self.at + self.data.len() as u64))
    }
}

/// What a batch returned.
pub struct Results {
    ops: Vec<BatchOp>,
    data: Vec<u8>,
}

impl Results {
    pub fn ret(&self, op: usize) -> i64 {
        self.ops[op].ret
    }
    pub fn bytes(&self, s: Slot) -> &[u8] {
        &self.data[s.at as usize..s.at as usize + s.len]
    }
    pub fn u64_at(&self, s: Slot, word: usize) -> u64 {
        let mut w = [0; 8];
        w.copy_from_slice(&self.bytes(s)[word * 8..word * 8 + 8]);
        u64::from_le_bytes(w)
    }
}

impl Agent {
    /// A placeholder until there is one.
    pub(crate) fn none() -> Self {
        let zero = [0u8; std::mem::size_of::<BlobHeader>()];
        Self { base: 0, len: 0, scratch: 0, blob: from_bytes(&zero), done_signal: 0 }
    }
    /// Bytes that the blob and its scratch need, before `extra`.
    pub fn room(blob: &Blob) -> u64 {
        page_up(blob.total_bytes() as u64) + SCRATCH_BYTES
    }

    /// Describes an agent whose region the caller mapped read-write at `base`, and writes the
    /// blob there. The code is not executable before [`Agent::seal`].
    pub fn write_at(pid: i32, base: u64, len: u64, blob: &Blob, done_signal: i32) -> Result<Self> {
        memory::write(pid, base, &blob.image_for(base))?;
        let scratch = base + page_up(blob.total_bytes() as u64);
        Ok(Self { base, len, scratch, blob: *blob.header(), done_signal })
    }
    /// Arguments of the mprotect that makes the code executable.
    pub fn seal_args(&self, blob: &Blob) -> [u64; 6] {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        [self.base, page_up(blob.code_bytes() as u64), prot as u64, 0, 0, 0]
    }
    /// Address of a batch's data slot in the process.
    pub fn address(&self, s: Slot) -> u64 {
        self.scratch + DATA_AT + s.at
    }
    /// Address of the first argument of a batch's call.
    pub fn argument(&self, op: usize) -> u64 {
        let at = op * std::mem::size_of::<BatchOp>() + std::mem::offset_of!(BatchOp, args);
        self.scratch + OPS_AT + at as u64
    }
    /// First byte behind blob and scratch.
    pub fn extra(&self) -> u64 {
        self.scratch + SCRATCH_BYTES
    }
    pub fn entry(&self, offset: u64) -> u64 {
        self.base + offset
    }

    /// Maps the agent into a frozen process, at `place` if that is given.
    ///
    /// Err: nothing is left mapped; the process can be thawed.
    pub fn inject(
        frozen: &mut Frozen,
        vdso_call: u64,
        blob: &Blob,
        extra: u64,
        place: Option<u64>,
    ) -> Result<Self> {
        let status = tcmi_sys::proc::status(frozen.pid)?;
        let blocked = frozen.threads.iter().fold(0, |all, t| all | t.mask);
        let done = signal::harmless(status.sig_caught, status.sig_ignored, blocked);
        let done = done.ok_or_else(|| {
            Error::unsupported("it handles every signal that is ignored by default")
        })?;
        let len = Self::room(blob) + page_up(extra);
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let pid = frozen.pid;
        let leader = frozen.leader_mut();
        let fixed = place.map_or(0, |_| libc::MAP_FIXED_NOREPLACE) as u64;
        let args = [place.unwrap_or(0), len, prot, flags | fixed, u64::MAX, 0];
        let base = call(leader, vdso_call, "mmap agent", libc::SYS_mmap, args)?;
        let placed = Self::write_at(pid, base, len, blob, done).and_then(|agent| {
            let seal = agent.seal_args(blob);
            call(leader, vdso_call, "mprotect agent", libc::SYS_mprotect, seal)?;
            Ok(agent)
        });
        if placed.is_err() {
            let gone = [base, len, 0, 0, 0, 0];
            call(leader, vdso_call, "munmap agent", libc::SYS_munmap, gone)?;
        }
        placed
    }

    /// For a guest, whose filter does not let it send itself what it reads from descriptors.
    pub fn done_by(self, signal: i32) -> Self {
        Self { done_signal: signal, ..self }
    }

    /// Makes `calls` in `thread`. `tgid` and `tid` are the ids that the process itself sees. Data
    /// slots must already have been turned into addresses by [`Agent::address`].
    pub fn run(&self, thread: &mut Thread, pid: i32, calls: &Calls, ids: Ids) -> Result<Results> {
        if calls.is_empty() {
            return Ok(Results { ops: Vec::new(), data: Vec::new() });
        }
        let s = thread.take()?;
        s.set_sigmask(signal::ALL & !signal::bit(self.done_signal))?;
        // A dead tracer must leave a program that goes on.
        let (regs, mask) = thread.abandoned();
        let batch = Batch {
            ops: self.scratch + OPS_AT,
            count: calls.ops.len() as u64,
            done: 0,
            tgid: ids.tgid as u64,
            tid: ids.tid as u64,
            done_signal: self.done_signal as u64,
            mask,
            regs,
        };
        let mut buf = bytes_of(&batch).to_vec();
        buf.resize(OPS_AT as usize, 0);
        for op in &calls.ops {
            buf.extend_from_slice(bytes_of(op));
        }
        memory::write(pid, self.scratch, &buf)?;
        memory::write(pid, self.scratch + DATA_AT, &calls.data)?;
        // With the segment bases of where it goes on: the agent does not set them.
        let mut regs =
            call_regs(&regs, self.entry(self.blob.batch), 0, [self.scratch, 0, 0, 0, 0, 0]);
        regs.rsp = (self.scratch + SCRATCH_BYTES) & !15;
        regs.eflags &= !0x400;
        s.set_regs(&regs)?;
        let done = Stop::Signal(self.done_signal);
        let mut s = to_stop(s.cont(0)?, done, &mut thread.group_stop)?;
        // Somebody else's signal of the same number, which its default action ignores anyway.
        while !sent_by_itself(&s, ids.tgid)? {
            s = to_stop(s.cont(0)?, done, &mut thread.group_stop)?;
        }
        thread.put_back(s);
        // The next batch, of another thread perhaps, overwrites what would lead back.
        thread.fall_back()?;
        self.collect(pid, calls)
    }

    fn collect(&self, pid: i32, calls: &Calls) -> Result<Results> {
        let mut raw = vec![0u8; std::mem::size_of::<Batch>()];
        memory::read(pid, self.scratch, &mut raw)?;
        let batch: Batch = from_bytes(&raw);
        let mut raw = vec![0u8; calls.ops.len() * std::mem::size_of::<BatchOp>()];
        memory::read(pid, self.scratch + OPS_AT, &mut raw)?;
        let ops: Vec<BatchOp> =
            raw.chunks_exact(std::mem::size_of::<BatchOp>()).map(from_bytes).collect();
        let mut data = vec![0; calls.data.len()];
        memory::read(pid, self.scratch + DATA_AT, &mut data)?;
        if let Some(i) = (0..(batch.done as usize).min(ops.len())).find(|&i| {
            ops[i].flags & batch_flags::STOP_ON_ERROR != 0 && ops[i].ret < 0 && ops[i].ret >= -4095
        }) {
            return Err(Error::Remote { what: calls.names[i], errno: -ops[i].ret as i32 });
        }
        Ok(Results { ops, data })
    }
}

/// Whether the signal that `s` stopped for is tgkill's, from the process itself.
fn sent_by_itself(s: &Stopped, tgid: i32) -> Result<bool> {
    const SI_TKILL: i32 = -6;
    let info = s.siginfo()?;
    let word = |at: usize| i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok(word(8) == SI_TKILL && word(16) == tgid)
}

/// A thread as its own process names it.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    pub tgid: i32,
    pub tid: i32,
}

pub fn page_up(n: u64) -> u64 {
    n.next_multiple_of(tcmi_sys::pages::PAGE_BYTES)
}

/// The bytes of a plain `repr(C)` value of integers.
pub fn bytes_of<T: Copy>(v: &T) -> &[u8] {
    // SAFETY: callers pass repr(C) structures of integers without padding.
    unsafe { std::slice::from_raw_parts((v as *const T).cast(), std::mem::size_of::<T>()) }
}

pub(crate) fn from_bytes<T: Copy>(b: &[u8]) -> T {
    assert!(b.len() >= std::mem::size_of::<T>());
    // SAFETY: enough bytes, and T is a structure of integers: any bits are a value.
    unsafe { std::ptr::read_unaligned(b.as_ptr().cast()) }
}
