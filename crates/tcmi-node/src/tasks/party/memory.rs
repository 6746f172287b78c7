//! What the held processes of a party share, and who sends it.

use std::collections::{HashMap, HashSet};

use tcmi_ckpt::capture;
use tcmi_ckpt::image::{Common, Segment, SharedFile};
use tcmi_ckpt::mapped;
use tcmi_ckpt::sysv;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_sys::maps::{self, Mapping, Object};

use super::{Inner, Party};

/// Mappings of memory that is shared, by who has them.
type Found = Vec<(Pid, Vec<Mapping>)>;

/// Parts of memory that somebody sends.
#[derive(Default)]
struct Sent(HashMap<u64, Vec<(u64, u64)>>);

impl Sent {
    /// Whether nobody sends this part yet: then who asks does.
    fn is_new(&mut self, id: u64, m: &Mapping) -> bool {
        let (from, to) = (m.offset, m.offset + m.len());
        let known = self.0.entry(id).or_default();
        let is_new = !known.iter().any(|k| k.0 <= from && to <= k.1);
        if is_new {
            known.push((from, to));
        }
        is_new
    }
}

impl Party {
    /// Finds what the held processes share, and shares out who sends what.
    pub(super) fn share_out(&self, inner: &mut Inner) -> Result<(), MigrateError> {
        let found: Found = inner.members.keys().map(|pid| (*pid, shared_by(pid.raw()))).collect();
        let files = shared_files(inner.members.keys().copied());
        let outlives = self.lasting(&found).map_err(|e| self.explain(inner, e.into()))?;
        self.expect_no_strangers(inner, &[&found, &files])?;
        // By object, its id and how far it is mapped.
        let mut known: HashMap<Object, (u64, u64)> = HashMap::new();
        for m in found.iter().chain(&files).flat_map(|(_, maps)| maps) {
            let new = || (self.shared.next_migration(), 0);
            let (_, bytes) = known.entry(m.object()).or_insert_with(new);
            *bytes = (*bytes).max(m.offset + m.len());
        }
        let (mut sent, mut kept) = (Sent::default(), HashMap::new());
        for ((pid, maps), (_, files)) in found.iter().zip(&files) {
            let segment = |m: &Mapping| {
                let (id, bytes) = known[&m.object()];
                let (start, end, offset) = (m.start, m.end, m.offset);
                let (is_sent, outlives) = (sent.is_new(id, m), outlives.contains(&m.object()));
                Segment { id, start, end, offset, bytes, is_sent, outlives }
            };
            let segments = maps.iter().map(segment).collect();
            let mut common = Common { segments, files: Vec::new() };
            for m in files {
                let (id, _) = known[&m.object()];
                let is_sent = sent.is_new(id, m);
                match common.files.iter_mut().find(|f| f.id == id) {
                    Some(file) => file.is_sent |= is_sent,
                    None => {
                        let (dev, inode) = mapped::id_of(m);
                        let kept = *kept.entry(id).or_insert_with(|| self.shared.next_migration());
                        common.files.push(SharedFile { id, kept, dev, inode, is_sent });
                    }
                }
            }
            if let Some(member) = inner.members.get_mut(pid) {
                member.common = common;
            }
        }
        Ok(())
    }

    /// Err: somebody else has what they share.
    fn expect_no_strangers(&self, inner: &Inner, found: &[&Found]) -> Result<(), MigrateError> {
        let all = || found.iter().flat_map(|found| found.iter());
        let Some((sharer, _)) = all().find(|(_, maps)| !maps.is_empty()) else { return Ok(()) };
        let objects: HashSet<Object> =
            all().flat_map(|(_, maps)| maps.iter().map(Mapping::object)).collect();
        let objects: Vec<Object> = objects.into_iter().collect();
        let sharers = maps::sharers(&objects).map_err(|e| self.explain(inner, e.into()))?;
        let is_stranger = |pid: &&i32| inner.members.keys().all(|known| known.raw() != **pid);
        match sharers.iter().find(is_stranger) {
            None => Ok(()),
            Some(stranger) => {
                let reasons =
                    vec![format!("it shares memory with process {stranger} outside its tree")];
                Err(MigrateError::Unsupported { pid: *sharer, reasons })
            }
        }
    }

    /// System V memory that is there when all who have it are gone. Err: others have it, too.
    fn lasting(&self, found: &Found) -> tcmi_ckpt::Result<Vec<Object>> {
        let mut attached: HashMap<Object, u64> = HashMap::new();
        let all = || found.iter().flat_map(|(pid, maps)| maps.iter().map(move |m| (pid, m)));
        for (_, m) in all() {
            *attached.entry(m.object()).or_default() += 1;
        }
        let mut lasting = Vec::new();
        for (pid, m) in all().filter(|(_, m)| sysv::is_segment(m)) {
            let object = m.object();
            let listed = sysv::listed(pid.raw(), m)?;
            if attached.get(&object) != Some(&listed.attached) {
                let why = format!("System V memory that others have attached, too ({})", m.name);
                return Err(tcmi_ckpt::Error::Unsupported(why));
            }
            if !listed.is_destroyed {
                lasting.push(object);
            }
        }
        Ok(lasting)
    }
}

/// Memory that a process shares. Of one that has ended: none.
pub(in crate::tasks) fn shared_by(pid: i32) -> Vec<Mapping> {
    let maps = maps::read_short(pid).unwrap_or_else(|_| Vec::new());
    maps.into_iter().filter(capture::is_shared_at_home).collect()
}

/// Whether a process has files that another which it begins could write to as well.
pub(in crate::tasks) fn has_live_files(pid: i32) -> bool {
    files_of(pid).iter().any(capture::is_live)
}

/// Of each process, its mappings of files that others of them have mapped, too, if one of them may
/// write there.
fn shared_files(pids: impl Iterator<Item = Pid>) -> Found {
    let mut found: Found = pids.map(|pid| (pid, files_of(pid.raw()))).collect();
    let (mut seen, mut several, mut live) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (_, maps) in &found {
        let of_one: HashSet<Object> = maps.iter().map(Mapping::object).collect();
        several.extend(of_one.intersection(&seen).copied());
        seen.extend(of_one);
        live.extend(maps.iter().filter(|m| capture::is_live(m)).map(Mapping::object));
    }
    let is_shared = |m: &Mapping| several.contains(&m.object()) && live.contains(&m.object());
    found.iter_mut().for_each(|(_, maps)| maps.retain(is_shared));
    found
}

/// Files that a process has mapped shared. Of one that has ended: none.
fn files_of(pid: i32) -> Vec<Mapping> {
    let maps = maps::read(pid).unwrap_or_else(|_| Vec::new());
    let is_file = |m: &Mapping| m.shared && m.inode != 0 && !capture::is_shared_at_home(m);
    maps.into_iter().filter(is_file).collect()
}
