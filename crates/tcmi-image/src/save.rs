//! From a process that runs to an image of it in a file.

use crate::error::{Error, Result};
use crate::format::{FRONT_BYTES, Kind, Section, encode_front};
use crate::look::{self, Settings};
use crate::state::{Origin, Surroundings};
use crate::wire::encode;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tcmi_ckpt::blob::Blob;
use tcmi_ckpt::capture;
use tcmi_ckpt::freeze::{Frozen, begun_again};
use tcmi_ckpt::freezer::Freezer;
use tcmi_ckpt::image::{Backing, Common, ProcessImage, Vma, vma_flags};
use tcmi_ckpt::mapped::HomeFiles;
use tcmi_ckpt::rebuild::{Pages, registers_of};
use tcmi_ckpt::remote::{self, Agent, Calls, Ids, bytes_of};
use tcmi_ckpt::snapshot::Snapshot;
use tcmi_sys::memory;

const CHUNK_BYTES: usize = 1 << 20;
/// Largest part of a process that is copied into our memory while it is held.
const APART_BYTES_MAX: u64 = 1 << 30;

#[derive(Clone, Copy, Debug)]
pub struct Saved {
    /// For how long the process was held.
    pub held: Duration,
    pub bytes: u64,
}

/// Writes an image of `pid` into an empty file. The process runs on, also on Err; it is held while
/// its state is looked at, not while the file is written.
pub fn save(pid: i32, out: &File, by: &dyn Freezer) -> Result<Saved> {
    hash_in_passing(pid);
    let mut frozen = by.freeze(pid)?.trace()?;
    let since = Instant::now();
    let taken = take(&mut frozen);
    let thawed = frozen.thaw();
    let held = since.elapsed();
    let taken = taken?;
    let written = thawed.map_err(Error::from).and_then(|()| taken.write(out));
    taken.snapshot.end()?;
    Ok(Saved { held, bytes: written? })
}

/// What is hashed now is known when the process is held. What changes meanwhile is looked at then.
fn hash_in_passing(pid: i32) {
    let mut files = HomeFiles::in_passing(pid, &Common::default());
    let maps = capture::mappings(pid);
    if let Ok(maps) = maps
        && capture::space(&maps, (0, 0), &mut files).is_ok()
    {
        files.hash().ok();
    }
}

/// A process as it was at one instant.
struct Taken {
    origin: Origin,
    process: ProcessImage,
    surroundings: Surroundings,
    files: HomeFiles,
    snapshot: Snapshot,
    /// Runs of pages that the snapshot does not have.
    apart: Vec<(Range<u64>, Vec<u8>)>,
}

/// Leaves nothing in the process.
fn take(f: &mut Frozen) -> Result<Taken> {
    let maps = capture::mappings(f.pid)?;
    let reasons = look::of_mappings(&maps);
    if !reasons.is_empty() {
        return Err(Error::Unsupported(reasons));
    }
    let vdso = maps.iter().find(|m| m.name == "[vdso]").map(|m| (m.start, m.end));
    let vdso = vdso.ok_or_else(|| tcmi_ckpt::Error::unsupported("it has no vDSO"))?;
    let at = remote::find_syscall(f.pid, vdso.0, vdso.1)?;
    // What its code has in registers fits the data of this kernel only.
    f.step_out(&[vdso])?;
    let agent = Agent::inject(f, at, &Blob::built_in(), 0, None)?;
    let taken = take_with(f, &agent, &maps);
    let gone = [agent.base, agent.len, 0, 0, 0, 0];
    let removed = remote::call(f.leader_mut(), at, "munmap agent", libc::SYS_munmap, gone);
    match (taken, removed) {
        (Ok(taken), Err(e)) => {
            taken.snapshot.end_held(f)?;
            Err(e.into())
        }
        (taken, _) => taken,
    }
}

