//! What this process is allowed.

use std::fs;

use crate::failure::Failure;

/// To read what other users' processes are and have.
pub(crate) const CAP_SYS_PTRACE: u32 = 19;

/// Tells whether this process has a capability.
pub(crate) fn has_capability(number: u32) -> Result<bool, Failure> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Failure::io("cannot read /proc/self/status", error))?;
    let set = (status.lines())
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    Ok(set.is_some_and(|set| set & (1 << number) != 0))
}
