//! Signals from the shadow to the guest.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use tcmi_call::abi::BatchOp;
use tcmi_call::frame::{SignalFrame, kind};
use tcmi_call::record::DirectionKeys;

use crate::messenger::Message;
use crate::steward::{GuestGone, Steward};
use crate::stream::{Records, StreamError};

/// The receiving half of a guest's event stream.
pub struct SignalStream {
    fd: OwnedFd,
    records: Records,
}

impl SignalStream {
    pub fn new(fd: OwnedFd, rx: &DirectionKeys) -> Self {
        SignalStream { fd, records: Records::new(rx) }
    }

    fn next(&mut self) -> Result<SignalFrame, StreamError> {
        let bytes = self.records.take(self.fd.as_fd(), SignalFrame::BYTES)?;
        SignalFrame::from_bytes(bytes)
            .filter(|f| [kind::SIGNAL, kind::SERVING].contains(&f.kind))
            .ok_or(StreamError::Reply)
    }
}

#[derive(Debug, Default)]
struct Progress {
    /// Number of the last signal that is in the guest.
    injected: u32,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    moved: Condvar,
}

/// What the event stream says of the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It serves: the process can no more go on at home by itself.
    Serving,
    /// The guest got a signal from it.
    Signal,
    /// There is no shadow any more.
    Ended,
}

/// The event thread: takes signals in order and has the steward send them.
pub struct Events {
    shared: Arc<Shared>,
    /// A second handle on the socket, to end the thread.
    socket: OwnedFd,
    thread: Option<thread::JoinHandle<()>>,
}

impl Events {
    /// `first`: number of the last signal that the guest already has (0 for a new guest).
    /// `tgid` as the guest sees it. `tell` is called from the event thread.
    pub fn start(
        mut stream: SignalStream,
        steward: Arc<Steward>,
        tgid: i32,
        first: u32,
        tell: impl Fn(News) + Send + 'static,
    ) -> io::Result<Events> {
        let shared = Arc::new(Shared {
            progress: Mutex::new(Progress { injected: first, ended: false }),
            moved: Condvar::new(),
        });
        let socket = stream.fd.try_clone()?;
        let ours = Arc::clone(&shared);
        let thread = thread::Builder::new().name("guest-signals".into()).spawn(move || {
            let error = loop {
                match stream.next() {
                    Ok(frame) if frame.kind == kind::SERVING => tell(News::Serving),
                    Ok(frame) => {
                        if inject(&steward, tgid, &frame).is_err() {
                            break None;
                        }
                        ours.progress.lock().injected = frame.seq;
                        ours.moved.notify_all();
                        tell(News::Signal);
                    }
                    Err(error) => break Some(error),
                }
            };
            if let Some(error) = error {
                tracing::debug!(%error, tgid, "event stream ended");
            }
            ours.progress.lock().ended = true;
            ours.moved.notify_all();
            tell(News::Ended);
        })?;
        Ok(Events { shared, socket, thread: Some(thread) })
    }

    /// Waits until the guest has all signals up to number `seq`.
    /// False: the event stream ended before.
    pub fn wait_injected(&self, seq: u32) -> bool {
        let mut progress = self.shared.progress.lock();
        // Numbers wrap after 2^32 signals.
        while (progress.injected.wrapping_sub(seq) as i32) < 0 {
            if progress.ended {
                return false;
            }
            self.shared.moved.wait(&mut progress);
        }
        true
    }

    pub fn injected(&self) -> u32 {
        self.shared.progress.lock().injected
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: shuts down a socket we own. It fails only if the peer closed it before.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the event thread panicked");
        }
    }
}

/// A siginfo that the kernel takes from the steward for another thread.
///
/// Codes that only kernels and `kill` give (0 and above, SI_TKILL) are allowed only from a
/// thread to itself. They become SI_QUEUE, which keeps sender, user and status or value.
fn permitted(siginfo: &[u8; 128]) -> [u8; 128] {
    let mut changed = *siginfo;
    let code = word(siginfo, 8);
    if code >= 0 || code == libc::SI_TKILL {
        changed[8..12].copy_from_slice(&libc::SI_QUEUE.to_le_bytes());
    }
    changed
}

fn word(siginfo: &[u8; 128], at: usize) -> i32 {
    i32::from_le_bytes([siginfo[at], siginfo[at + 1], siginfo[at + 2], siginfo[at + 3]])
}

/// Has `tgkill` called in the sender's name. False: it could not be.
fn call_tgkill(steward: &Steward, tgid: i32, frame: &SignalFrame) -> bool {
    if frame.tid == 0 || word(&frame.siginfo, 8) != libc::SI_TKILL {
        return false;
    }
    let message = Message {
        sender: word(&frame.siginfo, 16),
        sender_uid: word(&frame.siginfo, 20) as u32,
        tgid,
        tid: frame.tid as i32,
        signo: frame.signo as i32,
    };
    match message.send(steward.guest()) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, ?message, "tgkill arrives as sigqueue");
            false
        }
    }
}

fn inject(steward: &Steward, tgid: i32, frame: &SignalFrame) -> Result<(), GuestGone> {
    if call_tgkill(steward, tgid, frame) {
        return Ok(());
    }
    let info = steward.data_address(0);
    let (tgid, signo) = (tgid as u64, u64::from(frame.signo));
    let (nr, args, siginfo) = match frame.tid {
        // Any thread's id stands for its process here, and to its own id the steward may give
        // every code.
        0 => {
            let args = [steward.tid() as u64, signo, info, 0, 0, 0];
            (libc::SYS_rt_sigqueueinfo, args, frame.siginfo)
        }
        tid => {
            let args = [tgid, u64::from(tid), signo, info, 0, 0];
            (libc::SYS_rt_tgsigqueueinfo, args, permitted(&frame.siginfo))
        }
    };
    let mut op = BatchOp { nr: nr as u64, args, ..BatchOp::default() };
    steward.run(std::slice::from_mut(&mut op), &siginfo)?;
    if op.ret < 0 {
        // ESRCH: the thread ended meanwhile; EAGAIN: the queue is full. Both lose a signal
        // that a process on one machine would have lost as well.
        tracing::warn!(signo, tid = frame.tid, errno = -op.ret, "signal not taken by the guest");
    }
    Ok(())
}
