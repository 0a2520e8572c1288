//! What is found after a job, with each way of recording.

use super::*;

/// How the same question is answered with more and with less help.
const RECORDINGS: [Recording; 3] = [
    Recording::TasksAndNamespaces,
    Recording::Tasks,
    Recording::Nothing,
];

fn policy(recording: Recording) -> Policy {
    let home = super::check::HomeTid::get().expect("a home thread");
    let detect = crate::home::Home::get()
        .expect("a home thread")
        .visit(move || Detect::with(recording, home))
        .and_then(|detect| detect)
        .expect("procfs");
    Policy {
        guard: Guard::Detect,
        prepared: Prepared::Detect(detect),
    }
}

/// Runs `f` on a watched thread in a new network namespace, once for each
/// way of watching.
fn watched(f: impl Fn(&mut ThreadGuard) + Sync) {
    for recording in RECORDINGS {
        let policy = policy(recording);
        in_new_netns(|registration| {
            let mut guard = policy.install(registration).expect("root may use perf");
            if let Installed::Detect(detector) = &guard.installed {
                assert_eq!(
                    detector.recording(),
                    recording,
                    "perf_event_open(2) is refused: run this as root of the machine"
                );
            }
            f(&mut guard);
        });
    }
}

fn job(guard: &mut ThreadGuard, f: impl FnOnce()) -> ThreadState {
    guard.before_job();
    f();
    guard.after_job()
}

#[track_caller]
fn assert_clean(state: ThreadState) {
    assert!(matches!(state, ThreadState::Clean), "{state:?}");
}

/// A thread that lives until it is let go.
struct Lingering {
    tid: u32,
    let_go: Sender<()>,
    thread: JoinHandle<()>,
}

impl Lingering {
    fn named(name: &str) -> Lingering {
        let (let_go, gone) = channel::<()>();
        let (say, tid) = channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                say.send(sys::thread::tid()).expect("waited for");
                let _ = gone.recv();
            })
            .expect("a thread");
        Lingering {
            tid: tid.recv().expect("the thread says it"),
            let_go,
            thread,
        }
    }

    fn end(self) {
        drop(self.let_go);
        self.thread.join().expect("no panic");
    }
}

#[test]
fn jobs_that_do_nothing_are_clean() {
    watched(|guard| {
        for _ in 0..3 {
            assert_clean(job(guard, || ()));
        }
    });
}

#[test]
fn threads_that_end_before_the_job_are_fine() {
    watched(|guard| {
        for _ in 0..200 {
            // Ends without a join, so that the thread may still be there.
            assert_clean(job(guard, || {
                thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| ());
                    }
                });
            }));
            assert_clean(job(guard, || {
                thread::spawn(|| ()).join().expect("no panic")
            }));
        }
    });
}

#[test]
fn thread_left_behind_is_reported_once_with_tid_and_name() {
    watched(|guard| {
        let mut lingering = None;
        let state = job(guard, || lingering = Some(Lingering::named("left-behind")));
        let lingering = lingering.expect("the job ran");
        let ThreadState::LeftThreads(left) = state else {
            panic!("{state:?}");
        };
        let expected = LeftThread {
            tid: lingering.tid,
            name: "left-behind".to_owned(),
            is_namesake: false,
        };
        assert_eq!(left, [expected]);
        assert_clean(job(guard, || {
            thread::spawn(|| ()).join().expect("no panic")
        }));
        lingering.end();
    });
}

#[test]
fn thread_that_is_called_as_its_worker_is_reported_as_what_it_is() {
    watched(|guard| {
        let name = fs::read_to_string("/proc/thread-self/comm").expect("procfs");
        let mut lingering = None;
        let state = job(guard, || {
            lingering = Some(Lingering::named(name.trim_end()))
        });
        let lingering = lingering.expect("the job ran");
        let ThreadState::LeftThreads(left) = state else {
            panic!("{state:?}");
        };
        let text = crate::error::Error::left_threads(&left).to_string();
        let words = format!(
            "{}, called `{}` after the worker",
            lingering.tid,
            name.trim_end()
        );
        assert!(text.contains(&words), "{text}");
        lingering.end();
    });
}

