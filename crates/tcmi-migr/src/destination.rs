//! The execution node's side of a move: build the guest up to COMMIT, and capture it for home.

use crate::error::{Error, Result};
use crate::fault::{self, Point};
use crate::files::Cache;
use crate::messages as msg;
use crate::pages::Incoming;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tcmi_call::abi::StewardArea;
use tcmi_ckpt::birth::{self, Guest, Newborn, ShutIn};
use tcmi_ckpt::blob::Blob;
use tcmi_ckpt::capture::{self, Files};
use tcmi_ckpt::descriptors;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::{
    AddressSpace, Backing, Clocks, FileRef, ProcessImage, Segment, SharedFile, Vma, vma_flags,
};
use tcmi_ckpt::live::{LiveFile, Window};
use tcmi_ckpt::mapped::joined;
use tcmi_ckpt::rebuild::Pages;
use tcmi_ckpt::remote::{self, Agent, page_up};
use tcmi_ckpt::signalfds;
use tcmi_ckpt::usage::Used;
use tcmi_kkc::{BulkReader, BulkWriter, Stream};
use tcmi_sys::maps::Mapping;
use tcmi_sys::seccomp::{self, Watches};
use tcmi_sys::{namespace, ptrace};

/// Mapped files of a guest: open here, known at home by their [`FileRef`].
#[derive(Default)]
pub struct GuestFiles {
    pub refs: Vec<FileRef>,
    open: Vec<File>,
    /// (st_dev major, minor, inode) of what is open here, and of memfds that stand for files.
    here: HashMap<(u32, u32, u64), (u32, u64)>,
    live: Vec<LiveFile>,
    /// By the index of a live file, that of the same to be read only.
    readers: HashMap<u32, u32>,
    /// Those of the live ones that other guests have, too, with what home has of them.
    shared: Vec<(SharedFile, File)>,
}

/// In place of a device, of what is no file.
const NO_DEVICE: u64 = u64::MAX;

