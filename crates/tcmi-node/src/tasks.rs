//! Who moves processes: home's keepers and the execution node's monitors, by their pids.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};
use tcmi_core::command::Pid;
use tcmi_core::error::MigrateError;
use tcmi_core::lifecycle::State;
use tcmi_core::limits::PHASE_TIMEOUT_MS;
use tcmi_ctlfs::Caller;
use tcmi_kkc::{Control, GuestControl, Link, LinkId, StreamKind};
use tcmi_migr::module::ByModule;
use tcmi_migr::source::{Original, Watch};
use tcmi_sys::proc;

use crate::config::Rules;
use crate::control::{Done, Side, TaskView, Tasks};
use crate::doorbell::Doorbell;
use crate::explain::{self, Sharers, examine};
use crate::guests::{EVACUATION, Guests, Hosting, Offer};
use crate::keeper::{self, AtHome};
use crate::task::{Away, Order, Task};
use crate::tree::Tree;
use used::Elsewhere;

mod armed;
mod party;
mod saved;
pub(crate) mod used;
mod visits;

pub use party::{Homeward, Party, Purpose, Rest, Step};

const STREAM_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(PHASE_TIMEOUT_MS);

/// An execution node's answer to an offer: errno (0: yes) and text.
type Answer = (i32, String);

struct Shared {
    home: Arc<Mutex<Away>>,
    armed: Mutex<HashMap<Pid, Arc<armed::Armed>>>,
    /// Of which an image is being written: nobody else holds them meanwhile.
    saving: Mutex<HashSet<Pid>>,
    /// One of them is done.
    saved: Condvar,
    links: Mutex<HashMap<LinkId, Link>>,
    /// Offers that wait for their answer, by migration.
    offers: Mutex<HashMap<u64, Sender<Answer>>>,
    next_migration: AtomicU64,
    doorbell: Doorbell,
    ending: AtomicBool,
    module: Option<ByModule>,
    tree: Arc<Tree>,
    /// Processes of one family that may be away at once.
    family_processes: usize,
    rules: Rules,
    elsewhere: Arc<Elsewhere>,
}

/// How a process goes out.
pub struct WayOut {
    pub original: Original,
    /// To be told once the guest runs, or that it does not.
    pub done: Done,
    /// With others.
    pub party: Option<Arc<Party>>,
}

/// The engine of a node, in both roles.
pub struct Engine {
    shared: Arc<Shared>,
    guests: Arc<Guests>,
    features: Vec<String>,
}

impl Engine {
    /// `first_migration` differs from run to run, so that no id is used twice.
    pub fn new(
        hosting: Hosting,
        (family_processes, rules): (usize, Rules),
        features: Vec<String>,
        module: Option<ByModule>,
        first_migration: u64,
        tree: Arc<Tree>,
    ) -> std::io::Result<Self> {
        let guests = Arc::new(Guests::new(hosting, module, Arc::clone(&tree))?);
        let shared = Shared {
            home: Arc::default(),
            armed: Mutex::default(),
            saving: Mutex::default(),
            saved: Condvar::new(),
            links: Mutex::default(),
            offers: Mutex::default(),
            next_migration: AtomicU64::new(first_migration),
            doorbell: Doorbell::start()?,
            ending: AtomicBool::new(false),
            module,
            tree,
            family_processes,
            rules,
            elsewhere: Arc::new(Elsewhere::new(module.is_some())),
        };
        Ok(Self { shared: Arc::new(shared), guests, features })
    }

    fn link(&self, id: LinkId) -> Option<Link> {
        self.shared.links.lock().get(&id).cloned()
    }
}

