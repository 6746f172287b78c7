//! `fuzz SECONDS [TARGET...]`: every decoder under mutated input for that long,
//! three at a time. Needs no instrumented build: an input whose outcome was not
//! seen before is kept and mutated further.
//!
//! What fails is written to tests/fuzz/corpus/TARGET and is tried first from then on.

mod images;
mod moves;
mod mutate;
mod targets;

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mutate::Mutator;
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use targets::{TARGETS, Target};

const AT_ONCE: usize = 3;
/// A decoder that computes longer for one input is at fault: input is at most 64 KiB.
const INPUT_TIME_MAX: Duration = Duration::from_secs(1);
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// A decoder that allocates by what the input claims dies of this.
const ADDRESS_SPACE_BYTES_MAX: u64 = 4 << 30;
/// Inputs that are kept for mutation.
const KEPT_MAX: usize = 4096;

struct Verdict {
    runs: u64,
    outcomes: usize,
    failure: Option<String>,
}

fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

fn seeds(target: &Target) -> Result<Vec<Vec<u8>>> {
    let mut seeds = (target.seeds)();
    let directory = corpus(target);
    if directory.is_dir() {
        for entry in fs::read_dir(directory)? {
            seeds.push(fs::read(entry?.path())?);
        }
    }
    Ok(seeds)
}

/// Processor time of this thread: what others on the machine do is not the decoder's fault.
fn computed() -> Result<Duration, String> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map(Duration::from).map_err(|e| format!("no clock of a thread's time: {e}"))
}

/// Ok: the class of what the decoder said. Err: what is wrong with the decoder.
fn try_one(target: &Target, input: &[u8]) -> Result<String, String> {
    let start = computed()?;
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)))
        .map_err(|_| "it panics".to_owned())?;
    let took = computed()?.saturating_sub(start);
    if took > INPUT_TIME_MAX {
        return Err(format!("it computes for {took:?}"));
    }
    // Numbers in a message (lengths, offsets) do not make another outcome.
    Ok(outcome?.chars().filter(|c| !c.is_ascii_digit()).collect())
}

fn fuzz(target: &Target, time: Duration) -> Result<Verdict> {
    let mut kept = seeds(target)?;
    let mut seen = HashSet::new();
    let mut mutator = Mutator::new(target.name);
    let end = Instant::now() + time;
    let mut runs = 0u64;
    while Instant::now() < end {
        let input = match kept.get(runs as usize) {
            Some(seed) if runs < kept.len() as u64 => seed.clone(),
            _ => mutator.mutate(&kept, INPUT_BYTES_MAX),
        };
        runs += 1;
        match try_one(target, &input) {
            Ok(outcome) => {
                if seen.insert(outcome) && kept.len() < KEPT_MAX {
                    kept.push(input);
                }
            }
            Err(what) => {
                let failure = keep_failure(target, &input, &what)?;
                return Ok(Verdict { runs, outcomes: seen.len(), failure: Some(failure) });
            }
        }
    }
    Ok(Verdict { runs, outcomes: seen.len(), failure: None })
}

fn keep_failure(target: &Target, input: &[u8], what: &str) -> Result<String> {
    let directory = corpus(target);
    fs::create_dir_all(&directory)?;
    let file = directory.join(format!("failure-{:016x}", mutate::hash(input)));
    fs::write(&file, input)?;
    Ok(format!("{what}; input in {}", file.display()))
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(1), |s| s.parse());
    let seconds: u64 = seconds.context("usage: fuzz [SECONDS [TARGET...]]")?;
    let only: Vec<String> = arguments.collect();
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES_MAX, ADDRESS_SPACE_BYTES_MAX)?;
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|t| only.is_empty() || only.iter().any(|o| o == t.name)).collect();
    println!("\nfuzzing {} decoders, {seconds} s each", chosen.len());
    let queue = Mutex::new(chosen.into_iter());
    let counts = Mutex::new((0, 0));
    let next = || queue.lock().expect("nobody panics with the queue").next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let passed = report(target, fuzz(target, Duration::from_secs(seconds)));
                    let mut counts = counts.lock().expect("nobody panics with the counts");
                    if passed { counts.0 += 1 } else { counts.1 += 1 }
                }
            });
        }
    });
    let (passed, failed) = counts.into_inner()?;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(target: &Target, verdict: Result<Verdict>) -> bool {
    match verdict {
        Ok(Verdict { runs, outcomes, failure: None }) => {
            println!("test fuzz::{} ... ok ({runs} inputs, {outcomes} outcomes)", target.name);
            true
        }
        Ok(Verdict { runs, failure: Some(failure), .. }) => {
            println!("test fuzz::{} ... FAILED at input {runs}: {failure}", target.name);
            false
        }
        Err(e) => {
            println!("test fuzz::{} ... FAILED: {e:#}", target.name);
            false
        }
    }
}