impl GuestFiles {
    fn add(&mut self, r: FileRef, f: File) -> Result<u32> {
        let m = f.metadata().map_err(Error::io("stat a cached file"))?;
        let index = self.refs.len() as u32;
        let dev = (libc::major(m.dev()), libc::minor(m.dev()));
        self.here.insert((dev.0, dev.1, m.ino()), (index, 0));
        self.refs.push(r);
        self.open.push(f);
        Ok(index)
    }
    /// What is behind `memfd` becomes known as a live file. Where home can only read it, the guest
    /// cannot come to write to it, either.
    fn add_live(&mut self, r: &FileRef, memfd: File) -> Result<()> {
        let name = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let reader = File::open(name).map_err(Error::io("open a memfd to read"))?;
        let index = self.add(r.clone(), memfd)?;
        self.readers.insert(index, self.refs.len() as u32);
        self.refs.push(r.clone());
        self.open.push(reader);
        Ok(())
    }
    /// A memfd that holds the bytes of a file at home from `offset` on.
    pub fn add_memfd(&mut self, dev: (u32, u32), inode: u64, r: FileRef, offset: u64) {
        if self.here.contains_key(&(dev.0, dev.1, inode)) {
            return;
        }
        let known = self.refs.iter().position(|k| (k.dev, k.inode) == (r.dev, r.inode));
        let index = known.unwrap_or_else(|| {
            self.refs.push(r);
            self.refs.len() - 1
        });
        self.here.insert((dev.0, dev.1, inode), (index as u32, offset));
    }
    /// Fills the live ones with what home sends of them, which `vmas` map.
    fn receive_live(&mut self, files: &[FileRef], vmas: &[Vma], r: &mut BulkReader) -> Result<()> {
        for (i, wanted) in files.iter().enumerate().filter(|(_, f)| f.live) {
            let said: msg::Live = msg::expect(r)?;
            let index = self.index_of(wanted).filter(|_| said.index as usize == i);
            let index = index.ok_or(tcmi_ckpt::Error::Image("another live file than announced"))?;
            let memfd = self.open[index as usize].try_clone().map_err(Error::io("dup a memfd"))?;
            let kept = self.shared.iter().find(|(s, _)| s.is_of(wanted)).map(|(_, kept)| kept);
            let kept = kept.map(File::try_clone).transpose().map_err(Error::io("dup a memfd"))?;
            let both: Vec<&File> = [&memfd].into_iter().chain(&kept).collect();
            for part in &both {
                part.set_len(said.size).map_err(Error::io("size a live file"))?;
            }
            let (mut mapped, mut windows) = (Vec::new(), Vec::new());
            for v in vmas {
                let Backing::File { file, offset } = v.backing else { continue };
                if file != index && self.readers.get(&index) != Some(&file) {
                    continue;
                }
                let len = v.end - v.start;
                mapped.push(offset..offset + len);
                if v.flags & vma_flags::SHARED != 0 {
                    let is_writable = v.flags & vma_flags::MAY_WRITE != 0;
                    windows.push(Window { home: v.start, offset, len, is_writable });
                }
            }
            Incoming::new(r).receive_file(&both, &joined(&mapped))?;
            let msg::Live { dev, ino, .. } = said;
            self.live.push(LiveFile { memfd, kept, dev, ino, windows });
        }
        Ok(())
    }
    /// Segments that outlive their processes: what is stored there goes home as to a file.
    fn keep_lasting(&mut self, segments: &[Segment], fds: Vec<OwnedFd>) -> Result<()> {
        for (s, fd) in segments.iter().zip(fds).filter(|(s, _)| s.outlives) {
            let len = s.end - s.start;
            let window = Window { home: s.start, offset: s.offset, len, is_writable: true };
            match self.live.iter_mut().find(|f| (f.dev, f.ino) == (NO_DEVICE, s.id)) {
                Some(known) => known.windows.push(window),
                None => self.live.push(LiveFile {
                    memfd: fd.into(),
                    kept: None,
                    dev: NO_DEVICE,
                    ino: s.id,
                    windows: vec![window],
                }),
            }
        }
        Ok(())
    }
    /// To be served; at most once.
    pub fn take_live(&mut self) -> Vec<LiveFile> {
        std::mem::take(&mut self.live)
    }
    /// Device and inode here with the file at home and the offset of its first byte here.
    pub fn names(&self) -> HashMap<(u32, u32, u64), (FileRef, u64)> {
        let named = |(at, (index, offset)): (&_, &(u32, u64))| {
            self.refs.get(*index as usize).map(|file| (*at, (file.clone(), *offset)))
        };
        self.here.iter().filter_map(named).collect()
    }
    fn index_of(&self, r: &FileRef) -> Option<u32> {
        self.refs[..self.open.len()].iter().position(|k| k == r).map(|i| i as u32)
    }
    fn fds(&self) -> Vec<RawFd> {
        self.open.iter().map(AsRawFd::as_raw_fd).collect()
    }
    /// Home's mappings in this numbering.
    fn translate(&self, vmas: &[Vma], files: &[FileRef]) -> Result<Vec<Vma>> {
        vmas.iter()
            .map(|v| match v.backing {
                Backing::Anonymous => Ok(*v),
                Backing::File { file, offset } => {
                    let index = files.get(file as usize).and_then(|r| self.index_of(r));
                    let file = index.ok_or(tcmi_ckpt::Error::Image("a mapping of no file"))?;
                    let may_write = v.flags & (vma_flags::SHARED | vma_flags::MAY_WRITE);
                    let reader = self.readers.get(&file).filter(|_| may_write == vma_flags::SHARED);
                    let file = *reader.unwrap_or(&file);
                    Ok(Vma { backing: Backing::File { file, offset }, ..*v })
                }
            })
            .collect()
    }
}

impl Files for GuestFiles {
    fn is_alone(&self, _: &Mapping) -> bool {
        true
    }
    fn index(&mut self, m: &Mapping) -> tcmi_ckpt::Result<u32> {
        self.here
            .get(&(m.dev.0, m.dev.1, m.inode))
            .map(|(i, _)| *i)
            .ok_or_else(|| tcmi_ckpt::Error::unsupported(format!("a mapping of {}", m.name)))
    }
    fn offset(&self, m: &Mapping) -> u64 {
        let at = self.here.get(&(m.dev.0, m.dev.1, m.inode));
        m.offset + at.map_or(0, |(_, offset)| *offset)
    }
}

