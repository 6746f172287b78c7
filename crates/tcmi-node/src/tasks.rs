//! Who moves processes.

use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_kkc::{Control, Link, LinkId};

use crate::control::{Done, Side, TaskView, Tasks};
use tcmi_ctlfs::Caller;

/// Moves nothing: what a node is before it has an engine.
pub struct NoEngine;

impl NoEngine {
    fn unable(pid: Pid) -> MigrateError {
        MigrateError::Unsupported { pid, reasons: vec!["this node moves nothing".to_owned()] }
    }
}

impl Tasks for NoEngine {
    fn emigrate(&self, pid: Pid, _: LinkId, _: Caller, reply: Done) {
        reply(Err(Self::unable(pid)));
    }
    fn migrate_home(&self, pid: Pid, _: Side, _: Caller, reply: Done) {
        reply(Err(MigrateError::NotAway(pid)));
    }
    fn migrate_all_home(&self, _: LinkId, _: Side, reply: Done) {
        reply(Ok(()));
    }
    fn explain(&self, pid: Pid, _: Option<LinkId>, _: Caller) -> Result<String, MigrateError> {
        Err(Self::unable(pid))
    }
    fn list(&self, _: Side) -> Vec<TaskView> {
        Vec::new()
    }
    fn link_up(&self, _: Link) {}
    fn link_down(&self, _: LinkId, _: &str) {}
    fn message(&self, link: LinkId, message: Control) {
        tracing::warn!("{} from node {link}: this node moves nothing", message.label());
    }
    fn shut_down(&self) {}
}
