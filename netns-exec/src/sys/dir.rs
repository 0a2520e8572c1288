//! The entries of a folder that are numbers: processes, threads, descriptors of /proc.
//!
//! By getdents64(2) itself: where fdopendir(3) finds no memory, nix's `Dir` forgets the
//! descriptor that it was given.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Offsets in `struct linux_dirent64`: the length of the entry, and its name.
const LENGTH: usize = 16;
const NAME: usize = 19;

/// Reads the folder from its beginning; the position is shared by all copies of `dir`.
pub(crate) fn numbers(dir: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const ROOM: usize = 32 * 1024;
    lseek(dir, 0, Whence::SeekSet)?;
    let mut buffer = vec![0_u8; ROOM];
    let mut numbers = Vec::new();
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to it.
        let len = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        match Errno::result(len)?.unsigned_abs() as usize {
            0 => return Ok(numbers),
            len => parse(&buffer[..len], &mut numbers),
        }
    }
}

/// Adds the names in `entries` that are numbers.
fn parse(mut entries: &[u8], numbers: &mut Vec<u32>) {
    while let Some(length) = entries.get(LENGTH..LENGTH + 2) {
        let length = u16::from_ne_bytes([length[0], length[1]]).into();
        let Some((entry, rest)) = entries.split_at_checked(length) else {
            return;
        };
        let Some(name) = entry.get(NAME..) else {
            return;
        };
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let number = std::str::from_utf8(name).ok();
        numbers.extend(number.and_then(|name| name.parse::<u32>().ok()));
        entries = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn numbers_are_those_that_the_standard_library_finds() {
        let folder = File::open("/proc/self/task").unwrap();
        let listed = numbers(folder.as_fd()).unwrap();
        assert!(listed.contains(&crate::sys::thread::tid()), "{listed:?}");
        // From the beginning again.
        assert!(numbers(folder.as_fd()).unwrap().contains(&listed[0]));
        let folder = File::open("/sys").unwrap();
        assert_eq!(numbers(folder.as_fd()).unwrap(), []);
        let file = File::open("/proc/self/status").unwrap();
        let error = numbers(file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
        assert!(fs::read_dir("/proc").unwrap().count() > 0);
    }

    #[test]
    fn entries_that_are_cut_or_empty_end_the_list() {
        let entry = |name: &[u8]| {
            let mut entry = vec![0; NAME];
            entry.extend(name);
            entry.push(0);
            entry.resize(entry.len().next_multiple_of(8), 0);
            let length = (entry.len() as u16).to_ne_bytes();
            entry[LENGTH..LENGTH + 2].copy_from_slice(&length);
            entry
        };
        let of = |bytes: &[u8]| {
            let mut numbers = Vec::new();
            parse(bytes, &mut numbers);
            numbers
        };
        let all = [entry(b"."), entry(b"17"), entry(b"self"), entry(b"4711")].concat();
        assert_eq!(of(&all), [17, 4711]);
        assert_eq!(of(&all[..all.len() - 1]), [17]);
        for end in 0..all.len() {
            assert!(of(&all[..end]).len() < 2);
        }
        // No length: a loop without an end, if it were believed.
        assert_eq!(of(&[0; 64]), []);
        assert_eq!(of(&[0xff; 64]), []);
    }
}
