//! Namespaces that are deleted while workers idle in them: they are let go at
//! once, without a call. And what idling costs.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{CommandExt, Executor, Guard, Netns, WeakNetns};
use netns_exec_tests::{
    Alone, Gate, Held, TempNetns, alone, eventually, fds_of_this_process, fresh, here, ip,
    is_alone, path_of, refuse_fanotify, rerun, this_test, threads_of_this_process, tids_named,
    unique_name,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{UsageWho, getrusage};

use super::with_idle;

/// A tenth of a second is promised; a loaded machine gets more here, and the
/// benches have the figures.
const LIMIT: Duration = Duration::from_secs(2);

/// A named namespace with one end of a veth in it, and the other end in a
/// namespace of its own: that one goes when the named one is dissolved.
struct Wired {
    netns: TempNetns,
    outside: Netns,
}

impl Wired {
    fn new() -> Wired {
        let (netns, outside) = (TempNetns::new(), fresh());
        let mut command = Command::new("ip");
        command.args(["link", "add", "far", "type", "veth"]);
        command.args(["peer", "name", "near", "netns", netns.name()]);
        assert!(command.status_in(&outside).unwrap().success());
        Wired { netns, outside }
    }

    fn is_wired(&self) -> bool {
        let mut command = Command::new("ip");
        let links = command.args(["-o", "link"]).output_in(&self.outside);
        String::from_utf8(links.unwrap().stdout)
            .unwrap()
            .contains("far@")
    }
}

/// Builds an executor with a worker in `netns` that has nothing to do, and that
/// no timeout will end.
fn idling(netns: &Netns, guard: Guard) -> Executor {
    let builder = Executor::builder().guard(guard).idle_timeout(None);
    let executor = builder.build().unwrap();
    assert_eq!(executor.run(netns, here).unwrap(), netns.id());
    executor
}

/// Waits until the namespace is gone, and says how long that took.
#[track_caller]
fn gone_after(weak: &WeakNetns, what: &str) -> Duration {
    let deleted = Instant::now();
    eventually(what, || weak.upgrade().is_none());
    let took = deleted.elapsed();
    println!("{what}: gone after {took:?}");
    assert!(took < LIMIT, "{what}: took {took:?}");
    took
}

type Delete = fn(&str);

const DELETIONS: [(&str, Delete); 3] = [
    ("ip netns del", |name| drop(ip(&["netns", "del", name]))),
    ("Netns::delete", |name| Netns::delete(name).unwrap()),
    ("umount", |name| {
        umount2(&*path_of(name), MntFlags::MNT_DETACH).unwrap();
    }),
];

#[test]
fn deleted_namespace_and_its_devices_go_though_workers_idle_in_it() {
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        for (what, delete) in DELETIONS {
            let wired = Wired::new();
            let executor = idling(&wired.netns, guard);
            assert!(wired.is_wired());
            let weak = wired.netns.downgrade();
            let name = wired.netns.name().to_owned();
            let Wired { netns, outside } = wired;
            // Only the worker holds it, and no call is made.
            netns.keep_name();
            delete(&name);
            gone_after(&weak, &format!("{guard:?}, {what}"));
            let wired = Wired {
                netns: TempNetns::new(),
                outside,
            };
            eventually("the far end of the veth is gone", || !wired.is_wired());
            eventually("the worker is gone", || executor.stats().workers == 0);
            assert_eq!(executor.stats().done, 1);
            let _ = Netns::delete(&name);
        }
    }
}

#[test]
fn pinned_does_not_keep_a_deleted_namespace() {
    for (what, delete) in DELETIONS {
        let netns = TempNetns::new();
        let name = netns.name().to_owned();
        let weak = netns.downgrade();
        let executor = Executor::new().unwrap();
        let pinned = executor.pin(&netns).unwrap();
        assert_eq!(pinned.run(here).unwrap(), netns.id());
        netns.keep_name();
        delete(&name);
        gone_after(&weak, &format!("pinned, {what}"));
        let error = pinned.run(here).unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let _ = Netns::delete(&name);
    }
}

/// Whatever hears of it first: others whose worker was busy until then still let go.
#[test]
fn everything_that_holds_a_deleted_namespace_lets_it_go() {
    let netns = TempNetns::new();
    let first = idling(&netns, Guard::Seal);
    let busy = Executor::builder().idle_timeout(None).build().unwrap();
    let held = Held::new(&busy, &netns);
    let beside = busy.thread(&netns, |stop| stop.wait()).unwrap();
    let stock = SocketStock::builder()
        .kinds([SocketKind::Tcp4])
        .build(&first, &netns)
        .unwrap();
    stock.fill().unwrap();
    let weak = netns.downgrade();
    netns.delete();
    eventually("those that idle have let it go", || {
        first.stats().workers == 0 && stock.on_hand(SocketKind::Tcp4) == 0
    });
    beside.join().unwrap();
    held.end();
    gone_after(&weak, "the busy one's turn");
}

