//! Entry `serve`: a shadow thread's loop.

use crate::broken::{Broken, wait_for_keeper};
use crate::call;
use crate::lifecycle;
use crate::placement::Placement;
use crate::stream::{Incoming, Outgoing};
use crate::sys::syscall;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general::{__NR_rt_sigprocmask, SIG_SETMASK};
use tcmi_call::abi::{ProcArea, ThreadArea};
use tcmi_call::frame::{CallHeader, ReplyHeader, kind};

/// # Safety
/// As [`tcmi_call::abi::BlobHeader::serve`] says.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn blob_serve(_area: *mut ThreadArea) -> ! {
    naked_asm!("and rsp, -16", "xor ebp, ebp", "call {}", "ud2", sym serve)
}

/// What a request needs of its thread. Fields of the area that the signal handler or the
/// keeper write are not in here; they are reached as atomics.
pub struct Shadow<'a> {
    pub area: *mut ThreadArea,
    pub proc: *mut ProcArea,
    pub incoming: Incoming<'a>,
    placement: Placement,
}

unsafe extern "C" fn serve(area: *mut ThreadArea) -> ! {
    // SAFETY: the area is this thread's, all signals are blocked.
    unsafe { crate::settle::settle(area) };
    // SAFETY: the area is this thread's alone but for the words that are shared as atomics;
    // `received` is referred to from here only.
    let mut shadow = unsafe {
        Shadow {
            area,
            proc: (*area).proc_area as *mut ProcArea,
            incoming: Incoming::new(&mut (*area).received),
            placement: Placement::of((*area).calls.fd),
        }
    };
    // SAFETY: reads the 8 bytes of this thread's own word; the handlers are installed by now.
    unsafe {
        let mask = (&raw const (*area).mask) as u64;
        syscall(__NR_rt_sigprocmask, [SIG_SETMASK.into(), mask, 0, 8, 0, 0])
    };
    loop {
        if let Err(why) = shadow.serve_one() {
            if matches!(why, Broken::Closed) && shadow.was_never_used() {
                lifecycle::end_thread();
            }
            wait_for_keeper(area, why);
        }
    }
}

impl Shadow<'_> {
    fn serve_one(&mut self) -> Result<(), Broken> {
        let header = self.take_header()?;
        // SAFETY: the stream's state is this thread's.
        self.placement.follow(unsafe { (*self.area).calls.fd });
        // SAFETY: this thread's own words; its signal handler and the keeper read them.
        unsafe {
            (&raw mut (*self.area).nr).write_volatile(header.nr.into());
            (&raw mut (*self.area).seq).write_volatile(header.seq);
        }
        match header.kind {
            kind::CALL => call::serve(self, &header),
            kind::EXIT_THREAD | kind::EXIT_GROUP | kind::EXIT_SIGNAL | kind::DISPOSITION => {
                if header.len != 0 {
                    return Err(Broken::Protocol);
                }
                lifecycle::serve(self, &header)
            }
            _ => Err(Broken::Protocol),
        }
    }

    /// Its guest thread was to begin, and did not.
    fn was_never_used(&self) -> bool {
        // SAFETY: this thread's own words.
        unsafe { (*self.area).begun == 1 && (*self.area).seq == 0 }
    }

    fn take_header(&mut self) -> Result<CallHeader, Broken> {
        let mut bytes = [0; CallHeader::BYTES];
        self.take(&mut bytes)?;
        CallHeader::from_bytes(&bytes).ok_or(Broken::Protocol)
    }

    pub fn take(&mut self, to: &mut [u8]) -> Result<(), Broken> {
        // SAFETY: the stream's state is this thread's; the handler uses the event stream's.
        self.incoming.take(unsafe { &mut (*self.area).calls }, to)
    }

    /// Ends the request's reading: nothing may follow it in its last record.
    pub fn end_of_frame(&self) -> Result<(), Broken> {
        if self.incoming.at_record_end() { Ok(()) } else { Err(Broken::Protocol) }
    }

    pub fn outgoing(&mut self) -> Outgoing<'_> {
        // SAFETY: as in `take`; `sent` is referred to from here only, and one reply at a time.
        unsafe { Outgoing::new(&mut (*self.area).calls, &mut (*self.area).sent) }
    }

    /// Every signal up to this number is on the event stream.
    pub fn signals_sent(&self) -> u32 {
        // SAFETY: the process area outlives its threads.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.proc).signal_seq) }.load(Ordering::Acquire)
    }

    pub fn reply_without_outs(&mut self, seq: u64, ret: i64) -> Result<(), Broken> {
        let header = ReplyHeader {
            kind: kind::REPLY,
            seq,
            ret,
            signals: self.signals_sent(),
            ..ReplyHeader::default()
        };
        let mut out = self.outgoing();
        out.put(header.as_bytes())?;
        out.finish()
    }
}
