//! Each mechanism on raw threads and real namespaces. They stay in the crate
//! because a guard can be installed on a thread without an executor only here.

use std::any::Any;
use std::fs;
use std::process::Command;
use std::sync::Barrier;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::geteuid;

use super::detect::{Detect, Recording};
use super::*;
use crate::home::roster;
use crate::netns::Netns;

/// Runs `f` on a thread in a new network namespace, signed in as its worker.
fn in_new_netns<T: Send>(f: impl FnOnce(Registration) -> T + Send) -> T {
    assert!(
        geteuid().is_root(),
        "this test makes network namespaces: run it as root, e.g. with \
         CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E'"
    );
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            let netns = Netns::current().expect("the new namespace");
            f(roster::enter(netns.id()))
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `f` on a sealed thread in a new network namespace.
fn sealed<T: Send>(f: impl FnOnce(&mut ThreadGuard) -> T + Send) -> T {
    let policy = Policy::prepare(Guard::Seal).expect("root can seal");
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("what was tried works");
        f(&mut guard)
    })
}

/// A line of the calling thread's `/proc` status.
fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").expect("procfs");
    let line = (status.lines())
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .expect("such a line");
    line.trim().to_owned()
}

/// What a thread is refused with that must not be created.
fn refusal() -> Option<i32> {
    let error = thread::Builder::new().spawn(|| {}).err()?;
    error.raw_os_error()
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

mod seal {
    use super::*;

    #[test]
    fn sealed_thread_cannot_move() {
        let elsewhere = in_new_netns(|_| Netns::current().expect("a namespace"));
        sealed(|guard| {
            let before = sys::netns::of_this_thread().expect("procfs");
            let refused = |result: nix::Result<()>| assert_eq!(result, Err(Errno::EPERM));
            refused(nix::sched::setns(&elsewhere, CloneFlags::CLONE_NEWNET));
            refused(nix::sched::setns(&elsewhere, CloneFlags::empty()));
            refused(nix::sched::setns(&before, CloneFlags::CLONE_NEWNET));
            refused(unshare(CloneFlags::CLONE_NEWNET));
            refused(unshare(CloneFlags::CLONE_NEWNS));
            // One thread cannot have a user namespace of its own.
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EINVAL));
            assert!(matches!(guard.after_job(), ThreadState::Clean));
        });
    }

    #[test]
    fn sealed_thread_gets_an_error_for_a_thread() {
        sealed(|_| {
            assert_eq!(refusal(), Some(libc::EPERM));
            // And again: nothing was used up.
            assert_eq!(refusal(), Some(libc::EPERM));
            let spawned = std::panic::catch_unwind(|| thread::spawn(|| {}));
            assert!(spawned.is_err());
        });
    }

    #[test]
    fn other_threads_keep_their_privileges() {
        let policy = Policy::prepare(Guard::Seal).expect("root can seal");
        let (installed, checked) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                in_new_netns(|registration| {
                    let _guard = policy.install(registration).expect("what was tried works");
                    installed.wait();
                    checked.wait();
                });
            });
            installed.wait();
            assert_eq!(refusal(), None);
            assert!(sys::caps::has_sys_admin().expect("capget"));
            assert_eq!(status("Seccomp_filters"), "0");
            in_new_netns(|_| ());
            checked.wait();
        });
    }

    #[test]
    fn sealed_thread_loses_one_capability_only() {
        let before = u64::from_str_radix(&status("CapEff"), 16).expect("hexadecimal");
        let bounding = status("CapBnd");
        sealed(|_| {
            let left = before & !(1 << 21);
            for set in ["CapEff", "CapPrm"] {
                let set = u64::from_str_radix(&status(set), 16).expect("hexadecimal");
                assert_eq!(set, left);
            }
            assert_eq!(status("CapBnd"), bounding);
            // Configuring a network takes CAP_NET_ADMIN.
            output(Command::new("ip").args(["link", "set", "lo", "up"]));
        });
    }

    #[test]
    fn privileged_seal_leaves_no_new_privs_off() {
        sealed(|_| {
            assert_eq!(status("NoNewPrivs"), "0");
            assert_eq!(status("Seccomp_filters"), "1");
        });
    }

    #[test]
    fn thread_without_privilege_is_sealed_with_no_new_privs() {
        let policy = Policy::prepare(Guard::Seal).expect("root can seal");
        in_new_netns(|registration| {
            sys::caps::drop_sys_admin().expect("capset");
            let guard = policy
                .install(registration)
                .expect("no privilege is needed");
            assert_eq!(status("NoNewPrivs"), "1");
            assert_eq!(refusal(), Some(libc::EPERM));
            let bare = "called `Result::unwrap()` on an `Err` value: EPERM";
            assert!(!guard.explains(&bare));
        });
        assert_eq!(status("NoNewPrivs"), "0");
    }

    /// Makes a system call through libc with arguments that the kernel refuses
    /// in another way than the filter does.
    fn raw(nr: libc::c_long, first: libc::c_int) -> Errno {
        crate::sys::seccomp::tests::raw(nr, first)
    }

    #[test]
    fn raw_calls_are_refused() {
        // Without CLONE_SIGHAND, the kernel knows no CLONE_THREAD.
        assert_eq!(raw(libc::SYS_clone, libc::CLONE_THREAD), Errno::EINVAL);
        assert_eq!(raw(libc::SYS_clone3, 0), Errno::EINVAL);
        assert_ne!(raw(libc::SYS_io_uring_setup, 0), Errno::ENOSYS);
        sealed(|_| {
            assert_eq!(raw(libc::SYS_clone, libc::CLONE_THREAD), Errno::EPERM);
            assert_eq!(raw(libc::SYS_clone3, 0), Errno::ENOSYS);
            assert_eq!(raw(libc::SYS_io_uring_setup, 0), Errno::ENOSYS);
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_of_the_executable_and_of_x32_are_refused() {
        use crate::sys::seccomp::tests::inline;

        const X32: libc::c_long = 0x4000_0000;
        let objects = sys::text::objects();
        assert!(
            !objects[0].fixed || objects.len() == 1,
            "an executable at a fixed address is not covered: build the tests as PIE"
        );
        assert_eq!(inline(libc::SYS_clone, libc::CLONE_THREAD), Errno::EINVAL);
        sealed(|_| {
            for abi in [0, X32] {
                let flags = libc::CLONE_THREAD;
                assert_eq!(inline(abi | libc::SYS_clone, flags), Errno::EPERM);
                assert_eq!(raw(abi | libc::SYS_clone, flags), Errno::EPERM);
                assert_eq!(inline(abi | libc::SYS_clone3, 0), Errno::ENOSYS);
                assert_eq!(inline(abi | libc::SYS_io_uring_setup, 0), Errno::ENOSYS);
            }
        });
    }

    #[test]
    fn children_create_threads() {
        const THREADS: &str = "
import threading
threads = [threading.Thread(target=print, args=('ran',)) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
        sealed(|_| {
            let ran = output(Command::new("python3").args(["-c", THREADS]));
            assert_eq!(ran.matches("ran").count(), 3);
            // And grandchildren, by way of a shell.
            let ran =
                output(Command::new("sh").args(["-c", "python3 -c \"$0\"; exit $?", THREADS]));
            assert_eq!(ran.matches("ran").count(), 3);
        });
    }

    #[test]
    fn children_of_root_have_their_privileges_back() {
        sealed(|_| {
            let caps = output(Command::new("unshare").args(["-n", "cat", "/proc/self/status"]));
            assert!(caps.contains("NoNewPrivs:\t0"));
        });
    }

    #[test]
    fn sealed_thread_forks() {
        sealed(|_| {
            // A fork by libc, as `pre_exec` makes Command do it.
            let status = crate::sys::seccomp::tests::fork_and_exec();
            assert_eq!(status.expect("fork").code(), Some(0));
        });
    }

    #[test]
    fn seal_can_be_prepared_on_a_sealed_thread() {
        sealed(|_| {
            let policy = Policy::prepare(Guard::Seal).expect("the home thread tries it");
            assert_eq!(policy.guard(), Guard::Seal);
        });
    }

    /// The panic of `f`.
    fn panic_of(f: impl FnOnce()) -> Box<dyn Any + Send> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).expect_err("a panic")
    }

    #[test]
    fn panics_over_a_refusal_are_explained() {
        sealed(|guard| {
            let spawn = panic_of(|| drop(thread::spawn(|| {})));
            assert!(guard.explains(&*spawn));
            let unwrap = panic_of(|| drop(thread::Builder::new().spawn(|| {}).unwrap()));
            assert!(guard.explains(&*unwrap));
            let nix = panic_of(|| unshare(CloneFlags::CLONE_NEWNET).unwrap());
            assert!(guard.explains(&*nix));
            let error = thread::Builder::new().spawn(|| {}).unwrap_err();
            assert!(guard.explains(&*panic_of(|| std::panic::panic_any(error))));

            let missing = panic_of(|| drop(fs::read("/does/not/exist").unwrap()));
            assert!(!guard.explains(&*missing));
            assert!(!guard.explains(&*panic_of(|| panic!("a thread is bare"))));
            assert!(!guard.explains(&17_u32));
        });
    }
}

mod detect {
    use super::*;

    /// How the same question is answered with more and with less help.
    const RECORDINGS: [Recording; 3] = [
        Recording::TasksAndNamespaces,
        Recording::Tasks,
        Recording::Nothing,
    ];

    fn policy(recording: Recording) -> Policy {
        let detect = crate::home::Home::get()
            .expect("a home thread")
            .visit(move || Detect::with(recording))
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
            };
            assert_eq!(left, [expected]);
            assert_clean(job(guard, || {
                thread::spawn(|| ()).join().expect("no panic")
            }));
            lingering.end();
        });
    }

    #[test]
    fn thread_with_the_number_of_one_reported_before_is_reported() {
        watched(|guard| {
            let mut lingering = None;
            let state = job(guard, || {
                let thread = Lingering::named("namesake");
                // As if a thread of this number had been reported and had ended.
                crate::home::roster::claim(&[(thread.tid, 0)], &[thread.tid]);
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
                    let registration = roster::enter(home.id());
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
                        let registration = roster::enter(id);
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
                thread::scope(|scope| scope.spawn(|| roster::enter(id)).join().expect("no panic"))
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
}

mod off {
    use super::*;

    #[test]
    fn escaped_thread_is_found() {
        let policy = Policy::prepare(Guard::Off).expect("nothing is needed");
        in_new_netns(|registration| {
            let mut guard = policy.install(registration).expect("procfs");
            guard.before_job();
            assert!(matches!(guard.after_job(), ThreadState::Clean));
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            assert!(matches!(guard.after_job(), ThreadState::Escaped));
        });
    }

    #[test]
    fn signals_are_blocked_again_before_the_worker_sleeps() {
        let policy = Policy::prepare(Guard::Off).expect("nothing is needed");
        in_new_netns(|registration| {
            let mut guard = policy.install(registration).expect("procfs");
            let mut some = SigSet::empty();
            some.add(Signal::SIGUSR1);
            some.thread_unblock().expect("a valid mask");
            assert!(matches!(guard.before_park(), ThreadState::Clean));
            let mask = SigSet::empty()
                .thread_swap_mask(SigmaskHow::SIG_BLOCK)
                .expect("a valid mask");
            assert!(mask.contains(Signal::SIGUSR1));
            assert!(mask.contains(Signal::SIGTERM));
        });
    }
}

#[test]
fn roster_forgets_a_thread_that_signs_out() {
    let tid = sys::thread::tid();
    let netns = Netns::current().expect("procfs");
    let registration = roster::enter(netns.id());
    assert!(roster::is_worker(tid));
    assert_eq!(roster::netns_of(tid), Some(netns.id()));
    drop(registration);
    assert!(!roster::is_worker(tid));
    let visit = roster::visit();
    assert!(roster::is_worker(tid));
    assert_eq!(roster::netns_of(tid), None);
    drop(visit);
}
