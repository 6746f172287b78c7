//! One word that decides for all processes of a party: a page that each of them has mapped.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use tcmi_call::abi::decision;
use tcmi_ckpt::descriptors::Way;
use tcmi_ckpt::freeze::Frozen;
use tcmi_ckpt::rebuild::Batcher;
use tcmi_ckpt::remote::{Agent, Ids};
use tcmi_ckpt::{Error, Result};
use tcmi_sys::Errno;

pub const WORD_BYTES: u64 = 4096;

/// HOME until it is decided otherwise. It lives as long as a process has it mapped, whoever made it.
pub struct Word {
    file: File,
    /// To be mapped: who has it mapped cannot write, so nobody takes it for shared memory.
    read_only: File,
}

impl Word {
    pub fn new() -> Result<Self> {
        // SAFETY: a C string; the descriptor is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"tcmi-party".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Errno::last("memfd_create").into());
        }
        // SAFETY: a new descriptor that nobody else has.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let read_only = file
            .set_len(WORD_BYTES)
            .and_then(|()| File::open(format!("/proc/self/fd/{}", file.as_raw_fd())))
            .map_err(|e| Error::from(Errno::from_io("open a word", &e)))?;
        Ok(Self { file, read_only })
    }

    /// Lets a held process see it at `at`, in the agent's region.
    pub fn map(&self, f: &mut Frozen, agent: &Agent, at: u64) -> Result<()> {
        let pid = f.pid;
        let mut b = Batcher::new(agent, f.leader_mut(), pid, Ids { tgid: pid, tid: pid });
        Way::with(&mut b, |b, way| {
            let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
            for fd in way.pass(b, std::slice::from_ref(&self.read_only))? {
                let args = [at, WORD_BYTES, libc::PROT_READ as u64, flags, fd as u64, 0];
                b.push("mmap the word", libc::SYS_mmap, args)?;
                b.push("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
            }
            b.flush().map(drop)
        })
    }

    /// The commit point of a party. Err: nothing is decided.
    pub fn decide_away(&self) -> Result<()> {
        self.decide(decision::AWAY)
    }

    /// The same of the way back.
    pub fn decide_home(&self) -> Result<()> {
        self.decide(decision::HOME)
    }

    fn decide(&self, word: u32) -> Result<()> {
        // Four bytes of one page: whoever looks sees the old word or the new one.
        let written = self.file.write_at(&word.to_le_bytes(), 0);
        match written {
            Ok(4) => Ok(()),
            Ok(_) => Err(Errno::new("decide", libc::EIO).into()),
            Err(e) => Err(Errno::from_io("decide", &e).into()),
        }
    }
}
