//! A home on this machine, a desk on the other.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcmi_tests::{Launch, Node, Root, wait_until};
use tcmi_vm_tests::wire::HOME_ADDRESS;

use crate::remote::{Order, Remote};

/// Emulated machines that share cores with others are slow.
pub const TIMEOUT: Duration = Duration::from_secs(60);
const LISTEN: u16 = 7770;

pub struct Pair {
    pub home: Node,
    pub desk: Remote,
}

impl Pair {
    pub fn new() -> Result<Self> {
        let home = Node::launch(Launch::new("home", Root::Normal))?;
        home.echo("ccn/listen", &format!("tcp:{HOME_ADDRESS}:{LISTEN}"))?;
        Self::with(home, &[])
    }

    /// A home that listens, and a new desk with this environment; both connected.
    pub fn with(home: Node, environment: &[(&str, &str)]) -> Result<Self> {
        let environment = environment.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let desk = Remote::reach()?;
        desk.order(&Order::Start { environment })?;
        home.echo("ccn/trust", &desk.read("node/id")?)?;
        let pair = Self { home, desk };
        pair.connect()?;
        Ok(pair)
    }

    pub fn connect(&self) -> Result<()> {
        let address = format!("tcp:{HOME_ADDRESS}:{LISTEN}");
        self.desk.write("pen/connect", &format!("{address} {}", self.home.id()?))?;
        self.wait_connected()
    }

    pub fn wait_connected(&self) -> Result<()> {
        wait_until("both nodes connected", TIMEOUT, || {
            let at_home = self.home.read("ccn/nodes/desk/state").is_ok_and(|s| s == "connected");
            let there = || self.desk.read("pen/nodes/home/state").is_ok_and(|s| s == "connected");
            Ok((at_home && there()).then_some(()))
        })
    }

    pub fn try_migrate(&self, pid: u32) -> io::Result<()> {
        self.home.write("ccn/mig/emigrate-ppm-p", format!("{pid} desk\n"))
    }

    pub fn migrate(&self, pid: u32) -> Result<()> {
        self.try_migrate(pid).with_context(|| format!("emigrate {pid}"))?;
        ensure!(self.state(pid)? == "emigrated", "state after emigration: {}", self.state(pid)?);
        ensure!(self.is_guest(pid), "the desk does not list {pid}");
        Ok(())
    }

    pub fn bring_home(&self, pid: u32) -> Result<()> {
        let written = self.home.write("ccn/mig/migrate-home", format!("{pid}\n"));
        written.with_context(|| format!("migrate-home {pid}"))?;
        wait_until("listed by neither node", TIMEOUT, || {
            let away = self.state(pid).is_ok_and(|s| s != "running" && s != "gone");
            Ok((!away && !self.is_guest(pid)).then_some(()))
        })
    }

    pub fn state(&self, pid: u32) -> io::Result<String> {
        self.home.read(&format!("ccn/mig/migproc/{pid}/state"))
    }

    pub fn is_guest(&self, pid: u32) -> bool {
        self.desk.read(&format!("pen/mig/migproc/{pid}/state")).is_ok()
    }

    pub fn is_halted(&self) -> Result<bool> {
        Ok(self.desk.order(&Order::IsHalted)? == "true")
    }

    pub fn show_home(&self) {
        println!("--- log of home\n{}", self.home.log());
    }

    /// Both logs, on the console.
    pub fn show_logs(&self) {
        self.show_home();
        match self.desk.order(&Order::Log) {
            Ok(log) => println!("--- log of the desk\n{log}"),
            Err(e) => println!("--- no log of the desk: {e:#}"),
        }
    }

    /// Both end well when asked to.
    pub fn stop(self) -> Result<()> {
        self.desk.order(&Order::Stop)?;
        self.home.stop()
    }
}
