//! Pools that are first touched in a job: their threads are home's, and so are the sockets that
//! these make.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use netns_exec_tests::{Alone, alone, fresh, here, netns_cookie_of, tid};
use rayon::prelude::*;

use super::{assert_untouched, executor};

#[test]
fn rayons_global_pool_first_touched_in_a_job_serves_all_from_home() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let sum = || (1..=1000_u64).into_par_iter().sum::<u64>();
    assert_eq!(executor.run(&netns, sum).unwrap(), 500_500);
    let places = executor
        .run(&netns, || rayon::broadcast(|_| here()))
        .unwrap();
    assert!(!places.is_empty());
    assert!(places.iter().all(|place| *place == here()), "{places:?}");
    assert_eq!(sum(), 500_500);
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn pool_built_in_a_job_ends_with_it() {
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let places = executor.run(&netns, || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3);
        pool.build()
            .expect("threads may be had")
            .broadcast(|_| here())
    });
    assert_eq!(places.unwrap(), [here(); 3]);
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn sockets_of_a_pool_are_homes_and_those_of_the_job_are_not() {
    let (executor, netns) = (executor(), fresh());
    let (inside, outside) = executor
        .run(&netns, || {
            let make = || UdpSocket::bind("0.0.0.0:0").expect("any port");
            let theirs = std::thread::spawn(make).join().expect("no panic");
            (make(), theirs)
        })
        .unwrap();
    let home = TcpListener::bind("0.0.0.0:0").expect("any port");
    let at_home = netns_cookie_of(home.as_fd());
    assert_eq!(netns_cookie_of(outside.as_fd()), at_home);
    assert_ne!(netns_cookie_of(inside.as_fd()), at_home);
}

#[test]
fn runtime_built_in_a_job_has_its_blocking_threads_at_home() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let places = executor.run(&netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let blocking = tokio::task::spawn_blocking(here).await.expect("no panic");
            (blocking, async { here() }.await)
        })
    });
    assert_eq!(places.unwrap(), (here(), netns.id()));
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn runtime_of_the_process_first_touched_in_a_job_is_as_one_made_at_home() {
    alone!(Alone::AsIs);
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = || {
        RUNTIME.get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).build().expect("a runtime")
        })
    };
    let (executor, netns) = (executor(), fresh());
    let place = move || {
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime().spawn(async move { sender.send(here()) });
        receiver.recv().expect("the task ends")
    };
    assert_eq!(executor.run(&netns, place).unwrap(), here());
    assert_eq!(place(), here());
    assert_eq!(executor.audit().unwrap().strays().count(), 0);
}
