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

/// The addresses of the two functions of libc that clone from their own code:
/// what threads are made with, and what raw system calls go through.
pub(crate) fn libc_entries() -> [u64; 2] {
    [
        libc::clone as *const () as u64,
        libc::syscall as *const () as u64,
    ]
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
