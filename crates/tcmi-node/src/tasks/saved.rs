//! Images of processes, written while they go on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_ctlfs::Caller;
use tcmi_image::Error;
use tcmi_migr::module;
use tcmi_sys::access::User;

use super::{Shared, Sharers, examine};
use crate::control::Done;

impl Shared {
    pub(super) fn checkpoint(
        self: &Arc<Self>,
        pid: Pid,
        path: String,
        caller: Caller,
        reply: Done,
    ) {
        if let Err(error) = self.begin_saving(pid, caller.uid) {
            return reply(Err(error));
        }
        let shared = Arc::clone(self);
        let reply = Arc::new(Mutex::new(Some(reply)));
        let theirs = Arc::clone(&reply);
        let started = thread::Builder::new().name(format!("save-{pid}")).spawn(move || {
            let saved = shared.save(pid, Path::new(&path), caller);
            shared.end_saving(pid);
            if let Some(reply) = theirs.lock().take() {
                reply(saved);
            }
        });
        if let Err(source) = started {
            self.end_saving(pid);
            if let Some(reply) = reply.lock().take() {
                reply(Err(MigrateError::Local { doing: "start a thread".to_owned(), source }));
            }
        }
    }

    /// Ok: nobody else takes hold of it until [`Shared::end_saving`].
    fn begin_saving(&self, pid: Pid, uid: u32) -> Result<(), MigrateError> {
        let examined = examine(pid, uid, self.is_away(pid), Sharers::Among(&[]))?;
        let home = self.home.lock();
        if let Some(task) = home.get(&pid).filter(|task| task.is_held()) {
            return Err(MigrateError::Busy { pid, state: task.state() });
        }
        if !examined.obstacles.is_empty() {
            return Err(MigrateError::NotSaved { pid, reasons: examined.obstacles });
        }
        let armed = self.armed.lock();
        if armed.contains_key(&pid) || !self.saving.lock().insert(pid) {
            return Err(MigrateError::Busy { pid, state: State::Running });
        }
        Ok(())
    }

    fn end_saving(&self, pid: Pid) {
        self.saving.lock().remove(&pid);
        self.saved.notify_all();
    }

    /// Until no image is being written, or for `longest`.
    pub(super) fn wait_for_images(&self, longest: Duration) {
        let until = Instant::now() + longest;
        let mut saving = self.saving.lock();
        while !saving.is_empty() && !self.saved.wait_until(&mut saving, until).timed_out() {}
    }

    fn save(&self, pid: Pid, path: &Path, caller: Caller) -> Result<(), MigrateError> {
        let failed = |doing: &str, source| {
            let doing = doing.to_owned();
            MigrateError::Image { pid, doing, source }
        };
        let user = match caller.is_root() {
            true => None,
            false => Some(
                User::of_thread(caller.tid)
                    .map_err(|e| failed("who asks for it", io::Error::from_raw_os_error(e.code)))?,
            ),
        };
        let new = NewFile::create(path, pid, user).map_err(|e| failed("make the file", e))?;
        let saved = tcmi_image::save::save(pid.raw(), &new.file, module::freezer(self.module))
            .map_err(|error| refusal(pid, error))?;
        new.keep(path).map_err(|e| failed("name the file", e))?;
        let (held_us, bytes) = (saved.held.as_micros() as u64, saved.bytes);
        tracing::info!(%pid, held_us, bytes, path = %path.display(), "image written");
        Ok(())
    }
}

fn refusal(pid: Pid, error: Error) -> MigrateError {
    match error {
        Error::Unsupported(reasons) => MigrateError::NotSaved { pid, reasons },
        Error::Process(tcmi_ckpt::Error::Unsupported(why)) => {
            MigrateError::NotSaved { pid, reasons: vec![why] }
        }
        Error::Process(error) if error.is_gone() => MigrateError::NoSuchProcess(pid),
        Error::Process(tcmi_ckpt::Error::ThreadStorm) | Error::Changed(_) => {
            MigrateError::Unsteady { pid, reason: error.to_string() }
        }
        Error::Io { doing, source } => MigrateError::Image { pid, doing, source },
        error @ (Error::Process(_) | Error::Flaw(_) | Error::Taken(_)) => MigrateError::Local {
            doing: format!("save process {pid}"),
            source: io::Error::other(error.to_string()),
        },
    }
}

/// A file that has its name when it is whole. Dropped before, it is gone.
struct NewFile {
    file: File,
    part: PathBuf,
    /// Whose rights it is made with; None: ours.
    user: Option<User>,
}

impl NewFile {
    fn create(path: &Path, pid: Pid, user: Option<User>) -> io::Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{pid}.part"));
        let part = PathBuf::from(part);
        // It has all that is in the process's memory.
        const MODE: u32 = 0o600;
        let open = || {
            // Left by a daemon that was killed. What somebody else has put there is not written to.
            match fs::remove_file(&part) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(&part)
        };
        let file = act(user.as_ref(), open)?;
        Ok(Self { file, part, user })
    }

    /// Takes the place of what may have the name, at once, and durably.
    fn keep(mut self, path: &Path) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        let renamed = act(self.user.as_ref(), || {
            fs::rename(&part, path)?;
            File::open(path.parent().unwrap_or(path))?.sync_all()
        });
        if renamed.is_err() {
            self.part = part;
        }
        renamed
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.part.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = act(self.user.as_ref(), || fs::remove_file(&self.part)) {
            tracing::warn!(part = %self.part.display(), %error, "a part of an image stays");
        }
    }
}

fn act<T>(user: Option<&User>, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match user {
        None => action(),
        Some(user) => {
            user.act(action).map_err(|e| io::Error::from_raw_os_error(e.code)).and_then(|done| done)
        }
    }
}