/// Another copy of the library, such as a plug-in has, signs its workers in with a
/// roster of its own, of which this one knows what is published.
#[test]
fn worker_of_another_copy_of_the_library_is_no_thread_of_the_jobs() {
    use crate::sys::published::{Role, Table};
    let table = Table::publish().expect("a table");
    watched(|guard| {
        let mut theirs = None;
        let state = job(guard, || {
            let parent = thread::spawn(|| Lingering::named("ns:theirs/0"));
            let thread = parent.join().expect("no panic");
            let started = sys::task::alive_since(thread.tid).expect("procfs");
            let slot = table.take().expect("it is empty");
            slot.set(Role::Worker(7), thread.tid, started.expect("it lives"));
            theirs = Some((thread, slot));
        });
        assert_clean(state);
        let (thread, slot) = theirs.expect("the job ran");
        // What is not published is a thread that the job has left.
        slot.clear();
        let state = job(guard, || drop(thread::spawn(|| ()).join()));
        assert!(
            matches!(&state, ThreadState::LeftThreads(left) if left[0].tid == thread.tid),
            "{state:?}"
        );
        thread.end();
    });
}

#[test]
fn thread_with_the_number_of_one_reported_before_is_reported() {
    watched(|guard| {
        let mut lingering = None;
        let state = job(guard, || {
            let thread = Lingering::named("namesake");
            // As if a thread of this number had been reported and had ended.
            crate::home::roster::blame(&[(thread.tid, 0)], &[thread.tid]);
            lingering = Some(thread);
        });
        let lingering = lingering.expect("the job ran");
        assert!(
            matches!(&state, ThreadState::LeftThreads(left) if left[0].tid == lingering.tid),
            "{state:?}"
        );
        lingering.end();
    });
}

#[test]
fn thread_of_a_thread_that_is_gone_is_reported() {
    watched(|guard| {
        let mut lingering = None;
        let state = job(guard, || {
            let parent = thread::spawn(|| Lingering::named("grandchild"));
            lingering = Some(parent.join().expect("no panic"));
        });
        let lingering = lingering.expect("the job ran");
        assert!(
            matches!(&state, ThreadState::LeftThreads(left)
                if left.len() == 1 && left[0].tid == lingering.tid),
            "{state:?}"
        );
        lingering.end();
    });
}

#[test]
fn more_threads_than_the_record_holds_are_all_found() {
    watched(|guard| {
        let mut lingering = Vec::new();
        let state = job(guard, || {
            lingering.extend((0..150).map(|_| Lingering::named("many")));
        });
        let ThreadState::LeftThreads(mut left) = state else {
            panic!("{state:?}");
        };
        left.sort_by_key(|left| left.tid);
        let mut expected: Vec<_> = lingering.iter().map(|thread| thread.tid).collect();
        expected.sort_unstable();
        let left: Vec<_> = left.iter().map(|left| left.tid).collect();
        assert_eq!(left, expected);
        lingering.into_iter().for_each(Lingering::end);
    });
}

/// The kernel writes down that records were lost with the next one that has room: behind
/// a full ring there may be none.
#[test]
fn thread_and_move_behind_a_record_full_of_children_are_found() {
    let children = || (0..200).for_each(|_| drop(output(&mut Command::new("true"))));
    watched(|guard| {
        let mut lingering = None;
        let state = job(guard, || {
            children();
            lingering = Some(Lingering::named("behind"));
        });
        let lingering = lingering.expect("the job ran");
        assert!(
            matches!(&state, ThreadState::LeftThreads(left) if left[0].tid == lingering.tid),
            "{state:?}"
        );
        lingering.end();
    });
    watched(|guard| {
        let state = job(guard, || {
            children();
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
        });
        assert!(matches!(state, ThreadState::Escaped), "{state:?}");
    });
}

#[test]
fn child_processes_are_fine() {
    watched(|guard| {
        let mut child = None;
        assert_clean(job(guard, || {
            output(&mut Command::new("true"));
            child = Command::new("sleep").arg("1000").spawn().ok();
        }));
        let mut child = child.expect("sleep can be started");
        child.kill().expect("still there");
        child.wait().expect("our child");
    });
}

#[test]
fn escaped_thread_is_found() {
    watched(|guard| {
        assert_clean(job(guard, || ()));
        let state = job(guard, || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
        });
        assert!(matches!(state, ThreadState::Escaped), "{state:?}");
    });
}