#[test]
fn jobs_of_a_deleted_namespace_finish_first() {
    let netns = TempNetns::new();
    let (id, weak, name) = (netns.id(), netns.downgrade(), netns.name().to_owned());
    let executor = idling(&netns, Guard::Seal);
    let gate = Gate::new();
    let pass = gate.pass();
    let running = executor.spawn(&netns, move || {
        pass.stop();
        here()
    });
    gate.wait_for(1);
    let behind: Vec<_> = (0..20)
        .map(|_| executor.spawn(&netns, here).unwrap())
        .collect();
    netns.keep_name();
    Netns::delete(&name).unwrap();
    // The one thing that would end them early is a worker that is told: it has
    // been, when another namespace, deleted later, is gone.
    let marker = TempNetns::new();
    let (marker_weak, marker_name) = (marker.downgrade(), marker.name().to_owned());
    executor.run(&marker, here).unwrap();
    marker.keep_name();
    Netns::delete(&marker_name).unwrap();
    gone_after(&marker_weak, "the marker");

    let kept = weak.upgrade().expect("a job is running in it");
    assert_eq!(kept.id(), id);
    drop(kept);
    gate.open();
    assert_eq!(running.unwrap().join().unwrap(), id);
    for job in behind {
        assert_eq!(job.join().unwrap(), id);
    }
    gone_after(&weak, "after its last job");
}

#[test]
fn namespace_with_two_names_stays_until_both_are_gone() {
    let netns = TempNetns::new();
    let (weak, name) = (netns.downgrade(), netns.name().to_owned());
    // Another name, as other tools make them: somewhere else, by hand.
    let second = std::env::temp_dir().join(unique_name());
    File::create(&second).unwrap();
    let none: Option<&str> = None;
    mount(
        Some(&*path_of(&name)),
        &second,
        none,
        MsFlags::MS_BIND,
        none,
    )
    .unwrap();

    let executor = idling(&netns, Guard::Seal);
    let worker = executor.run(&netns, nix::unistd::gettid).unwrap();
    netns.keep_name();
    Netns::delete(&name).unwrap();
    // Deletions are heard in order, so when this one was, the other has been.
    let marker = TempNetns::new();
    let (marker_weak, marker_name) = (marker.downgrade(), marker.name().to_owned());
    executor.run(&marker, here).unwrap();
    marker.keep_name();
    Netns::delete(&marker_name).unwrap();
    gone_after(&marker_weak, "the marker");
    let kept = weak.upgrade().expect("it has a name");
    assert_eq!(executor.run(&kept, nix::unistd::gettid).unwrap(), worker);
    drop(kept);

    umount2(&second, MntFlags::MNT_DETACH).unwrap();
    gone_after(&weak, "a bind mount elsewhere");
    fs::remove_file(&second).unwrap();
}

#[test]
fn name_that_is_made_anew_names_the_new_namespace() {
    let executor = Executor::new().unwrap();
    let name = netns_exec_tests::TempName::new();
    let mut last = None;
    for _ in 0..20 {
        let netns = Netns::create(&name).unwrap();
        assert_ne!(Some(netns.id()), last);
        last = Some(netns.id());
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        let weak = netns.downgrade();
        drop(netns);
        Netns::delete(&name).unwrap();
        gone_after(&weak, "one of many");
    }
}

#[test]
fn idle_workers_and_the_watch_cost_no_cpu() {
    alone!(Alone::AsIs);
    let spaces: Vec<_> = (0..20).map(|_| TempNetns::new()).collect();
    let executor = with_idle(None);
    for netns in &spaces {
        executor.run(netns, here).unwrap();
    }
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let total = usage.user_time() + usage.system_time();
        Duration::from_micros(total.num_microseconds().unsigned_abs())
    };
    use nix::sys::time::TimeValLike;
    // What is measured is a second in which nothing happens, once all have
    // settled: other tests of the same machine mount things, which wakes the
    // watch, so the best of several counts.
    let idle = (0..10).map(|_| {
        let before = used();
        std::thread::sleep(Duration::from_secs(1));
        used() - before
    });
    let best = idle
        .inspect(|cost| println!("a second of idling costs {cost:?}"))
        .find(|cost| *cost < Duration::from_millis(2));
    assert!(best.is_some(), "idling costs CPU");
    assert_eq!(executor.stats().workers, spaces.len());
}

