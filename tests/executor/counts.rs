//! Births that fail, awaits beside other waits, spoiled workers, figures: where the
//! executor once lost count.

use std::fs;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, Gate, alone, eventually, fresh, handed_over, here, to_hand_over, within,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// In a job of `a`, waits for a job of `b` that calls back into `a`. Between the poll
/// and the wait it does `meanwhile`.
fn await_one_that_calls_back(meanwhile: impl Fn(&Executor) + Send + Sync + 'static) {
    within("a handle that is awaited beside another wait", move || {
        let executor = Executor::new().unwrap();
        let (a, b, gate) = (fresh(), fresh(), Gate::new());
        let id = executor.run(&a, || {
            let (pass, inner, back) = (gate.pass(), executor.clone(), a.clone());
            let calls_back = executor.spawn(&b, move || {
                pass.stop();
                inner.run(&back, here).unwrap()
            });
            let mut calls_back = pin!(calls_back.unwrap());
            let mut first = true;
            // Polls again only when it is woken, as futures that join others do.
            pollster::block_on(poll_fn(|cx| {
                let polled = calls_back.as_mut().poll(cx);
                if first {
                    first = false;
                    assert!(polled.is_pending());
                    meanwhile(&executor);
                    gate.open();
                }
                polled
            }))
        });
        assert_eq!(id.unwrap().unwrap(), a.id());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn job_that_awaits_two_handles_waits_while_one_of_them_is_ready() {
    await_one_that_calls_back(|executor| {
        let c = fresh();
        let ready = executor.spawn(&c, || ()).unwrap();
        eventually("the other is over", || ready.is_finished());
        let mut ready = pin!(ready);
        pollster::block_on(poll_fn(|cx| match ready.as_mut().poll(cx) {
            Poll::Ready(done) => {
                done.unwrap();
                Poll::Ready(())
            }
            Poll::Pending => panic!("it is over"),
        }));
    });
}

#[test]
fn job_that_awaits_a_handle_and_calls_elsewhere_meanwhile_waits_still() {
    await_one_that_calls_back(|executor| executor.run(&fresh(), || ()).unwrap());
}

#[test]
fn threads_that_could_not_enter_their_namespace_are_not_kept() {
    alone!(Alone::OrdinaryUser, "", to_hand_over(&fresh()));
    let theirs = handed_over();
    let executor = Executor::new().unwrap();
    let mapped = || {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let fail = || drop(executor.run(&theirs, || ()).unwrap_err());
    (0..50).for_each(|_| fail());
    let before = mapped();
    (0..200).for_each(|_| fail());
    let after = mapped();
    assert!(after < before + 100, "{before} mappings, then {after}");
}

#[test]
fn job_behind_a_spoiled_worker_gets_the_second_one_that_it_was_promised() {
    within("two workers, one of them spoiled", || {
        let builder = Executor::builder().guard(Guard::Off).workers_per_netns(2);
        let executor = builder.build().unwrap();
        let (netns, gate, first) = (fresh(), Gate::new(), Gate::new());
        // Waits for the job in the queue, which the executor is not told of.
        let waits = first.pass();
        let waits = executor.spawn(&netns, move || waits.stop()).unwrap();
        first.wait_for(1);
        let pass = gate.pass();
        let home = fs::File::open("/proc/self/ns/net").unwrap();
        let spoiler = executor.spawn(&netns, move || {
            pass.stop();
            setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
        });
        gate.wait_for(1);
        let opens = executor.spawn(&netns, move || first.open()).unwrap();
        gate.open();
        assert!(spoiler.unwrap().join().unwrap_err().is_escaped());
        opens.join().unwrap();
        waits.join().unwrap();
    });
}

/// How many threads of this process have this name.
fn threads_named(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let comm = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task?.path().join("comm"));
    tasks
        .filter_map(|task| comm(task).ok())
        .filter(|comm| comm.trim() == name)
        .count()
}

#[test]
fn successor_of_a_spoiled_worker_may_have_to_wait_for_room() {
    alone!(Alone::OrdinaryUserAsRoot);
    within("a successor at the limit of threads", || {
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        let executor = Executor::builder().guard(Guard::Off).build().unwrap();
        executor.run(&b, || ()).unwrap();
        let gate = Gate::new();
        let pass = gate.pass();
        let home = fs::File::open("/proc/self/ns/net").unwrap();
        let spoiler = executor.spawn(&a, move || {
            pass.stop();
            setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
        });
        gate.wait_for(1);
        let queued = executor.spawn(&a, here).unwrap();
        eventually("the idle worker has the deletion watched", || {
            threads_named("netns-watch") == 1
        });
        let threads = fs::read_dir("/proc/self/task").unwrap().count() as u64;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        setrlimit(Resource::RLIMIT_NPROC, threads, hard).unwrap();
        gate.open();
        assert!(spoiler.unwrap().join().unwrap_err().is_escaped());
        let id = queued.join();
        setrlimit(Resource::RLIMIT_NPROC, soft, hard).unwrap();
        assert_eq!(id.unwrap(), a.id());
        assert_eq!(executor.run(&a, here).unwrap(), a.id());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn jobs_of_workers_that_leave_are_counted_once() {
    within("figures of workers that leave", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (begun, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..500 {
                    begun.fetch_add(1, Ordering::SeqCst);
                    executor.run(&netns, || ()).unwrap();
                    executor.retire(&netns).unwrap();
                }
                done.store(true, Ordering::SeqCst);
            });
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                let counted = executor.stats().done;
                let begun = begun.load(Ordering::SeqCst);
                if counted > begun || counted < last {
                    done.store(true, Ordering::SeqCst);
                    panic!("{counted} done, {last} before, {begun} begun");
                }
                last = counted;
            }
        });
    });
}
