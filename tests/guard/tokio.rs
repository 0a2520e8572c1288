//! A tokio runtime that the whole process shares, first touched inside a job.
//! It is made once, so every test is a process of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use netns_exec::{Executor, Guard, NetnsId};
use netns_exec_tests::{Alone, alone, fresh, here};
use tokio::runtime::{Builder, Runtime};

/// The way many a crate keeps its runtime.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("tokio-pool");
        builder.enable_all().build().expect("a runtime")
    })
}

/// What a closure does that knows nothing of namespaces.
fn place_of_a_task() -> NetnsId {
    let task = runtime().spawn(async { here() });
    // Not `block_on`, which would run it on the calling thread.
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime().spawn(async move { sender.send(task.await.expect("no panic")) });
    receiver.recv().expect("the task ends")
}

#[test]
fn sealed_job_is_refused_tokios_threads_and_told_the_cure() {
    alone!(Alone::AsIs);
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    assert_eq!(executor.guard(), Guard::Seal);
    let joined = executor.spawn(&netns, place_of_a_task).unwrap().join();
    let error = joined.unwrap_err();
    assert!(error.is_refused() && error.is_panic(), "{error}");
    assert!(error.to_string().contains("Builder::prewarm"), "{error}");
    assert!(error.into_panic().is_ok(), "tokio panics");
    let ran = catch_unwind(AssertUnwindSafe(|| executor.run(&netns, place_of_a_task)));
    assert!(ran.is_err(), "and `run` with it");
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    // Nothing is broken for threads at home, which may make it still.
    assert_eq!(place_of_a_task(), here());
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
}

#[test]
fn prewarmed_tokio_serves_sealed_jobs_from_home() {
    alone!(Alone::AsIs);
    let executor = Executor::builder()
        .prewarm(|| drop(runtime().enter()))
        .build()
        .unwrap();
    let netns = fresh();
    assert_eq!(executor.run(&netns, place_of_a_task).unwrap(), here());
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
}

#[test]
fn detect_names_the_threads_of_a_tokio_runtime() {
    alone!(Alone::AsIs);
    let executor = Executor::builder().guard(Guard::Detect).build().unwrap();
    let netns = fresh();
    let joined = executor.spawn(&netns, place_of_a_task).unwrap().join();
    let error = joined.unwrap_err();
    assert!(error.is_left_threads(), "{error}");
    let text = error.to_string();
    assert!(text.contains("2 thread(s)"), "{text}");
    let audit = executor.audit().unwrap();
    let strays: Vec<_> = audit.strays().collect();
    assert_eq!(strays.len(), 2, "{audit:?}");
    for stray in strays {
        assert_eq!(stray.netns_id(), Some(netns.id()));
        let entry = format!("{} `tokio-pool`", stray.tid());
        assert!(text.contains(&entry), "no {entry} in: {text}");
    }
    // The report that started it all: all tasks of the process run in that namespace now.
    let place = error.into_result::<NetnsId>().expect("the job returned");
    assert_eq!(place, netns.id());
    assert_eq!(place_of_a_task(), netns.id());
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}
