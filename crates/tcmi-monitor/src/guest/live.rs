//! Files that a guest may write to by shared mappings, from who built it to who serves it.

use std::os::fd::OwnedFd;

use tcmi_migr::destination::Built;
use tcmi_shadow::{LiveFile, Window};

/// Of a guest that does not run yet; and its process, with a userfaultfd of it.
pub(super) fn of(built: &mut Built) -> (Vec<LiveFile>, Option<(i32, OwnedFd)>) {
    let host = built.host_pid();
    let files = built.files.take_live().into_iter().map(|f| {
        let windows = f.windows.iter().map(|w| Window::new(w.home, w.offset, w.len)).collect();
        LiveFile { memfd: f.memfd, dev: f.dev, ino: f.ino, windows }
    });
    (files.collect(), built.userfault.take().map(|fd| (host, fd)))
}
