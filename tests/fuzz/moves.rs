//! What comes on a migration's bulk stream: messages, pages, files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use tcmi_call::record::DirectionKeys;
use tcmi_ckpt::copies::OpenCopy;
use tcmi_ckpt::devices::{Device, OpenDevice};
use tcmi_ckpt::image::{
    AddressSpace, Backing, Clocks, Common, FileRef, ProcessImage, ThreadImage, Vma,
};
use tcmi_ckpt::layout::{gap, reconcile};
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::rebuild::{Pages, thread_of};
use tcmi_ckpt::texts::{self, Gathered, Piece, Rest};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_kkc::codec::{self, Frame};
use tcmi_kkc::{BulkReader, BulkWriter, Stream, StreamKind};
use tcmi_migr::Error;
use tcmi_migr::fault::Point;
use tcmi_migr::files::Cache;
use tcmi_migr::messages::{self as msg, Message};
use tcmi_migr::pages::Incoming;
use tcmi_tests::Scratch;

const PAGE_BYTES: u64 = 4096;
const MESSAGE_BYTES_MAX: usize = 1 << 20;

fn layout() -> AddressSpace {
    let vma = |start: u64, end: u64, backing| Vma {
        start: start * PAGE_BYTES,
        end: end * PAGE_BYTES,
        prot: 3,
        backing,
        flags: 0,
    };
    AddressSpace {
        vmas: vec![
            vma(0x400, 0x410, Backing::File { file: 0, offset: 0 }),
            vma(0x410, 0x420, Backing::File { file: 0, offset: 0x10 * PAGE_BYTES }),
            vma(0x500, 0x600, Backing::Anonymous),
        ],
        auxv: vec![0; 64],
        vvar: (0x7000 * PAGE_BYTES, 0x7004 * PAGE_BYTES),
        vdso: (0x7004 * PAGE_BYTES, 0x7006 * PAGE_BYTES),
        reserved: (0x8000 * PAGE_BYTES, 0x8100 * PAGE_BYTES),
        ..AddressSpace::default()
    }
}

fn file_ref(bytes: &[u8]) -> FileRef {
    let last = bytes.len() as u64;
    let hash = *blake3::hash(bytes).as_bytes();
    let path = "/bin/true".into();
    FileRef { path, dev: 8, inode: 9, size: last, first: 0, last, hash, live: false }
}

fn thread() -> ThreadImage {
    ThreadImage {
        tid: 4242,
        comm: b"true".to_vec(),
        regs: vec![0; 27],
        xstate: vec![0; 576],
        mask: 0,
        altstack: (0, 2, 0),
        robust: (0, 24),
        clear_tid: 0,
        rseq: Some((PAGE_BYTES, 32, 7)),
        pending: vec![vec![0; 128]],
        sched_policy: 0,
        sched_priority: 0,
        nice: 0,
        timer_slack: 50_000,
    }
}

pub fn image() -> ProcessImage {
    ProcessImage {
        pid: 4242,
        comm: b"true".to_vec(),
        exe: "/bin/true".into(),
        uid: 1000,
        gid: 1000,
        personality: 0,
        no_huge_pages: false,
        mm: layout(),
        files: vec![file_ref(b"ELF")],
        threads: vec![thread()],
        descriptor_signals: 0,
        actions: Vec::new(),
        pending: Vec::new(),
        itimers: [(0, 0); 3],
        timers: Vec::new(),
        limits: vec![(7, 1024, 4096)],
        stopped_by: 0,
        clocks: Clocks { monotonic: 1, boottime: 1, coarse: 1 },
    }
}

fn begin() -> msg::Begin {
    msg::Begin {
        migration: 7,
        epoch: 1,
        pid: 4242,
        uid: 1000,
        gid: 1000,
        mm: layout(),
        files: vec![file_ref(b"ELF")],
        resident: vec![(0x500 * PAGE_BYTES, 0x501 * PAGE_BYTES)],
        xfeatures: 7,
        events: 1,
        calls: vec![2],
        common: Common::default(),
    }
}

