//! Which namespaces are shown, and in which order.

use std::cmp::{Ordering, Reverse};

use clap::ValueEnum;
use netns_exec::NetnsId;

use super::Row;

/// What rows are sorted by: numbers of things with the most first, all else ascending.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Key {
    Id,
    Inode,
    Name,
    Processes,
    Threads,
    Fds,
    Sockets,
    Mounts,
}

impl Key {
    pub(super) fn compare(self, a: &Row<'_>, b: &Row<'_>) -> Ordering {
        let most = |count: fn(&Row<'_>) -> usize| Reverse(count(a)).cmp(&Reverse(count(b)));
        match self {
            Key::Id => (a.id.is_none(), a.id).cmp(&(b.id.is_none(), b.id)),
            Key::Inode => a.inode.cmp(&b.inode),
            // Those without a name last.
            Key::Name => (a.names.is_empty(), a.names).cmp(&(b.names.is_empty(), b.names)),
            Key::Processes => most(|row| row.processes.len()),
            Key::Threads => most(|row| row.counts.threads),
            Key::Fds => most(|row| row.counts.fds),
            Key::Sockets => most(|row| row.counts.sockets),
            Key::Mounts => most(|row| row.counts.mounts),
        }
    }
}

/// What a row must have to be shown: `name=web-*`.
#[derive(Clone)]
pub(super) struct Filter {
    of: Of,
    pattern: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Id,
    Name,
    Process,
    Pid,
    Link,
    Address,
}

const KEYS: [(&str, Of); 6] = [
    ("id", Of::Id),
    ("name", Of::Name),
    ("process", Of::Process),
    ("pid", Of::Pid),
    ("link", Of::Link),
    ("address", Of::Address),
];

impl Filter {
    pub(super) fn parse(text: &str) -> Result<Filter, String> {
        let (key, pattern) = text.split_once('=').ok_or("write KEY=PATTERN")?;
        let of = KEYS.iter().find(|(known, _)| *known == key);
        let (_, of) = of.ok_or_else(|| {
            let keys: Vec<_> = KEYS.iter().map(|(key, _)| *key).collect();
            format!("`{key}` is none of {}", keys.join(", "))
        })?;
        Ok(Filter {
            of: *of,
            pattern: pattern.to_owned(),
        })
    }

    /// Whether it takes a look into the namespaces.
    pub(super) fn is_about_links(&self) -> bool {
        matches!(self.of, Of::Link | Of::Address)
    }

    /// Whether one of what the row has is like the pattern. An empty pattern is like having
    /// none.
    pub(super) fn admits(&self, row: &Row<'_>) -> bool {
        let links = || row.links.iter().flatten().flatten();
        let texts: Vec<String> = match self.of {
            Of::Id => row.id.iter().map(NetnsId::to_string).collect(),
            Of::Name => row.names.to_vec(),
            Of::Process => (row.processes.iter())
                .map(|process| process.name.to_owned())
                .collect(),
            Of::Pid => (row.processes.iter())
                .map(|process| process.pid.to_string())
                .collect(),
            Of::Link => links().map(|link| link.name.clone()).collect(),
            Of::Address => links().flat_map(|link| link.addresses.clone()).collect(),
        };
        match self.pattern.is_empty() {
            true => texts.is_empty(),
            false => texts.iter().any(|text| is_like(text, &self.pattern)),
        }
    }
}

/// Whether `text` is what a shell's pattern stands for: `*` for any text, `?` for one
/// character.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) =
        (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut in_pattern) = (0, 0);
    // After the last star, and what it stands for so far.
    let mut star = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                star = Some((in_pattern + 1, at));
                in_pattern += 1;
            }
            Some(c) if *c == '?' || *c == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (in_pattern, at) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_stands_for_what_a_shells_does() {
        for (text, pattern) in [
            ("blue", "blue"),
            ("blue", "*"),
            ("blue", "b*e"),
            ("blue", "?l*"),
            ("a-b-c", "a*-c"),
            ("aab", "*ab"),
            ("10.0.0.1/24", "10.0.*"),
            ("größe", "gr??e"),
        ] {
            assert!(is_like(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [("blue", "b"), ("blue", "?"), ("blue", "b*d"), ("", "?")] {
            assert!(!is_like(text, pattern), "{text} {pattern}");
        }
    }

    #[test]
    fn filter_has_a_key_that_is_known() {
        for text in ["name", "nane=x", "=x", ""] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(Filter::parse("address=*=*").is_ok());
    }
}
