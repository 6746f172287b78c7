use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::account::{Account, children, is_leak};
use crate::node::{Launch, Node, Root};
use crate::victim::{Victim, VictimKind};
use crate::wait::wait_until;

const LINK_TIMEOUT: Duration = Duration::from_secs(20);

/// Unchanged for so long, what a node holds is what it holds at rest.
const SETTLED: Duration = Duration::from_millis(300);

/// The first is behind a warm-up.
const LOOKS: usize = 5;

/// A home and a bare desk that trust each other and are connected.
pub struct Pair {
    // The desk goes first: its guests go home while home is there.
    pub desk: Node,
    pub home: Node,
    pub address: String,
}

impl Pair {
    pub fn new() -> Result<Self> {
        Self::launch(Launch::new("home", Root::Normal), Launch::new("desk", Root::Bare))
    }

    pub fn launch(home: Launch, desk: Launch) -> Result<Self> {
        let home = Node::launch(home)?;
        let desk = Node::launch(desk)?;
        home.echo("ccn/trust", &desk.id()?)?;
        let address = home.listen()?;
        let pair = Self { desk, home, address };
        pair.connect()?;
        Ok(pair)
    }

    /// Has the desk connect, and waits until both sides show it.
    pub fn connect(&self) -> Result<()> {
        self.desk.echo("pen/connect", &format!("{} {}", self.address, self.home.id()?))?;
        self.wait_connected()
    }

    pub fn wait_connected(&self) -> Result<()> {
        let at_home = format!("ccn/nodes/{}/state", self.desk.name());
        let at_desk = format!("pen/nodes/{}/state", self.home.name());
        wait_until("both nodes connected", LINK_TIMEOUT, || {
            let connected = |state: io::Result<String>| state.is_ok_and(|s| s == "connected");
            let both = connected(self.home.read(&at_home)) && connected(self.desk.read(&at_desk));
            Ok(both.then_some(()))
        })
    }

    /// The raw answer of the write that emigrates.
    pub fn try_migrate(&self, pid: u32) -> io::Result<()> {
        self.home.write("ccn/mig/emigrate-ppm-p", format!("{pid} {}\n", self.desk.name()))
    }

    /// What home says of a move of `pid` to the desk.
    pub fn explain(&self, pid: u32) -> Result<String> {
        self.explained(&format!("{pid} {}", self.desk.name()))
    }

    /// The same with all processes below it.
    pub fn explain_tree(&self, pid: u32) -> Result<String> {
        self.explained(&format!("{pid} {} tree", self.desk.name()))
    }

    /// The answer to a question of any form.
    pub fn explained(&self, question: &str) -> Result<String> {
        self.home.echo("ccn/mig/explain", question)?;
        Ok(self.home.read("ccn/mig/explain")?)
    }

    /// The raw answer of the write that emigrates `pid` with all processes below it.
    pub fn try_migrate_tree(&self, pid: u32) -> io::Result<()> {
        let order = format!("{pid} {} tree\n", self.desk.name());
        self.home.write("ccn/mig/emigrate-ppm-p", order)
    }

    /// Moves `pid` to the desk. Ok: both nodes say that it runs there.
    pub fn migrate(&self, pid: u32) -> Result<()> {
        self.try_migrate(pid).with_context(|| format!("emigrate {pid}\n{}", self.logs()))?;
        let state = self.state(pid).context("state after emigration")?;
        ensure!(state == "emigrated", "state of {pid} after emigration: {state}");
        ensure!(self.is_guest(pid), "the desk does not list {pid}");
        Ok(())
    }

    /// Brings `pid` home by home's wish. Ok: neither node lists it as away.
    pub fn bring_home(&self, pid: u32) -> Result<()> {
        self.home
            .write("ccn/mig/migrate-home", format!("{pid}\n"))
            .with_context(|| format!("migrate-home {pid}\n{}", self.logs()))?;
        self.wait_home(pid)
    }

    /// Sends `pid` home by the desk's wish.
    pub fn send_home(&self, pid: u32) -> Result<()> {
        self.desk
            .write("pen/mig/migrate-home", format!("{pid}\n"))
            .with_context(|| format!("migrate-home {pid} by the desk\n{}", self.logs()))?;
        self.wait_home(pid)
    }

    fn wait_home(&self, pid: u32) -> Result<()> {
        wait_until(&format!("{pid} listed by neither node"), LINK_TIMEOUT, || {
            let away = self.state(pid).is_ok_and(|s| s != "running" && s != "gone");
            Ok((!away && !self.is_guest(pid)).then_some(()))
        })
    }

