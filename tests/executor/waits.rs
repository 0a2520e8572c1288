//! Waits that end: in jobs, of several callers, and for threads that take their time.

use std::cell::RefCell;
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::{Executor, Netns, blocking};
use netns_exec_tests::{
    Alone, GUARDS, Gate, Held, Pass, alone, eventually, fresh, here, panic_text, sleeps_soundly,
    tid, within,
};
use nix::sched::{CloneFlags, setns};

use super::with_idle;

#[test]
fn handle_can_be_awaited_in_a_job_of_its_own_namespace() {
    within("block_on in a job", || {
        for guard in GUARDS {
            let executor = Executor::builder().guard(guard).build().unwrap();
            let netns = fresh();
            let ids = executor.run(&netns, || {
                let first = executor.spawn(&netns, here).unwrap();
                let second = executor.spawn(&netns, here).unwrap();
                pollster::block_on(async {
                    let third = executor.spawn(&netns, here).unwrap();
                    [third.await, first.await, second.await].map(Result::unwrap)
                })
            });
            assert_eq!(ids.unwrap(), [netns.id(); 3]);
            // The worker that awaited counts as one that serves again.
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
            executor.shutdown(None).unwrap();
        }
    });
}

#[test]
fn several_jobs_can_await_each_other() {
    within("awaits in a row", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        fn down(executor: &Executor, netns: &Netns, depth: u32) -> u32 {
            if depth == 0 {
                return 0;
            }
            let (inner, own) = (executor.clone(), netns.clone());
            let job = executor.spawn(netns, move || down(&inner, &own, depth - 1));
            pollster::block_on(job.unwrap()).unwrap() + 1
        }
        assert_eq!(
            executor.run(&netns, || down(&executor, &netns, 8)).unwrap(),
            8
        );
    });
}

#[test]
fn wait_by_other_means_is_covered_by_blocking() {
    within("a channel in a job", || {
        for guard in GUARDS {
            let executor = Executor::builder().guard(guard).build().unwrap();
            let netns = fresh();
            let (sender, receiver) = channel();
            let waits = executor
                .spawn(&netns, move || blocking(|| receiver.recv().unwrap()))
                .unwrap();
            executor
                .run(&netns, || sender.send(here()).unwrap())
                .unwrap();
            assert_eq!(waits.join().unwrap(), netns.id());
        }
    });
    assert_eq!(blocking(|| 7), 7, "no worker: it just calls");
}

#[test]
fn panic_in_blocking_leaves_the_worker_counted() {
    within("a panic in a wait", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        for _ in 0..3 {
            let text = panic_text(|| executor.run(&netns, || blocking(|| panic!("{}", 7))));
            assert_eq!(text, "7");
        }
        // Were it counted as blocked, this job would get a worker beside the first.
        let held = Held::new(&executor, &netns);
        let queued = executor.spawn(&netns, tid).unwrap();
        assert_eq!(executor.stats().workers, 1);
        held.end();
        queued.join().unwrap();
        assert_eq!(executor.stats().workers, 1);
    });
}

#[test]
fn pinned_handle_is_renewed_from_outside_and_from_within_a_job() {
    within("two renewals of one pin", || {
        let executor = Executor::builder().max_workers(1).build().unwrap();
        let (a, b, gate) = (fresh(), fresh(), Gate::new());
        let pinned = executor.pin(&a).unwrap();
        executor.retire(&a).unwrap();
        thread::scope(|scope| {
            let (pass, pinned, executor, b) = (gate.pass(), &pinned, &executor, &b);
            let job = scope.spawn(move || {
                executor.run(b, move || {
                    pass.stop();
                    pinned.run(|| 2).unwrap()
                })
            });
            gate.wait_for(1);
            let (told, outside) = channel();
            let waiting = scope.spawn(move || {
                told.send(tid()).unwrap();
                pinned.run(|| 1)
            });
            let outside = outside.recv().unwrap();
            eventually("the caller waits for room", || sleeps_soundly(outside));
            assert!(pinned.try_spawn(|| ()).is_err(), "and no other call for it");
            gate.open();
            assert_eq!(job.join().unwrap().unwrap(), 2);
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        });
    });
}

thread_local! {
    static AT_END: RefCell<Option<StopAtEnd>> = const { RefCell::new(None) };
}

/// Holds the thread that drops it.
struct StopAtEnd(Pass);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Has a worker of `netns` stop in the destructors of its thread-locals.
fn stop_at_end(executor: &Executor, netns: &Netns, gate: &Gate) {
    let stop = StopAtEnd(gate.pass());
    let stopped = executor.run(netns, move || AT_END.with(|it| it.replace(Some(stop))));
    assert!(stopped.unwrap().is_none());
}