fn take_with(f: &mut Frozen, agent: &Agent, maps: &[tcmi_sys::maps::Mapping]) -> Result<Taken> {
    let pid = f.pid;
    let mut files = HomeFiles::of(pid, &Common::default());
    let mut process = capture::capture(f, agent, &|tid| tid, maps, &mut files)?;
    files.hash()?;
    process.files = files.refs.clone();
    // The agent's place is no part of the process.
    process.mm.reserved = (0, 0);
    for t in &mut process.threads {
        t.regs = capture::words(bytes_of(&begun_again(&registers_of(t)?)));
    }
    let origin = origin(f)?;
    let surroundings = look::surroundings(pid, settings(f, agent)?)?;
    let apart = apart(pid, &process.mm.vmas)?;
    let snapshot = Snapshot::take(f, agent)?;
    Ok(Taken { origin, process, surroundings, files, snapshot, apart })
}

fn origin(f: &Frozen) -> Result<Origin> {
    let line = |path: &str| {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        Ok::<_, Error>(text.trim().to_owned())
    };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(Origin {
        host: line("/proc/sys/kernel/hostname")?,
        kernel: line("/proc/sys/kernel/osrelease")?,
        // A clock before 1970 is set wrong, and no reason to keep no image.
        taken: since_epoch.map_or(0, |t| t.as_secs()),
        xfeatures: capture::xfeatures(&f.leader().stopped()?.xstate()?),
        cpu: tcmi_sys::cpu::features()?,
    })
}

fn settings(f: &mut Frozen, agent: &Agent) -> Result<Settings> {
    let pid = f.pid;
    let mut c = Calls::new();
    let signal = c.room(4);
    let args = |option: i32, at: u64| [option as u64, at, 0, 0, 0, 0];
    c.push("prctl", libc::SYS_prctl, args(libc::PR_GET_PDEATHSIG, agent.address(signal)));
    let subreaper = c.room(4);
    let at = agent.address(subreaper);
    c.push("prctl", libc::SYS_prctl, args(libc::PR_GET_CHILD_SUBREAPER, at));
    let dumpable = c.push("prctl", libc::SYS_prctl, args(libc::PR_GET_DUMPABLE, 0));
    let secure = c.push("prctl", libc::SYS_prctl, args(libc::PR_GET_SECUREBITS, 0));
    let r = agent.run(f.leader_mut(), pid, &c, Ids { tgid: pid, tid: pid })?;
    if r.ret(secure) != 0 {
        return Err(Error::Unsupported(vec!["secure bits that are set".to_owned()]));
    }
    let word = |slot| r.bytes(slot).first_chunk().map_or(0, |b| i32::from_le_bytes(*b));
    Ok(Settings {
        death_signal: word(signal),
        is_subreaper: word(subreaper) != 0,
        dumpable: r.ret(dumpable) == 1,
    })
}

/// A child of the process has other pages there, or shares them with it.
fn is_apart(v: &Vma) -> bool {
    let unlike = vma_flags::DONT_FORK | vma_flags::WIPE_ON_FORK;
    let shared = v.flags & vma_flags::SHARED != 0 && v.backing == Backing::Anonymous;
    shared || v.flags & unlike != 0
}

fn apart(pid: i32, vmas: &[Vma]) -> Result<Vec<(Range<u64>, Vec<u8>)>> {
    let ours: Vec<Vma> = vmas.iter().filter(|v| is_apart(v)).copied().collect();
    let runs = capture::own_pages(pid, &ours)?;
    let total: u64 = runs.iter().map(|r| r.end - r.start).sum();
    if total > APART_BYTES_MAX {
        let why = format!("{} MiB of memory that a child of it would not have", total >> 20);
        return Err(Error::Unsupported(vec![why]));
    }
    let pages = Pages::open(pid, vmas)?;
    let read = |r: Range<u64>| {
        let mut bytes = vec![0; (r.end - r.start) as usize];
        pages.read(r.start, &mut bytes)?;
        Ok((r, bytes))
    };
    runs.into_iter().map(read).collect()
}

