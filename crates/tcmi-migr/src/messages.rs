//! What home (H) and the execution node's monitor (N) say on a migration's bulk stream.
//!
//! Out: Begin -> Need, (File, bytes)* -> Prepared; State, pages -> Ready; Commit -> Running.
//! That home's shadow serves is said on the event stream, by the shadow itself. A State that
//! names a file that Begin did not is followed by Need and the files, too; then comes Live for each
//! live file.
//! Back: ComeHome (or N's WantHome first) -> Quiet; Capture -> Image, pages; Finish -> Gone,
//! or Thaw. Either end may say Failed instead of what is due before a commit.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tcmi_ckpt::copies::OpenCopy;
use tcmi_ckpt::devices::OpenDevice;
use tcmi_ckpt::image::{AddressSpace, Common, FileRef, ProcessImage, Segment, check_range};
use tcmi_ckpt::reach::{Access, Found};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_kkc::codec::Frame;
use tcmi_kkc::{BulkReader, BulkWriter};

/// How often a node asks for home's clocks; the quickest answer counts.
pub const CLOCK_QUESTIONS: u32 = 4;

/// What a guest has of its node, by home's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebinds {
    pub processors: bool,
    /// Those that are open. None: none are the node's.
    pub devices: Option<Vec<OpenDevice>>,
    /// Where files lie that it reads there, and those of them that are open.
    pub copied: Vec<String>,
    pub open: Vec<OpenCopy>,
    /// Where files lie that it makes and writes there.
    pub moved: Vec<String>,
}

/// A message with its number on the wire.
pub trait Message: Serialize + DeserializeOwned {
    const KIND: u16;
    const NAME: &'static str;
}

/// How often a guest forwarded one call, how often that failed, and for how many microseconds; and
/// how often its node answered it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    pub nr: u32,
    pub calls: u64,
    pub errors: u64,
    pub us: u64,
    pub here: u64,
}

macro_rules! message {
    ($($(#[$doc:meta])* $kind:literal $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
        impl Message for $name {
            const KIND: u16 = $kind;
            const NAME: &'static str = stringify!($name);
        }
    )+};
}

message! {
    /// H: what is going to come, while the process still runs.
    1 Begin {
        migration: u64,
        epoch: u32,
        pid: i32,
        uid: u32,
        gid: u32,
        mm: AddressSpace,
        files: Vec<FileRef>,
        /// Resident memory of its own, as (start, end).
        resident: Vec<(u64, u64)>,
        /// XCR0 features that the process's register image has.
        xfeatures: u64,
        /// Streams for the guest's signals and for its threads' calls.
        events: u64,
        calls: Vec<u64>,
        common: Common,
    }
    /// N: indices of the files that it has not.
    2 Need { files: Vec<u32> }
    /// H: `last - first` bytes of the file follow.
    3 File { index: u32 }
    4 Prepared {}
    /// H: the frozen process; its pages follow.
    5 State {
        image: ProcessImage,
        /// (tid, stream id)
        calls: Vec<(i32, u64)>,
        /// On other nodes, before.
        used: Used,
        rebinds: Rebinds,
        /// It has files of memory open, as /proc/self/mem.
        memory_files: bool,
    }
    6 Ready {}
    7 Commit {}
    /// N asks for home's clocks after Begin, CLOCK_QUESTIONS times.
    12 AskClock {}
    /// H: in nanoseconds.
    11 Clock { monotonic: i64, boottime: i64 }
    8 Running { remote_pid: i32 }
    /// Either: gave up. The process is where it was.
    9 Failed { errno: i32, text: String }
    /// H: the guest is to come home.
    16 ComeHome {}
    /// N: its owner wants it to leave.
    17 WantHome {}
    /// N: no forwarded call may begin now; those in flight should be taken back.
    18 CancelCalls {}
    /// N: no call is in flight, and the guest is held. What it has mapped of segments; their ids
    /// are the node's.
    19 Quiet { segments: Vec<Segment> }
    /// H: the shadow is held; `signals` were sent in all. Other guests send these parts of memory.
    20 Capture { signals: u32, skip: Vec<(u64, u64)> }
    /// N: the frozen guest, with what it used there and before; its pages follow.
    21 Image { image: ProcessImage, used: Used }
    /// H: the process is whole at home and about to run: the guest ends.
    22 Finish {}
    23 Gone {}
    /// H: the return failed; the guest goes on.
    24 Thaw {}
    25 Thawed {}
    /// H: job control or death, which no agent can see.
    32 Signal { signal: i32 }
    /// N: the guest ended; the raw wait status, why if its node knows more, and what it used on this
    /// and other nodes, with the children that it waited for.
    33 Ended { status: i32, why: String, used: Usage }
    /// N: counters for `stats`, since the guest began.
    34 Stats { calls: Vec<CallCount> }
    /// H asks for them.
    35 AskStats {}
    /// N: the thread's call with this number is to end as by a signal.
    36 Poke { tid: i32, seq: u64 }
    /// N: thread `by` begins another. ThreadBegun, ThreadRefused or ComeHome, which refuses it,
    /// is the answer.
    37 BeginThread { by: i32 }
    /// H: its id, and the stream that its shadow serves.
    38 ThreadBegun { tid: i32, stream: u64 }
    39 ThreadRefused {}
    /// H, behind State and its files: of `files[index]`, which is live, the size in bytes and what
    /// `fstat` says of it. Runs of its bytes follow, as pages do, by file offset.
    48 Live { index: u32, size: u64, dev: u64, ino: u64 }
    /// N: the guest has waited for a child, of which home is to tell what it used elsewhere.
    41 AskUsed { number: u64, pid: i32 }
    42 ChildUsed { number: u64, used: Usage }
    /// N: the guest reaches for a process at home, which, if for its memory, `began` then, as
    /// Found::Away told. H: another one for this guest.
    43 Reach { number: u64, pid: i32, began: u64, access: Access }
    /// The answer of either. H gives them in any order, N in that of the questions.
    44 Reached { number: u64, found: Found }
    /// N: thread `by` makes a call that only home's kernel can. ComeHome is the answer.
    40 VisitHome { by: i32 }
}

impl Begin {
    /// Whether a process can be so. Before anything is computed with it.
    pub fn check(&self) -> Result<()> {
        self.mm.check()?;
        self.common.check(&self.mm.vmas)?;
        let resident = self.resident.iter();
        Ok(resident.copied().try_for_each(|r| check_range("resident memory", r))?)
    }
}

impl From<Failed> for Error {
    fn from(f: Failed) -> Self {
        Self::Peer { errno: f.errno, text: f.text }
    }
}

pub fn send<M: Message>(w: &mut BulkWriter, m: &M) -> Result<()> {
    Ok(w.send_message(M::KIND, m)?)
}

/// The next message, which must be an `M`; the peer's Failed becomes an error.
pub fn expect<M: Message>(r: &mut BulkReader) -> Result<M> {
    let frame = r.recv_message()?;
    decode(&frame)
}

pub fn decode<M: Message>(frame: &Frame) -> Result<M> {
    if frame.kind == M::KIND {
        return Ok(frame.decode()?);
    }
    if frame.kind == Failed::KIND {
        return Err(frame.decode::<Failed>()?.into());
    }
    if frame.kind == Ended::KIND {
        return Err(tcmi_ckpt::Error::Ended.into());
    }
    Err(Error::Protocol { want: M::NAME, got: frame.kind })
}