/// What the monitor has when a move begins.
pub struct Site<'a> {
    pub cache: Cache,
    /// A stream that home parked for this guest, by its id.
    pub claim: &'a mut dyn FnMut(u64) -> Result<Stream>,
    /// The segment with this id and size.
    pub segment: &'a mut dyn FnMut(u64, u64) -> Result<OwnedFd>,
    /// The memory with this id, of a shared file.
    pub shared_file: &'a mut dyn FnMut(u64) -> Result<OwnedFd>,
    /// Makes a process that waits, with home's pid, in namespaces and a root of its own.
    pub bear: &'a mut dyn FnMut(&msg::Begin) -> Result<i32>,
}

/// A guest that is complete and does not run.
pub struct Built {
    newborn: Newborn,
    pub image: ProcessImage,
    pub used: Used,
    pub rebinds: msg::Rebinds,
    pub memory_files: bool,
    pub listener: OwnedFd,
    /// Its number in the guest, where only the steward can close it.
    pub listener_there: i32,
    pub area: OwnedFd,
    /// Guest address of the steward's area.
    pub area_at: u64,
    /// Taken when serving begins.
    pub events: Option<Stream>,
    pub calls: Vec<(i32, Stream)>,
    pub files: GuestFiles,
    /// Of a guest that has live files, where this kernel gives one.
    pub userfault: Option<OwnedFd>,
    pub bytes: u64,
}

/// Builds a guest from what home sends. The caller has one thread.
///
/// Ok: Ready was sent; only [`Built::commit`] may let it run. Err: nothing is left of it.
pub fn build(w: &mut BulkWriter, r: &mut BulkReader, site: &mut Site) -> Result<Built> {
    let begin: msg::Begin = msg::expect(r)?;
    begin.check()?;
    fault::pass(Point::NodeBeginReceived)?;
    birth::expect_room_for(begin.pid)?;
    compare_clocks(w, r)?;
    let mut files = GuestFiles::default();
    for file in &begin.common.files {
        files.shared.push((*file, (site.shared_file)(file.kept)?.into()));
    }
    fetch(&mut files, &begin.files, w, r, site)?;
    let blob = Blob::built_in();
    let area_len = page_up(std::mem::size_of::<StewardArea>() as u64);
    let area = memfd(c"tcmi-steward", area_len)?;
    let segments = begin.common.segments.iter().map(|s| (site.segment)(s.id, s.bytes));
    let segments: Vec<OwnedFd> = segments.collect::<Result<_>>()?;
    // The child has what is open when it is made; what comes later goes this way.
    let post = UnixDatagram::pair().map_err(Error::io("socketpair"))?;
    let child = (site.bear)(&begin)?;
    let newborn = Newborn::take(child, begin.pid)?;
    let host = newborn.host_pid();
    let built = construct(newborn, &begin, files, (area, segments), post, &blob, w, r, site);
    if built.is_err() {
        // SAFETY: our own child, not yet reaped.
        unsafe { libc::kill(host, libc::SIGKILL) };
    }
    built
}

