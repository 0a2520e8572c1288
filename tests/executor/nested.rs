//! Calls inside jobs: inline, to other namespaces, to any depth.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Netns, NetnsId};
use netns_exec_tests::{Gate, eventually, fresh, here, within};

use super::{with_idle, with_queue, with_workers};

#[test]
fn run_on_ones_own_namespace_is_inline() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (outer, inner) = executor
        .run(&netns, || {
            let inner = executor.run(&netns, || {
                executor.run(&netns, || thread::current().id()).unwrap()
            });
            (thread::current().id(), inner.unwrap())
        })
        .unwrap();
    assert_eq!(outer, inner);
    assert_eq!(
        executor.stats().done,
        1,
        "an inline call is part of its job"
    );
    // Another handle to the same namespace is the same namespace.
    let same = executor
        .run(&netns, || {
            let again = Netns::current().unwrap();
            executor.run(&again, || thread::current().id()).unwrap()
        })
        .unwrap();
    assert_eq!(same, outer);
}

#[test]
fn inline_call_borrows_what_its_job_does() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let mut log = Vec::new();
    executor
        .run(&netns, || {
            log.push(1);
            executor.run(&netns, || log.push(2)).unwrap();
            log.push(3);
        })
        .unwrap();
    assert_eq!(log, [1, 2, 3]);
}

fn back_and_forth(executor: &Executor, a: &Netns, b: &Netns, depth: u32) -> Vec<NetnsId> {
    let run = executor.run(a, || {
        let mut seen = match depth {
            1 => Vec::new(),
            _ => back_and_forth(executor, b, a, depth - 1),
        };
        seen.push(here());
        seen
    });
    run.unwrap()
}

#[test]
fn sixty_four_deep_from_both_ends_at_once_with_one_worker_each() {
    within("64 deep from both ends", || {
        let executor = Executor::new().unwrap();
        let (a, b) = (fresh(), fresh());
        let start = Barrier::new(2);
        for _ in 0..5 {
            thread::scope(|scope| {
                for (a, b) in [(&a, &b), (&b, &a)] {
                    let (executor, start) = (&executor, &start);
                    scope.spawn(move || {
                        start.wait();
                        let seen = back_and_forth(executor, a, b, 64);
                        let expected = [b.id(), a.id()].into_iter().cycle().take(64);
                        assert!(seen.into_iter().eq(expected));
                    });
                }
            });
        }
        let stats = executor.stats();
        assert_eq!(stats.done, 5 * 2 * 64);
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn nesting_by_many_threads_through_many_namespaces_ends() {
    within("nesting by many threads", || {
        let executor = with_queue(2);
        let spaces: Vec<_> = (0..5).map(|_| fresh()).collect();
        fn descend(executor: &Executor, spaces: &[Netns], at: usize, step: usize, depth: u32) {
            let netns = &spaces[at % spaces.len()];
            let id = executor.run(netns, || {
                if depth > 0 {
                    descend(executor, spaces, at + step, step, depth - 1);
                }
                here()
            });
            assert_eq!(id.unwrap(), netns.id());
        }
        thread::scope(|scope| {
            for thread in 0..16 {
                let (executor, spaces) = (&executor, &spaces);
                scope.spawn(move || descend(executor, spaces, thread, 1 + thread % 4, 12));
            }
        });
        assert_eq!(executor.stats().done, 16 * 13);
    });
}

#[test]
fn one_worker_in_all_is_enough_to_nest() {
    within("nesting with max_workers(1)", || {
        let executor = Executor::builder().max_workers(1).build().unwrap();
        let (a, b) = (fresh(), fresh());
        let seen = back_and_forth(&executor, &a, &b, 16);
        assert_eq!(seen.len(), 16);
    });
}

#[test]
fn workers_beyond_the_limit_make_room_when_they_are_no_longer_needed() {
    within("a call after nesting with max_workers(1)", || {
        let executor = (Executor::builder().max_workers(1).idle_timeout(None))
            .build()
            .unwrap();
        let (a, b, c) = (fresh(), fresh(), fresh());
        // Leaves idle workers beyond the limit, those that stood in among them.
        back_and_forth(&executor, &a, &b, 6);
        assert_eq!(executor.run(&c, here).unwrap(), c.id());
        eventually("the limit holds again", || executor.stats().workers == 1);
    });
}

#[test]
fn spawned_jobs_nest() {
    within("spawned jobs nest", || {
        let executor = Executor::new().unwrap();
        let (a, b) = (fresh(), fresh());
        fn go(executor: &Executor, a: &Netns, b: &Netns, depth: u32) -> u32 {
            let (again, aa, bb) = (executor.clone(), a.clone(), b.clone());
            let handle = executor.spawn(a, move || {
                assert_eq!(here(), aa.id());
                match depth {
                    0 => 0,
                    _ => go(&again, &bb, &aa, depth - 1) + 1,
                }
            });
            handle.unwrap().join().unwrap()
        }
        assert_eq!(go(&executor, &a, &b, 32), 32);
        // And joined with a limit of time, and awaited.
        let inner = executor.clone();
        let (aa, bb) = (a.clone(), b.clone());
        let sum = executor.spawn(&a, move || {
            let again = (inner.clone(), aa.clone());
            let handle = inner.spawn(&bb, move || again.0.run(&again.1, || 1).unwrap());
            let one = handle
                .unwrap()
                .join_timeout(Duration::MAX)
                .unwrap()
                .unwrap();
            one + inner.spawn(&aa, || 2).unwrap().join().unwrap()
        });
        assert_eq!(sum.unwrap().join().unwrap(), 3);
    });
}

#[test]
fn job_joins_what_it_spawned_on_its_own_namespace() {
    within("join of a job of the own namespace", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let sum = executor.run(&netns, || {
            let handles: Vec<_> = (0..10)
                .map(|n| executor.spawn(&netns, move || n).unwrap())
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).sum::<u32>()
        });
        assert_eq!(sum.unwrap(), 45);
    });
}

#[test]
fn job_that_awaits_another_of_its_own_namespace_ends() {
    // `block_on` waits in a way that the executor does not see, so the awaited job must not
    // need the worker that waits: two are there.
    within("await inside a job", || {
        let executor = with_workers(2);
        let netns = fresh();
        let answer = executor.run(&netns, || {
            pollster::block_on(executor.spawn(&netns, || 42).unwrap()).unwrap()
        });
        assert_eq!(answer.unwrap(), 42);
    });
}

#[test]
fn job_fills_its_own_queue_and_goes_on() {
    within("spawn into the own full queue", || {
        let executor = with_queue(2);
        let netns = fresh();
        let handles = executor.run(&netns, || {
            let spawn = |n| executor.spawn(&netns, move || n).unwrap();
            (0..50).map(spawn).collect::<Vec<_>>()
        });
        for (n, handle) in handles.unwrap().into_iter().enumerate() {
            assert_eq!(handle.join().unwrap(), n);
        }
    });
}

#[test]
fn scope_inside_a_job_runs_its_jobs() {
    within("scope inside a job", || {
        let executor = Executor::new().unwrap();
        let (a, b) = (fresh(), fresh());
        let seen = executor.run(&a, || {
            executor.scope(|scope| {
                let handles: Vec<_> = [&a, &b, &a, &b]
                    .map(|netns| scope.spawn(netns, || executor.run(&a, here).unwrap()))
                    .into();
                let join = |handle: Result<netns_exec::ScopedJoinHandle<'_, _>, _>| {
                    handle.unwrap().join().unwrap()
                };
                handles.into_iter().map(join).collect::<Vec<_>>()
            })
        });
        assert_eq!(seen.unwrap(), [a.id(); 4]);
    });
}

