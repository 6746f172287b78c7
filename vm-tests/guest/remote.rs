//! The desk's machine as the home's machine uses it: one order a line, one answer a line, over
//! a TCP connection beside the one under test.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tcmi_tests::{Launch, Node, Root, wait_until};
use tcmi_vm_tests::wire::DESK_ADDRESS;

use crate::system::{self, CommandLine};

const PORT: u16 = 7000;
const REACH_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Start {
        environment: Vec<(String, String)>,
    },
    Read(String),
    Write(String, String),
    /// Whether a process of the node was stopped by a fault point.
    IsHalted,
    Log,
    Threads,
    /// The daemon dies; its kernel lives.
    Kill,
    /// Anew on the same state.
    Restart,
    /// Unloads the kernel module and loads it again.
    Reload,
    /// The daemon is to end well, and the kernel to have nothing to complain of.
    Stop,
}

type Answer = std::result::Result<String, String>;

/// Home's end.
pub struct Remote(Mutex<BufReader<TcpStream>>);

impl Remote {
    pub fn reach() -> Result<Self> {
        let stream = wait_until("the desk's machine", REACH_TIMEOUT, || {
            Ok(TcpStream::connect((DESK_ADDRESS, PORT)).ok())
        })?;
        stream.set_nodelay(true)?;
        Ok(Self(Mutex::new(BufReader::new(stream))))
    }

    pub fn order(&self, order: &Order) -> Result<String> {
        let mut stream = self.0.lock().expect("nobody panics with it");
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        stream.get_mut().write_all(line.as_bytes())?;
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the desk's machine is gone");
        serde_json::from_str::<Answer>(&line)?.map_err(|e| anyhow!("desk: {e}"))
    }

    pub fn read(&self, file: &str) -> Result<String> {
        self.order(&Order::Read(file.to_owned()))
    }

    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        self.order(&Order::Write(file.to_owned(), value.to_owned())).map(drop)
    }
}

/// The desk's end. Ok: it was stopped.
pub fn serve() -> Result<()> {
    let (stream, _) = TcpListener::bind((DESK_ADDRESS, PORT))?.accept()?;
    stream.set_nodelay(true)?;
    let mut writes = stream.try_clone()?;
    let mut node: Option<Node> = None;
    for line in BufReader::new(stream).lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let stop = matches!(order, Order::Stop);
        let answer: Answer = obey(&mut node, order).map_err(|e| format!("{e:#}"));
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        writes.write_all(line.as_bytes())?;
        if stop {
            break;
        }
    }
    Ok(())
}

/// More than any victim takes that does not want to.
const LIMITS: &str = "[guests]\nmemory-mib = 192\n";

fn obey(node: &mut Option<Node>, order: Order) -> Result<String> {
    if let Order::Start { environment } = order {
        let mut launch = Launch::new("desk", Root::Normal).config(LIMITS);
        launch.environment = environment;
        *node = Some(Node::launch(launch)?);
        return Ok(String::new());
    }
    if let Order::Stop = order {
        node.take().context("started")?.stop()?;
        if CommandLine::read()?.has_module() {
            system::unload_module()?;
        }
        return system::kernel_is_content().map(|()| String::new());
    }
    let node = node.as_mut().context("started")?;
    match order {
        Order::Kill => node.kill().map(|()| String::new()),
        Order::Restart => node.restart(Vec::new()).map(|()| String::new()),
        Order::Reload => {
            system::unload_module()?;
            system::load_module(system::TCMI_MODULE).map(|()| String::new())
        }
        Order::Start { .. } | Order::Stop => unreachable!("see above"),
        Order::Read(file) => Ok(node.read(&file)?),
        Order::Write(file, value) => node.echo(&file, &value).map(|()| String::new()),
        Order::IsHalted => Ok(node.halted()?.is_some().to_string()),
        Order::Log => Ok(node.log()),
        Order::Threads => crate::system::threads(),
    }
}
