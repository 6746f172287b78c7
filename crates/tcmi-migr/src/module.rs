//! What the kernel module does in a move: it freezes the process at home, and either way sends
//! pages from its memory into the move's own socket, in the same records as we would make of
//! them.

use crate::error::Result;
use std::cell::Cell;
use std::io;
use std::ops::Range;
use tcmi_ckpt::freezer::{Freezer, Held, Module, Ptrace};
use tcmi_core::limits::FREEZE_TIMEOUT_MS;
use tcmi_kkc::BulkWriter;
use tcmi_sys::kmod::{Extent, Frozen, Session};

/// Shorter runs cost less to copy than to ask for.
pub const RUN_BYTES_MIN: u64 = 64 << 10;
/// Where there is a module.
#[derive(Clone, Copy, Debug)]
pub struct ByModule {
    /// The kernel has the ciphers for it.
    pub sends: bool,
}

impl ByModule {
    /// To send with.
    pub fn session(self) -> Option<Session> {
        if !self.sends {
            return None;
        }
        let opened = Session::open();
        opened.inspect_err(|error| tracing::warn!(%error, "the kernel module is gone")).ok()
    }
}

pub fn freezer(by: Option<ByModule>) -> &'static dyn Freezer {
    if by.is_some() { &ModuleFirst } else { &Ptrace }
}

/// Ptrace where the module cannot.
struct ModuleFirst;

impl Freezer for ModuleFirst {
    fn freeze(&self, pid: i32) -> tcmi_ckpt::Result<Box<dyn Held>> {
        match Module.freeze(pid) {
            Err(error) if !error.is_gone() => {
                tracing::debug!(pid, %error, "not frozen by the kernel module");
                Ptrace.freeze(pid)
            }
            done => done,
        }
    }
}

/// A held process, with the stream's records in the kernel's hands.
pub struct Sending {
    pid: i32,
    frozen: Frozen,
    sent: Cell<u64>,
}

impl Sending {
    /// Of a process that the calling OS thread traces and has stopped, but for threads that may
    /// be frozen. None: all of it goes our own way, as the kernel cannot. Takes the session only
    /// if it can.
    pub fn prepare(
        session: &mut Option<Session>,
        pid: i32,
        w: &mut BulkWriter,
    ) -> Result<Option<Self>> {
        let Some(unused) = session.take() else { return Ok(None) };
        match unused.freeze(pid, Extent::Process, FREEZE_TIMEOUT_MS) {
            Ok(frozen) => {
                let sending = Self { pid, frozen, sent: Cell::new(0) };
                if w.hand_to_kernel()? {
                    return Ok(Some(sending));
                }
                *session = sending.end();
            }
            Err((unused, error)) => {
                tracing::warn!(pid, %error, "the kernel module does not send its pages");
                *session = Some(unused);
            }
        }
        Ok(None)
    }

    /// Lets go of the process, as far as no tracer has stopped it; gives the session back.
    pub fn end(self) -> Option<Session> {
        self.frozen.thaw().inspect_err(|error| tracing::warn!(%error, "thaw by the module")).ok()
    }

    /// Sends the start of `memory`; 0 where the kernel cannot read it.
    pub fn send(&self, memory: Range<u64>, w: &mut BulkWriter) -> Result<u64> {
        let n = w.send_with(|socket| {
            loop {
                match self.frozen.send(self.pid, memory.clone(), socket) {
                    Ok(n) => return Ok(n),
                    Err(e) => match e.code {
                        libc::EINTR => {}
                        libc::EFAULT | libc::ENOMEM => return Ok(0),
                        // As a send of our own that brings no progress.
                        libc::EAGAIN => return Err(io::ErrorKind::TimedOut.into()),
                        code => return Err(io::Error::from_raw_os_error(code)),
                    },
                }
            }
        })?;
        self.sent.set(self.sent.get() + n);
        Ok(n)
    }
    /// All that it sent, in bytes.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }
}