    pub fn state(&self, pid: u32) -> io::Result<String> {
        self.home.read(&format!("ccn/mig/migproc/{pid}/state"))
    }

    pub fn is_guest(&self, pid: u32) -> bool {
        self.desk.has(&format!("pen/mig/migproc/{pid}"))
    }

    /// Of a guest, at the desk: its own process, and that which holds it.
    pub fn guest_and_monitor(&self, pid: u32) -> Result<(u32, u32)> {
        let path = format!("pen/mig/migproc/{pid}/remote-pid");
        let guest: u32 = self.desk.read(&path)?.trim().parse()?;
        let has_it = |monitor: &u32| children(*monitor).is_ok_and(|all| all.contains(&guest));
        let monitor = children(self.desk.pid())?.into_iter().find(has_it);
        Ok((guest, monitor.context("its monitor")?))
    }

    /// Both nodes say so: of one that comes home the desk hears the end later.
    pub fn is_away(&self, pid: u32) -> bool {
        self.state(pid).is_ok_and(|s| s == "emigrated") && self.is_guest(pid)
    }

    /// Until the desk forgot the process: it ended, or went home.
    pub fn wait_forgotten(&self, pid: u32) -> Result<()> {
        wait_until(&format!("{pid} forgotten by the desk"), LINK_TIMEOUT, || {
            Ok((!self.is_guest(pid)).then_some(()))
        })
    }

    /// What both hold once nothing comes or goes: a link's parked streams are made after it
    /// is up.
    pub fn settled_accounts(&self) -> Result<[Account; 2]> {
        let (mut last, mut since) = (self.accounts()?, Instant::now());
        wait_until("nothing comes or goes", LINK_TIMEOUT, || {
            let now = self.accounts()?;
            let counts = |all: &[Account; 2]| [all[0].counts(), all[1].counts()];
            if counts(&now) != counts(&last) {
                since = Instant::now();
            }
            last = now;
            Ok((since.elapsed() > SETTLED).then(|| last.clone()))
        })
    }

    pub fn accounts(&self) -> Result<[Account; 2]> {
        Ok([Account::of(self.home.pid())?, Account::of(self.desk.pid())?])
    }

    /// Err says what either node holds more than before. Waits a while: what ends
    /// after an answer (a monitor, a stream's thread) is no leak.
    pub fn expect_no_leak(&self, before: &[Account; 2]) -> Result<()> {
        let mut last = None;
        let settled = wait_until("no more held than before", LINK_TIMEOUT, || {
            let now = self.accounts()?;
            let leaks = now[0].no_more_than(&before[0]).and(now[1].no_more_than(&before[1]));
            Ok(match leaks {
                Ok(()) => Some(()),
                Err(e) => {
                    last = Some(e);
                    None
                }
            })
        });
        match (settled, last) {
            (Err(_), Some(leak)) => Err(leak),
            (settled, _) => settled,
        }
    }

    /// Does `round` over and over, and looks after each so many. Err: a node leaks memory, for it
    /// held more at each look than at the one before.
    pub fn expect_steady(
        &self,
        rounds: usize,
        mut round: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let mut looks = Vec::new();
        for number in 0..LOOKS * rounds {
            round(number)?;
            if (number + 1).is_multiple_of(rounds) {
                looks.push(self.settled_accounts()?.map(|node| node.resident_kib));
            }
        }
        let leak = [0, 1].into_iter().any(|node| {
            let held: Vec<u64> = looks.iter().map(|both| both[node]).collect();
            is_leak(&held)
        });
        ensure!(!leak, "resident KiB of home and desk, look by look: {looks:?}");
        Ok(())
    }

    /// Another process goes out and home as ever, whatever became of those before.
    pub fn expect_serves(&self) -> Result<()> {
        let mut other = Victim::spawn(&VictimKind::plain("memory"))?;
        self.migrate(other.pid()).context("another guest afterwards")?;
        other.check()?;
        self.bring_home(other.pid()).context("its way home")?;
        other.check()?;
        other.end(7)
    }

    pub fn logs(&self) -> String {
        format!("log of home:\n{}\nlog of the desk:\n{}", self.home.log(), self.desk.log())
    }

    /// Both end well when asked to.
    pub fn stop(self) -> Result<()> {
        self.desk.stop()?;
        self.home.stop()
    }
}
