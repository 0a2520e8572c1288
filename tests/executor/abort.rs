//! Giving jobs up: from elsewhere, and by letting go of them.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{AbortHandle, Executor};
use netns_exec_tests::{Gate, Held, eventually, fresh, here, sleeps_soundly, tid, within};

#[test]
fn aborted_before_it_started_a_job_never_runs_and_its_task_is_told() {
    within("abort", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        let held = Held::new(&executor, &netns);
        let handle = executor.spawn(&netns, || unreachable!("aborted")).unwrap();
        let aborts: Vec<AbortHandle> = (0..3).map(|_| handle.abort_handle()).collect();
        assert!(!aborts[0].is_finished());
        let waits = thread::spawn(move || pollster::block_on(handle));
        let told = aborts.iter().filter(|abort| abort.abort()).count();
        assert_eq!(told, 1, "it is given up once");
        assert!(aborts[2].is_finished());
        let result: Result<(), _> = waits.join().unwrap();
        assert!(result.unwrap_err().is_cancelled());
        held.end();
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn thread_that_joins_is_told_of_an_abort() {
    within("abort", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        let held = Held::new(&executor, &netns);
        let job = executor.spawn(&netns, || unreachable!("aborted")).unwrap();
        let future = executor.spawn_future(&netns, std::future::pending::<()>());
        for handle in [job, future] {
            let abort = handle.abort_handle();
            let (is, who) = mpsc::channel();
            let joins = thread::spawn(move || {
                is.send(tid()).unwrap();
                let began = Instant::now();
                (handle.join(), began.elapsed())
            });
            let joiner = who.recv().unwrap();
            eventually("it waits for the job", || sleeps_soundly(joiner));
            assert!(abort.abort());
            let (result, took) = joins.join().unwrap();
            let result: Result<(), _> = result;
            assert!(result.unwrap_err().is_cancelled());
            assert!(took < Duration::from_secs(4), "told after {took:?}");
        }
        held.end();
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn job_that_has_started_is_not_aborted() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let gate = Gate::new();
    let pass = gate.pass();
    let handle = executor.spawn(&netns, move || {
        pass.stop();
        here()
    });
    let handle = handle.unwrap();
    gate.wait_for(1);
    let abort = handle.abort_handle();
    assert!(!abort.abort() && !abort.is_finished());
    gate.open();
    assert_eq!(handle.join().unwrap(), netns.id());
    assert!(abort.is_finished() && !abort.abort());
}

#[test]
fn abort_handle_keeps_no_result() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let value = Arc::new(());
    let result = Arc::clone(&value);
    let handle = executor.spawn(&netns, move || result).unwrap();
    let abort = handle.abort_handle();
    drop(handle);
    executor.shutdown(None).unwrap();
    assert_eq!(Arc::strong_count(&value), 1);
    assert!(abort.is_finished());
}

#[test]
fn aborting_races_with_polling_and_with_the_worker() {
    within("aborts race", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        let ran = Arc::new(AtomicU32::new(0));
        let mut done = 0;
        for round in 0..2000_u32 {
            let ran = Arc::clone(&ran);
            let handle = executor.spawn(&netns, move || ran.fetch_add(1, Ordering::SeqCst));
            let handle = handle.unwrap();
            let abort = handle.abort_handle();
            let aborts = thread::spawn(move || {
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                abort.abort()
            });
            let result = pollster::block_on(handle);
            assert_eq!(result.is_err(), aborts.join().unwrap());
            done += u32::from(result.is_ok());
        }
        executor.shutdown(None).unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), done);
    });
}

#[test]
fn tied_to_its_handle_a_job_is_given_up_with_it() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let held = Held::new(&executor, &netns);
    let ran = Arc::new(AtomicU32::new(0));
    let count = || {
        let ran = Arc::clone(&ran);
        move || ran.fetch_add(1, Ordering::SeqCst)
    };
    drop(executor.spawn(&netns, count()).unwrap().abort_on_drop());
    let mut polled = executor.spawn(&netns, count()).unwrap().abort_on_drop();
    let pending = Pin::new(&mut polled).poll(&mut Context::from_waker(Waker::noop()));
    assert!(pending.is_pending());
    drop(polled);
    let tied = executor.spawn(&netns, count()).unwrap().abort_on_drop();
    drop(tied.into_handle());
    let tied = executor.spawn(&netns, count()).unwrap().abort_on_drop();
    held.end();
    assert_eq!(pollster::block_on(tied).unwrap(), 1);
    executor.shutdown(None).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 2);
}

#[test]
fn time_limit_leaves_no_job_in_the_queue() {
    within("a time limit", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        let held = Held::new(&executor, &netns);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let call = async {
                let job = || unreachable!("given up");
                executor
                    .spawn_async(&netns, job)
                    .await?
                    .abort_on_drop()
                    .await
            };
            let late: Result<netns_exec::Result<()>, _> =
                tokio::time::timeout(Duration::from_millis(10), call).await;
            assert!(late.is_err());
        });
        held.end();
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn scoped_handle_can_be_awaited_in_its_scope() {
    within("awaiting in a scope", || {
        let (executor, netns) = (Executor::new().unwrap(), fresh());
        let name = String::from("eth0");
        let lengths = executor.scope(|scope| {
            pollster::block_on(async {
                let one = scope.spawn(&netns, || name.len())?;
                let two = scope.spawn(&netns, || name.len() + 1)?;
                Ok::<_, netns_exec::Error>([two.await?, one.await?])
            })
        });
        assert_eq!(lengths.unwrap(), [5, 4]);
    });
}

#[test]
fn scoped_handle_polled_and_dropped_in_a_job_ends_its_wait() {
    within("a scope in a job", || {
        let (executor, netns, other) = (Executor::new().unwrap(), fresh(), fresh());
        let held = Held::new(&executor, &other);
        let outer = executor.clone();
        let (own, elsewhere) = (netns.clone(), other.clone());
        executor
            .run(&netns, move || {
                outer.scope(|scope| {
                    let mut handle = scope.spawn(&elsewhere, || ()).unwrap();
                    let mut cx = Context::from_waker(Waker::noop());
                    assert!(Pin::new(&mut handle).poll(&mut cx).is_pending());
                    assert!(handle.cancel());
                    drop(handle);
                    held.open();
                });
                assert_eq!(outer.run(&own, here).unwrap(), own.id());
            })
            .unwrap();
        eventually("no worker is left over", || executor.stats().running == 0);
    });
}
