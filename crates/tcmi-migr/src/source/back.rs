//! The shadow becomes the process again.

use crate::error::{Error, Result};
use crate::fault::{self, Point};
use crate::pages::Incoming;
use crate::source::{Attached, Watch};
use std::collections::BTreeMap;
use std::fs::File;
use tcmi_ckpt::capture::{self, Files};
use tcmi_ckpt::descriptors::Way;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::image::{Backing, FileRef, ProcessImage, Vma};
use tcmi_ckpt::layout::{Step, reconcile};
use tcmi_ckpt::mapped::id_of;
use tcmi_ckpt::rebuild::{self, Batcher, Pages};
use tcmi_ckpt::remote::Ids;
use tcmi_ckpt::signalfds;
use tcmi_kkc::BulkReader;
use tcmi_sys::maps::Mapping;

/// Files of the shadow's mappings, by device and inode, in the image's numbering.
struct Known<'a> {
    refs: &'a [FileRef],
    other: Vec<(u64, u64)>,
}

impl Files for Known<'_> {
    fn is_alone(&self, m: &Mapping) -> bool {
        // It moved with all who share it.
        capture::is_shared_at_home(m)
    }
    fn index(&mut self, m: &Mapping) -> tcmi_ckpt::Result<u32> {
        let id = id_of(m);
        let known = self.refs.iter().position(|r| (r.dev, r.inode) == id);
        Ok(known.unwrap_or_else(|| {
            // A file that the guest no longer maps: any number that no image has.
            self.other.push(id);
            self.refs.len() + self.other.len()
        }) as u32)
    }
}

/// Rebuilds the held shadow from the guest's image, whose pages follow on `r`.
///
/// Ok: the process is whole but for its general registers, the agent still mapped. Err: it is a
/// shadow whose memory is worthless; the guest still exists, and `r` stands after its pages
/// unless the stream itself failed.
pub fn rebuild_at_home(
    f: &mut Frozen,
    a: &Attached,
    image: &ProcessImage,
    r: &mut BulkReader,
    watch: &dyn Watch,
) -> Result<u64> {
    let mut pages = Incoming::new(r);
    rebuild_with(f, a, image, &mut pages, watch).map_err(|e| pages.discard(e))
}

fn rebuild_with(
    f: &mut Frozen,
    a: &Attached,
    image: &ProcessImage,
    pages: &mut Incoming,
    watch: &dyn Watch,
) -> Result<u64> {
    image.mm.check()?;
    let pid = f.pid;
    let me = Ids { tgid: pid, tid: pid };
    let mut files = Known { refs: &image.files, other: Vec::new() };
    let maps = capture::mappings(pid)?;
    let have = capture::space(&maps, a.reserved(), &mut files)?.vmas;
    let want = &image.mm.vmas;
    let steps = reconcile(&have, want);
    let opened = open_files(f, a, image, &maps, &steps)?;
    let fd_of = |file: u32| {
        opened.get(&file).copied().ok_or(tcmi_ckpt::Error::Image("a mapping of an unknown file"))
    };
    let mut b = Batcher::new(&a.agent, f.leader_mut(), pid, me);
    rebuild::apply(&mut b, &steps, &fd_of)?;
    for fd in opened.values() {
        b.push("close", libc::SYS_close, [*fd as u64, 0, 0, 0, 0, 0])?;
    }
    b.flush()?;
    rebuild::open_shared(&mut b, want)?;
    let into = Pages::open(pid, want)?;
    let total = resident(want);
    let got = |n| watch.memory(n, total.max(n));
    let bytes = pages.receive(&into, Point::HomePagesHalfReceived, &got)?;
    fault::pass(Point::HomeImageReceived)?;
    let readable = signalfds::of(pid)?;
    let timers: Vec<i32> = tcmi_sys::proc::timers(pid)?.iter().map(|t| t.id).collect();
    let mut b = Batcher::new(&a.agent, f.leader_mut(), pid, me);
    rebuild::lock(&mut b, &image.mm)?;
    rebuild::protect_shared(&mut b, want)?;
    rebuild::set_mm(&mut b, &image.mm, None)?;
    rebuild::set_process(&mut b, image, &timers, readable)?;
    b.flush()?;
    for t in &mut f.threads {
        let tid = t.tid;
        let state = rebuild::thread_of(image, tid)?;
        let mut b = Batcher::new(&a.agent, t, pid, Ids { tgid: pid, tid });
        rebuild::set_thread(&mut b, state)?;
        b.flush()?;
        // Nothing that comes now touches the vector registers.
        t.stopped()?.set_xstate(&state.xstate)?;
    }
    fault::pass(Point::HomeRebuilt)?;
    Ok(bytes)
}

