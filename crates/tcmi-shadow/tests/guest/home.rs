//! The agent's part, played by a process of its own: executes frames as they come.

use std::cell::UnsafeCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tcmi_call::frame::{
    CallHeader, OutRange, ReplyHeader, SignalFrame, call_flags, kind, out_rule, reply_flags,
};
use tcmi_call::record::DirectionKeys;
use tcmi_shadow::CallStream;

use crate::rig::{Board, sys};

struct Outbox(UnsafeCell<Option<CallStream>>);
// SAFETY: used by the signal handler only, which runs in one thread at a time (EVENTS_BUSY).
unsafe impl Sync for Outbox {}

static EVENTS: Outbox = Outbox(UnsafeCell::new(None));
static EVENTS_BUSY: AtomicBool = AtomicBool::new(false);
static SIGNALS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static INTERRUPTED: AtomicBool = const { AtomicBool::new(false) };
}

pub fn set_events(stream: CallStream) {
    // SAFETY: before any handler is installed.
    unsafe { *EVENTS.0.get() = Some(stream) };
}

/// A signal takes the waiting call back, as the keeper does before a move.
fn cancelling() -> bool {
    crate::rig::board().cancel.load(Ordering::Acquire) != 0
}

extern "C" fn on_signal(signo: i32, info: *const [u8; 128], _: *mut libc::c_void) {
    if cancelling() {
        return INTERRUPTED.with(|i| i.store(true, Ordering::Relaxed));
    }
    while EVENTS_BUSY.swap(true, Ordering::Acquire) {
        std::hint::spin_loop();
    }
    // SAFETY: the kernel gives a siginfo of 128 bytes.
    let siginfo = unsafe { *info };
    let code = i32::from_le_bytes([siginfo[8], siginfo[9], siginfo[10], siginfo[11]]);
    let seq = SIGNALS.load(Ordering::Relaxed) + 1;
    let frame = SignalFrame {
        len: 144,
        kind: kind::SIGNAL,
        pad: 0,
        seq,
        signo: signo as u32,
        tid: if code == libc::SI_TKILL {
            crate::rig::board().guest_tid_of_home(sys(186, &[]))
        } else {
            0
        },
        pad2: 0,
        siginfo,
    };
    // SAFETY: EVENTS_BUSY is ours.
    let stream = unsafe { (*EVENTS.0.get()).as_mut() };
    if let Some(stream) = stream {
        stream.send([frame.as_bytes(), &[]]).expect("the monitor listens");
    }
    SIGNALS.store(seq, Ordering::Release);
    EVENTS_BUSY.store(false, Ordering::Release);
    INTERRUPTED.with(|i| i.store(true, Ordering::Relaxed));
}

fn handle(signo: i32) {
    // SAFETY: an all-zero sigaction is valid; the handler has the SA_SIGINFO signature.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signo, &action, std::ptr::null_mut()), 0);
    }
}

pub fn mask(how: i32) {
    // SAFETY: sigset of our own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::sigaddset(&mut set, libc::SIGUSR2);
        assert_eq!(libc::pthread_sigmask(how, &set, std::ptr::null_mut()), 0);
    }
}

/// Serves one stream until the monitor closes it.
pub fn serve(fd: OwnedFd, tx: &DirectionKeys, rx: &DirectionKeys, board: &Board, index: usize) {
    mask(libc::SIG_BLOCK);
    let mut stream = CallStream::new(fd, tx, rx);
    board.home_tids[index].store(sys(186, &[]) as u32, Ordering::Release);
    while let Ok(head) = stream.take(CallHeader::BYTES) {
        let header = CallHeader::from_bytes(head).expect("a whole header");
        let Ok(rest) = stream.take(header.len as usize) else { return };
        let rest = rest.to_vec();
        match header.kind {
            kind::CALL => execute(&mut stream, &header, &rest),
            kind::DISPOSITION => {
                handle(header.args[0] as i32);
                reply(&mut stream, &header, 0, 0, &[], &[]);
            }
            _ => return,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
}

/// A call's bytes, with nothing behind their last page.
struct Buffer {
    at: *mut libc::c_void,
    len: usize,
}

const PAGE: usize = 4096;

impl Buffer {
    fn new(len: usize) -> Buffer {
        let room = len.next_multiple_of(PAGE) + PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, of which the last page is taken away.
        unsafe {
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), room, rw, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(at.add(room - PAGE), PAGE, libc::PROT_NONE), 0);
            Buffer { at, len }
        }
    }

    fn start(&self, hole: bool) -> u64 {
        let before = if hole { self.len.next_multiple_of(PAGE) - self.len } else { 0 };
        self.at as u64 + before as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.at, self.len.next_multiple_of(PAGE) + PAGE) };
    }
}

