//! Looks at every thread of the process, so it has a process of its own.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use benches::conditions::quiet;

#[test]
fn thread_that_runs_out_of_turn_is_named_and_one_that_sleeps_is_not() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let restless = thread::Builder::new()
        .name("restless".into())
        .spawn(|| {
            while !STOP.load(Ordering::Relaxed) {
                spin_loop();
            }
            thread::park();
        })
        .unwrap();
    let complaint = quiet::wait(&[]).unwrap_err().to_string();
    STOP.store(true, Ordering::Relaxed);
    assert!(complaint.contains("(restless)"), "{complaint}");

    quiet::wait(&[]).unwrap();
    restless.thread().unpark();
    restless.join().unwrap();
}
