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
    if let "module-pair" | "module-one-sided" = words.case.as_str() {
        return module::pair(port, words);
    }
    if words.case == "module-fuzz" {
        return module::fuzz(&words.token);
    }
    let body: fn(&Port) -> Result<()> = match words.case.as_str() {
        "boot" => boot,
        "emigrate" => moves::emigrate,
        "threads" => moves::threads,
        "victims" => moves::victims,
        "link-cut" => losses::link_cut,
        "node-dies" => losses::node_dies,
        "node-dies-late" => losses::node_dies_late,
        "module-load" => module::load,
        "module-freezers" => module::freezers,
        "module-ctlfs" => module::ctlfs,
        "module-cost" => module::cost,
        other => bail!("no case {other:?}"),
    };
    body(port)
}

fn boot(port: &Port) -> Result<()> {
    port.progress("booted")
}
