//! One closure in many namespaces at once.

use std::collections::HashSet;
use std::panic::panic_any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, Gate, Held, TempNetns, alone, eventually, fresh, handed_over, here, sleeps_of, tid,
    to_hand_over, within,
};

use super::with_queue;

fn spaces(count: usize) -> Vec<Netns> {
    (0..count).map(|_| fresh()).collect()
}

/// Visits all, and checks that each was visited where it should be.
#[track_caller]
fn visit(executor: &Executor, spaces: &[Netns]) {
    let visits = AtomicUsize::new(0);
    let ids = executor.broadcast(spaces, |netns| {
        visits.fetch_add(1, Ordering::Relaxed);
        (netns.id(), here())
    });
    assert_eq!(visits.into_inner(), spaces.len());
    assert_eq!(ids.len(), spaces.len());
    for (netns, ids) in spaces.iter().zip(ids) {
        assert_eq!(ids.unwrap(), (netns.id(), netns.id()));
    }
}

#[test]
fn each_is_visited_once_and_results_are_in_order() {
    let executor = Executor::new().unwrap();
    visit(&executor, &[]);
    assert_eq!(executor.stats().workers, 0);
    for count in [1, 2, 100] {
        let spaces = spaces(count);
        // With workers that are to be born, and with such that are there.
        visit(&executor, &spaces);
        visit(&executor, &spaces);
        let stats = executor.stats();
        let served = stats.per_netns.iter().map(|netns| netns.workers);
        assert!(served.sum::<usize>() >= count);
    }
}

#[test]
fn thousand_namespaces_are_visited() {
    within("a visit to a thousand namespaces", || {
        let builder = Executor::builder().stack_size(64 << 10);
        let executor = builder.build().unwrap();
        let spaces = spaces(1000);
        visit(&executor, &spaces);
        visit(&executor, &spaces);
    });
}

#[test]
fn calls_run_at_the_same_time_and_borrow() {
    within("calls that wait for each other", || {
        let executor = Executor::new().unwrap();
        let spaces = spaces(20);
        let all = Barrier::new(spaces.len());
        let seen = Mutex::new(HashSet::new());
        let text = String::from("borrowed");
        for round in 0..20 {
            let words = executor.broadcast(&spaces, |netns| {
                all.wait();
                seen.lock().unwrap().insert((round, netns.id()));
                &text[..3]
            });
            assert!(words.into_iter().all(|word| word.unwrap() == "bor"));
        }
        assert_eq!(seen.into_inner().unwrap().len(), 20 * spaces.len());
    });
}

#[test]
fn namespace_that_is_there_twice_is_visited_twice() {
    let executor = with_queue(2);
    let (a, b) = (fresh(), fresh());
    let many: Vec<_> = (0..50)
        .flat_map(|_| [a.clone(), b.clone(), a.clone()])
        .collect();
    visit(&executor, &many);
}

#[test]
fn few_workers_visit_many_namespaces() {
    within("a visit by three workers", || {
        let executor = Executor::builder().max_workers(3).build().unwrap();
        let spaces = spaces(40);
        visit(&executor, &spaces);
        visit(&executor, &spaces);
        assert!(executor.stats().workers <= 3);
    });
}

#[test]
fn job_visits_all_its_own_namespace_too() {
    within("visits from jobs", || {
        for builder in [
            Executor::builder().queue_depth(1),
            Executor::builder().max_workers(1),
        ] {
            let executor = builder.build().unwrap();
            let spaces = spaces(10);
            executor
                .run(&spaces[3], || visit(&executor, &spaces))
                .unwrap();
            // And from each of them at once.
            let visits = executor.broadcast(&spaces, |_| visit(&executor, &spaces));
            assert!(visits.into_iter().all(|visit| visit.is_ok()));
        }
    });
}

#[test]
fn panic_is_the_result_of_its_namespace_alone() {
    let executor = Executor::new().unwrap();
    let spaces = spaces(5);
    let bad = [spaces[1].id(), spaces[4].id()];
    let mut results = executor.broadcast(&spaces, |netns| match bad.contains(&netns.id()) {
        true => panic_any(format!("in {}", netns.id())),
        false => here(),
    });
    for index in [4, 1] {
        let error = results.remove(index).unwrap_err();
        assert!(error.is_panic(), "{error}");
        let payload = error.into_panic().unwrap();
        let text = format!("in {}", spaces[index].id());
        assert_eq!(payload.downcast_ref::<String>(), Some(&text));
    }
    assert!(results.into_iter().all(|result| result.is_ok()));
    visit(&executor, &spaces);
}

