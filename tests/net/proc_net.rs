//! Reading a namespace's tables without a job.

use std::fs;
use std::os::fd::AsRawFd;
use std::thread;

use netns_exec::net::ProcNet;
use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{Held, TempNetns, eventually, fresh, ip, on_a_thread, tid};

/// A namespace in which there is a device of a name that no other has.
fn with_device(device: &str) -> TempNetns {
    let netns = TempNetns::new();
    ip(&["-n", netns.name(), "link", "add", device, "type", "veth"]);
    netns
}

#[track_caller]
fn devices(net: &ProcNet) -> String {
    fs::read_to_string(net.join("dev")).unwrap()
}

#[test]
fn any_thread_reads_the_tables_of_each_namespace() {
    let executor = Executor::new().unwrap();
    let (a, b) = (with_device("only-in-a"), with_device("only-in-b"));
    let (pinned, other) = (executor.pin(&a).unwrap(), executor.pin(&b).unwrap());
    let (in_a, in_b) = (pinned.proc_net().unwrap(), other.proc_net().unwrap());
    // The path keeps what it needs.
    drop((pinned, other));
    let check = || {
        for (net, has, has_not) in [
            (&in_a, "only-in-a", "only-in-b"),
            (&in_b, "only-in-b", "only-in-a"),
        ] {
            let devices = devices(net);
            assert!(devices.contains(has) && !devices.contains(has_not));
        }
    };
    check();
    on_a_thread(check);
    executor.run(&a, check).unwrap();
    executor.run(&fresh(), check).unwrap();
    let global = a.netns().proc_net().unwrap();
    assert!(devices(&global).contains("only-in-a"));
    assert!(format!("{global:?}").contains(a.name()));
}

#[test]
fn busy_worker_and_a_spare_do_not_matter() {
    let executor = Executor::new().unwrap();
    let netns = with_device("here");
    let pinned = executor.pin(&netns).unwrap();
    let held = Held::new(&executor, &netns);
    let net = pinned.proc_net().unwrap();
    assert!(devices(&net).contains("here"));
    held.end();
    // Asked for by a job, while another one waits.
    let asked = executor.run(&netns, || {
        let pinned = pinned.clone();
        let inner = executor.spawn(&netns, move || pinned.proc_net().unwrap());
        inner.unwrap().join().unwrap()
    });
    let asked = asked.unwrap();
    let idle = Executor::builder()
        .idle_timeout(Some(std::time::Duration::ZERO))
        .build()
        .unwrap();
    idle.run(&netns, || ()).unwrap();
    drop(idle);
    assert!(devices(&asked).contains("here"));
}

#[test]
fn tables_are_gone_with_the_worker_and_never_those_of_another() {
    let executor = Executor::new().unwrap();
    let (netns, other) = (with_device("mine"), with_device("other"));
    let pinned = executor.pin(&netns).unwrap();
    let net = pinned.proc_net().unwrap();
    assert!(devices(&net).contains("mine"));
    executor.retire(&netns).unwrap();
    // Threads with other numbers, and soon with the same.
    for _ in 0..50 {
        let later = executor.pin(&other).unwrap();
        assert!(devices(&later.proc_net().unwrap()).contains("other"));
        executor.retire(&other).unwrap();
        let error = fs::read_to_string(net.join("dev")).unwrap_err();
        assert!(
            matches!(
                error.raw_os_error(),
                Some(nix::libc::ENOENT | nix::libc::EINVAL)
            ),
            "{error}"
        );
    }
    // Another one may be asked for.
    assert!(devices(&pinned.proc_net().unwrap()).contains("mine"));
}

#[test]
fn tables_are_not_those_of_a_thread_that_was_given_the_number() {
    let executor = Executor::new().unwrap();
    let (netns, other) = (with_device("mine"), with_device("other"));
    let pinned = executor.pin(&netns).unwrap();
    let net = pinned.proc_net().unwrap();
    let number = executor.run(&netns, tid).unwrap();
    executor.retire(&netns).unwrap();
    // The kernel gives out the next one that is free; on a busy machine others are faster.
    eventually("a worker elsewhere has the same number", || {
        let last = (number - 1).to_string();
        fs::write("/proc/sys/kernel/ns_last_pid", last)
            .expect("root, and a kernel with CHECKPOINT_RESTORE, as distributions have it");
        executor.retire(&other).unwrap();
        executor.run(&other, tid).unwrap() == number
    });
    let by_number = fs::read_to_string(format!("/proc/self/task/{number}/net/dev")).unwrap();
    assert!(by_number.contains("other"), "it has the number");
    fs::read_to_string(net.join("dev")).unwrap_err();
}

#[test]
fn spoiled_worker_is_replaced() {
    let builder = Executor::builder().guard(Guard::Off);
    let (executor, elsewhere) = (builder.build().unwrap(), fresh());
    let netns = with_device("mine");
    let pinned = executor.pin(&netns).unwrap();
    let net = pinned.proc_net().unwrap();
    let _ = pinned.run(|| {
        nix::sched::setns(&elsewhere, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    });
    drop(net);
    eventually("the tables are there again", || {
        pinned
            .proc_net()
            .is_ok_and(|net| fs::read_to_string(net.join("dev")).is_ok_and(|t| t.contains("mine")))
    });
}

#[test]
fn it_does_not_keep_a_deleted_namespace() {
    let executor = Executor::builder().idle_timeout(None).build().unwrap();
    let netns = TempNetns::new();
    let net = executor.pin(&netns).unwrap().proc_net().unwrap();
    let weak = netns.downgrade();
    netns.delete();
    eventually("the namespace is gone", || weak.upgrade().is_none());
    fs::read_to_string(net.join("dev")).unwrap_err();
}

#[test]
fn many_namespaces_are_read_at_the_same_time() {
    let executor = Executor::new().unwrap();
    let spaces: Vec<Netns> = (0..20).map(|_| fresh()).collect();
    let nets: Vec<_> = (spaces.iter())
        .map(|netns| executor.pin(netns).unwrap().proc_net().unwrap())
        .collect();
    let done = executor.stats().done;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for net in &nets {
                    assert!(devices(net).contains("lo:"));
                }
            });
        }
    });
    assert_eq!(executor.stats().done, done, "no job was needed");
    // A folder is held for each, closed with it.
    let path = nets[0].to_owned();
    assert!(path.starts_with("/proc"));
    let fd = fs::File::open(&path).unwrap();
    assert!(fd.as_raw_fd() > 0);
}
