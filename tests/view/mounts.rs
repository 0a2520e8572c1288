//! What is mounted where: in the view, and for all other threads.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Guard, Netns, View, audit};
use netns_exec_tests::{Alone, GUARDS, TempNetns, alone, eventually, fresh, ip, tid, tids};

use super::{Files, facts, read};

facts! {
    sys_shows_the_devices_of_the_namespace_and_keeps_what_was_mounted_on_it,
    proc_net_is_the_workers_own,
    view_is_kept_under_every_guard,
    deleted_namespace_is_not_kept_by_the_view_of_another,
    names_made_later_are_seen_in_a_view,
    working_directory_of_a_viewed_worker_is_its_own,
    children_of_a_viewed_job_have_the_view,
    worker_of_the_home_namespace_has_a_view_too,
}

/// Gives a namespace two devices that no other has.
fn add_devices(netns: &TempNetns) {
    let name = netns.name();
    ip(&[
        "-n",
        name,
        "link",
        "add",
        "only-here",
        "type",
        "veth",
        "peer",
        "other-end",
    ]);
}

/// The devices that `/sys` shows, in order.
pub(crate) fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").expect("sysfs");
    let mut names: Vec<_> = (entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // Files of the bonding driver.
        .filter(|name| !name.starts_with("bonding_"))
        .collect();
    names.sort();
    names
}

fn viewed() -> Executor {
    let executor = Executor::builder().view(View::new()).build();
    executor.expect("an executor")
}

/// The mount points below `/sys` in a mountinfo file.
fn below_sys(mountinfo: &str) -> Vec<String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<_> = points
        .filter(|point| point.starts_with("/sys/"))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

fn sys_shows_the_devices_of_the_namespace_and_keeps_what_was_mounted_on_it() {
    let blue = TempNetns::new();
    add_devices(&blue);
    let before = devices();
    let kept = below_sys(&read("/proc/self/mountinfo"));
    assert!(kept.contains(&"/sys/fs/cgroup".to_owned()), "{kept:?}");
    let cgroup = |path: &str| fs::read_dir(path).expect("there").count();
    let groups = cgroup("/sys/fs/cgroup");
    assert!(groups > 0);
    let (seen, mounts, seen_groups) = viewed()
        .run(&blue, || {
            let mounts = below_sys(&read("/proc/thread-self/mountinfo"));
            (devices(), mounts, cgroup("/sys/fs/cgroup"))
        })
        .expect("the job ran");
    assert_eq!(seen, ["lo", "only-here", "other-end"]);
    assert_eq!(mounts, kept);
    assert_eq!(seen_groups, groups);
    assert_eq!(devices(), before);
}

fn proc_net_is_the_workers_own() {
    let blue = TempNetns::new();
    add_devices(&blue);
    let executor = viewed();
    let has_it = |path: &'static str| {
        let job = move || read(path).contains("only-here");
        executor.run(&blue, job).expect("the job ran")
    };
    for path in [
        "/proc/net/dev",
        "/proc/self/net/dev",
        "/proc/thread-self/net/dev",
    ] {
        assert!(has_it(path), "{path}");
        let home = Netns::home().expect("home");
        let there = executor.run(&home, || read(path).contains("only-here"));
        assert!(!there.expect("the job ran") && !read(path).contains("only-here"));
    }
    // Also of a second worker, whose thread is another one.
    executor.retire(&blue).expect("alive");
    assert!(has_it("/proc/net/dev"));
    // Without a view it is that of the process: this is what a view is for.
    let plain = Executor::new().expect("an executor");
    let seen = plain.run(&blue, || read("/proc/net/dev").contains("only-here"));
    assert!(!seen.expect("the job ran"));
}

fn view_is_kept_under_every_guard() {
    for guard in GUARDS {
        let (files, blue) = (Files::new(), TempNetns::new());
        files.write(blue.name(), "hosts", "blue's\n");
        let executor = Executor::builder().view(files.view()).guard(guard).build();
        let executor = executor.expect("root may have every guard");
        let job = || (tid(), read("/etc/hosts"), devices());
        let first = executor.run(&blue, job).expect("the job ran");
        assert_eq!((first.1.as_str(), first.2.len()), ("blue's\n", 1));
        // Longer than a worker waits before it looks at itself.
        thread::sleep(Duration::from_millis(60));
        let second = executor.run(&blue, job).expect("the job ran");
        assert_eq!(
            first, second,
            "{guard:?}: the guard found its own worker unfit"
        );
        if guard == Guard::Seal {
            let undone = executor.run(&blue, || nix::mount::umount("/etc/hosts"));
            undone
                .expect("the job ran")
                .expect_err("sealed: no CAP_SYS_ADMIN");
        }
    }
}

fn deleted_namespace_is_not_kept_by_the_view_of_another() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let executor = viewed();
    executor.run(&blue, || {}).expect("the job ran");
    let weak = red.downgrade();
    red.delete();
    eventually("the deleted namespace is gone", || weak.upgrade().is_none());
    // The worker was there all the time.
    assert_eq!(executor.stats().workers, 1);
}

