//! What reads arguments, for fuzzing: a function for each, which panics when what is read
//! is not what it should be. Not in what ships.
//!
//! `ci/fuzz` has libFuzzer call them (`fuzz/`); the test below calls them with each file of
//! `fuzz/corpus`, and with each a byte away from one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::str;

use super::{AddrArg, Choice, NetnsArg, OnArg, pid};

/// NS.
pub(crate) fn netns_arg(bytes: &[u8]) {
    let text = OsStr::from_bytes(bytes);
    let arg = NetnsArg::from(text.to_owned());
    assert_eq!(arg.to_os_string(), text);
    match &arg {
        NetnsArg::Path(path) => {
            assert!(path.as_os_str() == text && bytes.contains(&b'/'));
        }
        NetnsArg::Name(name) => {
            assert!(name == text && !bytes.contains(&b'/') && !bytes.starts_with(b"pid:"));
        }
        NetnsArg::Pid(digits) => {
            assert!(bytes.starts_with(b"pid:") && !bytes.contains(&b'/'));
            let number = pid(digits);
            let is_number = is_number(digits.as_bytes(), u64::from(u32::MAX));
            assert_eq!(number.map(u64::from), is_number);
        }
    }
}

/// PORTS. What is given is text: clap has refused the rest.
pub(crate) fn ports_arg(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let port = |text: &str| is_number(text.as_bytes(), u64::from(u16::MAX));
    let parts: Vec<_> = text.split('-').map(port).collect();
    let expected = match parts[..] {
        _ if text == "dynamic" => Some(Choice::Dynamic),
        [Some(port)] => Some(Choice::Exact(port as u16)),
        [Some(low), Some(high)] => Some(Choice::Range(low as u16..=high as u16)),
        _ => None,
    };
    assert_eq!(text.parse().ok(), expected);
}

/// NS[,ADDR[%DEVICE]...].
pub(crate) fn on_arg(bytes: &[u8]) {
    let text = OsStr::from_bytes(bytes);
    let Ok(on) = OnArg::parse(text.to_owned()) else {
        return;
    };
    let (netns, rest) = match bytes.iter().position(|&byte| byte == b',') {
        Some(comma) => (&bytes[..comma], Some(&bytes[comma + 1..])),
        None => (bytes, None),
    };
    assert!(!netns.is_empty());
    assert_eq!(
        on.netns,
        NetnsArg::from(OsStr::from_bytes(netns).to_owned())
    );
    let given: Vec<_> = rest.map_or(Vec::new(), |rest| {
        rest.split(|&byte| byte == b',').collect()
    });
    assert_eq!(on.addrs.len(), given.len());
    for (AddrArg { addr, device }, given) in on.addrs.iter().zip(given) {
        // An address can be written in more ways than one, a device cannot.
        let end = device
            .as_ref()
            .map_or(String::new(), |device| format!("%{device}"));
        assert!(given.ends_with(end.as_bytes()));
        assert_eq!(given.contains(&b'%'), device.is_some());
        assert!(on.names(addr.to_canonical()));
    }
    let again = write(&on);
    assert_eq!(OnArg::parse(again), Ok(on));
}

fn write(on: &OnArg) -> OsString {
    let mut text = on.netns.to_os_string();
    for AddrArg { addr, device } in &on.addrs {
        text.push(format!(",{addr}"));
        if let Some(device) = device {
            text.push(format!("%{device}"));
        }
    }
    text
}

/// A number up to `most` in decimal, digit by digit.
fn is_number(digits: &[u8], most: u64) -> Option<u64> {
    let next = |number: Option<u64>, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        let number = number? * 10 + digit;
        (number <= most).then_some(number)
    };
    match digits.is_empty() {
        true => None,
        false => digits.iter().fold(Some(0), next),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What is called with an input.
    type Target = fn(&[u8]);

    /// Each with the folder of its corpus.
    const TARGETS: [(&str, Target); 3] = [
        ("netns_arg", netns_arg),
        ("ports_arg", ports_arg),
        ("on_arg", on_arg),
    ];

    /// The files of a target.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let folder = top.expect("a workspace").join("fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}; it is in the repository", folder.display())
        });
        let read = |file| fs::read(file).expect("a file");
        let files: Vec<_> = files
            .map(|file| read(file.expect("a file").path()))
            .collect();
        assert!(files.len() > 9, "{target} has few files");
        files
    }

    #[test]
    fn every_file_of_the_corpora_is_read_for_what_it_is() {
        for (name, target) in TARGETS {
            corpus(name).iter().for_each(|file| target(file));
        }
    }

    #[test]
    fn nothing_a_byte_away_from_the_corpora_is_read_for_what_it_is_not() {
        let bytes = b"\0+-/,:%09az. \n\x7f\xc3\xff";
        for (name, target) in TARGETS {
            for file in corpus(name) {
                for at in 0..file.len() {
                    let mut shorter = file.clone();
                    shorter.remove(at);
                    target(&shorter);
                    target(&file[..at]);
                    target(&file[at..]);
                }
                for (at, &byte) in
                    (0..=file.len()).flat_map(|at| bytes.iter().map(move |b| (at, b)))
                {
                    let mut longer = file.clone();
                    longer.insert(at, byte);
                    target(&longer);
                    if at < file.len() {
                        let mut other = file.clone();
                        other[at] = byte;
                        target(&other);
                    }
                }
            }
        }
    }
}
