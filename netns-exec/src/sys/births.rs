//! `pthread_create`, in the place of libc's: a thread that has said so has those that it
//! asks for created by another.
//!
//! A definition in an executable comes before that of any library, for the executable's own
//! code, the standard library in it, and all shared libraries. It calls libc's, which
//! it finds as the next one of that name. In a static executable there is no next one,
//! so that there is no definition here either, and [`is_in_place`] says so.
//!
//! What a thread gets from the one that creates it comes from the other one, but for
//! its signal mask and its name, which are set as the thread begins: see [`Birth`].
#![allow(unsafe_code)]
// What is left out is the one use of the rest.
#![cfg_attr(target_feature = "crt-static", allow(dead_code))]

use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{pthread_attr_t, pthread_t, sigset_t};
use nix::sys::signal::SigSet;

use super::{inherit, thread};

/// What a thread begins with. It may end by pthread_exit(3), which unwinds.
type Start = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// pthread_create(3).
type Create =
    unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Start, *mut c_void) -> c_int;

/// Has a birth done by another thread, waits for that, and returns what it returned. Does
/// it itself where there is no other one: in a copy of the process.
pub(crate) type Forward = fn(Birth) -> c_int;

thread_local! {
    /// Of the calling thread. Needs no destructor, so it is there to the very end.
    static FORWARD: Cell<Option<Forward>> = const { Cell::new(None) };
}

/// From now on the threads that the calling thread asks for are created by way of
/// `forward`.
pub(crate) fn forward_to(forward: Forward) {
    FORWARD.set(Some(forward));
}

/// A thread that is asked for: what libc's `pthread_create` was called with.
///
/// The thread will have the signal mask that its asker has set itself. An asker that
/// still has a worker's, which blocks all but faults, has set none: then it is that of
/// the process's main thread, as if it were a thread of the process like any other.
/// So it is with the name, until the thread has another.
pub(crate) struct Birth {
    create: Create,
    thread: *mut pthread_t,
    attr: *const pthread_attr_t,
    /// A `Beginning`, which is the thread's as soon as there is one.
    beginning: *mut c_void,
}

// SAFETY: what the pointers lead to is left alone by the asker, which waits until the birth
// is done: `Forward` says so.
unsafe impl Send for Birth {}

impl Birth {
    /// Creates the thread, as a child of the calling one.
    pub(crate) fn create(self) -> c_int {
        // SAFETY: the asker's own arguments, whose validity is its duty, and which are
        // still there, for it waits. `begin` is given the `Beginning` that it takes.
        unsafe { (self.create)(self.thread, self.attr, begin, self.beginning) }
    }
}

/// What a forwarded thread does first.
struct Beginning {
    start: Start,
    arg: *mut c_void,
    /// Unless its attributes have one, which is set by then.
    mask: Option<SigSet>,
    name: Option<CString>,
}

unsafe extern "C-unwind" fn begin(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: `born_elsewhere` made it for this thread alone, and takes it back only when
    // there is no such thread.
    let beginning = unsafe { Box::from_raw(beginning.cast::<Beginning>()) };
    let Beginning {
        start,
        arg,
        mask,
        name,
    } = *beginning;
    if let Some(name) = name {
        thread::set_name(&name);
    }
    if let Some(mask) = mask {
        // A valid set, which is all that it takes.
        let _ = thread::restore_signals(&mask);
    }
    // Nothing is left here that has a destructor: pthread_exit(3) unwinds this frame.
    // SAFETY: the asker's own function and argument, to be called once, on this thread.
    unsafe { start(arg) }
}

/// Whether the thread that calls libc's `pthread_create`, from wherever in this process,
/// calls the one that is defined here.
pub(crate) fn is_in_place() -> bool {
    ours().is_some_and(|ours| next().is_some() && find(libc::RTLD_DEFAULT) == ours)
}

#[cfg(not(target_feature = "crt-static"))]
fn ours() -> Option<*mut c_void> {
    Some(pthread_create as Create as *mut c_void)
}

#[cfg(target_feature = "crt-static")]
fn ours() -> Option<*mut c_void> {
    None
}

/// libc's, or that of a library that stands before it.
fn next() -> Option<Create> {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

    let mut next = NEXT.load(Ordering::Relaxed);
    if next.is_null() {
        next = find(libc::RTLD_NEXT);
        NEXT.store(next, Ordering::Relaxed);
    }
    // SAFETY: null, or a function of this name, which has this type in every libc: all
    // of its arguments are pointers.
    unsafe { mem::transmute::<*mut c_void, Option<Create>>(next) }
}

fn find(from: *mut c_void) -> *mut c_void {
    // SAFETY: the name ends with a nul, and looking it up runs no code but libc's.
    unsafe { libc::dlsym(from, c"pthread_create".as_ptr()) }
}

/// Stands in for libc's in the whole executable.
///
/// # Safety
///
/// As pthread_create(3).
#[cfg(not(target_feature = "crt-static"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attr: *const pthread_attr_t,
    start: Start,
    arg: *mut c_void,
) -> c_int {
    let Some(create) = next() else {
        return libc::ENOSYS;
    };
    match FORWARD.get() {
        Some(forward) => {
            let asked = (thread, attr, start, arg);
            born_elsewhere(create, asked, forward).unwrap_or(libc::EAGAIN)
        }
        // SAFETY: the caller's own arguments, passed on.
        _ => unsafe { create(thread, attr, start, arg) },
    }
}

type Asked = (*mut pthread_t, *const pthread_attr_t, Start, *mut c_void);

fn born_elsewhere(create: Create, asked: Asked, forward: Forward) -> io::Result<c_int> {
    let (thread, attr, start, arg) = asked;
    let mine = thread::signals()?;
    let mask = match has_mask(attr) {
        true => None,
        false if thread::blocks_as_workers_do(&mine) => Some(inherit::mask_of_main()?),
        false => Some(mine),
    };
    let beginning = Box::new(Beginning {
        start,
        arg,
        mask,
        name: inherit::name_of_main(),
    });
    let beginning = Box::into_raw(beginning).cast();
    let errno = forward(Birth {
        create,
        thread,
        attr,
        beginning,
    });
    if errno != 0 {
        // SAFETY: made above, and no thread was given it, for there is none.
        drop(unsafe { Box::from_raw(beginning.cast::<Beginning>()) });
    }
    Ok(errno)
}

/// Whether the attributes say which signals the thread blocks: with glibc 2.32 they can.
fn has_mask(attr: *const pthread_attr_t) -> bool {
    type Get = unsafe extern "C" fn(*const pthread_attr_t, *mut sigset_t) -> c_int;

    if attr.is_null() {
        return false;
    }
    let name = c"pthread_attr_getsigmask_np";
    // SAFETY: the name ends with a nul, and looking it up runs no code but libc's.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: null, or the function of this name, which has this type.
    let get = unsafe { mem::transmute::<*mut c_void, Option<Get>>(found) };
    let mut mask = *SigSet::empty().as_ref();
    // SAFETY: the caller of `pthread_create` has initialized its attributes, and `mask` is
    // a set. There are none in them when the answer is PTHREAD_ATTR_NO_SIGMASK_NP.
    get.is_some_and(|get| unsafe { get(attr, &raw mut mask) } == 0)
}