#[test]
fn calls_go_back_and_forth_between_two_executors() {
    within("two executors", || {
        let (one, two) = (Executor::new().unwrap(), Executor::new().unwrap());
        let (a, b) = (fresh(), fresh());
        fn go(one: &Executor, two: &Executor, a: &Netns, b: &Netns, depth: u32) -> u32 {
            let run = one.run(a, || {
                assert_eq!(here(), a.id());
                match depth {
                    0 => 0,
                    _ => go(two, one, b, a, depth - 1) + 1,
                }
            });
            run.unwrap()
        }
        assert_eq!(go(&one, &two, &a, &b, 24), 24);
        // In one namespace, a worker of the other executor is not inline.
        assert_eq!(go(&one, &two, &a, &a, 24), 24);
        thread::scope(|scope| {
            scope.spawn(|| go(&one, &two, &a, &b, 24));
            scope.spawn(|| go(&two, &one, &b, &a, 24));
        });
    });
}

#[test]
fn caller_that_waits_for_room_elsewhere_leaves_its_own_namespace_served() {
    within(
        "a job waits for room in a queue whose jobs need its namespace",
        || {
            let executor = with_queue(1);
            let (a, b) = (fresh(), fresh());
            let gate = Gate::new();
            // B is busy, and its queue is full of what needs A.
            let needs_a = |pass: Option<netns_exec_tests::Pass>| {
                let (executor, a) = (executor.clone(), a.clone());
                move || {
                    if let Some(pass) = pass {
                        pass.stop();
                    }
                    executor.run(&a, here).unwrap()
                }
            };
            let running = executor.spawn(&b, needs_a(Some(gate.pass()))).unwrap();
            gate.wait_for(1);
            let queued = executor.spawn(&b, needs_a(None)).unwrap();
            // A's only worker waits for room in B's queue, with `run`.
            thread::scope(|scope| {
                let caller = scope.spawn(|| {
                    executor
                        .run(&a, || executor.run(&b, here).unwrap())
                        .unwrap()
                });
                eventually("A's job is under way", || executor.stats().running == 2);
                gate.open();
                assert_eq!(caller.join().unwrap(), b.id());
            });
            assert_eq!(running.join().unwrap(), a.id());
            assert_eq!(queued.join().unwrap(), a.id());
        },
    );
}

#[test]
fn workers_that_stood_in_go_away_when_idle() {
    let executor = with_idle(Some(Duration::from_millis(5)));
    let (a, b) = (fresh(), fresh());
    back_and_forth(&executor, &a, &b, 10);
    eventually("all workers have left", || executor.stats().workers == 0);
    assert_eq!(executor.stats().done, 10);
}

#[test]
fn retire_shutdown_and_stats_work_inside_a_job() {
    within("retire and shutdown inside a job", || {
        let executor = Executor::new().unwrap();
        let (a, b) = (fresh(), fresh());
        executor.run(&b, || ()).unwrap();
        let thread = executor.run(&a, || {
            assert_eq!(executor.stats().running, 1);
            executor.retire(&a).unwrap();
            executor.retire(&b).unwrap();
            thread::current().id()
        });
        let again = executor.run(&a, || thread::current().id()).unwrap();
        assert_ne!(thread.unwrap(), again);
        let clone = executor.clone();
        let shared = Arc::new(());
        let held = Arc::clone(&shared);
        let handle = executor.spawn(&a, move || {
            let _held = held;
            clone.shutdown(None).unwrap();
        });
        handle.unwrap().join().unwrap();
        assert!(executor.run(&b, || ()).unwrap_err().is_shut_down());
    });
}
