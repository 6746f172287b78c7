//! What this machine has of what tcmi needs or is better with. Reads control files, /proc, /sys
//! and /dev; an execution node's needs and a home's are told alike, for a node may be both.

use std::fs;
use std::io;
use std::path::Path;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::json;
use tcmi_ctlfs::ctable;
use tcmi_sys::kmod::{DEVICE, Session, abi};
use tcmi_sys::pages::Pagemap;

use crate::failure::Failure;
use crate::node::Node;

/// See the limits in ARCHITECTURE.md.
const KERNEL_MIN: (u32, u32) = (5, 14);
/// SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV.
const KERNEL_KILLABLE: (u32, u32) = (5, 19);
const NAMESPACES: [&str; 6] = ["user", "pid", "mnt", "net", "ipc", "time"];
const GAIN: &str = "with it processes are frozen at one instant, the kernel sends \
    their pages, control files answer at once when the daemon is gone, and other nodes \
    with it can tell that from a dead machine";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Good,
    /// It works without.
    Lacking,
    /// It does not.
    Bad,
}

#[derive(Debug, Serialize)]
pub struct Finding {
    pub what: &'static str,
    pub health: Health,
    pub text: String,
}

#[derive(Debug)]
pub struct Report {
    pub findings: Vec<Finding>,
    is_served: bool,
}

fn found(what: &'static str, health: Health, text: impl Into<String>) -> Finding {
    Finding { what, health, text: text.into() }
}

/// Of something that a move cannot do without.
fn needed(what: &'static str, there: bool, lacking: &str) -> Finding {
    match there {
        true => found(what, Health::Good, "available"),
        false => found(what, Health::Bad, lacking),
    }
}

pub fn examine(ctlfs: &Path) -> Report {
    let node = Node::open(ctlfs);
    let mut findings = vec![daemon(&node), control(&node), limits(&node), module()];
    findings.extend([kernel(), seccomp(), namespaces(), user_namespaces(), pagemap_scan()]);
    Report { findings, is_served: node.is_ok() }
}

fn daemon(node: &Result<Node, Failure>) -> Finding {
    match node {
        Ok(node) => match node.line("node/name") {
            Ok(name) => found("daemon", Health::Good, format!("{name} answers")),
            Err(error) => found("daemon", Health::Bad, error.to_string()),
        },
        Err(error) => found("daemon", Health::Bad, error.to_string()),
    }
}

fn control(node: &Result<Node, Failure>) -> Finding {
    let fuse = Path::new("/dev/fuse").exists();
    let features = node.as_ref().ok().map(|node| node.line("node/features"));
    match features {
        Some(Ok(text)) => {
            let by = text.lines().find_map(|line| line.strip_prefix("ctlfs="));
            found("ctlfs", Health::Good, by.unwrap_or("the daemon does not say"))
        }
        Some(Err(error)) => found("ctlfs", Health::Bad, error.to_string()),
        None if fuse => found("ctlfs", Health::Good, "served by nobody; FUSE is available"),
        None => found("ctlfs", Health::Lacking, "served by nobody; no /dev/fuse"),
    }
}

/// By what the daemon keeps guests within what its owner grants them.
fn limits(node: &Result<Node, Failure>) -> Finding {
    const WHAT: &str = "guests' limits";
    let text = match node.as_ref().map(|node| node.line("node/features")) {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return found(WHAT, Health::Lacking, error.to_string()),
        Err(_) => return found(WHAT, Health::Lacking, "served by nobody"),
    };
    let by: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("limit-")).collect();
    let lacking: Vec<&str> = by.iter().filter_map(|line| line.strip_suffix("=none")).collect();
    let said = by.join(", ");
    match lacking.is_empty() {
        true => found(WHAT, Health::Good, said),
        false => {
            let text = format!("{said}; no control group to limit {}", lacking.join(" and "));
            found(WHAT, Health::Lacking, text)
        }
    }
}

