//! What the held processes of a party share, and who sends it.

use std::collections::HashMap;

use tcmi_ckpt::capture;
use tcmi_ckpt::image::Segment;
use tcmi_ckpt::sysv;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_sys::maps::{self, Mapping};

use super::{Inner, Party};

impl Party {
    /// Finds what the held processes share, and shares out who sends what.
    pub(super) fn share_out(&self, inner: &mut Inner) -> Result<(), MigrateError> {
        let of = |pid: &Pid| (*pid, shared_by(pid.raw()));
        let found: Vec<(Pid, Vec<Mapping>)> = inner.members.keys().map(of).collect();
        let outlives = self.lasting(&found).map_err(|e| self.explain(inner, e.into()))?;
        let mut segments: HashMap<maps::Object, (u64, u64)> = HashMap::new();
        for m in found.iter().flat_map(|(_, maps)| maps) {
            let new = || (self.shared.next_migration(), 0);
            let (_, bytes) = segments.entry(m.object()).or_insert_with(new);
            *bytes = (*bytes).max(m.offset + m.len());
        }
        let Some((sharer, _)) = found.iter().find(|(_, maps)| !maps.is_empty()) else {
            return Ok(());
        };
        let objects: Vec<maps::Object> = segments.keys().copied().collect();
        let sharers = maps::sharers(&objects).map_err(|e| self.explain(inner, e.into()))?;
        let is_stranger = |pid: &&i32| inner.members.keys().all(|known| known.raw() != **pid);
        if let Some(stranger) = sharers.iter().find(is_stranger) {
            let reasons =
                vec![format!("it shares memory with process {stranger} outside its tree")];
            return Err(MigrateError::Unsupported { pid: *sharer, reasons });
        }
        let mut sent: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        for (pid, maps) in &found {
            let of = |m: &Mapping| {
                let (id, bytes) = segments[&m.object()];
                let (from, to) = (m.offset, m.offset + m.len());
                let known = sent.entry(id).or_default();
                let is_sent = !known.iter().any(|k| k.0 <= from && to <= k.1);
                if is_sent {
                    known.push((from, to));
                }
                let (start, end, offset) = (m.start, m.end, m.offset);
                let outlives = outlives.contains(&m.object());
                Segment { id, start, end, offset, bytes, is_sent, outlives }
            };
            if let Some(member) = inner.members.get_mut(pid) {
                member.segments = maps.iter().map(of).collect();
            }
        }
        Ok(())
    }

    /// System V memory that is there when all who have it are gone. Err: others have it, too.
    fn lasting(&self, found: &[(Pid, Vec<Mapping>)]) -> tcmi_ckpt::Result<Vec<maps::Object>> {
        let mut attached: HashMap<maps::Object, u64> = HashMap::new();
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