impl Taken {
    /// The length of the image.
    fn write(&self, out: &File) -> Result<u64> {
        let mut w = Writer::new(out)?;
        w.state(Kind::Origin, &encode(&self.origin))?;
        w.state(Kind::Process, &encode(&self.process))?;
        w.state(Kind::Surroundings, &encode(&self.surroundings))?;
        let runs = self.runs()?;
        let ends: Vec<(u64, u64)> = runs.iter().map(|r| (r.start, r.end)).collect();
        w.state(Kind::Runs, &encode(&ends))?;
        w.section(Kind::Pages, |w| self.write_pages(&runs, w))?;
        w.section(Kind::Files, |w| self.write_files(w))?;
        w.finish()
    }

    fn runs(&self) -> Result<Vec<Range<u64>>> {
        let inherited: Vec<Vma> =
            self.process.mm.vmas.iter().filter(|v| !is_apart(v)).copied().collect();
        let mut runs = capture::own_pages(self.snapshot.pid(), &inherited)?;
        runs.extend(self.apart.iter().map(|(r, _)| r.clone()));
        runs.sort_unstable_by_key(|r| r.start);
        Ok(runs)
    }

    fn write_pages(&self, runs: &[Range<u64>], w: &mut Hashing) -> Result<()> {
        let pages = Pages::open(self.snapshot.pid(), &self.process.mm.vmas)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        for run in runs {
            if let Some((_, bytes)) = self.apart.iter().find(|(r, _)| r == run) {
                w.write(bytes)?;
                continue;
            }
            for (at, n) in memory::parts(run.clone(), CHUNK_BYTES) {
                pages.read(at, &mut chunk[..n])?;
                w.write(&chunk[..n])?;
            }
        }
        Ok(())
    }

    fn write_files(&self, w: &mut Hashing) -> Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        for (r, f) in self.process.files.iter().zip(&self.files.open) {
            let mut own = blake3::Hasher::new();
            for (at, n) in memory::parts(r.first..r.last, CHUNK_BYTES) {
                f.read_exact_at(&mut chunk[..n], at).map_err(Error::io(&r.path))?;
                own.update(&chunk[..n]);
                w.write(&chunk[..n])?;
            }
            if own.finalize() != r.hash {
                return Err(Error::Changed(format!("its mapped file {} changes", r.path)));
            }
        }
        Ok(())
    }
}

/// Writes sections one after the other, and what is in front of them at the end.
struct Writer<'a> {
    file: &'a File,
    out: BufWriter<&'a File>,
    sections: Vec<Section>,
    at: u64,
}

/// A section that is being written.
struct Hashing<'a, 'b> {
    out: &'a mut BufWriter<&'b File>,
    hash: blake3::Hasher,
    len: u64,
}

impl Hashing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        self.out.write_all(bytes).map_err(Error::io(WRITING))
    }
}

const WRITING: &str = "write the image";

impl<'a> Writer<'a> {
    fn new(file: &'a File) -> Result<Self> {
        let mut out = BufWriter::with_capacity(CHUNK_BYTES, file);
        out.write_all(&[0; FRONT_BYTES]).map_err(Error::io(WRITING))?;
        Ok(Self { file, out, sections: Vec::new(), at: FRONT_BYTES as u64 })
    }
    fn state(&mut self, kind: Kind, bytes: &[u8]) -> Result<()> {
        self.section(kind, |w| w.write(bytes))
    }
    fn section(
        &mut self,
        kind: Kind,
        write: impl FnOnce(&mut Hashing) -> Result<()>,
    ) -> Result<()> {
        let mut w = Hashing { out: &mut self.out, hash: blake3::Hasher::new(), len: 0 };
        write(&mut w)?;
        let (len, hash) = (w.len, *w.hash.finalize().as_bytes());
        self.sections.push(Section { kind, offset: self.at, len, hash });
        self.at += len;
        Ok(())
    }
    fn finish(mut self) -> Result<u64> {
        self.out.flush().map_err(Error::io(WRITING))?;
        let front = encode_front(&self.sections);
        self.file.write_all_at(&front, 0).map_err(Error::io(WRITING))?;
        self.file.sync_all().map_err(Error::io(WRITING))?;
        Ok(self.at)
    }
}