/// What the watch's thread has used of a CPU so far.
fn watch_cost() -> Duration {
    let mut cost = None;
    eventually("the watch is there", || {
        let watch = tids_named("netns-watch");
        let used = watch
            .first()
            .map(|tid| fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")));
        cost = used.and_then(Result::ok);
        cost.is_some()
    });
    // Nanoseconds come first: proc_pid_schedstat.
    let cost = cost.unwrap();
    Duration::from_nanos(cost.split(' ').next().unwrap().parse().unwrap())
}

/// The CPU that the watch uses on a table of 1,600 mounts, while others mount 50 times a
/// second. A namespace that is deleted meanwhile is let go in time.
fn churn(limit: f64) {
    let none: Option<&str> = None;
    let folder = std::path::Path::new("/run/churn");
    fs::create_dir(folder).unwrap();
    let file = |name: &str| {
        let path = folder.join(name);
        File::create(&path).unwrap();
        path
    };
    let bind = |path: &std::path::Path| mount(Some(path), path, none, MsFlags::MS_BIND, none);
    for number in 0..1600 {
        bind(&file(&number.to_string())).unwrap();
    }
    let spaces: Vec<_> = (0..20).map(|_| TempNetns::new()).collect();
    let executor = with_idle(None);
    for netns in &spaces {
        executor.run(netns, here).unwrap();
    }
    watch_cost();
    let other = file("other");
    let mount_for = |time: Duration| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            bind(&other).unwrap();
            umount2(&other, MntFlags::MNT_DETACH).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        begun.elapsed()
    };
    // What a quiet system may spend at once is spent.
    mount_for(Duration::from_secs(4));
    let part = (0..5).map(|_| {
        let before = watch_cost();
        let time = mount_for(Duration::from_secs(2));
        (watch_cost() - before).as_secs_f64() / time.as_secs_f64()
    });
    let part = part
        .inspect(|part| println!("the watch takes {:.3} % of a CPU", part * 100.0))
        .find(|part| *part < limit);
    assert!(part.is_some(), "following the mounts costs too much");

    let mut spaces = spaces.into_iter();
    for _ in 0..5 {
        let netns = spaces.next().unwrap();
        let weak = netns.downgrade();
        mount_for(Duration::from_millis(100));
        let deleted = Instant::now();
        netns.delete();
        while weak.upgrade().is_some() {
            mount_for(Duration::ZERO);
            bind(&other).unwrap();
            umount2(&other, MntFlags::MNT_DETACH).unwrap();
            assert!(
                deleted.elapsed() < LIMIT,
                "a deletion among mounts was missed"
            );
        }
        println!("among mounts: gone after {:?}", deleted.elapsed());
    }
}

/// Without optimisation, and on a loaded machine; a tenth of what a look at each mount
/// takes.
const CHURN_LIMIT: f64 = 0.001;

#[test]
fn mounts_of_others_cost_next_to_nothing_where_the_kernel_names_them() {
    alone!(Alone::FreshRun);
    churn(CHURN_LIMIT);
}

#[test]
fn mounts_of_others_cost_little_where_the_whole_table_is_to_be_read() {
    let test = this_test!();
    if is_alone(test) {
        return churn(CHURN_LIMIT);
    }
    let this = rerun(test);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"");
    command.arg(this.get_program()).args(this.get_args());
    for (name, value) in this.get_envs() {
        command.env(name, value.unwrap());
    }
    // Before any thread is there: all are to be alike.
    refuse_fanotify(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
}

#[test]
fn nothing_is_left_after_shutdown() {
    alone!(Alone::AsIs);
    let mounts = || {
        let own = format!("nxt-{}-", std::process::id());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(&own)).count()
    };
    let cycle = |guard: Guard| {
        let spaces: Vec<_> = (0..30).map(|_| TempNetns::new()).collect();
        let builder = Executor::builder().guard(guard).workers_per_netns(2);
        let executor = builder.build().unwrap();
        let handles: Vec<_> = (spaces.iter().chain(&spaces))
            .map(|netns| (netns.id(), executor.spawn(netns, here).unwrap()))
            .collect();
        for (id, handle) in handles {
            assert_eq!(handle.join().unwrap(), id);
        }
        let weak: Vec<_> = spaces.iter().map(|netns| netns.downgrade()).collect();
        if guard == Guard::Detect {
            drop(spaces);
            executor.shutdown(None).unwrap();
        } else {
            executor.shutdown(None).unwrap();
            drop(spaces);
        }
        assert!(weak.iter().all(|weak| weak.upgrade().is_none()));
    };
    // The first one starts the home thread, which stays.
    cycle(Guard::Seal);
    let now = || (threads_of_this_process(), fds_of_this_process(), mounts());
    let before = now();
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        cycle(guard);
        eventually("all is as it was", || now() == before);
    }
}
