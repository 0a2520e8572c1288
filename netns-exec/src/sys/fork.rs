//! Whether this process is a copy: fork(2) copies the memory of all threads and only
//! the thread that calls it, so in a copy nothing ever comes from the others.
//!
//! A page that the kernel hands to children empty (`MADV_WIPEONFORK`, madvise(2))
//! tells, at the cost of a load, whichever way the copy was made: atfork handlers do
//! not run for the bare system call. A child that shares its parent's memory, as
//! vfork(2) makes it, is no copy.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// Null until [`arm`] was called. Never unmapped.
static PAGE: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());

/// From now on [`is_copy`] tells the truth in children.
pub(crate) fn arm() -> Result<(), Errno> {
    if cfg!(loom) || !PAGE.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    const LEN: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private mapping, at an address of the kernel's choice.
    let page = unsafe { mmap_anonymous(None, LEN, access, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: the whole of the mapping just made, which nothing else knows of.
    unsafe { madvise(page, LEN.get(), MmapAdvise::MADV_WIPEONFORK) }?;
    let page = page.as_ptr().cast::<AtomicU8>();
    // SAFETY: the page is mapped, zeroed, and stays.
    unsafe { &*page }.store(1, Ordering::Relaxed);
    // Lost when two threads arm at once: then the other page serves, and this one
    // stays unused.
    let _ = PAGE.compare_exchange(ptr::null_mut(), page, Ordering::AcqRel, Ordering::Relaxed);
    Ok(())
}

/// Whether this process was forked, without exec, after [`arm`] was called.
#[inline]
pub(crate) fn is_copy() -> bool {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return false;
    }
    // SAFETY: `arm` has stored a mapping that is never taken away.
    unsafe { &*page }.load(Ordering::Relaxed) == 0
}
