//! rayon's global pool, first touched inside a job. It is made once for a
//! process and stays what it became, so every test is a process of its own.

use netns_exec::{Error, Executor, Guard};
use netns_exec_tests::{Alone, alone, fresh, here, panic_of};

use super::executor;

/// What a closure does that knows nothing of namespaces.
fn sum() -> u64 {
    use rayon::prelude::*;
    (1..=1000_u64).into_par_iter().sum()
}

const SUM: u64 = 500_500;

fn assert_refused(executor: &Executor, error: Error) {
    assert!(error.is_refused() && error.is_panic(), "{error}");
    assert!(error.to_string().contains("Builder::prewarm"), "{error}");
    let payload = error.into_panic().expect("rayon panics");
    let words = payload.downcast_ref::<String>().expect("formatted");
    assert!(words.contains("thread pool"), "{words}");
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
}

#[test]
fn sealed_job_is_refused_rayons_pool_and_told_the_cure() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let error = executor.spawn(&netns, sum).unwrap().join().unwrap_err();
    assert_refused(&executor, error);
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn refused_rayon_stays_broken_for_all_which_is_why_there_is_prewarm() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let error = executor.spawn(&netns, sum).unwrap().join().unwrap_err();
    assert_refused(&executor, error);
    // From now on rayon says that it was started, not that it was refused: what
    // the next job is told is its own panic, and the main thread fares no better.
    let error = executor.spawn(&netns, sum).unwrap().join().unwrap_err();
    assert!(error.is_panic() && !error.is_refused(), "{error}");
    drop(panic_of(sum));
    // The worker is none the worse for it.
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn prewarmed_rayon_serves_sealed_jobs_from_home() {
    alone!(Alone::AsIs);
    let executor = Executor::builder()
        .guard(Guard::Seal)
        .prewarm(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
            pool.thread_name(|n| format!("rayon-{n}"))
                .build_global()
                .expect("at home, threads may be made");
        })
        .build()
        .unwrap();
    let netns = fresh();
    let outside = here();
    assert_eq!(executor.run(&netns, sum).unwrap(), SUM);
    // Its threads are the whole process's, and at home.
    let places = executor.run(&netns, || rayon::broadcast(|_| here()));
    assert_eq!(places.unwrap(), [outside; 3]);
    assert_eq!(sum(), SUM);
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
    let pool = (audit.threads().iter()).filter(|thread| thread.name().starts_with("rayon-"));
    assert_eq!(pool.count(), 3, "{audit:?}");
}

#[test]
fn detect_names_the_threads_of_rayons_pool() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(Guard::Detect), fresh());
    let job = || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
        pool.thread_name(|n| format!("rayon-{n}"))
            .build_global()
            .expect("it was not made before");
        sum()
    };
    let error = executor.spawn(&netns, job).unwrap().join().unwrap_err();
    assert!(error.is_left_threads(), "{error}");
    let text = error.to_string();
    assert!(text.contains("3 thread(s)"), "{text}");
    let audit = executor.audit().unwrap();
    let strays: Vec<_> = audit.strays().collect();
    assert_eq!(strays.len(), 3, "{audit:?}");
    for stray in strays {
        assert_eq!(stray.netns_id(), Some(netns.id()));
        assert!(stray.name().starts_with("rayon-"), "{stray:?}");
        let entry = format!("{} `{}`", stray.tid(), stray.name());
        assert!(text.contains(&entry), "no {entry} in: {text}");
    }
    assert_eq!(error.into_result::<u64>().expect("the job returned"), SUM);
    // What is done is done; the next job is not blamed for it.
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    assert_eq!(executor.run(&netns, sum).unwrap(), SUM);
}
