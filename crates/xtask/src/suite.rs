//! `cargo xtask test`.

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;

use tcmi_tests::catalogue;
use tcmi_vm_tests::FLAKY;

use crate::{packages, tool};

const CHECK_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const UNIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const MACHINES_TIMEOUT: Duration = Duration::from_secs(20 * 60);
const END_TO_END_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// End-to-end test binaries, cheapest first: what is broken shows early.
const END_TO_END: &[&str] = &[
    "victims_native",
    "links",
    "refuse",
    "signals",
    "leave",
    "vdso",
    "trees",
    "threads",
    "together",
    "shared",
    "mapped",
    "selves",
    "files",
    "huge",
    "signalfds",
    "reach",
    "images",
    "limits",
    "escapes",
    "differ",
    "victims",
    "programs",
    "faults",
    "roundtrips",
];

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// `test result: ok. 65 passed; 0 failed; 0 ignored; ...`
    fn of_line(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?;
        let mut totals = Self::default();
        for part in counts.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            match what {
                "passed" => totals.passed = number,
                "failed" => totals.failed = number,
                "ignored" => totals.skipped = number,
                _ => {}
            }
        }
        Some(totals)
    }
}

struct Suite {
    totals: Totals,
    /// What passed at the second try only, as a line tells it.
    flaky: Vec<String>,
    started: Instant,
}

impl Suite {
    fn title(&self, what: &str) {
        println!("\n== {what} (at {} s)", self.started.elapsed().as_secs());
    }

    /// A step that passes or fails as a whole.
    fn check(&mut self, what: &str, command: &mut Command, timeout: Duration) {
        self.title(what);
        let outcome = tool::watch(command, timeout, |line| println!("{line}"));
        let passed = matches!(&outcome, Ok(status) if status.success());
        if let Err(e) = outcome {
            println!("{e:#}");
        }
        if passed {
            self.totals.passed += 1;
        } else {
            println!("FAILED: {what}");
            self.totals.failed += 1;
        }
    }

    /// A step whose own test results are counted. One that failed without telling
    /// a failed test (it crashed, did not build, took too long) is one failure.
    fn tests(&mut self, what: &str, command: &mut Command, timeout: Duration) {
        self.title(what);
        let counted = Mutex::new(Totals::default());
        let flaky = Mutex::new(Vec::new());
        let outcome = tool::watch(command, timeout, |line| {
            println!("{line}");
            if let Some(what) = line.strip_prefix(FLAKY) {
                flaky.lock().expect("no counter panics").push(what.to_owned());
            }
            if let Some(totals) = Totals::of_line(line) {
                counted.lock().expect("no counter panics").add(totals);
            }
        });
        let mut counted = counted.into_inner().expect("no counter panics");
        self.flaky.extend(flaky.into_inner().expect("no counter panics"));
        let well = matches!(&outcome, Ok(status) if status.success());
        if let Err(e) = outcome {
            println!("{e:#}");
        }
        if !well && counted.failed == 0 {
            println!("FAILED: {what}");
            counted.failed = 1;
        }
        self.totals.add(counted);
    }

    /// As [`Suite::tests`], once more if a test failed: real daemons on a busy machine can miss a
    /// bound. What passed only at the second try is told as such to the last line.
    fn end_to_end(&mut self, what: &str, mut command: impl FnMut() -> Command) {
        let before = self.totals;
        self.tests(what, &mut command(), END_TO_END_TIMEOUT);
        if self.totals.failed == before.failed {
            return;
        }
        self.totals = before;
        self.tests(&format!("{what}, second try"), &mut command(), END_TO_END_TIMEOUT);
        if self.totals.failed == before.failed {
            self.flaky.push(format!("{what} passed only at the second try"));
        }
    }
}

fn cargo_test() -> Command {
    let mut cargo = tool::cargo();
    cargo.args(["test", "--workspace"]);
    cargo
}

pub fn run(fuzz_seconds: u32, only: Option<&str>) -> Result<ExitCode> {
    packages::install_missing(&catalogue::packages(true))?;
    let mut suite = Suite { totals: Totals::default(), flaky: Vec::new(), started: Instant::now() };
    suite.title("release build");
    tool::build_release()?;
    if only.is_none() {
        suite.check("format", tool::cargo().args(["fmt", "--all", "--check"]), CHECK_TIMEOUT);
        suite.check(
            "clippy",
            tool::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
            CHECK_TIMEOUT,
        );
        // The whole workspace each time: of fewer packages cargo would build dependencies anew, with
        // fewer features. All at once: one by one each is linked on one core.
        suite.check("tests build", cargo_test().arg("--no-run"), UNIT_TIMEOUT);
        for (what, which) in [
            ("unit tests", &["--lib", "--bins"][..]),
            ("tests of one crate", &["--exclude", "tcmi-tests", "--test", "*"]),
            ("examples in documents", &["--doc"]),
        ] {
            suite.tests(what, cargo_test().args(which).arg("--no-fail-fast"), UNIT_TIMEOUT);
        }
        let bound = Duration::from_secs(u64::from(fuzz_seconds) * 30 + 600);
        suite.tests(
            "decoders under fuzz",
            cargo_test().args(["--test", "fuzz", "--"]).arg(fuzz_seconds.to_string()),
            bound,
        );
    }
    for binary in END_TO_END {
        suite.end_to_end(&format!("end to end: {binary}"), || {
            let mut command = cargo_test();
            command.args(["--test", binary, "--"]).args(only);
            command
        });
    }
    if only.is_none() {
        suite.tests(
            "machines with Debian's kernels",
            tool::cargo().args(["run", "--package", "xtask", "--", "vm-test"]),
            MACHINES_TIMEOUT,
        );
    }
    let Totals { passed, failed, skipped } = suite.totals;
    println!();
    for what in &suite.flaky {
        println!("{FLAKY}{what}");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    // A run in which nothing was tested has shown nothing.
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_to_end_test_is_run() {
        let directory = tool::repository().join("tests/tests");
        for entry in std::fs::read_dir(&directory).expect("the tests' directory") {
            let path = entry.expect("a readable directory").path();
            let name = path.file_stem().and_then(|n| n.to_str()).expect("an ASCII name");
            assert!(END_TO_END.contains(&name), "{name} is not run");
        }
    }

    #[test]
    fn results_of_a_test_binary_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 9 filtered out; finished in 1.20s";
        let totals = Totals::of_line(line).expect("a result line");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (12, 3, 4));
        assert!(Totals::of_line("test result_is_counted ... ok").is_none());
    }
}
