//! Bring-up and unwind of a node.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use nix::sys::signal::{SigSet, Signal};
use sd_notify::NotifyState;
use tcmi_core::error::MigrateError;
use tcmi_ctlfs::{Module, NoModule, Server, unmount_stale};
use tcmi_kkc::{Endpoint, Identity};
use tcmi_migr::module::ByModule;
use tcmi_node::cgroup::Groups;
use tcmi_node::config::{Args, Config, Home};
use tcmi_node::control::{Node, Tasks};
use tcmi_node::facts;
use tcmi_node::guests::{Hosting, MONITOR};
use tcmi_node::peers::{Peers, peer_key};
use tcmi_node::state_dir::StateDir;
use tcmi_node::tasks::Engine;
use tcmi_node::tree::Tree;
use tcmi_node::trusted::Trusted;
use tcmi_sys::heap;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

const LOG_DEFAULT: &str = "info,fuser=error";
/// Events of links that wait to be taken; a link that has more to say waits.
const LINK_EVENTS_MAX: usize = 1024;
const LOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Between two attempts to connect to a home of the configuration.
const CONNECT_INTERVAL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    if name.is_some_and(|n| n == MONITOR) {
        return monitor();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == "--list-faults") {
        for point in tcmi_migr::fault::Point::ALL {
            println!("{}", point.name());
        }
        return ExitCode::SUCCESS;
    }
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcmid: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// This program as the monitor of one guest; the daemon's socket is its standard input.
fn monitor() -> ExitCode {
    if let Err(error) = log_to_stderr() {
        eprintln!("{MONITOR}: {error:#}");
        return ExitCode::FAILURE;
    }
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(daemon) => ExitCode::from(tcmi_monitor::run(daemon) as u8),
        Err(error) => {
            eprintln!("{MONITOR}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Begins the names of our control groups: of no other daemon here, and the same when we are
/// started again.
fn group_prefix(state: &StateDir) -> anyhow::Result<String> {
    let place = fs::metadata(state.path())?;
    Ok(format!("tcmi-{:x}-{:x}-", place.dev(), place.ino()))
}

/// A number that no former run of this node has used.
fn first_migration() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes))?;
    Ok(u64::from_le_bytes(bytes) >> 1)
}

/// Buffers of streams are big and as short-lived as a move: their memory is to go back to the
/// system with them. The C library would keep what it was once given back.
fn give_memory_back() {
    const MAP_FROM_BYTES: i32 = 128 * 1024;
    heap::map_blocks_from(MAP_FROM_BYTES);
}

fn run(args: Args) -> anyhow::Result<()> {
    log_to_stderr()?;
    give_memory_back();
    // Before any thread is made: all inherit it, and only `wait` below takes them. A
    // child process has to reset its mask.
    let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect::<SigSet>();
    let mut blocked = ends;
    blocked.add(Signal::SIGCHLD);
    blocked.thread_block().context("cannot block signals")?;

    let config = Config::load(args)?;
    let state = StateDir::lock(&config.state)?;
    let ctlfs = prepare_mount_point(&config)?;
    let module = claim_module(&config);
    let by_module = module.is_some().then(|| ByModule { sends: tcmi_kkc::kernel_protects() });
    let groups = Arc::new(Groups::find(group_prefix(&state)?));
    let mut features = facts::features(by_module)?;
    features.extend(groups.features());
    if config.guests.memory.is_some() && !groups.limit_memory() {
        warn!("memory-mib is not kept to: there is no control group of memory to divide");
    }
    let tree = Arc::new(Tree::default());
    let (peers, events) = start_links(&config, &state, &features, by_module.is_some(), &tree)?;
    let hosting = Hosting {
        state: state.path().to_owned(),
        root: config.pen_root.clone().unwrap_or_else(|| config.state.join("root")),
        grant: config.guests.clone(),
        groups: Arc::clone(&groups),
    };
    let (of_home, first) =
        ((config.family_processes, config.resources.clone()), first_migration()?);
    let engine =
        Engine::new(hosting, of_home, features.clone(), by_module, first, Arc::clone(&tree));
    let tasks: Arc<dyn Tasks> = Arc::new(engine.context("cannot start")?);
    let (follower, follows) = (Arc::clone(&peers), Arc::clone(&tasks));
    thread::Builder::new()
        .name("link-events".to_owned())
        .spawn(move || follower.follow(&events, &follows))?;
    for address in &config.listen {
        peers.listen(address)?;
    }
    let node = Arc::new(node(&config, &features, &peers, &tasks));
    let mounted = match module {
        Some(module) => Server::mount_kernel(&ctlfs, node, module),
        None => Server::mount(&ctlfs, node),
    };
    let server = mounted.with_context(|| format!("cannot mount {}", ctlfs.display()))?;
    tree.mounted(server.refresher());
    // Dropped to end the threads that wait in between.
    let (running, ended) = bounded::<()>(0);
    start_periodic(&config, &peers, &tree, &groups, &ended)?;

    announce(&config)?;
    let signal = ends.wait().context("cannot wait for signals")?;
    info!("ending by {signal}");
    if let Err(error) = sd_notify::notify(&[NotifyState::Stopping]) {
        warn!("cannot notify the service manager: {error}");
    }
    drop(running);
    let unmounted = server.unmount().context("cannot unmount the control filesystem");
    tasks.shut_down();
    peers.close("the node is going down");
    unmounted
}

