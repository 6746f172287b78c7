//! Every victim goes out and comes home, verifies itself at each place, and ends
//! with its own status: once at home again and once while it is away.

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use tcmi_tests::{Pair, Victim, VictimKind};

fn out_and_home(kind: &VictimKind) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(kind)?;
    let pid = victim.pid();
    victim.check().context("before the move")?;
    pair.migrate(pid)?;
    victim.check().context("away")?;
    pair.bring_home(pid)?;
    victim.check().context("home again")?;
    victim.end(7)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

fn ends_away(kind: &VictimKind) -> Result<()> {
    let pair = Pair::new()?;
    let before = pair.settled_accounts()?;
    let mut victim = Victim::spawn(kind)?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    victim.check().context("away")?;
    pair.send_home(pid)?;
    pair.migrate(pid).context("second time")?;
    victim.check().context("away for the second time")?;
    victim.end(9)?;
    pair.wait_forgotten(pid)?;
    pair.expect_no_leak(&before)?;
    pair.stop()
}

type Way = fn(&VictimKind) -> Result<()>;

fn main() {
    let ways: [(&str, Way); 2] = [("out_and_home", out_and_home), ("ends_away", ends_away)];
    let mut trials = Vec::new();
    for (way, run) in ways {
        for kind in VictimKind::all() {
            let name = format!("{way}::{}", kind.name());
            let lacking = kind.lacking();
            trials.push(
                Trial::test(name, move || Ok(run(&kind).map_err(|e| format!("{e:#}"))?))
                    .with_ignored_flag(lacking.is_some())
                    .with_kind(lacking.unwrap_or_default()),
            );
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
