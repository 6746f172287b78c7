//! What the kernel module does in a move out: it freezes the process, and sends pages from its
//! memory into the move's own socket, in the same records as we would make of them.

use crate::error::Result;
use std::cell::Cell;
use std::io;
use std::ops::Range;
use tcmi_ckpt::freezer::{Freezer, Held, Module, Ptrace};
use tcmi_kkc::BulkWriter;
use tcmi_sys::kmod::{Extent, Frozen, Session};

/// Shorter runs cost less to copy than to ask for.
pub const RUN_BYTES_MIN: u64 = 64 << 10;
/// Its threads are stopped already.
const FREEZE_TIMEOUT_MS: u32 = 100;

/// Where there is a module.
#[derive(Clone, Copy, Debug)]
pub struct ByModule {
    /// The kernel has the ciphers for it.
    pub sends: bool,
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
    /// Of a process that the calling OS thread traces and has stopped. None: all of it goes our
    /// own way, as the kernel cannot.
    pub fn prepare(pid: i32, w: &mut BulkWriter) -> Result<Option<Self>> {
        let frozen = Session::open()
            .and_then(|s| s.freeze(pid, Extent::Process, FREEZE_TIMEOUT_MS).map_err(|(_, e)| e));
        match frozen {
            Ok(frozen) if w.hand_to_kernel()? => Ok(Some(Self { pid, frozen, sent: Cell::new(0) })),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(pid, %error, "the kernel module does not send its pages");
                Ok(None)
            }
        }
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