fn rebinds() -> msg::Rebinds {
    let open = OpenDevice { fd: 3, device: Device::Zero, reads: true, writes: false };
    msg::Rebinds {
        processors: true,
        devices: Some(vec![open]),
        copied: vec!["/usr/share".to_owned()],
        open: vec![OpenCopy { fd: 4, position: 5 }],
        moved: vec!["/tmp/scratch".to_owned()],
    }
}

fn used() -> Used {
    let usage = Usage { user: 5, system: 6, ..Usage::default() };
    Used { process: usage, threads: vec![(4242, usage)], children: usage }
}

pub fn messages() -> Vec<Vec<u8>> {
    fn bytes<M: Message>(m: M) -> Vec<u8> {
        codec::encode(M::KIND, &m).expect("a small message")
    }
    vec![
        bytes(begin()),
        bytes(msg::Need { files: vec![0] }),
        bytes(msg::File { index: 0 }),
        bytes(msg::State {
            image: image(),
            calls: vec![(4242, 2)],
            used: used(),
            rebinds: rebinds(),
            memory_files: false,
        }),
        bytes(msg::Clock { monotonic: 1, boottime: 1 }),
        bytes(msg::Running { remote_pid: 3 }),
        bytes(msg::Failed { errno: 5, text: "no".into() }),
        bytes(msg::Capture { signals: 1, skip: vec![(4096, 8192)] }),
        bytes(msg::Image { image: image(), used: used() }),
        bytes(msg::Signal { signal: 9 }),
        bytes(msg::Ended { status: 9, why: "by the limit".into(), used: Usage::default() }),
        bytes(msg::Stats {
            calls: vec![msg::CallCount { nr: 0, calls: 1, errors: 0, us: 9, here: 2 }],
        }),
        bytes(msg::Poke { tid: 4242, seq: 1 }),
        bytes(msg::BeginThread { by: 4242 }),
        bytes(msg::Live { index: 0, size: 5000, dev: 8, ino: 9 }),
        bytes(msg::ThreadBegun { tid: 4243, stream: 7 }),
        bytes(msg::ThreadRefused {}),
        bytes(msg::Reach {
            number: 1,
            pid: 4242,
            began: 5,
            access: Access::Write { addr: 4096, bytes: vec![7; 9] },
        }),
        bytes(msg::Reach {
            number: 2,
            pid: 4242,
            began: 0,
            access: Access::Tell {
                file: texts::File::Maps,
                tid: Some(4243),
                fd: 3,
                rest: Some(Rest { text: [1; 32], from: 4096 }),
            },
        }),
        bytes(msg::Reached { number: 1, found: Found::Away { began: 5 } }),
        bytes(msg::Reached {
            number: 2,
            found: Found::Told(Piece { text: [1; 32], len: 9, bytes: vec![7; 9] }),
        }),
    ]
}

pub fn message(input: &[u8]) -> Result<String, String> {
    let frame = match codec::decode_frame(input, MESSAGE_BYTES_MAX) {
        Ok(frame) => frame,
        Err(e) => return Ok(format!("{e:?}")),
    };
    match frame.kind {
        msg::Begin::KIND => read::<msg::Begin>(&frame, |m| match m.check() {
            Ok(()) => Ok(format!("begin {}", arrange(&m.mm)?)),
            Err(e) => Ok(format!("begin {e}")),
        }),
        msg::State::KIND => read::<msg::State>(&frame, |m| process(&m.image)),
        msg::Image::KIND => read::<msg::Image>(&frame, |m| process(&m.image)),
        msg::Need::KIND => plain::<msg::Need>(&frame),
        msg::File::KIND => plain::<msg::File>(&frame),
        msg::Clock::KIND => plain::<msg::Clock>(&frame),
        msg::Running::KIND => plain::<msg::Running>(&frame),
        msg::Failed::KIND => plain::<msg::Failed>(&frame),
        msg::Capture::KIND => plain::<msg::Capture>(&frame),
        msg::Signal::KIND => plain::<msg::Signal>(&frame),
        msg::Ended::KIND => plain::<msg::Ended>(&frame),
        msg::Stats::KIND => plain::<msg::Stats>(&frame),
        msg::Poke::KIND => plain::<msg::Poke>(&frame),
        msg::BeginThread::KIND => plain::<msg::BeginThread>(&frame),
        msg::Live::KIND => plain::<msg::Live>(&frame),
        msg::ThreadBegun::KIND => plain::<msg::ThreadBegun>(&frame),
        msg::ThreadRefused::KIND => plain::<msg::ThreadRefused>(&frame),
        msg::Reach::KIND => read::<msg::Reach>(&frame, |m| Ok(format!("{:?}", m.access.check()))),
        msg::Reached::KIND => read::<msg::Reached>(&frame, |m| match &m.found {
            Found::Told(piece) => Ok(format!("told {:?}", Gathered::default().take(piece.clone()))),
            found => Ok(format!("{:?}", found.check())),
        }),
        _ => Ok("another kind".into()),
    }
}

