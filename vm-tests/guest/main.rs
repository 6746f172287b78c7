//! PID 1 of a machine: brings it up, runs one case, tells how it ended, and switches it off.

mod body;
mod port;
mod remote;
mod system;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tcmi_vm_tests::wire::Said;

use crate::system::CommandLine;

/// How PID 1 starts itself anew for the case.
const CASE_ARGUMENT: &str = "case";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        system::die_loudly();
        let error = match bring_up_and_run() {
            Ok(never) => match never {},
            Err(error) => error,
        };
        println!("init: {error:#}");
        system::power_off();
    }
    if std::env::args().nth(1).as_deref() != Some(CASE_ARGUMENT) {
        eprintln!("this is the first process of a test machine");
        return ExitCode::FAILURE;
    }
    match run_case() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("case: {error:#}");
            ExitCode::FAILURE
        }
    }
}

enum Never {}

/// The case is a child of ours, so that we can reap what it leaves, and only that.
fn bring_up_and_run() -> Result<Never> {
    system::own_root().context("root")?;
    system::mount_all().context("mounts")?;
    let words = CommandLine::read()?;
    system::load_modules().context("modules")?;
    if words.has_module() {
        system::load_module(system::TCMI_MODULE)?;
    }
    system::network(words.role).context("network")?;
    if words.case == "shell" {
        system::shell()?;
    } else {
        system::run_and_reap(CASE_ARGUMENT)?;
    }
    system::power_off()
}

/// The verdict is the last thing that the port says.
fn run_case() -> Result<()> {
    // PID 1 has no session, and what victims look at is their parent's.
    nix::unistd::setsid()?;
    let words = CommandLine::read()?;
    let port = port::Port::open()?;
    let outcome = body::run(&words, &port)
        .and_then(|()| if words.has_module() { system::unload_module() } else { Ok(()) })
        .and_then(|()| system::kernel_is_content());
    let verdict = match &outcome {
        Ok(()) => Said::Passed(words.token),
        Err(error) => Said::Failed(format!("{error:#}")),
    };
    port.say(&verdict)?;
    if let Err(error) = outcome {
        bail!("{error:#}");
    }
    Ok(())
}
