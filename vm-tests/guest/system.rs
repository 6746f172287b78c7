//! From the kernel's first process to a system on which a case can run.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, chdir, chroot, sync};
use tcmi_tests::wait_until;
use tcmi_vm_tests::wire::{DESK_ADDRESS, HOME_ADDRESS, MODULE_ORDER, MODULES, Role, VICTIMS};

pub const TCMI_MODULE: &str = "/lib/modules/tcmi.ko";
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "/bin/busybox";

/// What the host wrote on the kernel's command line.
pub struct CommandLine {
    pub role: Role,
    pub case: String,
    pub token: String,
    pub home_module: bool,
    pub desk_module: bool,
    pub fuzz_seconds: String,
}

impl CommandLine {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/cmdline")?;
        let word = |name: &str| {
            let of = |w: &str| Some(w.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            text.split_whitespace().find_map(of).with_context(|| name.to_owned())
        };
        Ok(Self {
            role: word("tcmi.role")?.parse()?,
            case: word("tcmi.case")?,
            token: word("tcmi.token")?,
            home_module: word("tcmi.home-module")?.parse()?,
            desk_module: word("tcmi.desk-module")?.parse()?,
            fuzz_seconds: word("tcmi.fuzz-seconds")?,
        })
    }

    /// On this machine.
    pub fn has_module(&self) -> bool {
        match self.role {
            Role::Home => self.home_module,
            Role::Desk => self.desk_module,
        }
    }
}

/// A PID 1 that panics would only stop the kernel; it has to say why first.
pub fn die_loudly() {
    std::panic::set_hook(Box::new(|panic| {
        println!("init: {panic}");
        power_off();
    }));
}

pub fn power_off() -> ! {
    sync();
    // With -no-reboot QEMU ends.
    let failed = reboot(RebootMode::RB_AUTOBOOT).expect_err("it does not return");
    panic!("reboot: {failed}");
}

fn plain_mount(source: &str, target: &str, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(Some(source), target, kind, flags, None::<&str>).with_context(|| target.to_owned())
}

/// The initramfs is no mount that could be pivoted away from, as a monitor does; stacked on
/// itself it is.
pub fn own_root() -> Result<()> {
    plain_mount("/", "/mnt", None, MsFlags::MS_BIND)?;
    chdir("/mnt")?;
    plain_mount(".", "/", None, MsFlags::MS_MOVE)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

pub fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        if !Path::new(target).exists() {
            fs::create_dir(target).with_context(|| target.to_owned())?;
        }
        plain_mount(kind, target, Some(kind), MsFlags::empty())?;
    }
    // The kernel gives a script's interpreter such names, and makes none.
    std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd").context("/dev/fd")
}

pub fn load_modules() -> Result<()> {
    for name in fs::read_to_string(format!("{MODULES}/{MODULE_ORDER}"))?.lines() {
        load_module(&format!("{MODULES}/{name}"))?;
    }
    Ok(())
}

pub fn load_module(path: &str) -> Result<()> {
    let module = File::open(path).context(path.to_owned())?;
    // SAFETY: an open descriptor and a C string.
    let done =
        unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    ensure!(done == 0, "{path}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The module of the project goes when nothing is frozen: threads that were thawed may be about
/// to leave it.
pub fn unload_module() -> Result<()> {
    wait_until("the module is unloaded", UNLOAD_TIMEOUT, || {
        // SAFETY: a C string.
        let done =
            unsafe { libc::syscall(libc::SYS_delete_module, c"tcmi".as_ptr(), libc::O_NONBLOCK) };
        Ok((done == 0).then_some(()))
    })
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new(BUSYBOX).args(arguments).status()?;
    ensure!(status.success(), "busybox {}: {status}", arguments.join(" "));
    Ok(())
}

pub fn network(role: Role) -> Result<()> {
    let address = match role {
        Role::Home => HOME_ADDRESS,
        Role::Desk => DESK_ADDRESS,
    };
    busybox(&["ip", "link", "set", "lo", "up"])?;
    if Path::new("/sys/class/net/eth0").exists() {
        busybox(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        busybox(&["ip", "link", "set", "eth0", "up"])?;
    }
    Ok(())
}

pub fn shell() -> Result<()> {
    busybox(&["--install", "-s", "/bin"])?;
    println!("leave with `exit`");
    let status = Command::new(BUSYBOX).args(["setsid", "-c", "/bin/sh"]).status()?;
    println!("shell: {status}");
    Ok(())
}

/// Runs this program again with `argument`, and reaps every orphan until it has ended.
pub fn run_and_reap(argument: &str) -> Result<()> {
    let child = Command::new("/init")
        .arg(argument)
        .env("PATH", "/bin")
        .env("TCMI_BIN_DIR", "/bin")
        .env("TCMI_VICTIMS", VICTIMS)
        .spawn()?;
    let child = Pid::from_raw(child.id() as i32);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) if pid == child => {
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Nothing that taints: a warning, an oops, a lockup.
pub fn kernel_is_content() -> Result<()> {
    const DIE: u64 = 1 << 7;
    const WARN: u64 = 1 << 9;
    const SOFT_LOCKUP: u64 = 1 << 14;
    let taint: u64 = fs::read_to_string("/proc/sys/kernel/tainted")?.trim().parse()?;
    ensure!(taint & (DIE | WARN | SOFT_LOCKUP) == 0, "the kernel is tainted: {taint:#x}");
    expect_no_leak()
}

/// Where the kernel looks for leaks, which Debian's do not.
fn expect_no_leak() -> Result<()> {
    let file = "/sys/kernel/debug/kmemleak";
    if !Path::new(file).exists() {
        return Ok(());
    }
    // What is young may be in a register: it is told by the second scan.
    for _ in 0..2 {
        fs::write(file, "scan")?;
    }
    let leaks = fs::read_to_string(file)?;
    ensure!(!leaks.contains("tcmi"), "leaked:\n{leaks}");
    Ok(())
}

/// Where each thread of each program stands, for a person to read.
pub fn threads() -> Result<String> {
    let mut text = String::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // A kernel thread has no memory, and what ends meanwhile has nothing.
        let Ok(maps) = fs::read(process.join("maps")) else { continue };
        let Ok(tasks) = fs::read_dir(process.join("task")) else { continue };
        if maps.is_empty() {
            continue;
        }
        for task in tasks {
            let task = task?.path();
            let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
            let stat = read("stat");
            let state = stat.split(' ').take(3).collect::<Vec<_>>().join(" ");
            let stack: Vec<_> = read("stack")
                .lines()
                .filter_map(|l| l.split(' ').nth(1).map(str::to_owned))
                .collect();
            let masks = read("status");
            let pending = masks.lines().filter(|l| l.starts_with("S") && l.contains("Pnd"));
            let pending = pending.collect::<Vec<_>>().join(" ").replace('\t', "");
            let call = read("syscall");
            text += &format!("{state} {pending} {}\n    {}\n", call.trim(), stack.join(" < "));
        }
    }
    Ok(text)
}
