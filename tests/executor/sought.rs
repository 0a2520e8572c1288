//! Futures that rely on a worker that is being sought.

use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Guard};
use netns_exec_tests::{fresh, here, within};

/// The search for the first future's worker is over a moment after that worker has come, and
/// by then it may have left: for being idle, or for another namespace, whose turn it is.
#[test]
fn future_that_comes_while_a_worker_is_sought_which_has_left_again_is_served() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 1_000;
    within("all futures are over", || {
        let executor = Executor::builder()
            .guard(Guard::Off)
            .max_workers(1)
            .idle_timeout(Some(Duration::from_millis(1)))
            .build()
            .unwrap();
        let spaces = [fresh(), fresh(), fresh()];
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (executor, spaces) = (&executor, &spaces);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let netns = &spaces[(number + round) % spaces.len()];
                        let future = executor.spawn_future(netns, async { here() });
                        assert_eq!(future.join().unwrap(), netns.id());
                    }
                });
            }
        });
        executor.shutdown(None).unwrap();
    });
}