fn execute(stream: &mut CallStream, header: &CallHeader, rest: &[u8]) {
    let (fixups, rest) = rest.split_at(4 * usize::from(header.fixups));
    let (outs, image) = rest.split_at(OutRange::BYTES * usize::from(header.outs));
    assert_eq!(image.len(), header.in_len as usize);
    let buffer = Buffer::new(header.buf_len as usize);
    let base = buffer.start(header.flags & call_flags::HOLE != 0);
    // SAFETY: the mapping has at least buf_len bytes from there and lives to the end of the
    // function.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base as *mut u8, header.buf_len as usize) };
    bytes[..image.len()].copy_from_slice(image);
    for fixup in fixups.chunks(4) {
        let at = u32_at(fixup, 0);
        let offset = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        assert!(offset <= u64::from(header.buf_len));
        bytes[at..at + 8].copy_from_slice(&(base + offset).to_le_bytes());
    }
    let mut args = header.args;
    for (i, arg) in args.iter_mut().enumerate() {
        if header.ptr_args >> i & 1 != 0 {
            assert!(*arg <= u64::from(header.buf_len));
            *arg += base;
        }
    }
    INTERRUPTED.with(|i| i.store(false, Ordering::Relaxed));
    mask(libc::SIG_UNBLOCK);
    let early = INTERRUPTED.with(|i| i.load(Ordering::Relaxed));
    let ret = if early { -i64::from(libc::EINTR) } else { sys(i64::from(header.nr), &args) };
    mask(libc::SIG_BLOCK);
    let hit = INTERRUPTED.with(|i| i.load(Ordering::Relaxed));
    let mut flags = 0;
    if hit && cancelling() && ret == -i64::from(libc::EINTR) {
        flags |= reply_flags::CANCELLED;
    } else if hit {
        flags |= reply_flags::INTERRUPTED;
    }
    if early {
        flags |= reply_flags::NOT_STARTED;
    }
    let (mut lens, mut data) = (Vec::new(), Vec::new());
    for out in outs.chunks(OutRange::BYTES) {
        let out = OutRange::from_bytes(out).expect("a whole range");
        let n = carried(&out, ret, bytes);
        lens.extend((n as u32).to_le_bytes());
        data.extend_from_slice(&bytes[out.off as usize..][..n]);
    }
    reply(stream, header, ret, flags, &lens, &data);
}

fn carried(out: &OutRange, ret: i64, bytes: &[u8]) -> usize {
    let len = out.len as usize;
    let all_if = |yes| if yes { len } else { 0 };
    match out.rule {
        out_rule::ALWAYS => len,
        out_rule::ON_SUCCESS => all_if(ret >= 0),
        out_rule::BY_RETURN => len.min(ret.max(0) as usize * out.arg as usize),
        out_rule::BY_LENGTH if ret >= 0 => len.min(u32_at(bytes, out.arg as usize)),
        out_rule::BY_LENGTH => 0,
        out_rule::ON_SUCCESS_OR_EINTR => all_if(ret >= 0 || ret == -i64::from(libc::EINTR)),
        rule => panic!("unknown rule {rule}"),
    }
}

fn reply(stream: &mut CallStream, to: &CallHeader, ret: i64, flags: u16, lens: &[u8], data: &[u8]) {
    let header = ReplyHeader {
        len: (lens.len() + data.len()) as u32,
        kind: kind::REPLY,
        flags,
        seq: to.seq,
        ret,
        signals: SIGNALS.load(Ordering::Acquire),
        outs: to.outs,
        pad: 0,
    };
    let head = [header.as_bytes(), lens].concat();
    stream.send([&head, data]).ok();
}
