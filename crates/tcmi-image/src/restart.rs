//! From an image to a process that runs.

use crate::error::{Error, Result};
use crate::format::Kind;
use crate::kernel;
use crate::open::{Opened, memfd, raise};
use crate::read::Image;
use crate::state::{Credentials, Open, Surroundings};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use tcmi_ckpt::birth::{Newborn, expect_room_for};
use tcmi_ckpt::blob::Blob;
use tcmi_ckpt::capture;
use tcmi_ckpt::image::{AddressSpace, FileRef, ProcessImage, vma_flags};
use tcmi_ckpt::layout::gap;
use tcmi_ckpt::rebuild::{self, Batcher, Pages};
use tcmi_sys::memory;

const CHUNK_BYTES: usize = 1 << 20;
/// Room for the vDSO of this kernel, beside that of the kernel that the process began on.
const OTHER_VDSO_BYTES: u64 = 256 << 10;

/// Makes the process of an image a child of ours, which runs when this returns. The caller has one
/// thread. With `truncate`, files that it writes and that have grown are cut back.
///
/// Ok: its pid. Err: nothing is left of it. Files are cut back last, when it only has to be let go.
pub fn restart(image: &Image, truncate: bool) -> Result<i32> {
    let process = &image.process;
    check_machine(image)?;
    process.threads.iter().try_for_each(|t| expect_room_for(t.tid))?;
    let opened = Opened::open(&image.surroundings, truncate)?;
    let mapped = mapped_files(image)?;
    let child = kernel::waiting_child(process.pid)?;
    build(child, image, &opened, &mapped).inspect_err(|_| kernel::end_child(child))
}

fn check_machine(image: &Image) -> Result<()> {
    let here = tcmi_sys::cpu::features()?;
    match image.origin.cpu.iter().find(|feature| !here.contains(feature)) {
        None => Ok(()),
        Some(lacking) => Err(Error::Changed(format!("the processor here lacks {lacking}"))),
    }
}

/// Descriptors of its mapped files: those here, if they have the same bytes where it has mapped
/// them, else what the image has of them.
fn mapped_files(image: &Image) -> Result<Vec<OwnedFd>> {
    let above = image.surroundings.descriptors.last().map_or(3, |d| d.fd + 1);
    let mut r = image.reader(Kind::Files);
    let mut all = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    for f in &image.process.files {
        let here = same_here(f);
        let copy = File::from(memfd(f.path.rsplit('/').next().unwrap_or("mapped"))?);
        for (at, n) in memory::parts(f.first..f.last, CHUNK_BYTES) {
            r.read(&mut chunk[..n])?;
            if here.is_none() {
                copy.write_all_at(&chunk[..n], at).map_err(Error::io("copy a mapped file"))?;
            }
        }
        all.push(raise(&here.unwrap_or(copy).into(), above)?);
    }
    r.finish()?;
    Ok(all)
}

fn same_here(f: &FileRef) -> Option<File> {
    let file = File::open(&f.path).ok()?;
    let is_same = file.metadata().is_ok_and(|m| m.is_file() && m.len() == f.size)
        && tcmi_ckpt::mapped::hash_range(&file, f.first, f.last).is_ok_and(|hash| hash == f.hash);
    is_same.then_some(file)
}