#[allow(clippy::too_many_arguments, reason = "one caller; these are the parts of one guest")]
fn construct(
    mut n: Newborn,
    begin: &msg::Begin,
    mut files: GuestFiles,
    (area, segments): (OwnedFd, Vec<OwnedFd>),
    post: (UnixDatagram, UnixDatagram),
    blob: &Blob,
    w: &mut BulkWriter,
    r: &mut BulkReader,
    site: &mut Site,
) -> Result<Built> {
    check_machine(&n, begin)?;
    // An injected failure makes this kernel's vDSO another one.
    let alike = fault::pass(Point::NodeVdsoCompared).is_ok() && n.has_vdso_of(&begin.mm)?;
    n.take_over(&begin.mm, blob, alike)?;
    let first = files.translate(&begin.mm.vmas, &begin.files)?;
    let mut there = files.fds();
    n.build_space(&[], &first, &there)?;
    let there_too: Vec<RawFd> = segments.iter().map(AsRawFd::as_raw_fd).collect();
    n.attach(&begin.common.segments, &there_too)?;
    files.keep_lasting(&begin.common.segments, segments)?;
    let reserved = begin.mm.reserved;
    n.place_steward(reserved, blob, area.as_raw_fd())?;
    let resident: Vec<_> = begin.resident.iter().map(|&(s, e)| s..e).collect();
    n.populate(&resident, &first)?;
    let events = (site.claim)(begin.events)?;
    let mut parked: HashMap<u64, Stream> = HashMap::new();
    for &id in &begin.calls {
        parked.insert(id, (site.claim)(id)?);
    }
    fault::pass(Point::NodePrepared)?;
    msg::send(w, &msg::Prepared {})?;

    let msg::State { image, calls, used, rebinds, memory_files } = msg::expect(r)?;
    image.mm.check()?;
    if image.pid != begin.pid || image.mm.reserved != reserved {
        return Err(tcmi_ckpt::Error::Image("another process than announced").into());
    }
    fault::pass(Point::NodeStateReceived)?;
    if image.files.iter().any(|f| files.index_of(f).is_none()) {
        fetch(&mut files, &image.files, w, r, site)?;
    }
    let want = files.translate(&image.mm.vmas, &image.files)?;
    files.receive_live(&image.files, &want, r)?;
    for late in files.open[there.len()..].chunks(1) {
        descriptors::send(&post.0, late)?;
        there.extend(descriptors::receive(&mut n.leader(), post.1.as_raw_fd(), 1)?);
    }
    n.build_space(&first, &want, &there)?;
    let into = Pages::open(n.host_pid(), &want)?;
    // A failure closes the stream: what home would still send would be for nothing.
    let bytes = Incoming::new(r).receive(&into, Point::NodePagesHalfReceived, &|_| {})?;
    n.protect_shared(&want)?;
    n.lock(&image.mm)?;
    fault::pass(Point::NodePagesReceived)?;
    let others: Vec<i32> =
        image.threads.iter().map(|t| t.tid).filter(|&t| t != image.pid).collect();
    n.create_threads(&others, begin.uid, begin.gid)?;
    let steward_end = reserved.0 + blob.header().steward_syscall_end;
    let has_live = !files.live.is_empty();
    let watches = Watches {
        live_files: has_live,
        segments: !begin.common.segments.is_empty(),
        signals: image.descriptor_signals,
    };
    n.done_by(signalfds::done_signal(image.descriptor_signals)?);
    let filter = seccomp::program(begin.pid, Some(steward_end), watches);
    let filter = filter.iter().flat_map(|i| remote::bytes_of(i).to_vec()).collect();
    let shut_in = ShutIn { uid: begin.uid, gid: begin.gid, filter };
    let userfault = if has_live { n.userfault()? } else { None };
    let (listener, listener_there) =
        n.restore(&image, Some(&shut_in))?.ok_or(tcmi_ckpt::Error::Ended)?;
    // Of threads that it began since, they were not announced.
    let claim = |(tid, id)| Ok((tid, parked.remove(&id).map_or_else(|| (site.claim)(id), Ok)?));
    let calls = calls.into_iter().map(claim).collect::<Result<Vec<_>>>()?;
    fault::pass(Point::NodeRestored)?;
    msg::send(w, &msg::Ready {})?;
    fault::pass(Point::NodeReadySent)?;
    let area_at = reserved.0 + page_up(blob.code_bytes() as u64);
    Ok(Built {
        newborn: n,
        image,
        used,
        rebinds,
        memory_files,
        listener,
        listener_there,
        area,
        area_at,
        events: Some(events),
        calls,
        files,
        userfault,
        bytes,
    })
}

/// Refuses what could not go on here: registers of another CPU.
fn check_machine(n: &Newborn, begin: &msg::Begin) -> Result<()> {
    let here = capture::xfeatures(&n.frozen.leader().stopped()?.xstate()?);
    match begin.xfeatures & !here {
        0 => Ok(()),
        lacking => Err(tcmi_ckpt::Error::unsupported(format!(
            "this node's CPU lacks register state that the process has (XCR0 {lacking:#x})"
        ))
        .into()),
    }
}

