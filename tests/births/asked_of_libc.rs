//! Threads that are asked for as C code does it, with arguments of its own.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::mpsc::{Sender, channel};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use netns_exec::NetnsId;
use netns_exec_tests::{blocked_signals, fresh, here};
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::executor;

/// What a thread has to say.
struct Found {
    place: NetnsId,
    detached: bool,
    stack: usize,
    blocked: u64,
}

extern "C" fn look(sender: *mut c_void) -> *mut c_void {
    // SAFETY: `ask` gives it a sender for this thread alone.
    let sender = unsafe { Box::from_raw(sender.cast::<Sender<Found>>()) };
    let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: a number.
    let me = unsafe { libc::pthread_self() };
    // SAFETY: the calling thread, and room for its attributes.
    let rc = unsafe { libc::pthread_getattr_np(me, attr.as_mut_ptr()) };
    assert_eq!(rc, 0);
    let (mut state, mut stack) = (0, 0);
    // SAFETY: initialized by the call above.
    unsafe { pthread_attr_getdetachstate(attr.as_ptr(), &raw mut state) };
    // SAFETY: as above.
    unsafe { libc::pthread_attr_getstacksize(attr.as_ptr(), &raw mut stack) };
    // SAFETY: as above, and not used after.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    sender
        .send(Found {
            place: here(),
            detached: state == libc::PTHREAD_CREATE_DETACHED,
            stack,
            blocked: blocked_signals(),
        })
        .expect("awaited");
    7 as *mut c_void
}

unsafe extern "C" {
    fn pthread_attr_getdetachstate(attr: *const libc::pthread_attr_t, state: *mut c_int) -> c_int;
    fn pthread_attr_setaffinity_np(
        attr: *mut libc::pthread_attr_t,
        len: usize,
        cpus: *const c_void,
    ) -> c_int;
    fn pthread_attr_setsigmask_np(
        attr: *mut libc::pthread_attr_t,
        mask: *const libc::sigset_t,
    ) -> c_int;
}

/// Asks for a thread whose attributes are set by `set`.
fn ask(set: impl FnOnce(*mut libc::pthread_attr_t)) -> (libc::pthread_t, Found) {
    let (sender, receiver) = channel();
    let sender = Box::into_raw(Box::new(sender)).cast();
    let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: room for attributes.
    assert_eq!(unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) }, 0);
    set(attr.as_mut_ptr());
    let mut thread = MaybeUninit::uninit();
    // SAFETY: initialized attributes, a function that takes this argument, and room.
    let rc = unsafe { libc::pthread_create(thread.as_mut_ptr(), attr.as_ptr(), look, sender) };
    assert_eq!(rc, 0);
    // SAFETY: initialized above, and not used after.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    // SAFETY: the call has succeeded.
    (
        unsafe { thread.assume_init() },
        receiver.recv().expect("it looks"),
    )
}

/// What the thread has returned.
fn join(thread: libc::pthread_t) -> *mut c_void {
    let mut value = ptr::null_mut();
    // SAFETY: a joinable thread, which nothing else joins.
    assert_eq!(unsafe { libc::pthread_join(thread, &raw mut value) }, 0);
    value
}

#[test]
fn attributes_are_the_threads() {
    // More than glibc has in store from threads that have ended.
    const STACK: usize = 32 << 20;
    let (executor, netns) = (executor(), fresh());
    let found = executor.run(&netns, || {
        let (thread, joined) = ask(|attr| {
            // SAFETY: initialized attributes.
            unsafe { libc::pthread_attr_setstacksize(attr, STACK) };
        });
        assert_eq!(join(thread), 7 as *mut c_void);
        let (_, detached) = ask(|attr| {
            // SAFETY: initialized attributes.
            unsafe { libc::pthread_attr_setdetachstate(attr, libc::PTHREAD_CREATE_DETACHED) };
        });
        [joined, detached]
    });
    let [joined, detached] = found.unwrap();
    assert_eq!(
        (joined.place, joined.detached, joined.stack >= STACK),
        (here(), false, true)
    );
    assert_eq!((detached.place, detached.detached), (here(), true));
    assert_eq!(executor.audit().unwrap().strays().count(), 0);
}

