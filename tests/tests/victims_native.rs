//! Every victim, where nothing is moved: what fails here is the victim's fault.

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use tcmi_tests::{Victim, VictimKind};

fn stays_at_home(kind: &VictimKind) -> Result<()> {
    let mut victim = Victim::spawn(kind)?;
    victim.check()?;
    victim.check()?;
    victim.check()?;
    victim.end(7)
}

fn main() {
    let trials = VictimKind::all()
        .into_iter()
        .map(|kind| {
            let name = format!("native::{}", kind.name());
            let lacking = kind.lacking();
            Trial::test(name, move || Ok(stays_at_home(&kind).map_err(|e| format!("{e:#}"))?))
                .with_ignored_flag(lacking.is_some())
                .with_kind(lacking.unwrap_or_default())
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