/// Asks for the files that are not in the cache and opens all.
fn fetch(
    files: &mut GuestFiles,
    wanted: &[FileRef],
    w: &mut BulkWriter,
    r: &mut BulkReader,
    site: &mut Site,
) -> Result<()> {
    let mut missing = Vec::new();
    for (i, f) in wanted.iter().enumerate() {
        if files.index_of(f).is_some() {
            continue;
        }
        if f.live {
            let memfd = match files.shared.iter().find(|(s, _)| s.is_of(f)) {
                Some((s, _)) => (site.shared_file)(s.id)?,
                None => memfd(c"home-file", 0)?,
            };
            files.add_live(f, memfd.into())?;
            continue;
        }
        match site.cache.open(f) {
            Some(open) => drop(files.add(f.clone(), open)?),
            None => missing.push(i as u32),
        }
    }
    msg::send(w, &msg::Need { files: missing.clone() })?;
    for index in missing {
        let sent: msg::File = msg::expect(r)?;
        if sent.index != index {
            return Err(tcmi_ckpt::Error::Image("another file than asked for").into());
        }
        let f = &wanted[index as usize];
        let open = site.cache.receive(f, r)?;
        files.add(f.clone(), open)?;
    }
    Ok(())
}

fn memfd(name: &CStr, len: u64) -> Result<OwnedFd> {
    // SAFETY: a C string; the descriptor is checked before it is owned.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(tcmi_sys::Errno::last("memfd_create").into());
    }
    // SAFETY: a new descriptor that nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain call.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len as i64) } < 0 {
        return Err(tcmi_sys::Errno::last("ftruncate").into());
    }
    Ok(fd)
}

impl Built {
    pub fn host_pid(&self) -> i32 {
        self.newborn.host_pid()
    }
    pub fn steward_tid(&self) -> Result<i32> {
        Ok(self.newborn.steward_tid()?)
    }
    /// The threads as this node numbers them, with their tids at home.
    pub fn threads(&self) -> Vec<(i32, i32)> {
        let home = self.newborn.tids().iter().copied();
        self.newborn.frozen.threads.iter().map(|t| t.tid).zip(home).collect()
    }
    /// Lets the steward run, for what is left to be done inside. Its tid on this node.
    pub fn run_steward(&mut self) -> Result<i32> {
        Ok(self.newborn.run_steward(&self.image, self.area_at)?)
    }
    /// Lets the guest run. Home has said Commit.
    pub fn run(self, steward: i32) -> Result<(Guest, ProcessImage, GuestFiles)> {
        // The guest must not see its clock go back: its offset was measured when the move began.
        wait_for_clocks(&self.image.clocks, clock_offsets());
        let guest = self.newborn.run(&self.image, steward)?;
        Ok((guest, self.image, self.files))
    }
    pub fn kill(self) {
        self.newborn.kill();
    }
    /// The agent that built the guest, for the steward to unmap: (start, bytes).
    pub fn builder(&self) -> (u64, u64) {
        (self.newborn.agent.base, self.newborn.agent.len)
    }
}

/// Until the clocks here, with `offsets`, show what the process has seen of them elsewhere: an
/// offset is known only to half the time of a question and its answer, and the coarse clock
/// follows at the next tick.
pub(crate) fn wait_for_clocks(seen: &Clocks, offsets: (i64, i64)) {
    // What the other node says is not waited for longer.
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let behind = Clocks::now(offsets).behind(seen);
        let left = until.saturating_duration_since(Instant::now());
        if behind <= 0 || left.is_zero() {
            return;
        }
        std::thread::sleep(Duration::from_nanos(behind as u64).min(left));
    }
}

/// What was added to this node's CLOCK_MONOTONIC and CLOCK_BOOTTIME for the guest, in nanoseconds.
static GUEST_CLOCKS: [AtomicI64; 2] = [const { AtomicI64::new(0) }; 2];