#[test]
fn thread_that_came_back_is_in_place() {
    watched(|guard| {
        let here = sys::netns::of_this_thread().expect("procfs");
        assert_clean(job(guard, || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            sys::netns::enter(&here).expect("root");
        }));
    });
}

#[test]
fn thread_left_in_a_third_namespace_is_reported_where_threads_are_recorded() {
    let policy = policy(Recording::TasksAndNamespaces);
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("root may use perf");
        let here = sys::netns::of_this_thread().expect("procfs");
        let mut lingering = None;
        let state = job(&mut guard, || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            lingering = Some(Lingering::named("third"));
            sys::netns::enter(&here).expect("root");
        });
        let lingering = lingering.expect("the job ran");
        assert!(
            matches!(&state, ThreadState::LeftThreads(left) if left[0].tid == lingering.tid),
            "{state:?}"
        );
        lingering.end();
    });
}

#[test]
fn worker_of_the_home_namespace_may_leave_threads() {
    for recording in RECORDINGS {
        let policy = policy(recording);
        let home = Netns::current().expect("procfs");
        thread::scope(|scope| {
            scope.spawn(|| {
                let registration = roster::sign_in(home.id());
                let mut guard = policy.install(registration).expect("root may use perf");
                let mut lingering = None;
                assert_clean(job(&mut guard, || {
                    lingering = Some(Lingering::named("home"));
                }));
                lingering.expect("the job ran").end();
            });
        });
    }
}

#[test]
fn overlapping_jobs_in_one_namespace_are_not_blamed_for_each_other() {
    for recording in RECORDINGS {
        let policy = &policy(recording);
        in_new_netns(|registration| {
            let here = sys::netns::of_this_thread().expect("procfs");
            let id = Netns::current().expect("procfs").id();
            let mut guard = policy.install(registration).expect("root may use perf");
            let (created, checked) = (Barrier::new(2), Barrier::new(2));
            thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let registration = roster::sign_in(id);
                    // Born here already: threads inherit the namespace.
                    sys::netns::enter(&here).expect("root");
                    let mut guard = policy.install(registration).expect("root may use perf");
                    let mut lingering = None;
                    let state = job(&mut guard, || {
                        // Not the worker's own child, so no worker's
                        // record has it.
                        let parent = thread::spawn(|| Lingering::named("theirs"));
                        lingering = Some(parent.join().expect("no panic"));
                        created.wait();
                        checked.wait();
                    });
                    (state, lingering.expect("the job ran"))
                });
                created.wait();
                // Its own thread gives the job reason to look.
                let mine = job(&mut guard, || {
                    thread::spawn(|| ()).join().expect("no panic");
                });
                // Before anything can fail: the other job waits for it.
                checked.wait();
                assert_clean(mine);
                let (state, lingering) = other.join().expect("no panic");
                let theirs = lingering.tid;
                lingering.end();
                assert!(
                    matches!(&state, ThreadState::LeftThreads(left)
                        if left.len() == 1 && left[0].tid == theirs),
                    "{state:?}"
                );
            });
        });
    }
}

#[test]
fn suspicion_of_others_makes_a_job_look() {
    let policy = policy(Recording::TasksAndNamespaces);
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("root may use perf");
        let other = {
            // A worker of the same namespace, which asks.
            let id = Netns::current().expect("procfs").id();
            thread::scope(|scope| {
                scope
                    .spawn(|| roster::sign_in(id))
                    .join()
                    .expect("no panic")
            })
        };
        // Created outside of any job, as if by the thread of a thread.
        let stray = Lingering::named("stray");
        if let Installed::Detect(detector) = &mut guard.installed {
            detector.forget();
        }
        guard.before_job();
        assert!(other.suspect_others());
        let state = guard.after_job();
        assert!(
            matches!(&state, ThreadState::LeftThreads(left) if left[0].tid == stray.tid),
            "{state:?}"
        );
        stray.end();
    });
}

#[test]
fn root_gets_the_perf_event() {
    let policy = Policy::prepare(Guard::Detect).expect("procfs");
    assert_eq!(
        policy.mechanism(),
        "perf",
        "perf_event_open(2) is refused: run this as root of the machine"
    );
}
