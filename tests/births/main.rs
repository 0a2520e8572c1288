//! Threads that a job asks for and the home thread creates: `Guard::BirthsAtHome`.

mod asked_of_libc;
mod inherited;
mod pools;

use std::net::ToSocketAddrs;
use std::panic::resume_unwind;
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::{Executor, Guard, Netns, blocking};
use netns_exec_tests::{Alone, alone, eventually, fresh, here, panic_text, tid, within};
use nix::sched::{CloneFlags, setns, unshare};

netns_exec::rootless::test_harness!(own_net);

fn executor() -> Executor {
    let executor = Executor::builder().guard(Guard::BirthsAtHome).build();
    executor.expect("a test is a dynamic executable")
}

/// Nothing is left in a namespace, and the worker is the one it was.
#[track_caller]
fn assert_untouched(executor: &Executor, netns: &Netns, worker: i32) {
    assert_eq!(
        executor.run(netns, || (here(), tid())).unwrap(),
        (netns.id(), worker)
    );
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
    assert_eq!(executor.stats().refused, 0);
}

#[test]
fn thread_of_a_job_is_at_home_and_its_result_comes_back() {
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let (inside, outside, value) = executor
        .run(&netns, || {
            let thread = thread::spawn(|| (here(), "made at home".to_owned()));
            let (outside, value) = thread.join().expect("no panic");
            (here(), outside, value)
        })
        .unwrap();
    assert_eq!(inside, netns.id());
    assert_eq!(outside, here());
    assert_eq!(value, "made at home");
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn scoped_threads_of_a_job_borrow_from_it() {
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let words = ["a", "bc", "def"];
    let lengths = executor.run(&netns, || {
        thread::scope(|scope| {
            let threads = words.map(|word| scope.spawn(move || (word.len(), here())));
            threads.map(|thread| thread.join().expect("no panic"))
        })
    });
    assert_eq!(lengths.unwrap(), [1, 2, 3].map(|len| (len, here())));
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn thread_outlives_its_job_and_keeps_no_namespace() {
    let executor = executor();
    let netns = fresh();
    let weak = netns.downgrade();
    let (end, ended) = channel::<()>();
    let thread = executor.run(&netns, move || {
        thread::spawn(move || {
            let _ = ended.recv();
            here()
        })
    });
    assert_eq!(executor.audit().unwrap().strays().count(), 0);
    executor.retire(&netns).unwrap();
    drop(netns);
    eventually("its namespace goes while the thread lives", || {
        weak.upgrade().is_none()
    });
    drop(end);
    assert_eq!(thread.unwrap().join().expect("no panic"), here());
}

#[test]
fn panic_of_a_thread_is_the_jobs_to_see_and_harms_no_worker() {
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let seen = executor.run(&netns, || {
        let thread = thread::spawn(|| panic!("at home"));
        panic_text(|| resume_unwind(thread.join().expect_err("it panics")))
    });
    assert_eq!(seen.unwrap(), "at home");
    // And what the job makes of it is the caller's.
    let text = panic_text(|| {
        executor.run(&netns, || {
            thread::scope(|scope| drop(scope.spawn(|| panic!("at home"))));
        })
    });
    assert!(text.contains("scoped thread panicked"), "{text}");
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn thread_of_a_job_submits_to_the_jobs_namespace() {
    let (executor, netns) = (executor(), fresh());
    let (sent, place) = (executor.clone(), netns.clone());
    let found = within("a call from a thread that a job waits for", move || {
        let again = (sent.clone(), place.clone());
        sent.run(&place, move || {
            let (executor, netns) = again;
            let thread = thread::spawn(move || (here(), executor.run(&netns, here).unwrap()));
            blocking(|| thread.join().expect("no panic"))
        })
        .unwrap()
    });
    assert_eq!(found, (here(), netns.id()));
    assert_eq!(executor.audit().unwrap().strays().count(), 0);
}

#[test]
fn names_are_looked_up_in_a_job() {
    let (executor, netns) = (executor(), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let addresses = executor.run(&netns, || {
        let addresses = ("localhost", 80).to_socket_addrs();
        addresses.map(Iterator::count)
    });
    assert_ne!(addresses.unwrap().expect("/etc/hosts has it"), 0);
    assert_untouched(&executor, &netns, worker);
}

#[test]
fn thread_beside_the_pool_asks_the_home_thread_as_well() {
    let (executor, netns) = (executor(), fresh());
    let handle = executor.thread(&netns, |_stop| {
        let thread = thread::spawn(here);
        (here(), thread.join().expect("no panic"))
    });
    let found = handle.unwrap().join().unwrap();
    assert_eq!(found, (netns.id(), here()));
}

#[test]
fn destructor_of_a_thread_local_of_a_worker_may_ask_too() {
    struct Last(std::sync::mpsc::Sender<netns_exec::NetnsId>);
    impl Drop for Last {
        fn drop(&mut self) {
            let place = thread::Builder::new().spawn(here).expect("still");
            let _ = self.0.send(place.join().expect("no panic"));
        }
    }
    thread_local! {
        static LAST: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) };
    }
    let (executor, netns) = (executor(), fresh());
    let (sender, receiver) = channel();
    executor
        .run(&netns, move || {
            LAST.with(|last| *last.borrow_mut() = Some(Last(sender)));
        })
        .unwrap();
    executor.shutdown(None).unwrap();
    assert_eq!(receiver.recv().expect("it was dropped"), here());
}

#[test]
fn jobs_still_cannot_move_their_thread_nor_clone_one() {
    let (executor, netns, elsewhere) = (executor(), fresh(), fresh());
    let errnos = executor.run(&netns, || {
        [
            setns(&elsewhere, CloneFlags::CLONE_NEWNET).err(),
            unshare(CloneFlags::CLONE_NEWNET).err(),
            unshare(CloneFlags::CLONE_FILES).err(),
        ]
    });
    assert_eq!(errnos.unwrap(), [Some(nix::errno::Errno::EPERM); 3]);
    let raw = executor.run(&netns, || netns_exec_tests::RawThread::start().map(drop));
    assert_eq!(
        raw.unwrap().expect_err("the seal stays").raw_os_error(),
        Some(nix::libc::EPERM)
    );
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn other_guards_refuse_threads_in_the_same_program() {
    let netns = fresh();
    for guard in [Guard::Seal, Guard::KeepAdmin] {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let started = executor.run(&netns, || thread::Builder::new().spawn(|| ()).map(drop));
        let error = started.unwrap().expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "{guard:?}");
    }
}

#[test]
fn births_on_many_workers_at_once_all_come_to_their_end() {
    alone!(Alone::AsIs);
    const THREADS: usize = 32;
    let executor = executor();
    let spaces: Vec<Netns> = (0..4).map(|_| fresh()).collect();
    let jobs: Vec<_> = spaces
        .iter()
        .cycle()
        .take(32)
        .map(|netns| {
            executor.spawn(netns, || {
                let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(here)).collect();
                threads
                    .into_iter()
                    .map(|it| it.join().expect("no panic"))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    for job in jobs {
        let places = job.unwrap().join().unwrap();
        assert_eq!(places, [here(); THREADS]);
    }
    let audit = executor.audit().unwrap();
    assert_eq!(audit.strays().count(), 0, "{audit:?}");
}
