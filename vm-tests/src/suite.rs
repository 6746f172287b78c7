//! Which cases run on which machines, several at a time, and what came of each.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use tcmi_tests::Scratch;

use crate::cases::{CASES, Case, Loads, SERIES};
use crate::initramfs;
use crate::kernels::{self, Kernel};
use crate::machine::{Machine, Plan, qemu};
use crate::module;
use crate::packages;
use crate::wire::{DONE, Order, Role, Said};

/// Begins a line that tells what passed only at its second try.
pub const FLAKY: &str = "FLAKY: ";
/// For machines that are many times slower than they are on a quiet host.
const CASE_TIMEOUT: Duration = Duration::from_secs(600);
/// A kernel that watches itself is slower still.
const DEBUG_CASE_TIMEOUT: Duration = Duration::from_secs(1800);
const OFF_TIMEOUT: Duration = Duration::from_secs(60);
/// What QEMU takes beside a machine's memory.
const QEMU_MIB: u32 = 260;
/// Lines of a machine's console that a failure shows.
const SHOWN_LINES: usize = 60;

pub struct Options {
    /// Only runs with this kernel on every machine.
    pub kernel: Option<String>,
    /// Only this case.
    pub case: Option<String>,
    /// Kernels that watch their own memory and locks, in place of Debian's.
    pub debug_kernel: bool,
    /// How long each run of `module-fuzz` takes.
    pub fuzz_seconds: u32,
    /// Where kernels and logs are kept.
    pub directory: PathBuf,
    /// Where cargo put our programs.
    pub programs: PathBuf,
}

struct Bench {
    kernels: HashMap<&'static str, (Kernel, PathBuf)>,
    logs: PathBuf,
    fuzz_seconds: u32,
    case_timeout: Duration,
}

#[derive(Clone)]
struct Run {
    case: &'static Case,
    home: &'static str,
    desk: Option<&'static str>,
    loads: Loads,
}

impl Run {
    fn name(&self) -> String {
        let home = marked(self.home, self.loads.home);
        match self.desk {
            None => format!("{} ({home})", self.case.name),
            Some(desk) => {
                format!("{} ({home} -> {})", self.case.name, marked(desk, self.loads.desk))
            }
        }
    }
    /// A machine's console is kept under this name.
    fn log_name(&self, role: Role, boot: u32) -> String {
        let home = marked(self.home, self.loads.home);
        let kernels = match self.desk {
            None => home,
            Some(desk) => format!("{home}-{}", marked(desk, self.loads.desk)),
        };
        format!("{}-{kernels}-{role}-{boot}.log", self.case.name)
    }
}

/// A kernel's series, and whether the module is in it.
fn marked(series: &str, module: bool) -> String {
    format!("{series}{}", if module { "+module" } else { "" })
}

fn chosen(options: &Options) -> Result<Vec<Run>> {
    let named = |c: &&Case| options.case.as_ref().map_or(!c.measures, |name| name == c.name);
    let wanted = |series: &str| options.kernel.as_ref().is_none_or(|k| k == series);
    let mut runs: Vec<Run> = Vec::new();
    for case in CASES.iter().filter(named) {
        for (home, desk) in case.kernels() {
            if wanted(home) && desk.is_none_or(wanted) {
                runs.extend(case.loads.iter().map(|&loads| Run { case, home, desk, loads }));
            }
        }
    }
    ensure!(!runs.is_empty(), "no such case or kernel");
    Ok(runs)
}

fn prepare(options: &Options) -> Result<Bench> {
    packages::install_missing()?;
    let directory = options.directory.join("kernels");
    let _fetching = kernels::lock(&directory)?;
    let mut all = HashMap::new();
    for series in SERIES {
        if options.kernel.as_ref().is_some_and(|k| k != series) {
            continue;
        }
        let kernel = match options.debug_kernel {
            true => Kernel::build_debug(series, &directory)?,
            false => Kernel::fetch(series, &directory)?,
        };
        let root = options.directory.join(format!("initramfs-{series}"));
        let module = module::build(&kernel, &options.directory.join(format!("module-{series}")))?;
        let programs = &options.programs;
        initramfs::build(&kernel, &module, programs, &tcmi_tests::victim::directory(), &root)
            .with_context(|| format!("initramfs for {}", kernel.release))?;
        all.insert(series, (kernel, root));
    }
    let logs = options.directory.join("logs");
    fs::create_dir_all(&logs)?;
    let case_timeout = if options.debug_kernel { DEBUG_CASE_TIMEOUT } else { CASE_TIMEOUT };
    Ok(Bench { kernels: all, logs, fuzz_seconds: options.fuzz_seconds, case_timeout })
}

