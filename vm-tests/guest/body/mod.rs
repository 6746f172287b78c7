//! What each case does.

mod losses;
mod module;
mod moves;
mod pair;

use anyhow::{Result, bail};
use tcmi_vm_tests::wire::Role;

use crate::port::Port;
use crate::remote;
use crate::system::CommandLine;

pub fn run(words: &CommandLine, port: &Port) -> Result<()> {
    if words.role == Role::Desk {
        return remote::serve();
    }
    match words.case.as_str() {
        "boot" => boot(port),
        "emigrate" => moves::emigrate(port),
        "threads" => moves::threads(port),
        "victims" => moves::victims(port),
        "link-cut" => losses::link_cut(port),
        "node-dies" => losses::node_dies(port),
        "node-dies-late" => losses::node_dies_late(port),
        "module-load" => module::load(),
        "module-freezers" => module::freezers(port),
        "module-ctlfs" => module::ctlfs(port),
        "module-cost" => module::cost(port),
        "module-pair" | "module-one-sided" => module::pair(port, words),
        "module-beat" => module::beat(port),
        "module-fuzz" => module::fuzz(words),
        other => bail!("no case {other:?}"),
    }
}

fn boot(port: &Port) -> Result<()> {
    port.progress("booted")
}
