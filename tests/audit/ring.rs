//! A ring (io_uring) with a request that waits, so that the kernel has a thread for it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;

/// The size of `struct io_uring_params`, and where in it the ring's offsets are.
const PARAMS: usize = 120;
const OFFSET_OF_TAIL: usize = 44;
const OFFSET_OF_ARRAY: usize = 64;
const SQES: libc::off_t = 0x1000_0000;
const PAGE: usize = 4096;

pub(crate) struct Ring {
    fd: OwnedFd,
    queue: *mut u8,
    entries: *mut u8,
    tail: usize,
    /// Nothing is ever written: what reads from it waits until it is closed.
    pipe: (OwnedFd, OwnedFd),
    buffer: Box<[u8; 8]>,
}

// SAFETY: the pointers are to mappings of the ring's own, which any thread may use.
unsafe impl Send for Ring {}

impl Ring {
    pub(crate) fn new() -> Ring {
        let mut params = [0_u32; PARAMS / 4];
        // SAFETY: there is room for the parameters.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
        let fd = Errno::result(fd).expect("the tests need a kernel with io_uring");
        // SAFETY: the kernel just made this descriptor, so this is its only owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let map = |offset| {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let (null, raw) = (ptr::null_mut(), fd.as_raw_fd());
            // SAFETY: a new mapping, at a place that the kernel chooses.
            let at = unsafe { libc::mmap(null, PAGE, access, libc::MAP_SHARED, raw, offset) };
            assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            at.cast::<u8>()
        };
        let (queue, entries) = (map(0), map(SQES));
        let first = queue.wrapping_add(params[OFFSET_OF_ARRAY / 4] as usize);
        // SAFETY: the kernel says where the array is; the entry that it names is 0.
        unsafe { first.cast::<u32>().write(0) };
        Ring {
            fd,
            queue,
            entries,
            tail: params[OFFSET_OF_TAIL / 4] as usize,
            pipe: nix::unistd::pipe().expect("two descriptors are free"),
            buffer: Box::new([0; 8]),
        }
    }

    /// Has the kernel read from a pipe with nothing in it, on a thread that it makes for
    /// the calling one.
    pub(crate) fn wait_in_the_kernel(&mut self) {
        const READ: u8 = 22;
        const ASYNC: u8 = 1 << 4;
        let mut entry = [0_u8; 64];
        (entry[0], entry[1]) = (READ, ASYNC);
        entry[4..8].copy_from_slice(&self.pipe.0.as_raw_fd().to_ne_bytes());
        entry[16..24].copy_from_slice(&(self.buffer.as_mut_ptr() as u64).to_ne_bytes());
        entry[24..28].copy_from_slice(&8_u32.to_ne_bytes());
        // SAFETY: the mapping holds four entries; the kernel reads none before the tail
        // says so.
        unsafe { self.entries.cast::<[u8; 64]>().write(entry) };
        let tail = self.queue.wrapping_add(self.tail).cast::<AtomicU32>();
        // SAFETY: the kernel says where the tail is, and that it is such a number.
        let tail = unsafe { &*tail };
        tail.store(1, Ordering::Release);
        // SAFETY: numbers only; the buffer that the entry names lives as long as the ring.
        let submitted = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1,
                0,
                0,
                0_usize,
                0,
            )
        };
        assert_eq!(Errno::result(submitted), Ok(1));
    }
}
