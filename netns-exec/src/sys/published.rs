//! Memory of this process that says, to other processes that may read it, which of
//! its threads are this library's.
//!
//! Nothing that a thread has proves that it is a worker: the threads that it
//! makes inherit its name, its signal mask, its filters and its capabilities. So
//! each copy of the library that is loaded keeps a table of its threads, in a
//! private mapping of a memfd whose name shows in `/proc/PID/maps`:
//!
//! ```text
//! 7f3a1c000000-7f3a1c010000 rw-p ... /memfd:netns-exec:roster:1 (deleted)
//! ```
//!
//! The number is the version of the format. Version 1, in the machine's own byte
//! order: a header of 32 bytes,
//!
//! | bytes | type | what |
//! |-------|------|------|
//! | 0..8 | `[u8; 8]` | `netnsrst` |
//! | 8..12 | `u32` | the size of an entry: 32, or more where more was added behind |
//! | 12..16 | `u32` | how many entries follow |
//! | 16..20 | `u32` | the process, as itself knows it |
//! | 20..24 | | reserved |
//! | 24..32 | `u64` | when its main thread started, as in proc_pid_stat(5) |
//!
//! and entries of
//!
//! | bytes | type | what |
//! |-------|------|------|
//! | 0..4 | `u32` | 0 no entry, 1 a worker, 2 another thread of the library, 3 the home thread |
//! | 4..8 | `u32` | the thread, as itself knows it |
//! | 8..16 | `u64` | when it started; 0 when it could not find out |
//! | 16..24 | `u64` | of a worker, the id of the namespace that it serves |
//! | 24..32 | | reserved |
//!
//! An entry whose thread started at another time is about an earlier thread. A
//! copy of the process that fork(2) made has a copy of the table, which names the
//! other process. There may be several tables: full ones, and those of other
//! copies of the library.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;

use super::task;

/// What the mapping is called, up to the version of its format.
pub(crate) const NAME: &str = "netns-exec:roster:";
pub(crate) const VERSION: u32 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"netnsrst";
/// The size of the header, and of an entry.
pub(crate) const SIZE: usize = 32;
/// The kinds of entries.
pub(crate) const WORKER: u32 = 1;
pub(crate) const OWN: u32 = 2;
pub(crate) const HOME: u32 = 3;

/// What a thread is to the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A worker of the namespace with this id.
    Worker(u64),
    /// Another thread of the library, which goes where it is sent.
    Own,
    /// The home thread.
    Home,
}

const CAPACITY: usize = 2047;

#[repr(C)]
struct TableHeader {
    magic: [u8; 8],
    entry_size: u32,
    used: AtomicU32,
    pid: u32,
    reserved: u32,
    started: u64,
}

/// Room for an entry, of one thread at a time.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Slot {
    kind: AtomicU32,
    tid: AtomicU32,
    started: AtomicU64,
    netns: AtomicU64,
    reserved: AtomicU64,
}

/// A table for the life of the process.
#[repr(C)]
pub(crate) struct Table {
    header: TableHeader,
    slots: [Slot; CAPACITY],
}

const _: () = assert!(size_of::<TableHeader>() == SIZE && size_of::<Slot>() == SIZE);

impl Slot {
    /// Says that a thread has this entry; the last thing to change is the kind,
    /// without which a reader takes no notice of the rest.
    pub(crate) fn set(&self, role: Role, tid: u32, started: u64) {
        let (kind, netns) = match role {
            Role::Worker(netns) => (WORKER, netns),
            Role::Own => (OWN, 0),
            Role::Home => (HOME, 0),
        };
        self.tid.store(tid, Ordering::Relaxed);
        self.started.store(started, Ordering::Relaxed);
        self.netns.store(netns, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Release);
    }

    /// Says that no thread has it.
    pub(crate) fn clear(&self) {
        self.kind.store(0, Ordering::Release);
    }
}

impl Table {
    /// Makes an empty one. Costs no descriptor, but for a moment.
    pub(crate) fn publish() -> io::Result<&'static Table> {
        let started = task::start_of(&fs::read_to_string("/proc/self/stat")?)
            .ok_or(io::ErrorKind::InvalidData)?;
        let size = size_of::<Table>();
        let file = memfd()?;
        let length = libc::off_t::try_from(size).expect("a few pages");
        nix::unistd::ftruncate(&file, length)?;
        // Private, so that a copy of the process writes to a copy of it.
        // SAFETY: a new mapping, at a place that the kernel chooses, of a file that
        // is as long.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let header = TableHeader {
            magic: MAGIC,
            entry_size: SIZE as u32,
            used: AtomicU32::new(0),
            pid: std::process::id(),
            reserved: 0,
            started,
        };
        // SAFETY: the mapping begins with the header, is large enough for it and
        // aligned to a page, and no reference to it exists yet.
        unsafe { at.cast::<TableHeader>().write(header) };
        // SAFETY: initialised: a header, and zeros, which are entries. It is never
        // unmapped, and what changes in it is atomic.
        Ok(unsafe { &*at.cast::<Table>() })
    }

    /// A slot that no thread had before; `None` when it is full. Not for two
    /// callers at once.
    pub(crate) fn take(&self) -> Option<&Slot> {
        let used = self.header.used.load(Ordering::Relaxed);
        let entry = self.slots.get(used as usize)?;
        self.header.used.store(used + 1, Ordering::Release);
        Some(entry)
    }
}

fn memfd() -> io::Result<OwnedFd> {
    let name = format!("{NAME}{VERSION}\0");
    let make = |flags| {
        // SAFETY: the name ends with a nul and outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr().cast(), libc::MFD_CLOEXEC | flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel just made this descriptor, so this is its only owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // A sysctl may refuse memory files that could be run; before Linux 6.3 there
    // was no such flag.
    match make(libc::MFD_NOEXEC_SEAL) {
        Err(Errno::EINVAL) => make(0),
        made => made,
    }
    .map_err(io::Error::from)
}