#[test]
fn call_that_breaks_the_guard_is_told_in_its_own_result() {
    let executor = Executor::builder().guard(Guard::Detect).build().unwrap();
    let (spaces, elsewhere) = (spaces(3), fresh());
    let results = executor.broadcast(&spaces, |netns| {
        if *netns == spaces[1] {
            nix::sched::setns(&elsewhere, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        }
        netns.id()
    });
    let [one, moved, other] = results.try_into().unwrap();
    assert!(moved.unwrap_err().is_escaped());
    assert_eq!(
        (one.unwrap(), other.unwrap()),
        (spaces[0].id(), spaces[2].id())
    );
    visit(&executor, &spaces);
}

#[test]
fn namespace_that_cannot_be_entered_spoils_nothing() {
    let theirs = fresh();
    // It belongs to the user namespace outside, where this process may not go.
    alone!(Alone::OwnUserNamespace, "", to_hand_over(&theirs));
    let executor = Executor::new().unwrap();
    let spaces = [
        fresh(),
        handed_over(),
        fresh(),
        handed_over(),
        handed_over(),
        fresh(),
    ];
    for _ in 0..3 {
        let results = executor.broadcast(&spaces, |netns| (netns.id(), here()));
        for (index, result) in results.into_iter().enumerate() {
            match index {
                1 | 3 | 4 => assert!(result.unwrap_err().is_permission_denied()),
                _ => assert_eq!(result.unwrap(), (spaces[index].id(), spaces[index].id())),
            }
        }
    }
}

#[test]
fn namespace_that_is_deleted_meanwhile_is_visited_and_goes() {
    let builder = Executor::builder().idle_timeout(None);
    let executor = builder.build().unwrap();
    let (first, named, last) = (fresh(), TempNetns::new(), fresh());
    let weak = named.downgrade();
    let spaces = [first, named.netns().clone(), last];
    visit(&executor, &spaces);
    named.delete();
    visit(&executor, &spaces);
    drop(spaces);
    eventually("the deleted namespace is gone", || weak.upgrade().is_none());
}

#[test]
fn full_queue_of_one_namespace_holds_up_no_other() {
    let executor = with_queue(1);
    let spaces = spaces(10);
    let held = Held::new(&executor, &spaces[2]);
    let queued = executor.spawn(&spaces[2], || ()).unwrap();
    let visited = AtomicUsize::new(0);
    thread::scope(|scope| {
        let visits = scope.spawn(|| {
            executor.broadcast(&spaces, |_| {
                visited.fetch_add(1, Ordering::Relaxed);
            })
        });
        eventually("the others are visited", || {
            visited.load(Ordering::Relaxed) == 9
        });
        assert!(!visits.is_finished());
        held.open();
        let results = visits.join().unwrap();
        assert!(results.into_iter().all(|result| result.is_ok()));
    });
    queued.join().unwrap();
}

#[test]
fn calls_that_a_shutdown_gives_up_are_cancelled() {
    let executor = Executor::new().unwrap();
    let spaces = spaces(4);
    let gate = Gate::new();
    let (pass, behind) = (gate.pass(), Gate::new());
    let arrival = behind.pass();
    let holder = executor.spawn(&spaces[1], move || pass.stop()).unwrap();
    gate.wait_for(1);
    behind.open();
    thread::scope(|scope| {
        let visits = scope.spawn(|| executor.broadcast(&spaces, |_| arrival.stop()));
        // All but the one behind the holder.
        behind.wait_for(3);
        let timed_out = executor.clone().shutdown(Some(Duration::ZERO));
        assert!(timed_out.unwrap_err().is_timed_out());
        gate.open();
        let results = visits.join().unwrap();
        for (index, result) in results.into_iter().enumerate() {
            match index {
                1 => assert!(result.unwrap_err().is_cancelled()),
                _ => result.unwrap(),
            }
        }
    });
    holder.join().unwrap();
    let results = executor.broadcast(&spaces, |_| ());
    assert_eq!(results.len(), 4);
    assert!((results.into_iter()).all(|result| result.unwrap_err().is_shut_down()));
}

#[test]
fn caller_sleeps_and_is_woken_about_once() {
    let executor = Executor::new().unwrap();
    let spaces = spaces(100);
    visit(&executor, &spaces);
    let switches = || sleeps_of(tid()).unwrap();
    // Locks that others hold cost some as well, on a loaded machine.
    let fewest = (0..10).map(|_| {
        let before = switches();
        executor.broadcast(&spaces, |_| ());
        switches() - before
    });
    let fewest = fewest.min().unwrap();
    assert!(fewest <= 10, "woken {fewest} times");
}
