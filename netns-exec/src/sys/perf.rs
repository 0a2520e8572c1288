//! What a thread does to tasks and namespaces, as the kernel records it:
//! perf_event_open(2) with a software event that counts nothing.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// `struct perf_event_attr` as it was at first (`PERF_ATTR_SIZE_VER0`), which
/// has all that is needed.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_FLAG_FD_CLOEXEC: u64 = 8;

// Bits of `flags`, in the order of the bit-fields.
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HV: u64 = 1 << 6;
const TASK: u64 = 1 << 13;
const NAMESPACES: u64 = 1 << 28;

const PERF_RECORD_FORK: u32 = 7;
const PERF_RECORD_NAMESPACES: u32 = 16;

/// Offsets in `struct perf_event_mmap_page`, fixed by its padding.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// Records what the thread that opened it does: each task it creates, and,
/// where that is allowed, each change of its namespaces.
///
/// The records land in memory before the call that caused them returns, so
/// asking whether there are any is one load.
pub(crate) struct Recorder {
    /// Two pages: the kernel's header, and the ring. They hold the event alive,
    /// so no descriptor is kept.
    pages: NonNull<u8>,
    page_size: usize,
    /// How far this side has read; the ring is empty when the head is here too.
    tail: u64,
    namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PerfRecord {
    /// The thread created a task: a thread of `pid`.
    Fork { pid: u32, tid: u32 },
    /// A task's namespaces changed. A new task's count as changed.
    Namespaces { tid: u32 },
    /// Anything else, above all that records were lost.
    Other,
}

impl Recorder {
    /// Starts to record what the calling thread does.
    ///
    /// `namespaces` needs `CAP_PERFMON` in the first user namespace; the rest
    /// what `kernel.perf_event_paranoid` asks for.
    pub(crate) fn open(namespaces: bool) -> io::Result<Recorder> {
        let mut flags = EXCLUDE_KERNEL | EXCLUDE_HV | TASK;
        if namespaces {
            flags |= NAMESPACES;
        }
        let attr = Attr {
            kind: PERF_TYPE_SOFTWARE,
            size: size_of::<Attr>() as u32,
            config: PERF_COUNT_SW_DUMMY,
            flags,
            ..Attr::default()
        };
        let (this_thread, any_cpu, no_group) = (0, -1, -1);
        // SAFETY: `attr` is live and says its own size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &attr,
                this_thread,
                any_cpu,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = Errno::result(fd)?.try_into().expect("descriptors fit");
        // SAFETY: the kernel just made this descriptor, so this is its only owner.
        let event = File::from(unsafe { OwnedFd::from_raw_fd(fd) });

        let page_size = super::page_size()?;
        let length = NonZeroUsize::new(2 * page_size).expect("pages are not empty");
        // Writable, so that the kernel keeps what has not been read.
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let pages = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &event, 0) }?;
        Ok(Recorder {
            pages: pages.cast(),
            page_size,
            tail: 0,
            namespaces,
        })
    }

    /// Tells whether changes of namespaces are recorded.
    pub(crate) fn sees_namespaces(&self) -> bool {
        self.namespaces
    }

    /// Tells whether anything was recorded since [`drain`](Recorder::drain).
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        // Relaxed: written by the kernel on this very thread, in a call that
        // has returned. `drain` orders its reads by itself.
        self.header(DATA_HEAD).load(Ordering::Relaxed) != self.tail
    }

    /// Takes all records out.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(PerfRecord)) {
        /// Longer than any record that is asked for.
        const RECORD: u64 = 512;

        let head = self.header(DATA_HEAD).load(Ordering::Acquire);
        // The kernel writes down that records were lost with the next one that has room.
        // Behind a ring that is full there may have been none.
        if head.wrapping_sub(self.tail) + RECORD > self.page_size as u64 {
            take(PerfRecord::Other);
        }
        while self.tail != head {
            // Records and their headers are multiples of eight bytes, so no
            // word wraps.
            let first = self.word(self.tail);
            let (kind, size) = (first as u32, first >> 48);
            let second = self.word(self.tail + 8);
            let third = self.word(self.tail + 16);
            take(match kind {
                PERF_RECORD_FORK => PerfRecord::Fork {
                    pid: second as u32,
                    tid: third as u32,
                },
                PERF_RECORD_NAMESPACES => PerfRecord::Namespaces {
                    tid: (second >> 32) as u32,
                },
                _ => PerfRecord::Other,
            });
            if size == 0 {
                // Never seen; but then everything behind it is garbage.
                take(PerfRecord::Other);
                self.tail = head;
            } else {
                self.tail += size;
            }
        }
        self.header(DATA_TAIL).store(self.tail, Ordering::Release);
    }

    fn header(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets are inside the first page.
        let word = unsafe { self.pages.add(offset) };
        // SAFETY: aligned, mapped while `self` lives, and shared with the kernel
        // only, which accesses it as one word.
        unsafe { word.cast().as_ref() }
    }

    /// The word of the ring at a position that only grows.
    fn word(&self, position: u64) -> u64 {
        let offset = position as usize & (self.page_size - 1) & !7;
        // SAFETY: inside the second page.
        let word = unsafe { self.pages.add(self.page_size + offset) };
        // SAFETY: aligned and mapped. Between tail and head the kernel does not
        // write, see the comment at `data_tail` in perf_event.h.
        unsafe { word.cast().read() }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `open`, to which nothing refers any more.
        // It cannot fail for a range that is mapped.
        let _ = unsafe { munmap(self.pages.cast(), 2 * self.page_size) };
    }
}

// SAFETY: the pages belong to the recorder, wherever it is; only what is
// recorded is bound to a thread.
unsafe impl Send for Recorder {}