/// Has two threads wait for the end of a worker that is in its destructors: neither
/// returns before it is gone.
fn assert_both_wait(gate: &Gate, wait: [Box<dyn FnOnce() + Send>; 2]) {
    let (told, done) = channel();
    let threads = wait.map(|wait| {
        let (told, (here, who)) = (told.clone(), channel());
        let thread = thread::spawn(move || {
            here.send(tid()).unwrap();
            wait();
            told.send(()).unwrap();
        });
        gate.wait_for(1);
        let tid = who.recv().unwrap();
        eventually("it waits for the worker's thread", || sleeps_soundly(tid));
        thread
    });
    assert!(
        done.try_recv().is_err(),
        "it returned, and the worker is there"
    );
    gate.open();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn every_call_that_retires_waits_for_the_threads() {
    within("two retirements", || {
        let (executor, netns, gate) = (Executor::new().unwrap(), fresh(), Gate::new());
        stop_at_end(&executor, &netns, &gate);
        let retire = || {
            let (executor, netns) = (executor.clone(), netns.clone());
            Box::new(move || executor.retire(&netns).unwrap()) as Box<dyn FnOnce() + Send>
        };
        assert_both_wait(&gate, [retire(), retire()]);
    });
}

#[test]
fn every_call_that_shuts_down_waits_for_the_threads() {
    within("two shutdowns", || {
        let (executor, netns, gate) = (Executor::new().unwrap(), fresh(), Gate::new());
        stop_at_end(&executor, &netns, &gate);
        let shut_down = || {
            let executor = executor.clone();
            Box::new(move || executor.shutdown(None).unwrap()) as Box<dyn FnOnce() + Send>
        };
        assert_both_wait(&gate, [shut_down(), shut_down()]);
    });
}

#[test]
fn worker_that_leaves_waits_for_no_other_that_has_left() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    within("destructors that take their time", || {
        let executor = with_idle(Some(std::time::Duration::from_millis(50)));
        let (a, b, gate) = (fresh(), fresh(), Gate::new());
        stop_at_end(&executor, &a, &gate);
        gate.wait_for(1);
        // This one comes to its end while the other one is at its own.
        executor.run(&b, || ()).unwrap();
        executor.retire(&b).unwrap();
        gate.open();
        let weak = a.downgrade();
        executor.retire(&a).unwrap();
        drop(a);
        assert!(weak.upgrade().is_none(), "it is let go when retire returns");
    });
}

#[test]
fn executor_dropped_in_a_job_of_another_one_that_it_waits_for_does_not_wait() {
    within("two executors", || {
        let (first, second) = (Executor::new().unwrap(), Executor::new().unwrap());
        let (a, b) = (fresh(), fresh());
        let gate = Gate::new();
        let pass = gate.pass();
        let last = first.clone();
        let outer = {
            let (second, b) = (second.clone(), b.clone());
            first.spawn(&a, move || {
                pass.stop();
                second.run(&b, move || drop(last)).unwrap();
            })
        };
        drop(first);
        gate.open();
        outer.unwrap().join().unwrap();
    });
}

#[test]
fn spare_takes_over_the_lane_of_a_worker_that_a_job_has_spoiled() {
    within("a lane without a worker", || {
        let executor = Executor::builder()
            .guard(netns_exec::Guard::Off)
            .build()
            .unwrap();
        let (netns, gate) = (fresh(), Gate::new());
        let home = std::fs::File::open("/proc/self/ns/net").unwrap();
        let (waits, come) = channel::<()>();
        // Its worker waits, a spare serves meanwhile, and then it is gone.
        let spoiler = executor
            .spawn(&netns, move || {
                blocking(|| come.recv()).unwrap_err();
                setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
            })
            .unwrap();
        let pass = gate.pass();
        let on_spare = executor.spawn(&netns, move || {
            pass.stop();
            tid()
        });
        gate.wait_for(1);
        drop(waits);
        assert!(spoiler.join().unwrap_err().is_escaped());
        eventually("the spoiled worker has left", || {
            executor.stats().workers == 1
        });
        gate.open();
        let spare = on_spare.unwrap().join().unwrap();
        for _ in 0..100 {
            assert_eq!(executor.run(&netns, tid).unwrap(), spare);
        }
        assert_eq!(executor.stats().workers, 1);
    });
}
