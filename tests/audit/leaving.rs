//! Workers that are about to end, and the code of users that still runs there.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};

use netns_exec::audit::{Process, Verdict};
use netns_exec::{Executor, Guard};
use netns_exec_tests::{Alone, TempNetns, alone, eventually};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::gettid;

use super::row;

/// Tells its thread's end, and keeps the thread until it is told.
struct LastWords(Sender<()>, Receiver<()>);

impl Drop for LastWords {
    fn drop(&mut self) {
        let _ = self.0.send(());
        let _ = self.1.recv();
    }
}

thread_local! {
    static LAST_WORDS: Cell<Option<LastWords>> = const { Cell::new(None) };
}

#[test]
fn worker_that_leaves_when_there_are_no_descriptors_is_known_to_its_end() {
    alone!(Alone::AsIs);
    let netns = TempNetns::new();
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        let executor = Executor::builder().guard(guard).build().expect("root may");
        let (ends, end) = channel();
        let (go, goes) = channel();
        let words = LastWords(ends, goes);
        let tid = executor.run(&netns, move || {
            LAST_WORDS.set(Some(words));
            gettid().as_raw().unsigned_abs()
        });
        let tid = tid.expect("root may enter");

        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("of this process");
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("less is allowed");
        executor.shutdown_background();
        let ended = end.recv();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as before");
        ended.expect("the worker leaves");

        let audit = Process::this().expect("our own");
        assert_eq!(row(&audit, tid).verdict(), Verdict::Worker, "{guard:?}");
        go.send(()).expect("it waits");
        eventually("the worker has gone", || {
            let audit = Process::this().expect("our own");
            audit.threads().iter().all(|thread| thread.tid() != tid)
        });
    }
}
