//! Named places where a test makes a daemon fail: `TCMI_FAULT=Name:error` or `Name:kill`, with
//! `:N` for the N-th passage. With `Name:stop` it stops there as by SIGSTOP, for a test that has
//! something to do to it in that moment. Without the variable a passage costs one load.

use crate::error::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub const VARIABLE: &str = "TCMI_FAULT";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $name),+ }
        impl Point {
            pub const ALL: &'static [Point] = &[$(Point::$name),+];
            pub fn name(self) -> &'static str {
                match self { $(Point::$name => stringify!($name)),+ }
            }
        }
    };
}

points! {
    /// Home: the agent is in the process, which runs again.
    HomeAttached,
    HomeBeginSent,
    HomeFilesSent,
    /// Home: every thread is held.
    HomeFrozen,
    HomeCaptured,
    HomeStreamsInstalled,
    HomeStateSent,
    /// The first run of pages is over, as in the others of this kind.
    HomePagesHalfSent,
    HomePagesSent,
    /// Home: a thread whose keeper dies goes on by itself.
    HomeArmed,
    HomeReadyReceived,
    /// Node: before anything is built.
    NodeBeginReceived,
    /// Node: in the process that makes the guest's namespaces, before it has any.
    NodeBears,
    /// Node: a failure only makes the vDSO that of another kernel.
    NodeVdsoCompared,
    NodePrepared,
    NodeStateReceived,
    NodePagesHalfReceived,
    NodePagesReceived,
    NodeRestored,
    /// Node: the last point where a failure leaves the process at home.
    NodeReadySent,
    NodeCommitReceived,
    /// Home: the guest may run.
    HomeCommitSent,
    HomeRunningReceived,
    /// Home: all processes of a tree are held.
    HomeTreeHeld,
    /// Home: the node has all of them, and none may run there yet.
    HomeTreeReady,
    /// Home: all of them run on the node, and nothing is decided.
    HomeTreeRuns,
    /// Home: the process is a shadow, although no thread of it runs yet. No failure but a crash.
    HomeDecidedAway,
    HomeMemoryReleased,
    HomeShadowRuns,
    NodeReturnAsked,
    NodeGuestFrozen,
    NodePagesHalfSent,
    NodeImageSent,
    HomeReturnFrozen,
    HomeReturnArmed,
    HomePagesHalfReceived,
    HomeImageReceived,
    HomeRebuilt,
    /// Home: the process is itself again, although no thread of it runs yet. No failure but a
    /// crash, as from here on.
    HomeDecidedHome,
    HomeFinishSent,
    HomeRunsAgain,
    /// Home: it has come for a call of one thread, and is held. A failure leaves it at home.
    HomeVisits,
    /// Home: the call has returned, and it is held.
    HomeVisited,
    /// Home: one of those that came together for a call is to be held again. A failure leaves all
    /// of them at home.
    HomeGoesAgain,
}

enum Action {
    Error,
    Kill,
    Stop,
}

struct Armed {
    name: String,
    action: Action,
    passage: u32,
    seen: AtomicU32,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?)).as_ref()
}

fn parse(text: &str) -> Option<Armed> {
    let mut parts = text.split(':');
    let name = parts.next()?.to_owned();
    let action = match parts.next()? {
        "error" => Action::Error,
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        _ => return None,
    };
    let passage = parts.next().map_or(Some(1), |n| n.parse().ok())?;
    Some(Armed { name, action, passage, seen: AtomicU32::new(0) })
}

/// Passes a fault point where nothing but a crash can happen.
pub fn pass_or_die(point: Point) {
    if let Err(e) = pass(point) {
        tracing::debug!(error = %e, "not a point that can fail");
    }
}

/// Passes a fault point.
pub fn pass(point: Point) -> Result<()> {
    let Some(armed) = armed().filter(|a| a.name == point.name()) else { return Ok(()) };
    if armed.seen.fetch_add(1, Ordering::Relaxed) + 1 != armed.passage {
        return Ok(());
    }
    tracing::warn!("fault at {}", point.name());
    match armed.action {
        Action::Error => Err(Error::Injected(point.name())),
        Action::Stop => {
            // SAFETY: plain call on ourselves; it returns when somebody lets us go on.
            unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
            Ok(())
        }
        Action::Kill => {
            // SAFETY: plain call on ourselves; it does not return.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            unreachable!("killed")
        }
    }
}
