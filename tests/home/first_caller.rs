//! Workers are as the process's main thread is, whichever thread calls first.

use std::fs;
use std::process::Stdio;
use std::thread;

use netns_exec::{Error, Executor, Guard, Netns};
use netns_exec_tests::{
    drop_all_capabilities, drop_sys_admin, eventually, is_alone, note, on_a_thread, run_alone,
    status_of, this_test, tid,
};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::prctl;
use nix::unistd::{Pid, getpid};

/// What a thread did to itself before it is the first that calls.
type Change = (&'static str, fn());

fn check(rc: libc::c_long) {
    Errno::result(rc).expect("root may do this");
}

/// What cannot be taken back. The name is what the error says.
const REFUSED: [Change; 11] = [
    ("capabilities", drop_sys_admin),
    ("capabilities", drop_all_capabilities),
    ("CapBnd", drop_from_bounding_set),
    ("pid or time namespace", || {
        unshare(CloneFlags::CLONE_NEWPID).unwrap()
    }),
    ("NO_NEW_PRIVS", || prctl::set_no_new_privs().unwrap()),
    ("seccomp", install_filter),
    ("descriptor table", || {
        unshare(CloneFlags::CLONE_FILES).unwrap()
    }),
    ("working directory", || {
        unshare(CloneFlags::CLONE_FS).unwrap()
    }),
    ("mount namespace", || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap()
    }),
    ("Uid", || change_user(libc::SYS_setresuid)),
    ("Gid", || change_user(libc::SYS_setresgid)),
];

/// What the home thread gets from the main thread.
const TAKEN: [Change; 9] = [
    ("network namespace", || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap()
    }),
    ("UTS namespace", || {
        unshare(CloneFlags::CLONE_NEWUTS).unwrap()
    }),
    ("IPC namespace", || {
        unshare(CloneFlags::CLONE_NEWIPC).unwrap()
    }),
    ("cgroup namespace", || {
        unshare(CloneFlags::CLONE_NEWCGROUP).unwrap()
    }),
    ("inheritable capabilities", change_inheritable),
    ("CPUs", bind),
    ("nice value", || nice(10)),
    ("nice value below 0", || nice(-10)),
    ("policy", become_real_time),
];

#[allow(unsafe_code)]
fn drop_from_bounding_set() {
    // SAFETY: the call takes integers.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 18, 0, 0, 0) }.into());
}

#[allow(unsafe_code)]
fn change_inheritable() {
    #[repr(C)]
    struct Header(u32, i32);
    let mut header = Header(0x2008_0522, 0);
    let mut words = [[0_u32; 3]; 2];
    // SAFETY: the kernel writes two words for this version.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) });
    words[0][2] ^= 1;
    // SAFETY: the kernel reads two words for this version.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) });
}

#[allow(unsafe_code)]
fn install_filter() {
    let allow = [libc::sock_filter {
        code: 0x06, // BPF_RET
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: allow.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads one filter of one instruction, all live here.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &program,
        )
    });
}

/// Keeps the capabilities: it is another user that this is about.
#[allow(unsafe_code)]
fn change_user(call: libc::c_long) {
    // SAFETY: the call takes integers, and changes this thread alone.
    let kept = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 1 << 2 | 1 << 4, 0, 0, 0) };
    check(kept.into());
    // SAFETY: as above: it is the bare call.
    check(unsafe { libc::syscall(call, 0, 4711, 0) });
}

fn bind() {
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

#[allow(unsafe_code)]
fn nice(value: i32) {
    // SAFETY: the call takes integers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, tid().unsigned_abs(), value) }.into());
}

#[allow(unsafe_code)]
fn become_real_time() {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one parameter, which lives in this frame.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) }.into());
}

/// All that this test can see of what a thread has inherited. The network namespace and
/// the mask are a worker's own.
fn inherited(tid: i32) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for key in [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Cpus_allowed",
    ] {
        all.push((key.to_owned(), status_of(tid, key).unwrap_or_default()));
    }
    for kind in [
        "mnt",
        "uts",
        "ipc",
        "cgroup",
        "user",
        "pid_for_children",
        "time_for_children",
    ] {
        let link = fs::read_link(format!("/proc/self/task/{tid}/ns/{kind}")).ok();
        all.push((kind.to_owned(), format!("{link:?}")));
    }
    // Priority, nice value and policy, see proc_pid_stat(5).
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    for (name, index) in [("priority", 15), ("nice", 16), ("policy", 38)] {
        all.push((name.to_owned(), fields[index].to_owned()));
    }
    all
}

