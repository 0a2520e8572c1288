//! What a sealed thread cannot do, and what it can.

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
        let _guard = policy
            .install(registration)
            .expect("no privilege is needed");
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(refusal(), Some(libc::EPERM));
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
        let ran = output(Command::new("sh").args(["-c", "python3 -c \"$0\"; exit $?", THREADS]));
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

#[test]
fn refusals_are_counted_and_nothing_else_is() {
    sealed(|guard| {
        let counted = |guard: &ThreadGuard| {
            let Refused { threads, moves } = guard.refused();
            (threads, moves)
        };
        guard.before_job();
        assert_eq!(counted(guard), (0, 0));
        assert_eq!(refusal(), Some(libc::EPERM));
        assert_eq!(counted(guard), (1, 0));
        assert_eq!(raw(libc::SYS_clone, libc::CLONE_THREAD), Errno::EPERM);
        assert_eq!(unshare(CloneFlags::CLONE_NEWNET), Err(Errno::EPERM));
        assert_eq!(counted(guard), (2, 1));

        // What others refuse is not the guard's.
        guard.before_job();
        assert_eq!(
            nix::sched::sched_setaffinity(
                nix::unistd::Pid::from_raw(1 << 29),
                &nix::sched::CpuSet::new()
            )
            .err(),
            Some(Errno::ESRCH)
        );
        assert!(nix::mount::umount("/").is_err());
        assert_eq!(counted(guard), (0, 0));
    });
}

#[test]
fn children_that_do_not_exec_are_neither_refused_nor_counted() {
    sealed(|guard| {
        guard.before_job();
        let status = crate::sys::seccomp::tests::fork_and(|| {
            let thread = thread::Builder::new().spawn(|| {})?;
            thread.join().expect("no panic");
            unshare(CloneFlags::CLONE_FILES | CloneFlags::CLONE_FS)?;
            Ok(())
        });
        assert_eq!(
            status.expect("the child could do all of it").code(),
            Some(0)
        );
        assert_eq!(guard.refused(), Refused::default());
    });
}

#[test]
fn files_and_working_directory_stay_the_processs() {
    sealed(|guard| {
        guard.before_job();
        for flags in [CloneFlags::CLONE_FILES, CloneFlags::CLONE_FS] {
            assert_eq!(unshare(flags), Err(Errno::EPERM));
        }
        let close_range = |flags| crate::sys::seccomp::tests::close_nothing(flags);
        assert_eq!(close_range(1 << 1), Err(Errno::EPERM));
        assert_eq!(close_range(0), Ok(()));
        assert_eq!(guard.refused().moves, 3);
    });
}

#[test]
fn thread_that_has_a_listener_is_sealed_all_the_same() {
    let policy = Policy::prepare(Guard::Seal).expect("root can seal");
    in_new_netns(|registration| {
        // As a container runtime would have put it there.
        let allow = [sys::bpf::ret(libc::SECCOMP_RET_ALLOW)];
        let listener = sys::seccomp::install_with_listener(&allow).expect("it is the first");
        let mut guard = policy.install(registration).expect("without a listener");
        guard.before_job();
        assert_eq!(refusal(), Some(libc::EPERM));
        assert_eq!(unshare(CloneFlags::CLONE_FILES), Err(Errno::EPERM));
        // Not known, so not claimed.
        assert_eq!(guard.refused(), Refused::default());
        drop(listener);
    });
}