fn plain<M: Message>(frame: &Frame) -> Result<String, String> {
    read::<M>(frame, |_| Ok(M::NAME.to_owned()))
}

/// Decodes, checks that there is one encoding, and goes on with `with`.
fn read<M: Message>(
    frame: &Frame,
    with: impl FnOnce(&M) -> Result<String, String>,
) -> Result<String, String> {
    let m: M = match frame.decode() {
        Ok(m) => m,
        Err(_) => return Ok(format!("bad {}", M::NAME)),
    };
    let again = codec::encode(M::KIND, &m).map_err(|e| format!("does not encode: {e}"))?;
    if !again.ends_with(&frame.body) {
        return Err(format!("two encodings of one {}", M::NAME));
    }
    with(&m)
}

fn process(image: &ProcessImage) -> Result<String, String> {
    let whole = thread_of(image, image.pid).is_ok();
    match image.mm.check() {
        Ok(()) => Ok(format!("process {whole} {}", arrange(&image.mm)?)),
        Err(e) => Ok(format!("process {whole} {e}")),
    }
}

/// What both ends do with a layout that they have checked.
pub fn arrange(mm: &AddressSpace) -> Result<String, String> {
    let have = layout().vmas;
    let forth = reconcile(&have, &mm.vmas);
    let back = reconcile(&mm.vmas, &have);
    if forth.len() > 2 * (have.len() + mm.vmas.len()) {
        return Err(format!("{} steps to {} mappings", forth.len(), mm.vmas.len()));
    }
    let mut taken: Vec<_> = mm.vmas.iter().map(|v| (v.start, v.end)).collect();
    taken.extend([mm.vvar, mm.vdso, mm.reserved]);
    if let Some(at) = gap(&taken, PAGE_BYTES)
        && taken.iter().any(|&(start, end)| at < end && start < at + PAGE_BYTES)
    {
        return Err(format!("the gap at {at:#x} is taken"));
    }
    Ok(format!("{} {}", forth.is_empty(), back.is_empty()))
}

fn end(fd: UnixStream) -> (BulkWriter, BulkReader) {
    let keys = || DirectionKeys { key: [1; 32], iv: [1; 12], pad: 0, seq: 0 };
    Stream { id: 1, kind: StreamKind::Bulk, fd: fd.into(), tx: keys(), rx: keys() }.into_bulk()
}

/// The reader of a stream on which just these bytes come.
fn incoming(bytes: &[u8]) -> Result<BulkReader, String> {
    let fail = |e: io::Error| format!("no stream: {e}");
    let (a, b) = UnixStream::pair().map_err(fail)?;
    let (mut w, _) = end(a);
    // It waits for nobody: the socket holds more than the longest input.
    w.write(bytes).and_then(|()| w.finish()).map_err(|e| format!("no stream: {e}"))?;
    Ok(end(b).1)
}

/// Memory that pages may come into, in the middle of as much again that they may not. At one
/// address in every run, so that an input means the same.
const ROOM: std::ops::Range<u64> = 0x10_0000_0000..0x10_0000_8000;
const AROUND: std::ops::Range<u64> = ROOM.start - 0x4000..ROOM.end + 0x4000;
const UNTOUCHED: u8 = 0x5a;

