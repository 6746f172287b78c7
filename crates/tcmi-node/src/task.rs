//! One process that is away, on its way, or a guest: what its thread and the control files
//! share.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::{Condvar, Mutex};
use tcmi_ckpt::usage::{Usage, Used};
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_core::stats::{BYTES_SENT, BYTES_TOTAL};
use tcmi_kkc::LinkId;
use tcmi_migr::messages::CallCount;
use tcmi_migr::source::{Rules, Times, Watch};

use crate::calls::Calls;
use crate::control::{Done, TaskView};
use crate::doorbell::Bell;
use crate::keeper::Reaching;
use crate::tasks::used::Elsewhere;

/// Processes that are away, and those whose move has failed.
pub type Away = HashMap<Pid, Arc<Task>>;

/// What a task's thread is asked to do.
pub enum Order {
    Home(Done),
    /// The node asks for it, or the daemon ends.
    HomeUnasked,
}

pub struct Task {
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    pub node: LinkId,
    pub bell: Arc<Bell>,
    /// As many as there are processes of one family: those that began as children of a guest, and
    /// it.
    pub family: Arc<()>,
    pub rules: Rules,
    /// When its process began, and as whose child.
    pub origin: (u64, i32),
    pub elsewhere: Arc<Elsewhere>,
    /// All that are away, this one among them.
    pub all: Weak<Mutex<Away>>,
    migration: AtomicU64,
    /// The one before: its node may speak of that yet.
    former_migration: AtomicU64,
    inner: Mutex<Inner>,
    /// Told when a visit has ended.
    settled: Condvar,
    /// The socket of a move out that has not ended.
    way_out: Mutex<Option<OwnedFd>>,
}

struct Inner {
    state: State,
    remote_pid: i32,
    last_error: String,
    used: Used,
    /// Its node said why it ended: that is kept until its parent has taken its status.
    ended: bool,
    sent: u64,
    total: u64,
    out: Times,
    calls: Calls,
    orders: VecDeque<Order>,
    /// What others want of its guest.
    reachings: VecDeque<Reaching>,
    /// Its thread is at work.
    held: bool,
    /// It is at home for one call only.
    visits: bool,
    /// When the guest's counters were last asked for.
    calls_asked: Option<Instant>,
    wants_calls: bool,
}

/// Counters of forwarded calls are at most this old when they are read twice.
const CALLS_AGE: Duration = Duration::from_millis(200);
/// Longest that an order waits for the end of a visit.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

