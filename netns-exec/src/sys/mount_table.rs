//! The mount table, as far as it keeps network namespaces alive: which are
//! bind-mounted, which is what gives them a name. See proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A network namespace that is mounted somewhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NetnsMount {
    /// Means this namespace only while something, this mount for one, holds it.
    pub(crate) inode: u64,
    pub(crate) target: PathBuf,
}

/// Lists the network namespaces mounted in a mount namespace: that of the
/// thread or process whose `mountinfo` file this is.
pub(crate) fn netns_mounts(mountinfo: &Path) -> io::Result<Vec<NetnsMount>> {
    parse(BufReader::with_capacity(32 * 1024, File::open(mountinfo)?))
}

/// Reads proc_pid_mountinfo(5).
pub(super) fn parse(mut mountinfo: impl BufRead) -> io::Result<Vec<NetnsMount>> {
    let mut mounts = Vec::new();
    let mut line = Vec::new();
    while mountinfo.read_until(b'\n', &mut line)? > 0 {
        // Mount id, parent id, device, root, mount point, ...
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        if let (Some(root), Some(target)) = (fields.next(), fields.next()) {
            // The root of a mount of any other filesystem begins with a slash.
            if let Some(inode) = netns_inode(root) {
                mounts.push(NetnsMount {
                    inode,
                    target: PathBuf::from(OsString::from_vec(unescape(target))),
                });
            }
        }
        line.clear();
    }
    Ok(mounts)
}

/// The number in `net:[4026531840]`.
pub(crate) fn netns_inode(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes the kernel's `\040` for a space.
pub(super) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;

    let mounts = parse(bytes).expect("a slice can be read");
    assert!(mounts.len() <= bytes.split(|&byte| byte == b'\n').count());
    for mount in mounts {
        let target = mount.target.as_os_str().as_bytes();
        assert!(target.len() <= bytes.len());
        // As the kernel writes it.
        let mut line = format!("1 1 0:4 net:[{}] ", mount.inode).into_bytes();
        for &byte in target {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => line.extend(format!("\\{byte:03o}").bytes()),
                _ => line.push(byte),
            }
        }
        line.extend(b" rw - nsfs nsfs rw\n");
        assert_eq!(parse(&line[..]).expect("a slice can be read"), [mount]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_yields_only_network_namespaces() {
        let table = b"\
21 1 0:20 / /proc rw - proc proc rw\n\
90 21 0:4 net:[4026532301] /run/netns/blue rw shared:5 master:2 - nsfs nsfs rw\n\
91 21 0:4 mnt:[4026532302] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n\
92 21 8:1 /net:[7] /srv/decoy rw - ext4 /dev/sda1 rw\n\
93 21 0:4 net:[4026532303] /run/a\\040b\\134c rw - nsfs nsfs rw\n";
        let mounts = parse(&table[..]).expect("a slice can be read");
        let expected = [(4026532301, "/run/netns/blue"), (4026532303, "/run/a b\\c")].map(
            |(inode, target)| NetnsMount {
                inode,
                target: target.into(),
            },
        );
        assert_eq!(mounts, expected);
    }

    #[test]
    fn names_of_other_things_are_not_inodes() {
        assert_eq!(netns_inode(b"net:[4026531840]"), Some(4026531840));
        for name in ["", "net:[]", "net:[x]", "net:[1", "mnt:[1]", "/net:[1]"] {
            assert_eq!(netns_inode(name.as_bytes()), None, "{name}");
        }
    }
}
