//! The control filesystem, as those see it who change what it shows.

use std::sync::OnceLock;

type Refresh = Box<dyn Fn() + Send + Sync>;

/// Told of every peer, listener and process that comes or goes.
#[derive(Default)]
pub struct Tree(OnceLock<Refresh>);

impl Tree {
    /// Once, when it is mounted.
    pub fn mounted(&self, refresh: Refresh) {
        if self.0.set(refresh).is_err() {
            tracing::error!("the control filesystem is mounted twice");
        }
        // For what came and went while it was being mounted.
        self.changed();
    }

    /// Called after `Control::list` tells the change. When it returns, the tree shows it: who
    /// learns of the change from us finds it there. The tree asks `Control` meanwhile, so the
    /// caller holds no lock that `Control` takes.
    pub fn changed(&self) {
        if let Some(refresh) = self.0.get() {
            refresh();
        }
    }
}
