//! What this machine is, for `node/` and for peers.

use std::fs;
use std::io;

use tcmi_kkc::PROTOCOL_VERSION;
use tcmi_migr::module::ByModule;

use crate::beat;

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
    let cpu = tcmi_sys::cpu::features().map_err(|e| io::Error::from_raw_os_error(e.code))?;
    features.extend(cpu.iter().take(CPU_FEATURES_MAX).map(|feature| format!("cpu={feature}")));
    Ok(features)
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
    fn this_machine_has_features_that_a_greeting_may_carry() {
        let features = features(Some(ByModule { sends: true })).unwrap();
        let hello = tcmi_kkc::Hello { name: "x".into(), features };
        assert_eq!(hello.check(), Ok(()));
        load().unwrap();
    }
}
