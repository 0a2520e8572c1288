//! An allocator that a forked process must not use.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Aborts in copies of a process: a broker must not allocate, because the
/// allocator may be in the middle of something when it is forked off.
pub struct OnlyHere(AtomicU32);

impl OnlyHere {
    /// Serves every process until it is told to stay.
    pub const fn everywhere() -> OnlyHere {
        OnlyHere(AtomicU32::new(0))
    }

    /// Serves this process from now on, and no copy of it.
    pub fn stay_here(&self) {
        self.0.store(process::id(), Ordering::Relaxed);
    }

    fn check_process(&self) {
        let here = self.0.load(Ordering::Relaxed);
        if here != 0 && here != process::id() {
            process::abort();
        }
    }
}

// SAFETY: everything is left to the allocator of the system.
unsafe impl GlobalAlloc for OnlyHere {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.check_process();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.check_process();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}
