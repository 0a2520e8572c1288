//! The same verdict from inside and from outside, whatever the threads look like.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio, exit};
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::audit::{Process, Verdict};
use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, Parked, TempNetns, end_this_thread, eventually, has_main_thread_ended, in_main_thread,
    is_alone, move_this_thread, note, rerun, run_alone, this_test,
};
use nix::sched::{CloneFlags, setns};
use nix::unistd::gettid;

use super::ring::Ring;
use super::{id, one_at_a_time, row};

/// What an audit by another process must say: numbers and verdicts of threads. Those who
/// call this are run again, and then do just that.
fn judged_as_expected() -> bool {
    let Some(note) = note() else {
        return false;
    };
    let mut words = note.split(' ');
    let pid = words.next().and_then(|pid| pid.parse().ok());
    let audit = Process::of(pid.expect("written below")).expect("it waits for us");
    for word in words {
        let (tid, verdict) = word.split_once('=').expect("written below");
        let row = row(&audit, tid.parse().expect("a number"));
        assert_eq!(row.verdict().to_string(), verdict, "{audit}");
    }
    true
}

/// Checks it here, and has another process do so.
fn check(test: &str, expected: &[(u32, Verdict)]) {
    let audit = Process::this().expect("our own");
    let mut note = id().to_string();
    for (tid, verdict) in expected {
        assert_eq!(row(&audit, *tid).verdict(), *verdict, "{audit}");
        note += &format!(" {tid}={verdict}");
    }
    run_alone(test, Alone::AsIs, &note, Stdio::null());
}

fn tid() -> u32 {
    gettid().as_raw().unsigned_abs()
}

#[test]
fn thread_that_a_job_left_is_no_worker_however_much_it_looks_like_one() {
    let _alone = one_at_a_time();
    if judged_as_expected() {
        return;
    }
    let netns = TempNetns::new();
    let executor = Executor::builder()
        .guard(Guard::Off)
        .build()
        .expect("it takes nothing");
    let (worker, left) = executor
        .run(&netns, || {
            // A thread has the mask of the one that makes it. For the name, std sees to it.
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("our own");
            (tid(), Parked::here(name.trim_end()))
        })
        .expect("root may enter");
    let expected = [(worker, Verdict::Worker), (left.tid(), Verdict::Stray)];
    check(this_test!(), &expected);

    // Workers of other tests that are about to end may have the same name.
    let audit = || Process::this().expect("our own");
    let makers = || row(&audit(), left.tid()).seems_child_of();
    eventually("one worker has its name", || makers() == Some(worker));
    let audit = audit();
    let stray = row(&audit, left.tid());
    let words = format!("seems to be a child of worker {worker}, whose name it has");
    assert!(
        stray.origin().is_some_and(|origin| origin.contains(&words)),
        "{audit}"
    );
    assert!(audit.to_string().contains(&words), "{audit}");
    assert_eq!(row(&audit, worker).origin(), None);
}

#[test]
fn worker_that_a_job_renames_is_still_one() {
    let _alone = one_at_a_time();
    if judged_as_expected() {
        return;
    }
    let netns = TempNetns::new();
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        let executor = Executor::builder().guard(guard).build().expect("root may");
        let (end, ended) = channel::<()>();
        let (named, tids) = channel();
        let job = executor.spawn(&netns, move || {
            std::fs::write("/proc/thread-self/comm", "helper").expect("its own");
            named.send(tid()).expect("awaited below");
            let _ = ended.recv();
        });
        let worker = tids.recv().expect("the job has started");
        check(this_test!(), &[(worker, Verdict::Worker)]);
        drop(end);
        let job = job.expect("root may enter");
        job.join().expect("no panic");
    }
}

#[test]
fn workers_of_many_executors_and_their_successors_are_known() {
    let _alone = one_at_a_time();
    if judged_as_expected() {
        return;
    }
    let netns = TempNetns::new();
    let executors: Vec<_> = (0..3)
        .map(|_| {
            Executor::builder()
                .guard(Guard::Off)
                .build()
                .expect("it takes nothing")
        })
        .collect();
    let mut expected = Vec::new();
    for executor in &executors {
        let first = executor.run(&netns, tid).expect("root may enter");
        executor.retire(&netns).expect("no job of ours waits here");
        let worker = executor.run(&netns, tid).expect("root may enter");
        assert_ne!(first, worker);
        expected.push((worker, Verdict::Worker));
    }
    check(this_test!(), &expected);
}