impl Shared {
    /// Checks a process and enters it in the books. Err: nothing was done.
    fn admit(
        &self,
        pid: Pid,
        node: LinkId,
        uid: u32,
        family: Arc<()>,
        sharers: Sharers,
    ) -> Result<Arc<Task>, MigrateError> {
        let examined = examine(pid, uid, self.is_away(pid), sharers)?;
        let ids = (examined.status.uid[0], examined.status.gid[0]);
        let began = proc::start_time(pid.raw()).map_err(|_| MigrateError::NoSuchProcess(pid))?;
        let origin = (began, examined.status.ppid);
        let mut home = self.home.lock();
        let former = home.get(&pid).cloned();
        if let Some(task) = &former {
            let state = task.state();
            if !matches!(state, State::Running | State::Gone | State::Failed) || task.is_held() {
                return Err(MigrateError::Busy { pid, state });
            }
        }
        if self.armed.lock().contains_key(&pid) || self.saving.lock().contains(&pid) {
            return Err(MigrateError::Busy { pid, state: State::Running });
        }
        examined.refusal()?;
        let mut task = Task::new(pid, ids, node, self.next_migration())
            .map_err(|source| MigrateError::Local { doing: "start a move".to_owned(), source })?;
        task.family = family;
        task.rules = self.rules.migration();
        // Its last thread may not have ended its books.
        task.origin = origin;
        task.elsewhere = Arc::clone(&self.elsewhere);
        task.all = Arc::downgrade(&self.home);
        task.set_used(former.map_or_else(|| self.elsewhere.of(pid), |former| former.used()));
        self.elsewhere.leaves(pid);
        let task = Arc::new(task);
        self.doorbell.add(&task.bell);
        home.insert(pid, Arc::clone(&task));
        drop(home);
        self.tree.changed();
        Ok(task)
    }

    /// Before an order for a process that may be at home for a call: whether it stays there shows
    /// behind that.
    fn settle(&self, pid: Pid) {
        let task = self.home.lock().get(&pid).cloned();
        if let Some(task) = task {
            task.wait_settled();
        }
    }

    fn is_away(&self, pid: Pid) -> bool {
        self.home.lock().get(&pid).is_some_and(|t| t.is_held())
    }
    fn next_migration(&self) -> u64 {
        self.next_migration.fetch_add(1, Ordering::Relaxed)
    }

    /// The life of a process away, in its own thread: one move out, or one for each of its visits.
    fn run(self: &Arc<Self>, task: &Arc<Task>, link: &Link, way_out: WayOut) {
        let mut next = Some(way_out);
        while let Some(way_out) = next {
            next = match self.move_out(task, link, way_out) {
                Some(AtHome::Visit(visit)) => self.visit(task, link, visit),
                Some(AtHome::Rest(rest)) => self.rest(task, rest),
                None => None,
            };
            if next.is_some() {
                task.moves_again(self.next_migration());
            }
        }
        self.forget(task);
    }

    /// Its keeper ends.
    fn forget(&self, task: &Arc<Task>) {
        // Before it may be moved again.
        let (began, parent) = task.origin;
        self.elsewhere.keep(task.pid, began, parent, task.used());
        task.release();
        task.visits(false);
        let at_home = task.state() == State::Running;
        let not_away = || Err(MigrateError::NotAway(task.pid));
        task.answer_orders(|| if at_home { Ok(()) } else { not_away() });
        match task.view().last_error.is_empty() || task.state() == State::Gone {
            true => self.strike_out(task),
            false => self.tree.changed(),
        }
    }

    fn strike_out(&self, task: &Arc<Task>) {
        let mut home = self.home.lock();
        if task.is_settled() && home.get(&task.pid).is_some_and(|t| Arc::ptr_eq(t, task)) {
            home.remove(&task.pid);
        }
        drop(home);
        self.tree.changed();
    }

    fn move_out(&self, task: &Arc<Task>, link: &Link, way_out: WayOut) -> Option<AtHome> {
        match self.offer(task, link) {
            Ok(bulk) => keeper::keep(task, link, bulk, self.module, way_out),
            Err(error) => {
                let WayOut { original, done, .. } = way_out;
                if let Original::Held(frozen) = original
                    && let Err(error) = frozen.thaw()
                {
                    tracing::debug!(pid = %task.pid, %error, "a process that stays");
                }
                task.failed(&error.to_string());
                task.release();
                task.to(State::Running);
                done(Err(error));
                None
            }
        }
    }

