//! What reads text and messages, for fuzzing: a function for each kind of input, which
//! panics when what is read is not what it should be. Not in what ships.
//!
//! `ci/fuzz` has libFuzzer call them (`fuzz/`); the test below calls them with each file of
//! `fuzz/corpus`, and with mutated ones.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::sys::task::{Stat, start_of};
use crate::{audit, netns, ports, sys};

/// A request to a broker.
pub fn broker_request(bytes: &[u8]) {
    ports::fuzz_request(bytes);
}

/// A broker's reply.
pub fn broker_reply(bytes: &[u8]) {
    ports::fuzz_reply(bytes);
}

/// `ip_local_port_range` and `ip_local_reserved_ports`.
pub fn port_settings(bytes: &[u8]) {
    ports::fuzz_settings(&String::from_utf8_lossy(bytes));
}

/// `/proc/PID/mountinfo`.
pub fn mountinfo(bytes: &[u8]) {
    sys::mount_table::fuzz(bytes);
}

/// `/proc/PID/task/TID/stat`.
pub fn task_stat(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stat) = Stat::parse(&text) {
        assert_eq!(start_of(&text), Some(stat.started));
    }
}

/// `/proc/PID/status`.
pub fn task_status(bytes: &[u8]) {
    audit::fuzz_status(&String::from_utf8_lossy(bytes));
}

/// The name of a namespace.
pub fn name(bytes: &[u8]) {
    netns::fuzz_name(OsStr::from_bytes(bytes));
}

/// What is called with an input.
pub type Target = fn(&[u8]);

/// Each with the folder of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("broker_request", broker_request),
    ("broker_reply", broker_reply),
    ("port_settings", port_settings),
    ("mountinfo", mountinfo),
    ("task_stat", task_stat),
    ("task_status", task_status),
    ("name", name),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// The files of a target.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let folder = top.expect("a workspace").join("fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}; it is in the repository", folder.display())
        });
        let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        paths.sort();
        assert!(paths.len() > 9, "{target} has few files");
        let read = |path| fs::read(path).expect("a file");
        paths.into_iter().map(read).collect()
    }

    /// What is done to a file, in small.
    #[derive(Clone, Debug)]
    enum Edit {
        Flip(Index, u8),
        Insert(Index, Vec<u8>),
        Remove(Index, usize),
        /// Goes on with the end of another file.
        Splice(Index, Index, Index),
        Repeat(u8),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        // What means something in one of the formats.
        let words = [
            &b"\n"[..],
            b" ",
            b"\\040",
            b"\\",
            b":",
            b",",
            b"-",
            b")",
            b"/",
            b"\0",
            b"net:[",
            b"]",
            b"65535",
            b"65536",
            b"18446744073709551616",
            b"-1",
            b"nxb1",
            b"\xff\xff\xff\xff",
        ];
        let word = prop_oneof![
            prop::sample::select(words.map(<[u8]>::to_vec).to_vec()),
            vec(any::<u8>(), 0..8),
        ];
        prop_oneof![
            (any::<Index>(), any::<u8>()).prop_map(|(at, mask)| Edit::Flip(at, mask)),
            (any::<Index>(), word).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
            (any::<Index>(), 1_usize..40).prop_map(|(at, len)| Edit::Remove(at, len)),
            any::<(Index, Index, Index)>()
                .prop_map(|(at, with, from)| Edit::Splice(at, with, from)),
            (1_u8..20).prop_map(Edit::Repeat),
        ]
    }

    fn apply(edit: &Edit, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let end = bytes.len() + 1;
        match edit {
            Edit::Flip(at, mask) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Edit::Flip(..) => {}
            Edit::Insert(at, word) => {
                let at = at.index(end);
                bytes.splice(at..at, word.iter().copied());
            }
            Edit::Remove(at, len) => {
                let at = at.index(end);
                bytes.drain(at..bytes.len().min(at + len));
            }
            Edit::Splice(at, with, from) => {
                let other = with.get(corpus);
                bytes.truncate(at.index(end));
                bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
            Edit::Repeat(times) if bytes.len() < 10_000 => {
                *bytes = bytes.repeat(usize::from(*times));
            }
            Edit::Repeat(_) => {}
        }
    }

    #[test]
    fn every_file_of_the_corpora_is_read_for_what_it_is() {
        for (name, target) in TARGETS {
            corpus(name).iter().for_each(|file| target(file));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_is_like_the_corpora_is_read_for_what_it_is_not(
            target in any::<Index>(),
            file in any::<Index>(),
            edits in vec(edit(), 1..6),
        ) {
            thread_local! {
                static CORPORA: [Vec<Vec<u8>>; TARGETS.len()] =
                    TARGETS.map(|(name, _)| corpus(name));
            }
            CORPORA.with(|corpora| {
                let number = target.index(TARGETS.len());
                let corpus = &corpora[number];
                let mut bytes = file.get(corpus).clone();
                for edit in &edits {
                    apply(edit, &mut bytes, corpus);
                }
                TARGETS[number].1(&bytes);
            });
        }
    }
}