fn log_to_stderr() -> anyhow::Result<()> {
    let filter = match std::env::var("TCMI_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("TCMI_LOG={text}"))?,
        Err(std::env::VarError::NotPresent) => EnvFilter::new(LOG_DEFAULT),
        Err(error) => bail!("TCMI_LOG: {error}"),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    Ok(())
}

/// Other users are to get through it to the files that are theirs.
fn prepare_mount_point(config: &Config) -> anyhow::Result<PathBuf> {
    let dir = &config.ctlfs;
    unmount_stale(dir).with_context(|| format!("{} cannot be used", dir.display()))?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.canonicalize()?)
}

/// None: FUSE is to serve the control filesystem.
fn claim_module(config: &Config) -> Option<Module> {
    if config.no_module {
        info!("FUSE serves the control filesystem, as asked for");
        return None;
    }
    match Module::claim() {
        Ok(module) => {
            info!("the kernel module serves the control filesystem");
            Some(module)
        }
        Err(why @ (NoModule::NotLoaded | NoModule::Taken)) => {
            info!("FUSE serves the control filesystem; the kernel module does not: {why}");
            None
        }
        Err(why @ (NoModule::OtherVersion { .. } | NoModule::Failed(_))) => {
            warn!("FUSE serves the control filesystem; the kernel module cannot: {why}");
            None
        }
    }
}

type LinkEvents = Receiver<tcmi_kkc::LinkEvent>;

fn start_links(
    config: &Config,
    state: &StateDir,
    features: &[String],
    beats: bool,
    tree: &Arc<Tree>,
) -> anyhow::Result<(Arc<Peers>, LinkEvents)> {
    let identity = Identity::load_or_create(state.path())?;
    let trusted = Trusted::load(state.path())?;
    let more = config.trust.iter().map(peer_key).collect::<Result<Vec<_>, _>>()?;
    let (sender, events) = bounded(LINK_EVENTS_MAX);
    let endpoint = Endpoint::new(identity, config.name.as_str(), features.to_vec(), sender)?;
    let peers = Peers::new(endpoint, trusted, &more, beats, Arc::clone(tree));
    Ok((Arc::new(peers), events))
}

fn node(config: &Config, features: &[String], peers: &Arc<Peers>, tasks: &Arc<dyn Tasks>) -> Node {
    Node {
        name: format!("{}\n", config.name),
        version: facts::version(tcmi_ckpt::image::VERSION),
        features: features.iter().map(|feature| format!("{feature}\n")).collect(),
        peers: Arc::clone(peers),
        tasks: Arc::clone(tasks),
    }
}

/// What goes on until `ended` says otherwise: reporting our load, and keeping the links
/// of the configuration.
fn start_periodic(
    config: &Config,
    peers: &Arc<Peers>,
    tree: &Arc<Tree>,
    groups: &Arc<Groups>,
    ended: &Receiver<()>,
) -> anyhow::Result<()> {
    let (reporter, tree, end) = (Arc::clone(peers), Arc::clone(tree), ended.clone());
    let groups = Arc::clone(groups);
    thread::Builder::new().name("load".to_owned()).spawn(move || {
        repeat(&end, LOAD_INTERVAL, || {
            match facts::load() {
                Ok(load) => reporter.endpoint().set_load(load),
                Err(error) => warn!("cannot read the load: {error}"),
            }
            // What is left of a failed move goes with its process, whose end nobody tells us.
            tree.changed();
            groups.sweep();
        });
    })?;
    for home in config.connect.clone() {
        let (peers, end) = (Arc::clone(peers), ended.clone());
        thread::Builder::new().name("connect".to_owned()).spawn(move || {
            let mut last_failure = None;
            repeat(&end, CONNECT_INTERVAL, || keep_connected(&peers, &home, &mut last_failure));
        })?;
    }
    Ok(())
}

fn repeat(ended: &Receiver<()>, interval: Duration, mut work: impl FnMut()) {
    loop {
        work();
        match ended.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A failure is logged when it changes, not at every attempt.
fn keep_connected(peers: &Peers, home: &Home, last_failure: &mut Option<String>) {
    match peers.connect(&home.address, &home.key) {
        Ok(()) | Err(MigrateError::Exists(_)) => *last_failure = None,
        Err(error) => {
            let text = error.to_string();
            if last_failure.as_ref() != Some(&text) {
                warn!("{text}; trying again");
                *last_failure = Some(text);
            }
        }
    }
}

fn announce(config: &Config) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let ready = writeln!(out, "tcmid: ready name={} ctlfs={}", config.name, config.ctlfs.display());
    ready.and_then(|()| out.flush()).context("cannot write to standard output")?;
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!("cannot notify the service manager: {error}");
    }
    Ok(())
}