/// Uses the library, and returns what a worker is like.
fn use_it() -> Result<Vec<(String, String)>, Error> {
    let executor = Executor::builder().guard(Guard::Off).build()?;
    let netns = Netns::new()?;
    executor.run(&netns, || inherited(tid()))
}

/// The network namespaces of the threads that are not workers, by name.
fn places() -> Vec<(String, String)> {
    let mut places = Vec::new();
    for tid in netns_exec_tests::tids() {
        let task = format!("/proc/self/task/{tid}");
        let name = fs::read_to_string(format!("{task}/comm")).unwrap_or_default();
        if name.starts_with("netns-") {
            let link = fs::read_link(format!("{task}/ns/net")).unwrap();
            places.push((name.trim().to_owned(), link.display().to_string()));
        }
    }
    places
}

/// Runs the calling test for each of `changes` in a process of its own; there, returns
/// the one that it is about.
fn each_alone(test: &str, changes: &[Change]) -> Option<Change> {
    if is_alone(test) {
        let index: usize = note().expect("given below").parse().expect("a number");
        return Some(changes[index]);
    }
    for index in 0..changes.len() {
        run_alone(
            test,
            netns_exec_tests::Alone::AsIs,
            &index.to_string(),
            Stdio::null(),
        );
    }
    None
}

#[test]
fn caller_that_lost_something_for_good_is_refused_and_the_next_one_is_not() {
    let Some((name, change)) = each_alone(this_test!(), &REFUSED) else {
        return;
    };
    let error = on_a_thread(|| {
        change();
        let error = use_it().expect_err(name);
        // No cached answer: it is tried anew.
        assert_eq!(Netns::new().expect_err(name).to_string(), error.to_string());
        error
    });
    let text = error.to_string();
    assert!(
        text.contains("home thread") && text.contains(name),
        "{text}"
    );
    assert!(text.contains("main thread"), "{text}");
    assert!(error.raw_os_error().is_some(), "{text}");

    let main = inherited(getpid().as_raw());
    assert_eq!(use_it().expect("this thread is like the main thread"), main);
}

#[test]
fn nothing_else_is_inherited_from_the_first_caller() {
    let Some((name, change)) = each_alone(this_test!(), &TAKEN) else {
        return;
    };
    let main = inherited(getpid().as_raw());
    let worker = on_a_thread(|| {
        change();
        use_it().expect(name)
    });
    assert_eq!(worker, main, "{name}");
    let home = fs::read_link("/proc/self/ns/net").unwrap();
    let places = places();
    assert!(places.iter().any(|(name, _)| name == "netns-home"));
    for (thread, at) in places {
        assert_eq!(
            at,
            home.display().to_string(),
            "{thread}, born by a thread with another {name}"
        );
    }
}

#[test]
fn caller_without_privilege_gets_from_the_main_thread_what_needs_none() {
    netns_exec_tests::alone!(netns_exec_tests::Alone::OrdinaryUser);
    let main = inherited(getpid().as_raw());
    let home = on_a_thread(|| {
        bind();
        let executor = Executor::builder().guard(Guard::Off).build().unwrap();
        executor.run(&Netns::home().unwrap(), || inherited(tid()))
    });
    assert_eq!(home.unwrap(), main);
}

#[test]
fn caller_that_was_made_nicer_than_it_can_undo_is_told_so() {
    netns_exec_tests::alone!(netns_exec_tests::Alone::OrdinaryUser);
    let error = on_a_thread(|| {
        nice(10);
        Executor::new().expect_err("to be less nice takes CAP_SYS_NICE")
    });
    assert!(error.is_permission_denied(), "{error}");
    assert!(error.to_string().contains("nice value"), "{error}");
    Executor::new().expect("this thread is like the main thread");
}

/// `Home::get` holds no lock over a start: who comes meanwhile waits for that one, and
/// tries again where it failed.
#[test]
fn many_first_callers_at_once_each_get_what_they_deserve() {
    netns_exec_tests::alone!(netns_exec_tests::Alone::AsIs);
    thread::scope(|scope| {
        for index in 0..16 {
            scope.spawn(move || {
                if index % 2 == 0 {
                    use_it().expect("this thread is like the main thread");
                } else {
                    drop_sys_admin();
                    // Served once another one has been.
                    eventually("the home thread is there", || {
                        use_it()
                            .map_err(|error| assert!(error.is_permission_denied()))
                            .is_ok()
                    });
                }
            });
        }
    });
}
