//! `cargo xtask bench`: what a move and a forwarded call cost, in units that the
//! same run measured on the same machine.

mod chart;
mod criu;
mod measure;
mod programs;
mod yardstick;

use std::fs;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use tcmi_tests::Pair;

use crate::{packages, tool};
use yardstick::Yardsticks;

/// A ratio, and what it may be.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    pub name: String,
    /// What was measured, with its unit.
    pub measured: String,
    /// What it is measured against.
    pub against: String,
    pub value: f64,
    pub limit: Limit,
    pub holds: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Ratio {
    pub fn new(name: &str, measured: String, against: &str, value: f64, limit: Limit) -> Self {
        let holds = match limit {
            Limit::AtMost(most) => value <= most,
            Limit::AtLeast(least) => value >= least,
        };
        Self { name: name.into(), measured, against: against.into(), value, limit, holds }
    }

    /// Part of the limit that is used: 1 is at the limit, more is beyond it.
    pub fn used(&self) -> f64 {
        match self.limit {
            Limit::AtMost(most) => self.value / most,
            Limit::AtLeast(least) => least / self.value.max(f64::MIN_POSITIVE),
        }
    }
}

#[derive(Serialize)]
struct Record {
    yardsticks: Yardsticks,
    criu_local_dump_restore_us: Option<f64>,
    ratios: Vec<Ratio>,
    programs: Vec<programs::Work>,
}

fn print(record: &Record) {
    let Yardsticks { fork_exec_us, round_trip_us, bulk_gb_s, memcpy_gb_s } = &record.yardsticks;
    println!("fork+exec+wait of /bin/true      {fork_exec_us:10.1} us");
    println!("TCP round trip, one core         {round_trip_us:10.2} us");
    println!("TCP bulk into fresh memory       {bulk_gb_s:10.2} GB/s");
    println!("memcpy                           {memcpy_gb_s:10.2} GB/s");
    match record.criu_local_dump_restore_us {
        Some(us) => println!("CRIU, local dump and restore     {us:10.1} us"),
        None => println!("CRIU                             not given (CRIU=path)"),
    }
    println!();
    for ratio in &record.ratios {
        let limit = match ratio.limit {
            Limit::AtMost(most) => format!("at most {most}"),
            Limit::AtLeast(least) => format!("at least {least}"),
        };
        let verdict = if ratio.holds { "ok" } else { "BEYOND" };
        println!(
            "{:32} {:>9.3} of {:24} ({}; {limit}) {verdict}",
            ratio.name, ratio.value, ratio.against, ratio.measured
        );
    }
    println!();
    record.programs.iter().for_each(programs::Work::print);
}

/// Success: every limit holds.
pub fn run(bulk_mib: u32) -> Result<ExitCode> {
    packages::install_missing(programs::NEEDS)?;
    tool::build_release()?;
    println!("yardsticks");
    let yardsticks = Yardsticks::take()?;
    let criu = criu::local_dump_restore_us()?;
    println!("measuring");
    let pair = Pair::new()?;
    let mut ratios = measure::pause(&pair, &yardsticks, criu)?;
    ratios.extend(measure::calls(&pair, &yardsticks)?);
    ratios.push(measure::compute(&pair)?);
    ratios.extend(measure::bulk(&pair, &yardsticks, bulk_mib)?);
    pair.stop()?;
    // Another pair, whose log has nothing yet.
    let pair = Pair::new()?;
    let programs = programs::all(&pair)?;
    pair.stop()?;

    let record = Record { yardsticks, criu_local_dump_restore_us: criu, ratios, programs };
    print(&record);
    let directory = tool::repository().join("target/bench");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("bench.json"), serde_json::to_vec_pretty(&record)?)?;
    chart::draw(&directory.join("bench.svg"), &record.ratios)?;
    println!("\ntarget/bench/bench.json, target/bench/bench.svg");
    let all_hold = record.ratios.iter().all(|r| r.holds);
    Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
