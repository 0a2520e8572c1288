//! Where the code of this process lies: dl_iterate_phdr(3).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::slice;

/// One loaded object: the executable, or a shared library.
#[derive(Debug)]
pub(crate) struct Object {
    /// Linked at one address for all time (an executable that is not PIE), so
    /// that other programs have their code there too.
    pub(crate) fixed: bool,
    /// Its executable segments.
    pub(crate) text: Vec<Range<u64>>,
}

/// Lists what is loaded now, the executable first; the vdso is left out.
pub(crate) fn objects() -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    // SAFETY: the callback takes its last argument for a `Vec<Object>`, which
    // is what it is, and the only reference to it.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut objects).cast()) };
    // SAFETY: getauxval(3) reads a table that the kernel filled before main.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    objects.retain(|object| !object.text.iter().any(|text| text.contains(&vdso)));
    objects
}

/// The addresses of the functions of libc that clone from their own code (what
/// threads are made with, and what raw system calls go through), and of those
/// that give a thread files or namespaces of its own.
#[expect(
    clippy::disallowed_methods,
    reason = "asks where the functions lie, and calls none"
)]
pub(crate) fn libc_entries() -> Vec<u64> {
    let mut entries = vec![
        libc::clone as *const () as u64,
        libc::syscall as *const () as u64,
        libc::unshare as *const () as u64,
        libc::setns as *const () as u64,
    ];
    // Not in every libc: one that lacks it is called through `syscall`.
    // SAFETY: the name ends with a nul, and looking it up runs no code but libc's.
    let close_range = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"close_range".as_ptr()) };
    if !close_range.is_null() {
        entries.push(close_range as u64);
    }
    entries
}

/// A number that changes when objects are loaded or unloaded.
pub(crate) fn generation() -> u64 {
    let mut generation = 0;
    // SAFETY: the callback takes its last argument for a `u64`, which is what it
    // is, and the only reference to it.
    unsafe { libc::dl_iterate_phdr(Some(count), (&raw mut generation).cast()) };
    generation
}

unsafe extern "C" fn count(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    generation: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr passes a description that is valid for this call.
    let info = unsafe { &*info };
    // SAFETY: `generation` passes its exclusive `u64` through, as said there.
    let generation = unsafe { &mut *generation.cast::<u64>() };
    *generation = info.dlpi_adds + info.dlpi_subs;
    // The first object tells as much as the others.
    1
}

unsafe extern "C" fn collect(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    objects: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr passes a description that is valid for this call.
    let info = unsafe { &*info };
    // SAFETY: `objects` passes its exclusive `Vec` through, as said there.
    let objects = unsafe { &mut *objects.cast::<Vec<Object>>() };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader keeps `dlpi_phnum` program headers at `dlpi_phdr` for
    // as long as the object is loaded, which it is during this call.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let text = (headers.iter())
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
        .map(|header| {
            let start = info.dlpi_addr + header.p_vaddr;
            start..start + header.p_memsz
        })
        .collect();
    objects.push(Object {
        fixed: info.dlpi_addr == 0,
        text,
    });
    0
}
