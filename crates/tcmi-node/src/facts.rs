//! What this machine is, for `node/` and for peers.

use std::fs;
use std::io;

use tcmi_kkc::PROTOCOL_VERSION;
use tcmi_migr::module::ByModule;

use crate::beat;

/// Processor features that programs use, by the start of their names in /proc/cpuinfo.
const CPU_FEATURE_PREFIXES: [&str; 19] = [
    "abm", "adx", "aes", "amx", "avx", "bmi", "f16c", "fma", "fsgsbase", "gfni", "movbe", "pclmul",
    "popcnt", "pku", "sha", "sse", "ssse", "vaes", "vpclmul",
];
/// Room for the other features under the bound of a link's greeting.
const CPU_FEATURES_MAX: usize = 100;

/// As `node/version` shows it.
pub fn version(checkpoint: u32) -> String {
    let program = env!("CARGO_PKG_VERSION");
    format!("tcmid {program}\nprotocol {PROTOCOL_VERSION}\ncheckpoint {checkpoint}\n")
}

/// One a line in `node/features`, and in the greeting of a link.
pub fn features(module: Option<ByModule>) -> io::Result<Vec<String>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut features = vec![
        format!("arch={}", std::env::consts::ARCH),
        format!("kernel={}", release.trim()),
        if module.is_some() { "freezer=module" } else { "freezer=ptrace" }.to_owned(),
        if module.is_some() { "ctlfs=kernel" } else { "ctlfs=fuse" }.to_owned(),
        if module.is_some_and(|m| m.sends) { "pages=kernel" } else { "pages=userspace" }.to_owned(),
        if module.is_some() { beat::FEATURE } else { "beat=none" }.to_owned(),
    ];
    features.extend(cpu_features(&fs::read_to_string("/proc/cpuinfo")?));
    Ok(features)
}

fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    let words = flags.and_then(|line| line.split_once(':')).map_or("", |(_, words)| words);
    let wanted = |word: &&str| CPU_FEATURE_PREFIXES.iter().any(|prefix| word.starts_with(prefix));
    let mut found: Vec<String> =
        words.split_whitespace().filter(wanted).map(|word| format!("cpu={word}")).collect();
    found.sort();
    found.truncate(CPU_FEATURES_MAX);
    found
}

/// One-minute load average in thousandths.
pub fn load() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let average = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    let average = average.ok_or_else(|| io::Error::other("/proc/loadavg has another form"))?;
    Ok((average * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_features_are_those_that_programs_use() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu sse2 avx512f lm tsc_adjust aes\nbugs\t:\n";
        assert_eq!(cpu_features(cpuinfo), ["cpu=aes", "cpu=avx512f", "cpu=sse2"]);
    }

    #[test]
    fn this_machine_has_features_that_a_greeting_may_carry() {
        let features = features(Some(ByModule { sends: true })).unwrap();
        let hello = tcmi_kkc::Hello { name: "x".into(), features };
        assert_eq!(hello.check(), Ok(()));
        load().unwrap();
    }
}
