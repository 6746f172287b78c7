//! The ratios that are promised, with their limits.

use anyhow::{Context, Result};
use tcmi_tests::account::{descendants, status_kib};
use tcmi_tests::{Pair, Victim, VictimKind};

use super::yardstick::{Yardsticks, median};
use super::{Limit, Ratio};

const PAUSES: usize = 21;
const CALLS: u32 = 20_000;
const COMPUTE_ROUNDS: u32 = 100_000;
const COMPUTE_RUNS: usize = 7;

const PAUSE_FORK_EXECS_MAX: f64 = 10.0;
const PAUSE_CRIU_MAX: f64 = 1.0 / 3.0;
const BULK_RATE_MIN: f64 = 0.6;
const CALL_ROUND_TRIPS_MAX: f64 = 3.5;
const COMPUTE_MAX: f64 = 1.01;
const DAEMON_GROWTH_MIB_MAX: f64 = 64.0;
const SHADOW_RESIDENT_MIB_MAX: f64 = 4.0;

/// Longest gap in microseconds that the victim saw since it was last asked.
fn gap_us(victim: &mut Victim) -> Result<f64> {
    let answer = victim.ask("gap", "GAP")?;
    Ok(*answer.first().context("a gap")? as f64 / 1e3)
}

pub fn pause(pair: &Pair, yardsticks: &Yardsticks, criu_us: Option<f64>) -> Result<Vec<Ratio>> {
    let mut victim = Victim::spawn(&VictimKind::with_args("gap", &["1"]))?;
    let pid = victim.pid();
    let (mut out, mut home) = (Vec::new(), Vec::new());
    for _ in 0..PAUSES {
        gap_us(&mut victim)?;
        pair.migrate(pid)?;
        out.push(gap_us(&mut victim)?);
        pair.bring_home(pid)?;
        home.push(gap_us(&mut victim)?);
    }
    victim.end(0)?;
    let (out, home) = (median(out), median(home));
    let fork_exec = yardsticks.fork_exec_us;
    let most = Limit::AtMost(PAUSE_FORK_EXECS_MAX);
    let mut ratios = vec![
        Ratio::new(
            "pause of 1 MiB, out",
            format!("{out:.0} us"),
            "fork+exec+wait",
            out / fork_exec,
            most,
        ),
        Ratio::new(
            "pause of 1 MiB, home",
            format!("{home:.0} us"),
            "fork+exec+wait",
            home / fork_exec,
            most,
        ),
    ];
    if let Some(criu) = criu_us {
        let most = Limit::AtMost(PAUSE_CRIU_MAX);
        ratios.push(Ratio::new(
            "pause of 1 MiB, out",
            format!("{out:.0} us"),
            "CRIU dump+restore",
            out / criu,
            most,
        ));
    }
    Ok(ratios)
}

fn measured_ns(victim: &mut Victim, what: &str, rounds: u32) -> Result<f64> {
    let answer = victim.ask(&format!("measure {what} {rounds}"), &format!("TIME {what}"))?;
    Ok(*answer.first().context("a time")? as f64)
}

pub fn calls(pair: &Pair, yardsticks: &Yardsticks) -> Result<Vec<Ratio>> {
    let mut victim = Victim::spawn(&VictimKind::plain("calls"))?;
    let pid = victim.pid();
    pair.migrate(pid)?;
    let mut ratios = Vec::new();
    for call in ["getppid", "pread", "write"] {
        measured_ns(&mut victim, call, CALLS / 10)?;
        let us = measured_ns(&mut victim, call, CALLS)? / 1e3;
        ratios.push(Ratio::new(
            &format!("forwarded {call}"),
            format!("{us:.2} us"),
            "raw TCP round trip",
            us / yardsticks.round_trip_us,
            Limit::AtMost(CALL_ROUND_TRIPS_MAX),
        ));
    }
    pair.bring_home(pid)?;
    victim.end(0)?;
    Ok(ratios)
}

/// The fastest of several runs at each place: what disturbs only ever adds.
pub fn compute(pair: &Pair) -> Result<Ratio> {
    let mut victim = Victim::spawn(&VictimKind::plain("calls"))?;
    let pid = victim.pid();
    let (mut native, mut away) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..COMPUTE_RUNS {
        native = native.min(measured_ns(&mut victim, "compute", COMPUTE_ROUNDS)?);
        pair.migrate(pid)?;
        away = away.min(measured_ns(&mut victim, "compute", COMPUTE_ROUNDS)?);
        pair.bring_home(pid)?;
    }
    victim.end(0)?;
    let times = format!("{away:.0} ns away, {native:.0} ns native");
    Ok(Ratio::new("compute-only guest", times, "native", away / native, Limit::AtMost(COMPUTE_MAX)))
}

pub fn bulk(pair: &Pair, yardsticks: &Yardsticks, mib: u32) -> Result<Vec<Ratio>> {
    let idle = [status_kib(pair.home.pid(), "VmRSS")?, status_kib(pair.desk.pid(), "VmRSS")?];
    let mut victim = Victim::spawn(&VictimKind::with_args("gap", &[&mib.to_string()]))?;
    let pid = victim.pid();
    gap_us(&mut victim)?;
    pair.migrate(pid)?;
    let pause = gap_us(&mut victim)?;
    let shadow_mib = status_kib(pid, "VmRSS")? as f64 / 1024.0;
    let rate = f64::from(mib) * 1.048576e6 / pause / 1e3;
    let mut ratios = vec![
        Ratio::new(
            &format!("stop-and-copy of {mib} MiB"),
            format!("{rate:.2} GB/s, pause {:.0} ms", pause / 1e3),
            "raw TCP bulk",
            rate / yardsticks.bulk_gb_s,
            Limit::AtLeast(BULK_RATE_MIN),
        ),
        Ratio::new(
            "resident memory of the shadow",
            format!("{shadow_mib:.1} MiB"),
            "1 MiB",
            shadow_mib,
            Limit::AtMost(SHADOW_RESIDENT_MIB_MAX),
        ),
    ];
    // The daemon's own child, before the guest that is the monitor's.
    let monitor = *descendants(pair.desk.pid())?.first().context("a monitor")?;
    let daemons =
        [("tcmid, home", pair.home.pid(), idle[0]), ("tcmid, desk", pair.desk.pid(), idle[1])];
    for (name, pid, idle) in daemons.into_iter().chain([("the monitor", monitor, 0)]) {
        let grown = status_kib(pid, "VmHWM")?.saturating_sub(idle) as f64 / 1024.0;
        ratios.push(Ratio::new(
            &format!("growth of {name}"),
            format!("{grown:.1} MiB"),
            "1 MiB",
            grown,
            Limit::AtMost(DAEMON_GROWTH_MIB_MAX),
        ));
    }
    pair.bring_home(pid)?;
    victim.end(0)?;
    Ok(ratios)
}
