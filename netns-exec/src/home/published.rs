//! The library's threads, as their process publishes them: see
//! [`sys::published`].
//!
//! [`sys::published`]: crate::sys::published

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) use crate::sys::published::Role;
use crate::sys::published::{HOME, MAGIC, NAME, OWN, SIZE, VERSION, WORKER};
use crate::sys::task;

/// What the tables of a process say.
#[derive(Debug, Default)]
pub(crate) struct Published {
    entries: Vec<Listed>,
    /// There is a table that could not be read, or is of a later version.
    pub(crate) has_gaps: bool,
}

#[derive(Debug)]
struct Listed {
    tid: u32,
    /// As the reader's clock has it; `None` when it is not known.
    started: Option<u64>,
    role: Role,
}

impl Published {
    /// What is to be said when not even its being there can be told.
    pub(crate) fn unreadable() -> Published {
        Published {
            entries: Vec::new(),
            has_gaps: true,
        }
    }

    /// What all copies of the library in this process say. Nothing of those that cannot
    /// be read just now.
    pub(crate) fn of_this_process() -> Published {
        let read = || {
            let stat = fs::read_to_string("/proc/self/stat")?;
            let started = task::start_of(&stat).ok_or(io::ErrorKind::InvalidData)?;
            let maps = fs::read_to_string("/proc/thread-self/maps")?;
            let mem = || File::open("/proc/thread-self/mem");
            Ok::<_, io::Error>(Published::read(&maps, mem, std::process::id(), started))
        };
        read().unwrap_or_else(|_| Published::unreadable())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads the tables of the process that calls itself `pid` and whose main
    /// thread started at `started`, by its `/proc/PID/maps` and `/proc/PID/mem`.
    pub(crate) fn read(
        maps: &str,
        mem: impl FnOnce() -> io::Result<File>,
        pid: u32,
        started: u64,
    ) -> Published {
        let mut found = Published::default();
        let mut tables = maps.lines().filter_map(mapping).peekable();
        if tables.peek().is_none() {
            return found;
        }
        let Ok(mem) = mem() else {
            found.has_gaps = true;
            return found;
        };
        for table in tables {
            if table.version != VERSION || found.add(&mem, &table, pid, started).is_err() {
                found.has_gaps = true;
            }
        }
        found
    }

    fn add(&mut self, mem: &File, table: &Mapping, pid: u32, started: u64) -> io::Result<()> {
        let mut header = [0; SIZE];
        mem.read_exact_at(&mut header, table.at)?;
        let entry_size = u32_at(&header, 8) as usize;
        let count = u32_at(&header, 12) as usize;
        let room = usize::try_from(table.size).unwrap_or(usize::MAX);
        let size = entry_size.checked_mul(count).filter(|size| *size < room);
        let size = match size {
            Some(size) if header[..8] == MAGIC && entry_size >= SIZE => size,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        // That of another process, which this one is a copy of.
        if u32_at(&header, 16) != pid {
            return Ok(());
        }
        // Times are told by the clock of the reader's time namespace.
        let shift = started.wrapping_sub(u64_at(&header, 24));
        let mut entries = vec![0; size];
        mem.read_exact_at(&mut entries, table.at + SIZE as u64)?;
        self.entries.extend(
            (entries.chunks_exact(entry_size)).filter_map(|entry| Listed::parse(entry, shift)),
        );
        Ok(())
    }

    /// Tells what a thread is in the roster as, by the number that itself knows.
    pub(crate) fn role_of(&self, tid: u32, started: Option<u64>) -> Option<Role> {
        let is_it = |entry: &&Listed| {
            let same_start = match (entry.started, started) {
                // Shifted times are rounded.
                (Some(one), Some(other)) => one.abs_diff(other) <= 1,
                _ => true,
            };
            entry.tid == tid && same_start
        };
        self.entries.iter().find(is_it).map(|entry| entry.role)
    }

    /// Whether a thread is in the roster.
    pub(crate) fn has(&self, tid: u32, started: u64) -> bool {
        self.role_of(tid, Some(started)).is_some()
    }
}

impl Listed {
    fn parse(entry: &[u8], shift: u64) -> Option<Listed> {
        let role = match u32_at(entry, 0) {
            WORKER => Role::Worker(u64_at(entry, 16)),
            OWN => Role::Own,
            HOME => Role::Home,
            _ => return None,
        };
        let started = u64_at(entry, 8);
        Some(Listed {
            tid: u32_at(entry, 4),
            started: (started != 0).then(|| started.wrapping_add(shift)),
            role,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where a table is.
struct Mapping {
    at: u64,
    size: u64,
    version: u32,
}

/// Reads a line of proc_pid_maps(5); `None` when it is about something else.
fn mapping(line: &str) -> Option<Mapping> {
    let (fields, name) = line.split_once(" /memfd:")?;
    let version = name.strip_prefix(NAME)?.split(' ').next()?;
    let (from, to) = fields.split_ascii_whitespace().next()?.split_once('-')?;
    let (from, to) = (hex(from)?, hex(to)?);
    Some(Mapping {
        at: from,
        size: to.checked_sub(from)?,
        // Whatever is no number is a version to come.
        version: version.parse().unwrap_or(u32::MAX),
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000001000 rw-p 00000000 00:01 7  /memfd:netns-exec:roster:1 (deleted)
7f0000002000-7f0000003000 rw-p 00000000 00:01 8  /memfd:other (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:00 0
";

    #[test]
    fn only_a_table_is_one() {
        let tables: Vec<_> = MAPS.lines().filter_map(mapping).collect();
        let [table] = &tables[..] else {
            panic!("{} tables", tables.len());
        };
        assert_eq!((table.at, table.size), (0x7f00_0000_0000, 0x1000));
        assert_eq!(table.version, 1);
    }

    #[test]
    fn table_that_cannot_be_read_is_a_gap() {
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        assert!(Published::read(MAPS, denied, 1, 1).has_gaps);
        let later = MAPS.replace("roster:1", "roster:2");
        let mem = || File::open("/proc/self/mem");
        assert!(Published::read(&later, mem, 1, 1).has_gaps);
        // Nothing is mapped at that place, or nothing that is a table.
        assert!(Published::read(MAPS, mem, 1, 1).has_gaps);
        assert!(!Published::read("", denied, 1, 1).has_gaps);
    }

    #[test]
    fn entry_is_about_the_thread_that_started_then() {
        let found = Published {
            entries: vec![Listed {
                tid: 7,
                started: Some(100),
                role: Role::Worker(3),
            }],
            has_gaps: false,
        };
        assert_eq!(found.role_of(7, Some(100)), Some(Role::Worker(3)));
        assert_eq!(found.role_of(7, Some(200)), None);
        assert_eq!(found.role_of(8, Some(100)), None);
    }
}
