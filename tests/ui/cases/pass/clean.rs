//! Shapes that the tests at run time cannot have: their crate denies them.
#![deny(warnings)]

use netns_exec::{Netns, in_netns};

pub struct Pointer(*const u8);

// SAFETY: the tests share no memory through it.
unsafe impl Send for Pointer {}

/// Dereferences its argument.
///
/// # Safety
///
/// `pointer` must be valid for reads.
#[in_netns(fresh)]
pub unsafe fn read(pointer: Pointer) -> u8 {
    // SAFETY: the caller promises that the pointer can be read.
    unsafe { *pointer.0 }
}

#[in_netns(fresh)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exported(number: u32) -> u32 {
    number + 1
}

/// Never true, but it has to compile.
#[in_netns(ns = ns)]
pub fn forever(ns: &Netns) -> ! {
    loop {
        std::thread::park();
    }
}

fn main() {
    let byte = 7;
    // SAFETY: the pointer comes from a reference.
    assert_eq!(unsafe { read(Pointer(&byte)) }, 7);
    // SAFETY: the function asks for nothing.
    assert_eq!(unsafe { exported(1) }, 2);
}
