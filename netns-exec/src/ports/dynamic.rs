//! The port settings of a namespace, as its own files under /proc/sys show
//! them to a thread that is in it.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

/// What IANA leaves to everybody, for where the kernel does not say.
const FALLBACK: RangeInclusive<u16> = 49152..=65535;

/// What a namespace says about its local ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPorts {
    pub(crate) range: RangeInclusive<u16>,
    pub(crate) reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Reads the settings of the calling thread's namespace: /proc/sys/net
    /// follows the thread that opens the file.
    pub(crate) fn read() -> LocalPorts {
        LocalPorts::parse(
            fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"),
            fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports"),
        )
    }

    fn parse(range: io::Result<String>, reserved: io::Result<String>) -> LocalPorts {
        LocalPorts {
            range: (range.ok().as_deref().and_then(parse_range)).unwrap_or(FALLBACK),
            reserved: reserved.as_deref().map(parse_list).unwrap_or_default(),
        }
    }
}

/// "32768\t60999\n"
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_ascii_whitespace();
    let low = words.next()?.parse().ok()?;
    let high = words.next()?.parse().ok()?;
    (0 < low && low <= high).then_some(low..=high)
}

/// "8080,9000-9010\n"
fn parse_list(text: &str) -> Vec<RangeInclusive<u16>> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some(low.parse().ok()?..=high.parse().ok()?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(range: &str, reserved: &str) -> LocalPorts {
        LocalPorts::parse(Ok(range.to_owned()), Ok(reserved.to_owned()))
    }

    #[test]
    fn settings_read_as_the_kernel_writes_them() {
        let ports = parse("32768\t60999\n", "8080,9000-9010\n");
        assert_eq!(ports.range, 32768..=60999);
        assert_eq!(ports.reserved, [8080..=8080, 9000..=9010]);
        assert_eq!(parse("1\t65535\n", "\n").reserved, []);
    }

    #[test]
    fn unreadable_settings_fall_back() {
        let missing = || Err(io::Error::from(io::ErrorKind::NotFound));
        let ports = LocalPorts::parse(missing(), missing());
        assert_eq!(ports.range, FALLBACK);
        assert_eq!(ports.reserved, []);
        assert_eq!(parse("60999 32768", "").range, FALLBACK);
        assert_eq!(parse("what", "").range, FALLBACK);
    }
}
