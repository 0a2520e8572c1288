//! The port settings of a namespace, as its own files under /proc/sys show
//! them to a thread that is in it.

use std::fs::{self, File};
use std::io;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str;

/// The dynamic ports of RFC 6335, for where the kernel does not say.
const FALLBACK: RangeInclusive<u16> = 49152..=65535;

/// What a namespace says about its local ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPorts {
    pub(crate) range: RangeInclusive<u16>,
    pub(crate) reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Reads the settings of the calling thread's namespace.
    pub(crate) fn read() -> LocalPorts {
        Files::open().read(&mut vec![0; ROOM])
    }
}

/// Tells whether the calling thread's namespace has this address, and duplicate
/// address detection has not ended yet.
pub(crate) fn is_tentative(addr: Ipv6Addr) -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    has_tentative(&text, addr)
}

/// "fe80000000000000a00000fffe000001 02 40 20 c0     eth0\n"
fn has_tentative(text: &str, addr: Ipv6Addr) -> bool {
    const IFA_F_DADFAILED: u32 = 0x08;
    const IFA_F_TENTATIVE: u32 = 0x40;
    let wanted = format!("{:032x}", addr.to_bits());
    let is_it = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let flags = (words.next() == Some(&wanted)).then(|| words.nth(3))??;
        u32::from_str_radix(flags, 16).ok()
    };
    (text.lines().filter_map(is_it))
        .any(|flags| flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == IFA_F_TENTATIVE)
}

/// A list of every other port has less than 200,000 characters.
pub(crate) const ROOM: usize = 256 * 1024;

/// The files with the settings of one namespace: that of the thread that opens
/// them, whichever thread reads them then. The kernel may have none.
#[derive(Debug)]
pub(crate) struct Files {
    range: Option<File>,
    reserved: Option<File>,
}

impl Files {
    /// Opens those of the calling thread's namespace.
    pub(crate) fn open() -> Files {
        let open = |name| File::open(Path::new("/proc/sys/net/ipv4").join(name)).ok();
        Files {
            range: open("ip_local_port_range"),
            reserved: open("ip_local_reserved_ports"),
        }
    }

    /// The open files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &File> {
        self.range.iter().chain(&self.reserved)
    }

    fn read(&self, room: &mut [u8]) -> LocalPorts {
        LocalPorts {
            range: self.range(room),
            reserved: self.reserved(room).collect(),
        }
    }

    /// Reads the range, by way of `room`.
    pub(crate) fn range(&self, room: &mut [u8]) -> RangeInclusive<u16> {
        let text = read_at_once(self.range.as_ref(), room);
        parse_range(text).unwrap_or(FALLBACK)
    }

    /// Reads the reserved ports, by way of `room`, which is [`ROOM`] long.
    pub(crate) fn reserved<'a>(
        &self,
        room: &'a mut [u8],
    ) -> impl Iterator<Item = RangeInclusive<u16>> + use<'a> {
        parse_list(read_at_once(self.reserved.as_ref(), room))
    }
}

/// Reads a file of /proc/sys by a single call: a second one would find the end,
/// however little the first had room for, and what std reads first are 32 bytes.
fn read_at_once<'a>(file: Option<&File>, room: &'a mut [u8]) -> &'a str {
    let len = file.map_or(Ok(0), |file| {
        loop {
            match file.read_at(room, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        }
    });
    let text = len.ok().and_then(|len| room.get(..len));
    text.and_then(|text| str::from_utf8(text).ok())
        .unwrap_or_default()
}

/// "32768\t60999\n"
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_ascii_whitespace();
    let low = words.next()?.parse().ok()?;
    let high = words.next()?.parse().ok()?;
    (0 < low && low <= high).then_some(low..=high)
}

/// "8080,9000-9010\n"
fn parse_list(text: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    text.trim().split(',').filter_map(|part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        Some(low.parse().ok()?..=high.parse().ok()?)
    })
}

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz(text: &str) {
    if let Some(range) = parse_range(text) {
        assert!(!range.is_empty() && *range.start() > 0);
        let written = format!("{}\t{}\n", range.start(), range.end());
        assert_eq!(parse_range(&written), Some(range));
    }
    let list: Vec<_> = parse_list(text).collect();
    assert!(list.len() <= text.len());
    let written: Vec<_> = (list.iter())
        .map(|range| format!("{}-{}", range.start(), range.end()))
        .collect();
    let again: Vec<_> = parse_list(&written.join(",")).collect();
    assert_eq!(again, list);
    has_tentative(text, Ipv6Addr::LOCALHOST);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_as_the_kernel_writes_them() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        let reserved: Vec<_> = parse_list("8080,9000-9010\n").collect();
        assert_eq!(reserved, [8080..=8080, 9000..=9010]);
        assert_eq!(parse_list("\n").count(), 0);
    }

    #[test]
    fn address_is_tentative_until_its_detection_has_ended() {
        let line = |flags| format!("fe800000000000000000000000000001 02 40 20 {flags}     eth0\n");
        let addr: Ipv6Addr = "fe80::1".parse().expect("an address");
        for (flags, tentative) in [("40", true), ("c0", true), ("80", false), ("48", false)] {
            assert_eq!(has_tentative(&line(flags), addr), tentative, "{flags}");
            assert!(!has_tentative(&line(flags), Ipv6Addr::LOCALHOST));
        }
    }

    #[test]
    fn unreadable_settings_fall_back() {
        let missing = Files {
            range: None,
            reserved: None,
        };
        let ports = missing.read(&mut [0; 100]);
        assert_eq!(ports.range, FALLBACK);
        assert_eq!(ports.reserved, []);
        assert_eq!(parse_range("60999 32768"), None);
        assert_eq!(parse_range("what"), None);
    }
}
