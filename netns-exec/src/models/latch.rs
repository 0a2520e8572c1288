//! Setting a latch against waiting for it, and against its death.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use super::check;
use crate::handoff::latch::{FIRST_FLAG, Latch, WakerLatch};
use crate::sync::{AtomicU32, Ordering, UnsafeCell, futex_wait, futex_wake, thread};

/// What a future's runtime does: sleeps until its waker is called.
pub(super) struct Task(AtomicU32);

impl Task {
    pub(super) fn new() -> Arc<Task> {
        Arc::new(Task(AtomicU32::new(0)))
    }

    pub(super) fn sleep(&self) {
        while self.0.swap(0, Ordering::Acquire) == 0 {
            futex_wait(&self.0, 0, None);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        // Not a store: loom may put one before the swap of `sleep` and after it.
        self.0.swap(1, Ordering::Release);
        futex_wake(&self.0);
    }
}

struct Frame {
    latch: Latch,
    outcome: UnsafeCell<u32>,
}

struct Pointer(*const Frame);

// SAFETY: the frame outlives the latch's being set, which is what is tested.
unsafe impl Send for Pointer {}

#[test]
fn waiter_may_free_the_latch_once_it_is_set() {
    check(3, || {
        let mut frame = Box::new(Frame {
            latch: Latch::new(),
            outcome: UnsafeCell::new(0),
        });
        let pointer = Pointer(&raw const *frame);
        let setter = thread::spawn(move || {
            let Pointer(frame) = { pointer };
            // SAFETY: the latch is not set.
            let outcome = unsafe { &(*frame).outcome };
            // SAFETY: as above.
            outcome.with_mut(|outcome| unsafe { *outcome = 7 });
            // SAFETY: live until it is set.
            unsafe { Latch::set(&raw const (*frame).latch) };
        });
        frame.latch.wait();
        // SAFETY: set, so the cell is ours.
        frame
            .outcome
            .with_mut(|outcome| assert_eq!(unsafe { *outcome }, 7));
        frame.latch.check_unused();
        // The memory itself stays: what loom checks is on the line above.
        setter.join().unwrap();
    });
}

#[test]
fn flag_set_meanwhile_costs_no_wake_up() {
    check(3, || {
        let latch = Arc::new(Latch::new());
        let setter = thread::spawn({
            let latch = Arc::clone(&latch);
            move || {
                assert!(latch.try_flag(FIRST_FLAG, 0));
                latch.set_shared();
            }
        });
        latch.wait();
        assert_eq!(latch.flags(), FIRST_FLAG);
        setter.join().unwrap();
    });
}

#[test]
fn completion_wakes_the_last_waker() {
    check(3, || {
        let latch = Arc::new(WakerLatch::new(1));
        let setter = thread::spawn({
            let latch = Arc::clone(&latch);
            move || {
                let (_, waker) = latch.complete();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        });
        let (first, last) = (Task::new(), Task::new());
        // Polled by one task, then handed to another: the first may be woken,
        // the last must be.
        let waker = Waker::from(first);
        if latch.poll(0, &mut Context::from_waker(&waker)).is_pending() {
            let waker = Waker::from(Arc::clone(&last));
            while latch.poll(0, &mut Context::from_waker(&waker)).is_pending() {
                last.sleep();
            }
        }
        assert!(latch.is_set());
        setter.join().unwrap();
        assert_eq!(Arc::strong_count(&last), 1, "the latch keeps no waker");
    });
}

fn flag_and_wake(latch: &Arc<WakerLatch>) -> thread::JoinHandle<()> {
    let latch = Arc::clone(latch);
    thread::spawn(move || {
        assert!(latch.try_flag(FIRST_FLAG, FIRST_FLAG));
        latch.wake_for_flag();
    })
}

#[test]
fn flag_set_from_elsewhere_wakes_the_task_that_polls_meanwhile() {
    check(3, || {
        let latch = Arc::new(WakerLatch::new(1));
        let aborter = flag_and_wake(&latch);
        let (first, last) = (Task::new(), Task::new());
        let waker = Waker::from(first);
        let mut cx = Context::from_waker(&waker);
        if latch.poll(FIRST_FLAG, &mut cx).is_pending() {
            let waker = Waker::from(Arc::clone(&last));
            let mut cx = Context::from_waker(&waker);
            while latch.poll(FIRST_FLAG, &mut cx).is_pending() {
                last.sleep();
            }
        }
        aborter.join().unwrap();
        assert_eq!(Arc::strong_count(&last), 1, "the latch keeps no waker");
    });
}

#[test]
fn flag_set_from_elsewhere_wakes_the_thread_that_waits() {
    check(3, || {
        let latch = Arc::new(WakerLatch::new(1));
        let aborter = flag_and_wake(&latch);
        assert!(latch.wait_until(FIRST_FLAG, None));
        aborter.join().unwrap();
    });
}