fn resident(vmas: &[Vma]) -> u64 {
    vmas.iter().map(|v| v.end - v.start).sum()
}

/// Opens in the process the files of mappings that the shadow has no longer.
fn open_files(
    f: &mut Frozen,
    a: &Attached,
    image: &ProcessImage,
    maps: &[Mapping],
    steps: &[Step],
) -> Result<BTreeMap<u32, i32>> {
    let pid = f.pid;
    let mut fds = BTreeMap::new();
    let missing = || tcmi_ckpt::Error::Image("a mapping of an unknown file");
    for step in steps {
        let Step::Map(Vma { backing: Backing::File { file, .. }, .. }) = step else { continue };
        if fds.contains_key(file) {
            continue;
        }
        let r = image.files.get(*file as usize).ok_or_else(missing)?;
        if r.live {
            fds.insert(*file, pass_live(f, a, r, maps)?);
            continue;
        }
        let mut b = Batcher::new(&a.agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid });
        let mut path = path_of(r, maps)?.as_bytes().to_vec();
        path.push(0);
        let at = b.data(&path)?;
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
        let args = [libc::AT_FDCWD as u64, at, flags, 0, 0, 0];
        let op = b.push("open a mapped file", libc::SYS_openat, args)?;
        let fd = b.flush()?.ret(op) as i32;
        fds.insert(*file, fd);
        use std::os::unix::fs::MetadataExt;
        let m = std::fs::metadata(format!("/proc/{pid}/fd/{fd}"))
            .map_err(Error::io("stat a mapped file"))?;
        let dev = u64::from(libc::major(m.dev())) << 32 | u64::from(libc::minor(m.dev()));
        if (dev, m.ino()) != (r.dev, r.inode) {
            return Err(tcmi_ckpt::Error::Image("a mapped file is another one now").into());
        }
    }
    Ok(fds)
}

/// A live file that is mapped elsewhere now, by the mapping that the shadow has of it: it may have
/// no name. Opened with our rights, and so only what the process itself has mapped for writing.
fn pass_live(f: &mut Frozen, a: &Attached, r: &FileRef, maps: &[Mapping]) -> Result<i32> {
    let lost = || tcmi_ckpt::Error::Image("a mapping of a lost file");
    let m = maps
        .iter()
        .find(|m| capture::is_live(m) && id_of(m) == (r.dev, r.inode))
        .ok_or_else(lost)?;
    let path = format!("/proc/{}/map_files/{:x}-{:x}", f.pid, m.start, m.end);
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(Error::io("open a live file"))?;
    let pid = f.pid;
    let mut b = Batcher::new(&a.agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid });
    let passed = Way::with(&mut b, |b, way| way.pass(b, std::slice::from_ref(&file)))?;
    Ok(*passed.first().ok_or_else(lost)?)
}

/// Of a file that the guest mapped, home knows the name by its own mapping of it.
fn path_of<'a>(r: &'a FileRef, maps: &'a [Mapping]) -> Result<&'a str> {
    if !r.path.is_empty() {
        return Ok(&r.path);
    }
    let mapped = maps.iter().find(|m| id_of(m) == (r.dev, r.inode));
    Ok(mapped
        .map(|m| m.name.as_str())
        .ok_or(tcmi_ckpt::Error::Image("a mapping of a lost file"))?)
}