    fn offer(&self, task: &Task, link: &Link) -> Result<tcmi_kkc::Stream, MigrateError> {
        let node = link.peer_name().to_owned();
        let gone = |reason: String| MigrateError::PeerGone { node: node.clone(), reason };
        task.to(State::Preparing);
        let bulk =
            link.take_stream(StreamKind::Bulk, STREAM_TIMEOUT).map_err(|e| gone(e.to_string()))?;
        let (sender, answer) = bounded(1);
        self.offers.lock().insert(task.migration(), sender);
        let comm = tcmi_sys::proc::comm(task.pid.raw(), task.pid.raw())
            .map_err(|_| MigrateError::NoSuchProcess(task.pid))?;
        let status = tcmi_sys::proc::status(task.pid.raw())
            .map_err(|_| MigrateError::NoSuchProcess(task.pid))?;
        let sent = link.send(&Control::Offer {
            migration: task.migration(),
            epoch: 1,
            pid: task.pid.raw(),
            uid: task.uid,
            comm: String::from_utf8_lossy(&comm).into_owned(),
            bulk: bulk.id,
            memory: status.anonymous,
            threads: status.threads,
        });
        let answered = sent
            .map_err(|e| gone(e.to_string()))
            .and_then(|()| answer.recv_timeout(ANSWER_TIMEOUT).map_err(|e| gone(e.to_string())));
        self.offers.lock().remove(&task.migration());
        match answered? {
            (0, _) => Ok(bulk),
            (_, reason) => Err(MigrateError::PeerRefused { node, reason }),
        }
    }
}

fn not_connected(node: LinkId) -> MigrateError {
    MigrateError::PeerGone { node: node.to_string(), reason: "not connected".to_owned() }
}

impl Tasks for Engine {
    fn emigrate(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done) {
        let Some(link) = self.link(node) else {
            return reply(Err(not_connected(node)));
        };
        if self.shared.ending.load(Ordering::Relaxed) {
            return reply(Err(MigrateError::ShuttingDown));
        }
        self.shared.settle(pid);
        let task =
            match self.shared.admit(pid, node, caller.uid, Arc::default(), Sharers::Among(&[])) {
                Ok(task) => task,
                Err(e) => return reply(Err(e)),
            };
        let shared = Arc::clone(&self.shared);
        let ours = Arc::clone(&task);
        let reply = Arc::new(Mutex::new(Some(reply)));
        let theirs = Arc::clone(&reply);
        let started = thread::Builder::new().name(format!("keep-{pid}")).spawn(move || {
            if let Some(reply) = theirs.lock().take() {
                let original = Original::Runs(pid.raw());
                shared.run(&ours, &link, WayOut { original, done: reply, party: None });
            }
        });
        if let Err(source) = started {
            self.shared.home.lock().remove(&pid);
            self.shared.tree.changed();
            if let Some(reply) = reply.lock().take() {
                reply(Err(MigrateError::Local { doing: "start a move".to_owned(), source }));
            }
        }
    }

    fn emigrate_tree(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done) {
        match self.link(node) {
            None => reply(Err(not_connected(node))),
            Some(_) if self.shared.ending.load(Ordering::Relaxed) => {
                reply(Err(MigrateError::ShuttingDown));
            }
            Some(link) => {
                self.shared.settle(pid);
                self.shared.emigrate_tree(pid, link, caller, reply);
            }
        }
    }

    fn arm(&self, pid: Pid, node: LinkId, caller: Caller, reply: Done) {
        match self.link(node) {
            Some(link) => {
                self.shared.settle(pid);
                self.shared.arm(pid, link, caller.uid, reply);
            }
            None => reply(Err(not_connected(node))),
        }
    }

    fn disarm(&self, pid: Pid, caller: Caller, reply: Done) -> Option<Done> {
        self.shared.disarm(pid, caller.uid, reply)
    }

    fn armed(&self) -> Vec<(Pid, LinkId)> {
        self.shared.armed.lock().iter().map(|(pid, armed)| (*pid, armed.node)).collect()
    }

    fn checkpoint(&self, pid: Pid, path: String, caller: Caller, reply: Done) {
        match self.shared.ending.load(Ordering::Relaxed) {
            true => reply(Err(MigrateError::ShuttingDown)),
            false => self.shared.checkpoint(pid, path, caller, reply),
        }
    }

    fn migrate_home(&self, pid: Pid, side: Side, _: Caller, reply: Done) {
        match side {
            Side::Guest => self.guests.send_home(pid, reply),
            Side::Home => {
                let task = self.shared.home.lock().get(&pid).cloned();
                let Some(task) = task else { return reply(Err(MigrateError::NotAway(pid))) };
                if let Err((state, Order::Home(reply))) = task.order(Order::Home(reply)) {
                    reply(Err(match task.is_held() {
                        true => MigrateError::Busy { pid, state },
                        false => MigrateError::NotAway(pid),
                    }));
                }
            }
        }
    }

