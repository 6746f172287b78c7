//! What each case does.

mod losses;
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
    let body: fn(&Port) -> Result<()> = match words.case.as_str() {
        "boot" => boot,
        "emigrate" => moves::emigrate,
        "threads" => moves::threads,
        "victims" => moves::victims,
        "link-cut" => losses::link_cut,
        "node-dies" => losses::node_dies,
        other => bail!("no case {other:?}"),
    };
    body(port)
}

fn boot(port: &Port) -> Result<()> {
    port.progress("booted")
}
