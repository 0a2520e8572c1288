//! What the calls allocate, by a counting allocator: nothing else may run in
//! this process, so there is one test.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use netns_exec::{Executor, Netns};
use netns_exec_tests::{Alone, alone, fresh, settle};

netns_exec::rootless::test_harness!(own_net);

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    f();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn run_allocates_nothing_and_spawn_allocates_once() {
    // Where no other process mounts anything: the deletion watch looks after each mount.
    alone!(Alone::FreshRun);
    const CALLS: usize = 100_000;
    /// For what need not be shown so often.
    const FEWER: usize = 10_000;
    let executor = Executor::builder().idle_timeout(None).build().unwrap();
    let spaces = [fresh(), fresh()];
    let pinned = spaces.each_ref().map(|netns| executor.pin(netns).unwrap());
    let warm_up = |netns: &Netns| executor.run(netns, || ()).unwrap();
    spaces.iter().for_each(warm_up);
    settle();

    let mut sum = 0;
    let run = allocations_of(|| {
        for number in 0..CALLS {
            sum += executor.run(&spaces[0], || number).unwrap();
        }
    });
    assert_eq!(run, 0, "run");
    assert_eq!(sum, CALLS * (CALLS - 1) / 2);

    let large = [1_u8; 1000];
    let run = allocations_of(|| {
        for number in 0..FEWER {
            let back = executor.run(&spaces[number % 2], || large).unwrap();
            assert_eq!(back, large);
        }
    });
    assert_eq!(run, 0, "run with large values in turns");

    let run = allocations_of(|| {
        for number in 0..CALLS {
            sum += pinned[number % 2].run(|| number).unwrap();
        }
    });
    assert_eq!(run, 0, "Pinned::run");

    let nested = allocations_of(|| {
        for _ in 0..FEWER {
            let inner = || executor.run(&spaces[1], || 1).unwrap();
            sum += executor.run(&spaces[0], inner).unwrap();
        }
    });
    assert!(
        nested <= 10,
        "nested run: {nested} (thread-locals of the workers)"
    );

    // Contended: some calls go through the queue.
    let sum = AtomicUsize::new(0);
    let (start, end) = (Barrier::new(5), Barrier::new(5));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let call = || sum.fetch_add(1, Ordering::Relaxed);
                executor.run(&spaces[0], call).unwrap();
                start.wait();
                for _ in 0..FEWER / 4 {
                    executor.run(&spaces[0], call).unwrap();
                }
                end.wait();
            });
        }
        let contended = allocations_of(|| {
            start.wait();
            end.wait();
        });
        // Starting and parking for the first time is not what is measured.
        assert!(contended <= 40, "contended run: {contended}");
    });

    settle();
    let spawn = allocations_of(|| {
        for number in 0..FEWER {
            let handle = executor.spawn(&spaces[0], move || number).unwrap();
            assert_eq!(handle.join().unwrap(), number);
        }
    });
    assert!(spawn <= FEWER, "spawn: {spawn} for {FEWER} calls");
    let spawn = allocations_of(|| {
        for number in 0..FEWER {
            let handle = pinned[0].spawn(move || number).unwrap();
            assert_eq!(handle.join().unwrap(), number);
        }
    });
    assert!(spawn <= FEWER, "Pinned::spawn: {spawn} for {FEWER} calls");
    let batch = allocations_of(|| {
        let jobs = (0..FEWER).map(|number| move || number);
        for (number, handle) in pinned[0].spawn_batch(jobs).unwrap().into_iter().enumerate() {
            assert_eq!(handle.join().unwrap(), number);
        }
    });
    assert!(
        batch <= FEWER + 1,
        "Pinned::spawn_batch: {batch} for {FEWER} jobs and their handles"
    );
}