/// Err: the child is still there.
fn build(child: i32, image: &Image, opened: &Opened, mapped: &[OwnedFd]) -> Result<i32> {
    let (process, surroundings) = (&image.process, &image.surroundings);
    let mut n = Newborn::take(child, process.pid)?;
    let here = capture::xfeatures(&n.frozen.leader().stopped()?.xstate()?);
    if image.origin.xfeatures & !here != 0 {
        return Err(Error::Changed("the processor here lacks registers that it has".to_owned()));
    }
    let blob = Blob::built_in();
    let alike = n.has_vdso_of(&process.mm)?;
    let mm = match alike {
        true => process.mm.clone(),
        false => with_room(&process.mm)?,
    };
    n.take_over(&mm, &blob, alike)?;
    let fds: Vec<RawFd> = mapped.iter().map(AsRawFd::as_raw_fd).collect();
    n.build_space(&[], &mm.vmas, &fds)?;
    fill(&mut n, image)?;
    let others: Vec<i32> =
        process.threads.iter().map(|t| t.tid).filter(|tid| *tid != process.pid).collect();
    n.create_own_threads(&others).map_err(|e| taken(e, process))?;
    let exe = process.files.iter().position(|f| f.path == process.exe).map(|i| fds[i]);
    let mut b = n.leader();
    rebuild::set_mm(&mut b, &process.mm, exe)?;
    place(&mut b, surroundings, opened)?;
    n.restore(process, None)?;
    let threads: std::collections::HashMap<i32, (i32, i32, i32)> = process
        .threads
        .iter()
        .map(|t| (t.tid, (t.nice, t.sched_policy, t.sched_priority)))
        .collect();
    let is_root = rustix::process::geteuid().is_root();
    n.in_each_thread(&mut |b| {
        if let Some(&how) = threads.get(&b.tid()) {
            set_scheduling(b, how)?;
        }
        set_credentials(b, &surroundings.credentials, is_root)
    })?;
    let mut b = n.leader();
    let signal = [libc::PR_SET_PDEATHSIG as u64, surroundings.death_signal as u64, 0, 0, 0, 0];
    b.push("prctl death signal", libc::SYS_prctl, signal)?;
    let reaps = surroundings.is_subreaper.into();
    let args = [libc::PR_SET_CHILD_SUBREAPER as u64, reaps, 0, 0, 0, 0];
    b.push("prctl subreaper", libc::SYS_prctl, args)?;
    b.flush()?;
    opened.cut_back()?;
    Ok(n.run_freely(process)?)
}

/// Away from stacks, which may grow.
fn with_room(mm: &AddressSpace) -> Result<AddressSpace> {
    const GROWTH: u64 = 64 << 20;
    let grows = |flags: u32| if flags & vma_flags::GROWS_DOWN != 0 { GROWTH } else { 0 };
    let mut taken: Vec<_> =
        mm.vmas.iter().map(|v| (v.start.saturating_sub(grows(v.flags)), v.end)).collect();
    taken.extend([mm.vvar, mm.vdso]);
    let start = gap(&taken, OTHER_VDSO_BYTES)
        .ok_or_else(|| Error::Changed("it has no room for this kernel's vDSO".to_owned()))?;
    Ok(AddressSpace { reserved: (start, start + OTHER_VDSO_BYTES), ..mm.clone() })
}

fn taken(e: tcmi_ckpt::Error, process: &ProcessImage) -> Error {
    let is_there = |tid: &i32| std::path::Path::new(&format!("/proc/{tid}")).exists();
    let mut ids = process.threads.iter().map(|t| t.tid).filter(|tid| *tid != process.pid);
    match e {
        tcmi_ckpt::Error::Remote { errno: libc::EEXIST, .. } => {
            Error::Taken(ids.find(is_there).unwrap_or(process.pid))
        }
        e => e.into(),
    }
}

/// Its pages. What is damaged shows when all are written.
fn fill(n: &mut Newborn, image: &Image) -> Result<()> {
    let vmas = &image.process.mm.vmas;
    let runs: Vec<_> = image.runs.iter().map(|&(start, end)| start..end).collect();
    n.populate(&runs, vmas)?;
    let pages = Pages::open(n.host_pid(), vmas)?;
    let mut r = image.reader(Kind::Pages);
    let mut chunk = vec![0; CHUNK_BYTES];
    for run in runs {
        for (at, n) in memory::parts(run, CHUNK_BYTES) {
            r.read(&mut chunk[..n])?;
            pages.write(at, &chunk[..n])?;
        }
    }
    r.finish()?;
    n.protect_shared(vmas)?;
    n.lock(&image.process.mm)?;
    Ok(())
}

/// Gives it its descriptors, takes all others from it, and sets what belongs to its paths.
fn place(b: &mut Batcher, s: &Surroundings, opened: &Opened) -> Result<()> {
    b.push("fchdir", libc::SYS_fchdir, [opened.cwd.as_raw_fd() as u64, 0, 0, 0, 0, 0])?;
    b.push("umask", libc::SYS_umask, [s.umask.into(), 0, 0, 0, 0, 0])?;
    for d in &s.descriptors {
        let from = opened.opens[d.open as usize].as_raw_fd() as u64;
        let flags = if d.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
        b.push("dup3", libc::SYS_dup3, [from, d.fd as u64, flags, 0, 0, 0])?;
    }
    let mut free = 0;
    for fd in s.descriptors.iter().map(|d| d.fd as u64).chain([1 << 32]) {
        if fd > free {
            b.push("close_range", libc::SYS_close_range, [free, fd - 1, 0, 0, 0, 0])?;
        }
        free = fd + 1;
    }
    for d in &s.descriptors {
        let Open::Epoll { watches, .. } = &s.opens[d.open as usize] else { continue };
        let is_first = s.descriptors.iter().find(|other| other.open == d.open) == Some(d);
        for &(fd, events, data) in watches.iter().filter(|_| is_first) {
            watch(b, d.fd, fd, events, data)?;
        }
    }
    b.flush()?;
    Ok(())
}

