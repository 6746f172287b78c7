//! Features of this machine's processor.

use crate::errno::{Errno, Result};

/// Features that programs use, by the start of their names in /proc/cpuinfo.
const PREFIXES: [&str; 19] = [
    "abm", "adx", "aes", "amx", "avx", "bmi", "f16c", "fma", "fsgsbase", "gfni", "movbe", "pclmul",
    "popcnt", "pku", "sha", "sse", "ssse", "vaes", "vpclmul",
];

/// By their names in /proc/cpuinfo, sorted.
pub fn features() -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/cpuinfo");
    Ok(features_in(&text.map_err(|e| Errno::from_io("read /proc/cpuinfo", &e))?))
}

fn features_in(cpuinfo: &str) -> Vec<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    let words = flags.and_then(|line| line.split_once(':')).map_or("", |(_, words)| words);
    let wanted = |word: &&str| PREFIXES.iter().any(|prefix| word.starts_with(prefix));
    let mut found: Vec<String> =
        words.split_whitespace().filter(wanted).map(str::to_owned).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_that_programs_use() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu sse2 avx512f lm tsc_adjust aes\nbugs\t:\n";
        assert_eq!(features_in(cpuinfo), ["aes", "avx512f", "sse2"]);
    }
}
