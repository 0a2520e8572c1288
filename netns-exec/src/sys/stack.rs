//! The stack of a thread: pthread_getattr_np(3), madvise(2).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null_mut;

/// The calling thread's stack. Not for other threads.
pub(crate) struct Stack {
    /// From its end, towards which it grows.
    addresses: Range<usize>,
    page: usize,
    of_this_thread: PhantomData<*const ()>,
}

impl Stack {
    /// That of the calling thread, which is not the main thread: its stack has no fixed end.
    pub(crate) fn of_this_thread() -> io::Result<Stack> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: takes nothing, and cannot fail.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread is live; the function fills the attributes in.
        let rc = unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        let (mut end, mut size) = (null_mut::<c_void>(), 0);
        // SAFETY: they have been filled in.
        let rc = unsafe {
            libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut end, &raw mut size)
        };
        // SAFETY: as above; they are not used after this.
        unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        let page = super::page_size()?;
        Ok(Stack {
            addresses: end.addr().next_multiple_of(page)..end.addr() + size,
            page,
            of_this_thread: PhantomData,
        })
    }

    /// Gives back the memory in which calls have been that have returned. The kernel makes
    /// new when it is needed.
    #[inline(never)]
    pub(crate) fn trim(&self) {
        /// For the frames of this call and of the system call that it makes.
        const IN_USE: usize = 512;

        let frame = 0_u8;
        let here = black_box(&raw const frame).addr();
        // On another stack it is, say, a coroutine that calls.
        if !self.addresses.contains(&here) {
            return;
        }
        let used = here.saturating_sub(IN_USE) / self.page * self.page;
        let Some(length) = used.checked_sub(self.addresses.start) else {
            return;
        };
        let end = std::ptr::with_exposed_provenance_mut::<c_void>(self.addresses.start);
        // SAFETY: pages of this thread's own stack, beyond any frame that is in use. What a
        // signal handler has there is gone when it returns to this frame.
        unsafe { libc::madvise(end, length, libc::MADV_DONTNEED) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    /// As in a coroutine, which has a stack that no thread has been made with.
    #[test]
    fn nothing_is_given_back_from_another_stack() {
        let kept = vec![7_u8; 256 * 1024];
        let start = kept.as_ptr().addr();
        let trimmed = thread::spawn(move || {
            let mut stack = Stack::of_this_thread().expect("a thread has one");
            let start = start.next_multiple_of(stack.page);
            stack.addresses = start..start + 128 * 1024;
            stack.trim();
        });
        trimmed.join().expect("no panic");
        assert!(kept.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn callers_frames_are_kept() {
        let sums = thread::spawn(|| {
            let stack = Stack::of_this_thread().expect("a thread has one");
            let kept = black_box([7_u8; 64 * 1024]);
            let before: u64 = kept.iter().map(|&byte| u64::from(byte)).sum();
            stack.trim();
            (
                before,
                black_box(&kept).iter().map(|&byte| u64::from(byte)).sum(),
            )
        });
        let (before, after): (u64, u64) = sums.join().expect("no panic");
        assert_eq!(before, after);
    }
}