fn watch(b: &mut Batcher, epoll: i32, fd: i32, events: u32, data: u64) -> Result<()> {
    // `struct epoll_event` is packed.
    let event = [&events.to_le_bytes()[..], &data.to_le_bytes()].concat();
    let at = b.data(&event)?;
    let args = [epoll as u64, libc::EPOLL_CTL_ADD as u64, fd as u64, at, 0, 0];
    b.push("epoll_ctl", libc::SYS_epoll_ctl, args)?;
    Ok(())
}

/// What its user may not have any more it does not get, as after a restart of anything.
fn set_scheduling(
    b: &mut Batcher,
    (nice, policy, priority): (i32, i32, i32),
) -> tcmi_ckpt::Result<()> {
    let at = b.data(&priority.to_le_bytes())?;
    let args = [0, policy as u64, at, 0, 0, 0];
    b.attempt("sched_setscheduler", libc::SYS_sched_setscheduler, args)?;
    let args = [libc::PRIO_PROCESS as u64, 0, nice as i64 as u64, 0, 0, 0];
    b.attempt("setpriority", libc::SYS_setpriority, args)?;
    Ok(())
}

/// Those of the image, or, without the right to give any, nothing that we do not have.
fn set_credentials(b: &mut Batcher, c: &Credentials, is_root: bool) -> tcmi_ckpt::Result<()> {
    let prctl = |option: i32, value: u64| [option as u64, value, 0, 0, 0, 0];
    if is_root {
        set_ids(b, c)?;
    }
    if c.no_new_privileges {
        let args = prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
        b.push("prctl no new privileges", libc::SYS_prctl, args)?;
    }
    let args = prctl(libc::PR_SET_DUMPABLE, c.dumpable.into());
    b.push("prctl dumpable", libc::SYS_prctl, args)?;
    Ok(())
}

fn set_ids(b: &mut Batcher, c: &Credentials) -> tcmi_ckpt::Result<()> {
    const CAPABILITY_VERSION_3: u64 = 0x2008_0522;
    const CAPABILITIES: u64 = 64;
    let prctl = |option: i32, value: u64| [option as u64, value, 0, 0, 0, 0];
    let [inheritable, permitted, effective, bounding] = c.capabilities;
    for n in (0..CAPABILITIES).filter(|n| bounding & (1 << n) == 0) {
        // Those that this kernel does not have, nobody has.
        b.attempt("prctl bounding set", libc::SYS_prctl, prctl(libc::PR_CAPBSET_DROP, n))?;
    }
    let groups: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let at = b.data(&groups)?;
    b.push("setgroups", libc::SYS_setgroups, [c.groups.len() as u64, at, 0, 0, 0, 0])?;
    let [real, effective_id, saved] = c.gids.map(u64::from);
    b.push("setresgid", libc::SYS_setresgid, [real, effective_id, saved, 0, 0, 0])?;
    b.push("prctl keep", libc::SYS_prctl, prctl(libc::PR_SET_KEEPCAPS, 1))?;
    let [real, effective_id, saved] = c.uids.map(u64::from);
    b.push("setresuid", libc::SYS_setresuid, [real, effective_id, saved, 0, 0, 0])?;
    let header = b.data(&CAPABILITY_VERSION_3.to_le_bytes())?;
    let sets = [effective, permitted, inheritable].map(|set| (set as u32, (set >> 32) as u32));
    let words: Vec<u32> = sets.iter().map(|s| s.0).chain(sets.iter().map(|s| s.1)).collect();
    let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let sets = b.data(&words)?;
    b.push("capset", libc::SYS_capset, [header, sets, 0, 0, 0, 0])?;
    b.push("prctl keep", libc::SYS_prctl, prctl(libc::PR_SET_KEEPCAPS, 0))?;
    Ok(())
}