static MAPPED: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let len = (AROUND.end - AROUND.start) as usize;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: MAP_FIXED_NOREPLACE takes no address that is in use.
    let at = unsafe { libc::mmap(AROUND.start as *mut _, len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(format!("no room: {}", io::Error::last_os_error()));
    }
    // SAFETY: `len` writable bytes, just mapped, that nobody else refers to.
    unsafe { at.cast::<u8>().write_bytes(UNTOUCHED, len) };
    Ok(())
});

fn page_run(addr: u64, len: u64) -> Vec<u8> {
    let head = [addr, len].map(u64::to_le_bytes).concat();
    [head, vec![7; len as usize]].concat()
}

pub fn page_runs() -> Vec<Vec<u8>> {
    let end = page_run(0, 0);
    let first = page_run(ROOM.start, PAGE_BYTES);
    let failed = codec::encode(msg::Failed::KIND, &msg::Failed { errno: 5, text: "no".into() });
    vec![
        [&first[..], &page_run(ROOM.start + 0x2000, 0x2000), &end].concat(),
        [&first[..], &page_run(u64::MAX, 0), &failed.expect("a small message")].concat(),
        [&page_run(ROOM.end - 16, 32)[..], &end].concat(),
        [&page_run(ROOM.start - 16, 32)[..], &end].concat(),
        end,
    ]
}

pub fn pages(input: &[u8]) -> Result<String, String> {
    MAPPED.clone()?;
    let anonymous = Backing::Anonymous;
    let room = Vma { start: ROOM.start, end: ROOM.end, prot: 3, backing: anonymous, flags: 0 };
    let vmas = [room];
    let mut r = incoming(input)?;
    let me = std::process::id() as i32;
    let into = Pages::open(me, &vmas).map_err(|e| format!("no pages: {e}"))?;
    let mut pages = Incoming::new(&mut r);
    let outcome = match pages.receive(&into, Point::HomePagesHalfReceived, &|_| {}) {
        Ok(_) => "received".to_owned(),
        Err(e) => match pages.discard(e) {
            Error::PageRun { .. } => "a run that cannot be".to_owned(),
            Error::Peer { .. } => "the peer says so".to_owned(),
            e => e.to_string(),
        },
    };
    for around in [AROUND.start..ROOM.start, ROOM.end..AROUND.end] {
        let mut bytes = vec![0; (around.end - around.start) as usize];
        into.read(around.start, &mut bytes).map_err(|e| format!("cannot look: {e}"))?;
        if bytes.iter().any(|b| *b != UNTOUCHED) {
            return Err("pages came beside the mapping".into());
        }
    }
    Ok(outcome)
}

/// A message that names a file, and the bytes that come after it.
pub fn files() -> Vec<Vec<u8>> {
    [&b""[..], b"ELF", &[7; 40_000]]
        .map(|bytes| {
            let named = msg::Begin { files: vec![file_ref(bytes)], ..begin() };
            let head = codec::encode(msg::Begin::KIND, &named).expect("a small message");
            [&head[..], bytes].concat()
        })
        .to_vec()
}

pub fn file(input: &[u8]) -> Result<String, String> {
    let mut r = incoming(input)?;
    let Ok(begin) = msg::expect::<msg::Begin>(&mut r) else { return Ok("no message".into()) };
    let Some(f) = begin.files.first() else { return Ok("no file".into()) };
    let directory = Scratch::new("fuzz").map_err(|e| format!("no directory: {e}"))?;
    let open = File::open(directory.path()).map_err(|e| format!("no directory: {e}"))?;
    match Cache::new(OwnedFd::from(open)).receive(f, &mut r) {
        Err(e) => Ok(e.to_string()),
        Ok(kept) => {
            let len = kept.metadata().map_err(|e| format!("no size: {e}"))?.len();
            let mut bytes = vec![0; (f.last - f.first) as usize];
            kept.read_exact_at(&mut bytes, f.first).map_err(|e| format!("not whole: {e}"))?;
            match len == f.last && blake3::hash(&bytes).as_bytes() == &f.hash {
                true => Ok("kept".into()),
                false => Err("other bytes are kept than were named".into()),
            }
        }
    }
}
