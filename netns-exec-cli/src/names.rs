//! The names that `ip netns` keeps.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;

use crate::failure::Failure;

/// Where it keeps them.
pub(crate) const FOLDER: &str = "/run/netns";

/// The names that `ip netns list` shows, in order.
pub(crate) fn names() -> Result<Vec<OsString>, Failure> {
    let failed = |error| Failure::io(format!("cannot read {FOLDER}"), error);
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = (entries.map(|entry| Ok(entry?.file_name())))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    names.sort();
    Ok(names)
}