    fn migrate_all_home(&self, node: LinkId, side: Side, reply: Done) {
        match side {
            Side::Guest => reply(self.guests.evacuate(Some(node), EVACUATION)),
            Side::Home => reply(self.recall(|t| t.node == node)),
        }
    }

    fn explain(
        &self,
        pid: Pid,
        node: Option<LinkId>,
        tree: bool,
        caller: Caller,
    ) -> Result<String, MigrateError> {
        let away = self.shared.is_away(pid);
        let sharers = if tree { Sharers::Later } else { Sharers::Among(&[]) };
        let examined = examine(pid, caller.uid, away, sharers)?;
        let link = node.and_then(|id| self.link(id));
        let lacking = link.as_ref().map(|l| explain::lacking(&self.features, l.peer_features()));
        let node = link.as_ref().map(Link::peer_name).zip(lacking);
        // What is here of one that is away is its shadow, with descriptors of ours.
        Ok(match (away, tree) {
            (true, _) => examined.text_of_away(),
            (false, false) => examined.text(node, &self.shared.rules),
            (false, true) => {
                let away = |pid| self.shared.is_away(pid);
                explain::tree_text(examined, node, caller.uid, &away)?
            }
        })
    }

    fn list(&self, side: Side) -> Vec<TaskView> {
        match side {
            Side::Guest => self.guests.list(),
            Side::Home => {
                let mut home = self.shared.home.lock();
                // What is left of a failed move goes with its process.
                home.retain(|pid, t| t.is_held() || tcmi_sys::proc::status(pid.raw()).is_ok());
                home.values().map(|t| t.view()).collect()
            }
        }
    }

    fn link_up(&self, link: Link) {
        self.shared.links.lock().insert(link.id(), link);
    }

    fn message(&self, from: LinkId, message: Control) {
        match message {
            Control::Offer { migration, pid, uid, bulk, memory, threads, .. } => {
                if let Some(link) = self.link(from) {
                    let offer = Offer { migration, pid, uid, bulk, memory, threads };
                    self.guests.offered(link, offer);
                }
            }
            Control::OfferAnswer { migration, errno, text } => {
                let waiting = self.shared.offers.lock().remove(&migration);
                // Nobody waits for an answer that came too late.
                if let Some(Err(_)) = waiting.map(|w| w.send((errno, text))) {
                    tracing::debug!(migration, "late answer");
                }
            }
            Control::Guest { migration, what: GuestControl::WantHome } => {
                let home = self.shared.home.lock();
                let task = home.values().find(|t| t.is_meant(from, migration));
                if let Some(Err((state, _))) = task.map(|t| t.order(Order::HomeUnasked)) {
                    tracing::debug!(migration, %state, "asked home while it moves");
                }
            }
            other => tracing::warn!("{} from node {from}: not expected", other.label()),
        }
    }

    fn give_up_moves(&self, node: LinkId) {
        self.shared.home.lock().values().filter(|t| t.node == node).for_each(|t| t.give_up());
    }

    fn link_down(&self, link: LinkId, reason: &str) {
        self.shared.links.lock().remove(&link);
        // Guests go on over their own streams; a move in progress notices by its own.
        tracing::info!(%link, reason, "link down");
    }

    fn shut_down(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.wait_for_images(EVACUATION);
        if let Err(error) = self.recall(|_| true) {
            tracing::warn!(%error, "not all processes came home");
        }
        if let Err(error) = self.guests.evacuate(None, EVACUATION) {
            tracing::warn!(%error, "not all guests went home");
        }
    }
}

impl Engine {
    /// Calls processes home; returns when all are, or one cannot.
    fn recall(&self, which: impl Fn(&Task) -> bool) -> Result<(), MigrateError> {
        let tasks: Vec<Arc<Task>> =
            self.shared.home.lock().values().filter(|t| which(t)).cloned().collect();
        let (sender, answers) = crossbeam_channel::unbounded();
        for task in &tasks {
            let sender = sender.clone();
            let done: Done = Box::new(move |result| {
                if sender.send(result).is_err() {
                    tracing::debug!("a recall came late");
                }
            });
            // One that moves home already, or is gone, needs no order.
            drop(task.order(Order::Home(done)));
        }
        drop(sender);
        while let Ok(result) = answers.recv_timeout(EVACUATION) {
            match result {
                Ok(()) | Err(MigrateError::NotAway(_) | MigrateError::NoSuchProcess(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