#[test]
fn signal_mask_among_the_attributes_is_the_threads() {
    let (executor, netns) = (executor(), fresh());
    let found = executor.run(&netns, || {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR2);
        let (thread, found) = ask(|attr| {
            // SAFETY: initialized attributes and a signal set.
            let rc = unsafe { pthread_attr_setsigmask_np(attr, mask.as_ref()) };
            assert_eq!(rc, 0);
        });
        join(thread);
        found.blocked
    });
    assert_eq!(found.unwrap(), 1 << (Signal::SIGUSR2 as i32 - 1));
}

#[test]
fn bad_attribute_is_refused_as_at_home() {
    extern "C" fn nothing(_: *mut c_void) -> *mut c_void {
        ptr::null_mut()
    }
    let ask = || {
        let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: room for attributes.
        unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) };
        // A CPU set without a CPU of this machine.
        // SAFETY: initialized attributes, and a set of the given size.
        let rc =
            unsafe { pthread_attr_setaffinity_np(attr.as_mut_ptr(), 8, [0_u64].as_ptr().cast()) };
        assert_eq!(rc, 0);
        let mut thread = MaybeUninit::uninit();
        // SAFETY: initialized attributes, a function that takes nothing, and room.
        unsafe {
            libc::pthread_create(thread.as_mut_ptr(), attr.as_ptr(), nothing, ptr::null_mut())
        }
    };
    let (executor, netns) = (executor(), fresh());
    let at_home = ask();
    assert_eq!(at_home, libc::EINVAL);
    assert_eq!(executor.run(&netns, ask).unwrap(), at_home);
}

#[test]
fn thread_may_end_by_pthread_exit() {
    extern "C-unwind" fn exits(_: *mut c_void) -> *mut c_void {
        // SAFETY: no frame of this thread has a destructor to run.
        unsafe { pthread_exit(9 as *mut c_void) }
    }
    unsafe extern "C-unwind" {
        fn pthread_exit(value: *mut c_void) -> !;
    }
    let (executor, netns) = (executor(), fresh());
    let value = executor.run(&netns, || {
        let mut thread = MaybeUninit::uninit();
        // SAFETY: the two types differ in that one may unwind, which is what it is for.
        let start = unsafe {
            std::mem::transmute::<
                extern "C-unwind" fn(*mut c_void) -> *mut c_void,
                extern "C" fn(*mut c_void) -> *mut c_void,
            >(exits)
        };
        // SAFETY: a function that takes nothing, and room.
        let rc = unsafe {
            libc::pthread_create(thread.as_mut_ptr(), ptr::null(), start, ptr::null_mut())
        };
        assert_eq!(rc, 0);
        // SAFETY: the call has succeeded.
        join(unsafe { thread.assume_init() }) as usize
    });
    assert_eq!(value.unwrap(), 9);
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn child_that_a_job_forks_makes_its_threads_itself() {
    let (executor, netns) = (executor(), fresh());
    let status = executor.run(&netns, || {
        // SAFETY: the child starts one thread, waits for it, and exits. The threads
        // that it is without hold no lock of libc's that this takes for long: glibc takes
        // its own over.
        match unsafe { fork() }.expect("a child can be had") {
            ForkResult::Child => {
                let started = std::thread::Builder::new().spawn(|| 5);
                let code = started.map_or(1, |thread| thread.join().unwrap_or(2));
                // SAFETY: ends the child without what the parent registered.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                let deadline = Instant::now() + Duration::from_secs(30);
                loop {
                    match waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("our child") {
                        WaitStatus::StillAlive if Instant::now() < deadline => yield_now(),
                        WaitStatus::StillAlive => {
                            kill(child, Signal::SIGKILL).expect("it is there")
                        }
                        status => return status,
                    }
                }
            }
        }
    });
    let status = status.unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 5)), "{status:?}");
}
