//! One machine of QEMU, from power on to power off.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tcmi_tests::wait_until;

use crate::kernels::Kernel;
use crate::wire::{Role, Said};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=5 tsc=reliable no_timer_check \
    mitigations=off nokaslr rcupdate.rcu_expedited=1 cryptomgr.notests random.trust_cpu=on \
    rcupdate.rcu_cpu_stall_timeout=120";
/// What the kernel writes when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "general protection fault",
    "Kernel panic",
    "self-detected stall",
    "detected stalls",
    "blocked for more than",
    "possible circular locking",
    "unreferenced object",
    "refcount_t:",
    "UBSAN:",
];

pub struct Plan<'a> {
    pub kernel: &'a Kernel,
    pub initramfs: &'a Path,
    pub role: Role,
    /// Words for the kernel's command line.
    pub words: String,
    /// Short, for sockets.
    pub sockets: &'a Path,
    pub console: PathBuf,
    pub networked: bool,
}

pub struct Machine {
    pub role: Role,
    child: Child,
    console: PathBuf,
    port: UnixStream,
    control: PathBuf,
}

impl Machine {
    /// Starts it. What it says on its second port goes to `said`; the end of that too, as None.
    pub fn boot(plan: &Plan, said: Sender<(Role, Option<Said>)>) -> Result<Self> {
        let at = |what: &str| plan.sockets.join(format!("{}.{what}", plan.role));
        let (port, control) = (at("port"), at("qmp"));
        let mut command = qemu(plan);
        command
            .args(["-display", "none", "-serial"])
            .arg(format!("file:{}", plan.console.display()))
            .args([
                "-chardev",
                &format!("socket,id=port,path={},server=on,wait=on", port.display()),
            ])
            .args(["-serial", "chardev:port"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        if plan.networked {
            network(&mut command, plan);
        }
        let log = fs::File::create(at("qemu"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut machine = Owned(Some(child));
        let port = wait_until("QEMU's port", START_TIMEOUT, || {
            ensure!(!machine.ended()?, "QEMU: {}", fs::read_to_string(at("qemu"))?);
            Ok(UnixStream::connect(&port).ok())
        })?;
        let role = plan.role;
        let lines = BufReader::new(port.try_clone()?);
        thread::spawn(move || listen(role, lines, &said));
        let child = machine.0.take().context("it was started")?;
        Ok(Self { role, child, console: plan.console.clone(), port, control })
    }

    pub fn answer(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.port, "{line}")?)
    }

    /// Power off, as by pulling the plug.
    pub fn quit(&mut self) -> Result<()> {
        self.command(&json!({ "execute": "quit" }))?;
        self.wait_off(START_TIMEOUT)
    }

    pub fn set_link(&mut self, up: bool) -> Result<()> {
        self.command(&json!({ "execute": "set_link", "arguments": { "name": "net", "up": up } }))
    }

    fn command(&mut self, command: &Value) -> Result<()> {
        let stream = UnixStream::connect(&self.control).context("QEMU's control socket")?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        for command in [&json!({ "execute": "qmp_capabilities" }), command] {
            // In one piece: one that quits does not wait for the end of the line.
            (&stream).write_all(format!("{command}\n").as_bytes())?;
            loop {
                line.clear();
                ensure!(answers.read_line(&mut line)? > 0, "QEMU is gone before it answered");
                let answer: Value = serde_json::from_str(&line)?;
                if let Some(error) = answer.get("error") {
                    bail!("{command}: {error}");
                }
                if answer.get("return").is_some() {
                    break;
                }
            }
        }
        Ok(())
    }

    pub fn wait_off(&mut self, timeout: Duration) -> Result<()> {
        let what = format!("{} is off", self.role);
        wait_until(&what, timeout, || Ok(self.child.try_wait()?.map(drop)))
    }

    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// Lines of its console in which the kernel complains.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let console = self.console()?;
        let bad = |line: &&str| COMPLAINTS.iter().any(|c| line.contains(c));
        Ok(console.lines().filter(bad).map(str::to_owned).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A started QEMU that does not outlive a failed boot.
struct Owned(Option<Child>);

impl Owned {
    fn ended(&mut self) -> Result<bool> {
        let child = self.0.as_mut().context("it was started")?;
        Ok(child.try_wait()?.is_some())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None))
        && let Err(e) = child.kill().and_then(|()| child.wait().map(drop))
    {
        eprintln!("QEMU {} is not ended: {e}", child.id());
    }
}

/// All emulated processors in one thread. On threads of their own they have run into the breakpoint
/// of a patch of the kernel's code that was over (Oops: int3, with the instruction back in memory),
/// and several machines at a time are done sooner so.
const ACCELERATOR: &str = "tcg,thread=single,tb-size=128";

pub fn qemu(plan: &Plan) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", ACCELERATOR, "-cpu", "max", "-M", "pc"])
        .args(["-smp", "2", "-m", &plan.kernel.memory_mib.to_string()])
        .args(["-nodefaults", "-no-reboot", "-kernel"])
        .arg(&plan.kernel.image)
        .arg("-initrd")
        .arg(plan.initramfs)
        .args(["-append", &format!("{COMMAND_LINE} {} {}", clock_rate(), plan.words)])
        .args(["-device", "virtio-rng-pci"]);
    command
}

/// The emulated time stamp counter is the host's. On a busy host a kernel that measures it
/// itself can be off by an order of magnitude, and so are then all its clocks.
fn clock_rate() -> String {
    const MEASURED: Duration = Duration::from_millis(20);
    static RATE: OnceLock<u64> = OnceLock::new();
    // SAFETY: every x86-64 CPU has the counter.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let measure = |_| {
        let (began, before) = (Instant::now(), ticks());
        while began.elapsed() < MEASURED {}
        (ticks() - before) * 1_000_000 / began.elapsed().as_nanos() as u64
    };
    // Losing the CPU between two looks makes it less, never more.
    let khz = RATE.get_or_init(|| (0..5).map(measure).max().unwrap_or_default());
    format!("tsc_early_khz={khz}")
}

fn network(command: &mut Command, plan: &Plan) {
    let (peer, mac) = match plan.role {
        Role::Home => (Role::Desk, "52:54:00:00:00:01"),
        Role::Desk => (Role::Home, "52:54:00:00:00:02"),
    };
    let end = |role: Role| plan.sockets.join(format!("{role}.net")).display().to_string();
    let (local, remote) = (end(plan.role), end(peer));
    command
        .arg("-netdev")
        .arg(format!(
            "dgram,id=net,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
        ))
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,romfile=,mac={mac},host_mtu=9000"));
}

fn listen(role: Role, lines: BufReader<UnixStream>, said: &Sender<(Role, Option<Said>)>) {
    for line in lines.lines().map_while(Result::ok) {
        let heard =
            line.trim().parse().unwrap_or_else(|e: anyhow::Error| Said::Failed(e.to_string()));
        if said.send((role, Some(heard))).is_err() {
            return;
        }
    }
    // Nobody listens any more when the case is over.
    said.send((role, None)).ok();
}