/// Sets the offsets. A guest whose clock lags wakes too early, by its own reckoning, from a sleep
/// that home ends; one whose clock is ahead sees it go back when it comes home, or waits.
fn compare_clocks(w: &mut BulkWriter, r: &mut BulkReader) -> Result<()> {
    let mut quickest = i64::MAX;
    for _ in 0..msg::CLOCK_QUESTIONS {
        let asked = namespace::clock(libc::CLOCK_MONOTONIC);
        msg::send(w, &msg::AskClock {})?;
        let home: msg::Clock = msg::expect(r)?;
        let here = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].map(namespace::clock);
        let took = here[0] - asked;
        if took < quickest {
            quickest = took;
            // Home looked in the middle, as far as we know.
            let home = [home.monotonic, home.boottime].map(|t| t.saturating_add(took / 2));
            for ((offset, home), here) in GUEST_CLOCKS.iter().zip(home).zip(here) {
                offset.store(home.saturating_sub(here), Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// What to add to this node's monotonic and boot-time clocks for the guest to be made, so that
/// its monotonic clock goes on from where home's was. Nanoseconds.
pub fn clock_offsets() -> (i64, i64) {
    let [monotonic, boottime] = &GUEST_CLOCKS;
    (monotonic.load(Ordering::Relaxed), boottime.load(Ordering::Relaxed))
}

/// A held guest with the agent that captures it.
pub struct Held {
    pub frozen: Frozen,
    agent: Agent,
    vdso_call: u64,
}

impl Held {
    /// `frozen` has the guest's own threads, without the steward. `home` is home's image.
    pub fn new(
        mut frozen: Frozen,
        home: &ProcessImage,
    ) -> std::result::Result<Self, (Frozen, Error)> {
        let (signals, home) = (home.descriptor_signals, &home.mm);
        let vdso = home.vdso;
        // Where home has another vDSO, this node's is in the reserved region.
        let made = frozen.step_out(&[vdso, home.reserved]).and_then(|()| {
            let call = remote::find_syscall(frozen.pid, vdso.0, vdso.1)?;
            let done = signalfds::done_signal(signals)?;
            let agent = Agent::inject(&mut frozen, call, &Blob::built_in(), 0, None)?;
            Ok((agent.done_by(done), call))
        });
        match made {
            Ok((agent, vdso_call)) => Ok(Self { frozen, agent, vdso_call }),
            Err(e) => Err((frozen, Error::Process(e))),
        }
    }
    /// The guest's image as home is to have it, and the runs of its own pages.
    pub fn capture(
        &mut self,
        names: &dyn Fn(i32) -> i32,
        files: &mut dyn Files,
        home: &AddressSpace,
    ) -> Result<(ProcessImage, Vec<std::ops::Range<u64>>)> {
        let host = self.frozen.pid;
        // What stands in the vDSO's place is made anew on each node.
        let theirs = (home.vvar.0, home.vdso.1);
        let maps: Vec<Mapping> = capture::mappings(host)?
            .iter()
            .flat_map(|m| capture::outside(m, home.reserved))
            .flat_map(|m| capture::outside(&m, theirs))
            .collect();
        let mut image = capture::capture(&mut self.frozen, &self.agent, names, &maps, files)?;
        image.mm.reserved = home.reserved;
        (image.mm.vvar, image.mm.vdso) = (home.vvar, home.vdso);
        image.mm.vdso_text.clone_from(&home.vdso_text);
        image.clocks = Clocks::now(clock_offsets());
        let runs = capture::own_pages(host, &image.mm.vmas)?;
        Ok((image, runs))
    }
    /// Ends the guest.
    pub fn end(self) -> Result<()> {
        let leader = self.frozen.pid;
        // SAFETY: plain call on our own child, which is not reaped yet.
        unsafe { libc::kill(leader, libc::SIGKILL) };
        ptrace::wait_for_end(leader)?;
        Ok(())
    }
    /// Lets the guest run on, traced.
    pub fn thaw(mut self) -> Result<()> {
        let args = [self.agent.base, self.agent.len, 0, 0, 0, 0];
        let leader = self.frozen.leader_mut();
        remote::call(leader, self.vdso_call, "munmap agent", libc::SYS_munmap, args)?;
        Ok(self.frozen.resume()?)
    }
}