fn names_made_later_are_seen_in_a_view() {
    // Has /run/netns made a shared mount.
    let blue = TempNetns::new();
    let executor = viewed();
    executor.run(&blue, || {}).expect("the job ran");
    let red = TempNetns::new();
    let found = executor.run(&blue, || Netns::open(red.name()).map(|netns| netns.id()));
    assert_eq!(found.expect("the job ran").expect("its name"), red.id());
}

fn working_directory_of_a_viewed_worker_is_its_own() {
    use nix::sys::stat::{Mode, umask};

    let cwd = || std::env::current_dir().expect("there");
    let before = cwd();
    let leave = [
        || std::env::set_current_dir("/proc").expect("there"),
        || {
            umask(Mode::from_bits_truncate(0o147));
        },
    ];
    for (guard, leave) in GUARDS
        .into_iter()
        .flat_map(|guard| leave.map(|leave| (guard, leave)))
    {
        let blue = TempNetns::new();
        let executor = Executor::builder().view(View::new()).guard(guard).build();
        let executor = executor.expect("root may have every guard");
        let job = || {
            let at_birth = cwd();
            leave();
            (tid(), at_birth)
        };
        let (first, at_birth) = executor.run(&blue, job).expect("the job ran");
        assert_eq!(at_birth, before);
        assert_eq!(cwd(), before);
        // Once it has had nothing to do, no job comes to a worker that is elsewhere.
        eventually("the worker has left", || !tids().contains(&first));
        let (second, at_birth) = executor.run(&blue, job).expect("the job ran");
        assert_ne!(first, second);
        assert_eq!(at_birth, before);
    }
}

fn children_of_a_viewed_job_have_the_view() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "blue's\n");
    let script = "cat /etc/hosts; grep -c : /proc/net/dev; ls /sys/class/net";
    let output = (files.executor())
        .run(&blue, || {
            std::process::Command::new("sh")
                .args(["-c", script])
                .output()
        })
        .expect("the job ran")
        .expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "blue's\n1\nlo\n");
}

fn worker_of_the_home_namespace_has_a_view_too() {
    let home = Netns::home().expect("home");
    let seen = viewed().run(&home, || (devices(), read("/proc/net/dev").lines().count()));
    let (devices_seen, lines) = seen.expect("the job ran");
    assert_eq!(lines, read("/proc/net/dev").lines().count());
    assert_eq!(devices_seen.len() + 2, lines);
}

/// By thread, what it sees mounted, names of namespaces aside: those of other tests come
/// and go.
fn mounts_of_all_threads() -> BTreeMap<i32, String> {
    let mounts = |tid: i32| {
        let text = fs::read_to_string(format!("/proc/self/task/{tid}/mountinfo")).ok()?;
        let lines = text.lines().filter(|line| !line.contains(" - nsfs "));
        Some((tid, lines.collect::<Vec<_>>().join("\n")))
    };
    // One that helped may just have ended.
    tids().into_iter().filter_map(mounts).collect()
}

#[test]
fn no_other_thread_sees_a_mount_of_a_view() {
    alone!(Alone::AsIs);
    other_threads_see_nothing();
}

#[test]
fn no_other_thread_of_an_ordinary_user_sees_a_mount_of_a_view() {
    alone!(Alone::LimitedRoot);
    other_threads_see_nothing();
}

/// Also where every mount is a shared one, as systemd has it.
#[test]
fn no_other_thread_sees_a_mount_of_a_view_where_mounts_are_shared() {
    alone!(Alone::FreshRun);
    let none = None::<&str>;
    let shared = nix::mount::MsFlags::MS_SHARED | nix::mount::MsFlags::MS_REC;
    nix::mount::mount(none, "/", none, shared, none).expect("root may");
    other_threads_see_nothing();
}

fn other_threads_see_nothing() {
    let (files, blue, red) = (Files::new(), TempNetns::new(), fresh());
    files.write(blue.name(), "hosts", "blue's\n");
    files.write(red.label(), "resolv.conf", "red's\n");
    let plain = Executor::new().expect("an executor");
    plain.run(&blue, || {}).expect("the job ran");
    let executor = files.executor();
    let before = mounts_of_all_threads();
    let during = [blue.netns(), &red].map(|netns| {
        let seen = executor.run(netns, || read("/proc/thread-self/mountinfo"));
        let seen = seen.expect("the job ran");
        assert!(before.values().all(|other| *other != seen));
        mounts_of_all_threads()
    });
    executor.shutdown(None).expect("the workers ended");
    for after in during.iter().chain([&mounts_of_all_threads()]) {
        let still = before.iter().filter(|(tid, _)| after.contains_key(tid));
        let compared = still.map(|(tid, mounts)| assert_eq!(&after[tid], mounts, "thread {tid}"));
        // Main, this one, home, the worker without a view.
        assert!(compared.count() >= 4, "{after:?}");
    }
    // Nor does an audit find a thread that is where it should not be.
    let report = audit::Process::this().expect("this process");
    assert_eq!(report.strays().count(), 0);
}
