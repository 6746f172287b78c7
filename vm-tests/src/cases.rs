//! What can be run, and on which kernels. The bodies are in the guest program.

/// Kernel series, as Debian's meta packages name them.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    /// One machine with each kernel.
    One,
    /// A home and a desk with the same kernel.
    Alike,
    /// A home and a desk with two kernels, either way.
    Mixed,
    /// A home and a desk with these.
    These(&'static str, &'static str),
}

/// Which machine loads the kernel module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loads {
    pub home: bool,
    pub desk: bool,
}

const NONE: Loads = Loads { home: false, desk: false };
const BOTH: Loads = Loads { home: true, desk: true };

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub machines: Machines,
    /// One run with each.
    pub loads: &'static [Loads],
    /// Measures rather than tests: run by its name alone, and what it says is shown.
    pub measures: bool,
}

const fn case(name: &'static str, machines: Machines) -> Case {
    Case { name, machines, loads: &[NONE], measures: false }
}

const fn with_module(case: Case, loads: &'static [Loads]) -> Case {
    Case { loads, ..case }
}

/// The longest first, so that none is left over at the end.
pub const CASES: &[Case] = &[
    case("victims", Machines::Mixed),
    case("node-dies", Machines::These("6.1", "6.12")),
    case("node-dies-late", Machines::These("6.12", "6.1")),
    case("link-cut", Machines::Alike),
    case("emigrate", Machines::Mixed),
    case("threads", Machines::Mixed),
    with_module(case("module-beat", Machines::Alike), &[BOTH]),
    with_module(case("module-pair", Machines::Alike), &[BOTH]),
    with_module(
        case("module-one-sided", Machines::Mixed),
        &[Loads { home: true, desk: false }, Loads { home: false, desk: true }],
    ),
    with_module(case("module-freezers", Machines::One), &[BOTH]),
    with_module(case("module-ctlfs", Machines::One), &[BOTH]),
    with_module(case("module-fuzz", Machines::One), &[BOTH]),
    // It loads the module itself.
    case("module-load", Machines::One),
    case("boot", Machines::One),
    Case { measures: true, ..case("module-cost", Machines::One) },
];

impl Case {
    /// (home's kernel, the desk's) of each run.
    pub fn kernels(&self) -> Vec<(&'static str, Option<&'static str>)> {
        match self.machines {
            Machines::One => SERIES.map(|s| (s, None)).to_vec(),
            Machines::Alike => SERIES.map(|s| (s, Some(s))).to_vec(),
            Machines::These(home, desk) => vec![(home, Some(desk))],
            Machines::Mixed => {
                let pairs = SERIES.iter().flat_map(|h| SERIES.map(|d| (*h, Some(d))));
                pairs.filter(|(home, desk)| *desk != Some(*home)).collect()
            }
        }
    }
}