#[test]
fn kernels_thread_for_a_workers_ring_is_judged_as_the_worker() {
    let _alone = one_at_a_time();
    if judged_as_expected() {
        return;
    }
    let netns = TempNetns::new();
    for guard in [Guard::Detect, Guard::Off] {
        let executor = Executor::builder().guard(guard).build().expect("root may");
        let mut ring = Ring::new();
        let (worker, ring) = executor
            .run(&netns, move || {
                ring.wait_in_the_kernel();
                (tid(), ring)
            })
            .expect("to wait in the kernel is no violation");
        let name = format!("iou-wrk-{worker}");
        let audit = Process::this().expect("our own");
        let found = audit.threads().iter().find(|row| row.name() == name);
        let helper = found
            .unwrap_or_else(|| panic!("no {name} in {audit:?}"))
            .tid();
        let expected = [(worker, Verdict::Worker), (helper, Verdict::Worker)];
        check(this_test!(), &expected);
        drop(ring);
    }

    // That of a stray is one, too.
    let (end, ended) = channel::<()>();
    let (made, tids) = channel();
    thread::scope(|scope| {
        let netns = &netns;
        scope.spawn(move || {
            setns(netns.netns(), CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
            let mut ring = Ring::new();
            ring.wait_in_the_kernel();
            made.send(tid()).expect("awaited below");
            let _ = ended.recv();
        });
        let stray = tids.recv().expect("no panic");
        let audit = Process::this().expect("our own");
        let name = format!("iou-wrk-{stray}");
        let found = audit.threads().iter().find(|row| row.name() == name);
        let helper = found.expect("it waits").tid();
        check(
            this_test!(),
            &[(stray, Verdict::Stray), (helper, Verdict::Stray)],
        );
        drop(end);
    });
}

/// A process whose main thread is up to something, and which waits to be looked at.
struct Watched(Child);

impl Watched {
    fn start(test: &str) -> (Watched, u32) {
        let mut command: Command = rerun(test);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.find_map(|line| {
            let line = line.expect("readable");
            let (_, tid) = line.split_once("ready: ")?;
            Some(tid.parse().expect("a number"))
        });
        let watched = Watched(child);
        (watched, ready.expect("its tests have passed until then"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it look at itself and end.
    fn finish(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("it is ours");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In such a process: waits for the parent to look, then has `look` do so.
fn be_watched(tid: u32, look: impl FnOnce()) -> ! {
    println!("ready: {tid}");
    let _ = std::io::stdin().read(&mut [0]);
    let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).is_ok();
    exit(i32::from(!fine));
}

#[test]
fn truth_is_told_after_the_main_thread_has_ended() {
    let _alone = one_at_a_time();
    if is_alone(this_test!()) {
        let netns = TempNetns::new();
        let home = Netns::home().expect("the main thread is there").id();
        let executor = Executor::builder().guard(Guard::Off).build();
        let executor = executor.expect("it takes nothing");
        let worker = executor.run(&netns, tid).expect("root may enter");
        let stray = Parked::left_in(&netns, "left");
        let file = std::fs::File::open(format!("/run/netns/{}", netns.name()));
        let file = file.expect("it is there");
        in_main_thread(end_this_thread);
        be_watched(worker, || {
            eventually("the main thread ends", || has_main_thread_ended(id()));
            let audit = Process::this().expect("our own");
            assert_eq!(audit.home_id(), Some(home));
            assert_eq!(row(&audit, tid()).verdict(), Verdict::Home);
            assert_eq!(row(&audit, worker).verdict(), Verdict::Worker);
            assert_eq!(row(&audit, stray.tid()).verdict(), Verdict::Stray);
            assert_eq!(Netns::home().expect("it is known").id(), home);
            drop((executor, stray, file, netns));
        });
    }
    let (watched, worker) = Watched::start(this_test!());
    let pid = watched.pid();
    eventually("the main thread ends", || has_main_thread_ended(pid));
    let audit = Process::of(pid).expect("its other threads are alive");
    assert_eq!(audit.home_id(), Some(Netns::home().expect("ours").id()));
    assert_eq!(row(&audit, worker).verdict(), Verdict::Worker, "{audit}");
    let strays: Vec<_> = audit.strays().map(|row| row.name()).collect();
    assert_eq!(strays, ["left"], "{audit}");
    assert_eq!(audit.with(Verdict::Unknown).count(), 0, "{audit}");
    // And what it has open.
    let netns = row(&audit, worker).netns_id().expect("root may read it");
    let all = netns_exec::audit::namespaces().expect("root may read all");
    let mut all = all.namespaces().iter();
    let listed = all
        .find(|listed| listed.id() == Some(netns))
        .expect("a worker is in it");
    let fds = listed.holders().iter().filter(|holder| {
        holder.pid() == pid && matches!(holder.hold(), netns_exec::audit::Hold::Fd { .. })
    });
    assert!(fds.count() >= 2, "{listed:?}");
    watched.finish();
}

#[test]
fn own_threads_of_the_library_are_no_strays_when_the_main_thread_moves() {
    let _alone = one_at_a_time();
    if is_alone(this_test!()) {
        let netns = TempNetns::new();
        let executor = Executor::builder().guard(Guard::Off).build();
        let executor = executor.expect("it takes nothing");
        let worker = executor.run(&netns, tid).expect("root may enter");
        in_main_thread(move_this_thread);
        be_watched(worker, || drop((executor, netns)));
    }
    let (watched, worker) = Watched::start(this_test!());
    let pid = watched.pid();
    let moved = || {
        let audit = Process::of(pid).expect("it waits for us");
        audit.home_id() != Some(Netns::home().expect("ours").id())
    };
    eventually("the main thread moves", moved);
    let audit = Process::of(pid).expect("it waits for us");
    assert_eq!(row(&audit, worker).verdict(), Verdict::Worker);
    let own = (audit.threads().iter()).filter(|row| row.name().starts_with("netns-"));
    let verdicts: Vec<_> = own.map(|row| (row.name(), row.verdict())).collect();
    assert!(!verdicts.is_empty());
    assert!(
        verdicts
            .iter()
            .all(|(_, verdict)| *verdict == Verdict::Worker),
        "{audit}"
    );
    watched.finish();
}