/// A daemon that was started before it was loaded goes on with FUSE.
fn module() -> Finding {
    let session = match Session::open() {
        Ok(session) => session,
        Err(e) if Path::new(DEVICE).exists() => {
            return found("module", Health::Lacking, format!("loaded; {e}"));
        }
        Err(_) => return found("module", Health::Lacking, format!("not loaded; {GAIN}")),
    };
    match session.version() {
        Ok(v) if (v.abi, v.ctl_hash) == (abi::TCMI_ABI, ctable::hash()) => {
            let text = format!("loaded, matches (interface {}, tree {:016x})", v.abi, v.ctl_hash);
            found("module", Health::Good, text)
        }
        Ok(v) => {
            let (ours, tree) = (abi::TCMI_ABI, ctable::hash());
            let text = format!(
                "loaded, of another version: interface {}, tree {:016x}; this program has \
                 interface {ours}, tree {tree:016x}",
                v.abi, v.ctl_hash
            );
            found("module", Health::Lacking, text)
        }
        Err(e) => {
            found("module", Health::Lacking, format!("loaded, does not tell its version: {e}"))
        }
    }
}

fn kernel() -> Finding {
    let release = match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(text) => text.trim().to_owned(),
        Err(e) => return found("kernel", Health::Bad, e.to_string()),
    };
    match version(&release) {
        Some(v) if v >= KERNEL_KILLABLE => found("kernel", Health::Good, release),
        Some(v) if v >= KERNEL_MIN => {
            let text = format!("{release}; forwarded calls are killed late before 5.19");
            found("kernel", Health::Lacking, text)
        }
        Some(_) | None => found("kernel", Health::Bad, format!("{release}; 5.14 is needed")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn seccomp() -> Finding {
    let there = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .is_ok_and(|text| text.split_whitespace().any(|action| action == "user_notif"));
    needed("seccomp", there, "no user notification: no guest can run here")
}

fn namespaces() -> Finding {
    let lacking: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    let text = format!("no namespaces of: {}; no guest can run here", lacking.join(", "));
    needed("namespaces", lacking.is_empty(), &text)
}

fn user_namespaces() -> Finding {
    match fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(text) => needed(
            "user namespaces",
            text.trim() != "0",
            "user.max_user_namespaces is 0: no guest can run here",
        ),
        Err(e) => found("user namespaces", Health::Bad, e.to_string()),
    }
}

fn pagemap_scan() -> Finding {
    let has = i32::try_from(std::process::id())
        .map_err(io::Error::other)
        .and_then(|pid| Pagemap::open(pid).map_err(io::Error::other))
        .and_then(|mut pagemap| pagemap.has_scan().map_err(io::Error::other));
    match has {
        Ok(true) => found("PAGEMAP_SCAN", Health::Good, "available"),
        Ok(false) => {
            found("PAGEMAP_SCAN", Health::Lacking, "not before Linux 6.7: captures take longer")
        }
        Err(e) => found("PAGEMAP_SCAN", Health::Lacking, e.to_string()),
    }
}

impl Report {
    /// As of the other commands: 3 if nobody serves, 1 if something needed is not there.
    pub fn exit_status(&self) -> u8 {
        match self.is_served {
            false => 3,
            true => u8::from(self.findings.iter().any(|f| f.health == Health::Bad)),
        }
    }

    pub fn text(&self, json: bool) -> String {
        if json {
            return json!({ "findings": self.findings, "status": self.exit_status() }).to_string();
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for finding in &self.findings {
            let mark = match finding.health {
                Health::Good => "ok",
                Health::Lacking => "--",
                Health::Bad => "BAD",
            };
            table.add_row([mark, finding.what, &finding.text]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_versions() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("6.12.117+deb12-amd64"), Some((6, 12)));
        assert_eq!(version("6.7-rc1"), Some((6, 7)));
        assert_eq!(version("next"), None);
    }
}