impl Task {
    pub fn new(pid: Pid, ids: (u32, u32), node: LinkId, migration: u64) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            uid: ids.0,
            gid: ids.1,
            node,
            bell: Arc::new(Bell::new()?),
            family: Arc::default(),
            rules: Rules::default(),
            origin: (0, 0),
            elsewhere: Arc::default(),
            all: Weak::new(),
            migration: AtomicU64::new(migration),
            former_migration: AtomicU64::new(migration),
            way_out: Mutex::default(),
            settled: Condvar::new(),
            inner: Mutex::new(Inner {
                state: State::Running,
                remote_pid: 0,
                last_error: String::new(),
                used: Used::default(),
                ended: false,
                sent: 0,
                total: 0,
                out: Times::default(),
                calls: Calls::default(),
                orders: VecDeque::new(),
                reachings: VecDeque::new(),
                held: true,
                visits: false,
                calls_asked: None,
                wants_calls: false,
            }),
        })
    }

    pub fn is_held(&self) -> bool {
        self.inner.lock().held
    }
    /// Its thread has nothing more to do with the process.
    pub fn release(&self) {
        self.inner.lock().held = false;
    }

    /// The number of its last move.
    pub fn migration(&self) -> u64 {
        self.migration.load(Ordering::Relaxed)
    }
    /// Whether a node means this one.
    pub fn is_meant(&self, node: LinkId, migration: u64) -> bool {
        let former = self.former_migration.load(Ordering::Relaxed);
        self.node == node && [self.migration(), former].contains(&migration)
    }
    pub fn moves_again(&self, migration: u64) {
        let former = self.migration.swap(migration, Ordering::Relaxed);
        self.former_migration.store(former, Ordering::Relaxed);
        self.inner.lock().calls.begin_anew();
    }
    /// Whether it comes home for one call only: orders wait for that.
    pub fn visits(&self, visits: bool) {
        self.inner.lock().visits = visits;
        self.settled.notify_all();
    }
    /// Until it is at home for no call: it is away again, or stays. Not for ever.
    pub fn wait_settled(&self) {
        let until = Instant::now() + SETTLE_TIMEOUT;
        let mut inner = self.inner.lock();
        while inner.visits && !self.settled.wait_until(&mut inner, until).timed_out() {}
    }

    /// None: the move has ended.
    pub fn set_way_out(&self, socket: Option<OwnedFd>) {
        *self.way_out.lock() = socket;
    }
    /// A move out that has not ended fails.
    pub fn give_up(&self) {
        if let Some(socket) = &*self.way_out.lock() {
            // It fails only if the peer closed it before.
            shutdown(socket.as_raw_fd(), Shutdown::Both).ok();
        }
    }

    pub fn state(&self) -> State {
        self.inner.lock().state
    }

    /// A transition that the lifecycle does not know is a bug of ours; it is not made.
    pub fn to(&self, next: State) {
        let mut inner = self.inner.lock();
        if inner.state == next {
            return;
        }
        match inner.state.to(next) {
            Ok(state) => inner.state = state,
            Err(error) => tracing::error!(pid = %self.pid, %error, "lifecycle"),
        }
    }

    /// The move failed; where the process is, `state` says.
    pub fn failed(&self, text: &str) {
        self.inner.lock().last_error = text.replace('\n', " ");
    }
    /// Its guest ended on `node`, which says `why` if it knows more than the status tells.
    pub fn ended(&self, node: &str, why: &str) {
        if !why.is_empty() {
            tracing::warn!(pid = %self.pid, "node {node} ended it: {why}");
            self.failed(&format!("node {node} ended it: {why}"));
            self.inner.lock().ended = true;
        }
    }
    /// Whether there is nothing more to tell of it.
    pub fn is_settled(&self) -> bool {
        let inner = self.inner.lock();
        inner.last_error.is_empty() || (inner.state == State::Gone && !inner.ended)
    }
    pub fn moved(&self, remote_pid: i32, times: Times) {
        let mut inner = self.inner.lock();
        (inner.remote_pid, inner.out) = (remote_pid, times);
        inner.last_error.clear();
    }
    /// It has come home, having used so much elsewhere.
    pub fn set_used(&self, used: Used) {
        self.inner.lock().used = used;
    }
    /// Home's kernel is to count it from now on, where it can.
    pub fn charge_used(&self) {
        let used = self.used();
        self.set_used(self.elsewhere.charge(self.pid, used));
    }
    /// Whether home's kernel counts it: then its end is not to be told before.
    pub fn is_charged(&self) -> bool {
        self.elsewhere.charges()
    }
    /// What a child that it waited for has used elsewhere; once.
    pub fn left_by(&self, child: Pid) -> Usage {
        self.elsewhere.take(child, self.pid)
    }
    pub fn other(&self, pid: Pid) -> Option<Arc<Task>> {
        self.all.upgrade()?.lock().get(&pid).cloned()
    }

    /// Another process reaches for its guest. Dropped if it is not away.
    pub fn reached_for(&self, what: Reaching) {
        let mut inner = self.inner.lock();
        if inner.state == State::Emigrated {
            inner.reachings.push_back(what);
            drop(inner);
            self.bell.ring();
        }
    }
    pub fn next_reaching(&self) -> Option<Reaching> {
        self.inner.lock().reachings.pop_front()
    }
    /// It is not away any more.
    pub fn drop_reachings(&self) {
        while let Some(dropped) = self.next_reaching() {
            drop(dropped);
        }
    }

    pub fn set_calls(&self, calls: Vec<CallCount>) {
        self.inner.lock().calls.told(calls);
    }
    /// Calls that its guests forwarded, all together.
    pub fn calls(&self) -> u64 {
        self.inner.lock().calls.total()
    }

    /// Err: it moves already; the order is given back.
    pub fn order(&self, order: Order) -> Result<(), (State, Order)> {
        let mut inner = self.inner.lock();
        let queued = inner.orders.iter().any(|o| matches!(o, Order::Home(_)));
        let takes = inner.state == State::Emigrated || inner.visits;
        if !takes || (queued && matches!(order, Order::Home(_))) {
            return Err((inner.state, order));
        }
        inner.orders.push_back(order);
        drop(inner);
        self.bell.ring();
        Ok(())
    }
    pub fn next_order(&self) -> Option<Order> {
        self.inner.lock().orders.pop_front()
    }

    /// Whether somebody read the counters since they were last brought up to date.
    pub fn takes_calls(&self) -> bool {
        std::mem::take(&mut self.inner.lock().wants_calls)
    }

    /// Whether somebody has called it home.
    pub fn has_orders(&self) -> bool {
        !self.inner.lock().orders.is_empty()
    }

    /// Answers orders that nobody has to carry out any more.
    pub fn answer_orders(&self, answer: impl Fn() -> Result<(), MigrateError>) {
        while let Some(order) = self.next_order() {
            if let Order::Home(done) = order {
                done(answer());
            }
        }
    }

    /// What there is to see. It does not wait for the guest's counters, but has them brought
    /// up to date for the next look.
    pub fn view(&self) -> TaskView {
        let mut inner = self.inner.lock();
        let fresh = inner.calls_asked.is_some_and(|then| then.elapsed() < CALLS_AGE);
        if inner.state == State::Emigrated && !fresh {
            (inner.calls_asked, inner.wants_calls) = (Some(Instant::now()), true);
            self.bell.ring();
        }
        TaskView {
            pid: self.pid,
            uid: self.uid,
            gid: self.gid,
            node: self.node,
            remote_pid: inner.remote_pid,
            state: inner.state,
            stats: inner.stats(),
            last_error: inner.last_error.clone(),
        }
    }
}

impl Inner {
    fn stats(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: u64| text.push_str(&format!("{name} {value}\n"));
        if self.total > 0 {
            line(BYTES_TOTAL, self.total);
            line(BYTES_SENT, self.sent);
        }
        line("freeze-us", self.out.freeze);
        line("transfer-us", self.out.transfer);
        line("resume-us", self.out.resume);
        line("bytes-by-module", self.out.bytes_by_module);
        text.push_str(&self.calls.text());
        text
    }
}

impl Watch for Task {
    fn enter(&self, state: State) {
        self.to(state);
    }
    fn memory(&self, sent: u64, total: u64) {
        let mut inner = self.inner.lock();
        (inner.sent, inner.total) = (sent, total);
    }
    fn rules(&self) -> Rules {
        self.rules.clone()
    }
    fn used(&self) -> Used {
        self.inner.lock().used.clone()
    }
}