/// How many machines may run at once: three a core, as many only wait, and what memory there is.
fn room(bench: &Bench) -> Result<usize> {
    let memory = bench.kernels.values().map(|(kernel, _)| kernel.memory_mib).max();
    let machine_kib = u64::from(memory.context("a kernel")? + QEMU_MIB) * 1024;
    let cores = thread::available_parallelism()?.get();
    let text = fs::read_to_string("/proc/meminfo")?;
    let free = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let free: u64 =
        free.and_then(|l| l.split_whitespace().next()).context("MemAvailable")?.parse()?;
    Ok((cores * 3).min((free / machine_kib) as usize).max(2))
}

/// Runs what was chosen; the number of runs that failed.
pub fn run(options: &Options) -> Result<usize> {
    let runs = chosen(options)?;
    let bench = prepare(options)?;
    let (total, started) = (runs.len(), Instant::now());
    let mut failed = 0;
    let mut flaky = Vec::new();
    for (run, why) in all(&bench, runs)? {
        // What a kernel complained of once is there, and a single run is there to be looked at.
        if total == 1 || why.is::<Complaints>() {
            failed += 1;
        } else if all(&bench, vec![run.clone()])?.is_empty() {
            flaky.push(run.name());
        } else {
            failed += 1;
        }
    }
    let passed = total - failed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let seconds = started.elapsed().as_secs();
    println!();
    for name in flaky {
        println!("{FLAKY}{name} passed only at the second try");
    }
    // As test programs say it.
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; finished in {seconds} s"
    );
    Ok(failed)
}

/// Runs them as many at once as there is room for; those that failed, and why.
fn all(bench: &Bench, runs: Vec<Run>) -> Result<Vec<(Run, anyhow::Error)>> {
    let waiting = Mutex::new(VecDeque::from(runs));
    let failed = Mutex::new(Vec::new());
    // A run has at most two machines.
    let workers = (room(bench)? / 2).max(1);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(run) = next(&waiting) {
                    let began = Instant::now();
                    let outcome = one(bench, &run);
                    let took = began.elapsed().as_secs_f32();
                    match outcome {
                        Ok(()) => println!("ok      {:<40} {took:5.1} s", run.name()),
                        Err(e) => {
                            println!("FAILED  {:<40} {took:5.1} s\n{e:#}", run.name());
                            failed.lock().expect("no worker panics").push((run, e));
                        }
                    }
                }
            });
        }
    });
    Ok(failed.into_inner().expect("no worker panics"))
}

fn next(waiting: &Mutex<VecDeque<Run>>) -> Option<Run> {
    waiting.lock().expect("no worker panics").pop_front()
}

/// What one run has: its machines, and how to switch one on.
struct Stage<'a> {
    bench: &'a Bench,
    run: &'a Run,
    sockets: Scratch,
    token: String,
    said: Sender<(Role, Option<Said>)>,
    hears: Receiver<(Role, Option<Said>)>,
    machines: Vec<Machine>,
    boots: u32,
}

impl<'a> Stage<'a> {
    fn new(bench: &'a Bench, run: &'a Run) -> Result<Self> {
        let (said, hears) = channel();
        let token = format!("{:016x}", token()?);
        let sockets = Scratch::new("vm")?;
        Ok(Self { bench, run, sockets, token, said, hears, machines: Vec::new(), boots: 0 })
    }

    fn boot(&mut self, role: Role, series: &str) -> Result<()> {
        let found = self.bench.kernels.get(series);
        let (kernel, initramfs) = found.context("a kernel that was fetched")?;
        let (case, token) = (self.run.case.name, &self.token);
        let Loads { home, desk } = self.run.loads;
        self.boots += 1;
        let plan = Plan {
            kernel,
            initramfs,
            role,
            words: format!(
                "tcmi.role={role} tcmi.case={case} tcmi.token={token} \
                 tcmi.home-module={home} tcmi.desk-module={desk} \
                 tcmi.fuzz-seconds={}",
                self.bench.fuzz_seconds
            ),
            sockets: self.sockets.path(),
            console: self.bench.logs.join(self.run.log_name(role, self.boots)),
            networked: self.run.desk.is_some(),
        };
        let machine = Machine::boot(&plan, self.said.clone());
        self.machines.push(machine.with_context(|| format!("boot {role}"))?);
        Ok(())
    }

    fn machine(&mut self, role: Role) -> Result<&mut Machine> {
        self.machines.iter_mut().rfind(|m| m.role == role).context("no such machine")
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::QuitDesk => self.machine(Role::Desk)?.quit()?,
            Order::BootDesk => self.boot(Role::Desk, self.run.desk.context("a desk")?)?,
            Order::Link { up } => self.machine(Role::Desk)?.set_link(up)?,
        }
        self.machine(Role::Home)?.answer(DONE)
    }

    /// Ok: home said that the case passed, with the token.
    fn attend(&mut self) -> Result<()> {
        let timeout = self.bench.case_timeout;
        let deadline = Instant::now() + timeout;
        let mut last = String::from("nothing");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.hears.recv_timeout(left) {
                Ok((_, Some(Said::Progress(text)))) => {
                    if self.run.case.measures {
                        println!("        {}: {text}", self.run.name());
                    }
                    last = text;
                }
                Ok((role, Some(Said::Passed(said)))) => {
                    ensure!(said == self.token, "{role} passes with {said:?}");
                    if role == Role::Home {
                        return Ok(());
                    }
                }
                Ok((role, Some(Said::Failed(text)))) => bail!("{role}, after {last:?}: {text}"),
                Ok((_, Some(Said::Please(order)))) => self.obey(order)?,
                Ok((Role::Home, None)) => bail!("home went off without a verdict, after {last:?}"),
                // A case may have had its power cut.
                Ok((Role::Desk, None)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no verdict after {} s; last: {last:?}", timeout.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("we have a sender ourselves"),
            }
        }
    }

    fn complaints(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for machine in &self.machines {
            let lines = machine.complaints()?.into_iter();
            all.extend(lines.map(|line| format!("{}: {line}", machine.role)));
        }
        Ok(all)
    }

    fn ends_of_consoles(&self) -> String {
        let mut text = String::new();
        for machine in &self.machines {
            let console = machine.console().unwrap_or_else(|e| format!("no console: {e}"));
            let lines: Vec<&str> = console.lines().collect();
            let from = lines.len().saturating_sub(SHOWN_LINES);
            text += &format!("--- console of {}\n{}\n", machine.role, lines[from..].join("\n"));
        }
        text
    }
}

fn one(bench: &Bench, run: &Run) -> Result<()> {
    let mut stage = Stage::new(bench, run)?;
    if let Some(series) = run.desk {
        stage.boot(Role::Desk, series)?;
    }
    stage.boot(Role::Home, run.home)?;
    let outcome = stage.attend().and_then(|()| stage.machine(Role::Home)?.wait_off(OFF_TIMEOUT));
    let complaints = stage.complaints()?;
    if complaints.is_empty() {
        return outcome.with_context(|| stage.ends_of_consoles());
    }
    // Whatever else came of it.
    Err(anyhow::Error::new(Complaints(complaints.join("\n"))).context(stage.ends_of_consoles()))
}

/// What kernels said that have something to complain of.
#[derive(Debug)]
struct Complaints(String);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel complains:\n{}", self.0)
    }
}

impl std::error::Error for Complaints {}

fn token() -> Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// One machine with a shell on this terminal.
pub fn shell(options: &Options) -> Result<()> {
    let bench = prepare(options)?;
    let series = options.kernel.as_deref().unwrap_or(SERIES[0]);
    let (kernel, initramfs) = bench.kernels.get(series).context("no such kernel")?;
    let plan = Plan {
        kernel,
        initramfs,
        role: Role::Home,
        words: "tcmi.role=home tcmi.case=shell tcmi.token=0 \
                tcmi.home-module=true tcmi.desk-module=false tcmi.fuzz-seconds=0"
            .into(),
        sockets: Path::new("/"),
        console: PathBuf::new(),
        networked: false,
    };
    let mut command = qemu(&plan);
    let status = command
        .args(["-display", "none", "-serial", "mon:stdio"])
        .stdin(Stdio::inherit())
        .status()?;
    ensure!(status.success(), "QEMU: {status}");
    Ok(())
}
