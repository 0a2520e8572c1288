//! Names: what `ip netns` makes of ours, and we of its.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use netns_exec::Netns;
use netns_exec_tests::{
    Alone, TempName, TempNetns, alone, ip, names_by_ip, netns_link_of, on_a_thread, path_of,
    require_root,
};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::wait_until_dead;

#[test]
fn what_we_create_ip_lists_enters_and_deletes() {
    let name = TempName::new();
    let netns = Netns::create(&name).unwrap();

    assert!(names_by_ip().contains(&name.to_string()));
    let seen = ip(&["netns", "exec", &name, "readlink", "/proc/self/ns/net"]);
    assert_eq!(seen.trim(), netns_link_of(&netns));
    ip(&["-n", &name, "link", "show", "lo"]);

    ip(&["netns", "del", &name]);
    assert!(!Path::new(&path_of(&name)).exists());
    assert!(Netns::open(&name).unwrap_err().is_not_found());
}

#[test]
fn what_ip_creates_we_list_open_and_delete() {
    let name = TempName::new();
    ip(&["netns", "add", &name]);

    let netns = Netns::open(&name).unwrap();
    assert_eq!(netns.label(), &*name);
    let seen = ip(&["netns", "exec", &name, "readlink", "/proc/self/ns/net"]);
    assert_eq!(seen.trim(), netns_link_of(&netns));
    let listed = Netns::list().unwrap();
    let ours = listed.iter().find(|listed| listed.label() == &*name);
    assert_eq!(ours, Some(&netns));

    Netns::delete(&name).unwrap();
    assert!(!Path::new(&path_of(&name)).exists());
    assert!(!names_by_ip().contains(&name.to_string()));
}

#[test]
fn list_is_sorted_and_leaves_out_what_is_no_netns() {
    let names = [TempNetns::new(), TempNetns::new(), TempNetns::new()];
    let half_made = TempName::new();
    File::create_new(path_of(&half_made)).unwrap();
    let dangling = TempName::new();
    symlink("/nowhere", path_of(&dangling)).unwrap();

    let listed = Netns::list().unwrap();
    let labels: Vec<_> = listed.iter().map(Netns::label).collect();
    assert!(labels.is_sorted(), "{labels:?}");
    for temp in &names {
        assert!(labels.contains(&temp.name()));
    }
    assert!(!labels.contains(&&*half_made));
    assert!(!labels.contains(&&*dangling));
}

#[test]
fn link_to_a_namespace_is_a_name_and_deleting_it_removes_the_link_alone() {
    let target = TempNetns::new();
    let link = TempName::new();
    symlink(path_of(target.name()), path_of(&link)).unwrap();

    assert_eq!(Netns::open(&link).unwrap(), *target.netns());
    Netns::delete(&link).unwrap();
    assert!(fs::symlink_metadata(path_of(&link)).is_err());
    assert_eq!(Netns::open(target.name()).unwrap(), *target.netns());
}

#[test]
fn without_the_folder_the_list_is_empty_and_names_are_not_found() {
    alone!(Alone::FreshRun);
    assert!(Netns::list().unwrap().is_empty());
    assert!(Netns::open("blue").unwrap_err().is_not_found());
    assert!(Netns::delete("blue").unwrap_err().is_not_found());
    assert!(!Path::new("/run/netns").exists(), "reading makes no folder");
}

/// The lines of mountinfo, see proc_pid_mountinfo(5).
fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The mounts there are that were not there `before`: of those, some may go
/// any time, as they are copies of the machine's own names.
fn mounts_since(before: &[String]) -> Vec<String> {
    let mut now = mounts();
    now.retain(|mount| !before.contains(mount));
    now
}

#[test]
fn first_use_by_threads_and_ip_at_once_makes_one_shared_mount() {
    alone!(Alone::FreshRun);
    const ROUNDS: usize = 5;
    // Again and again, each time on an empty /run: a race has to be lost once.
    for _ in 0..ROUNDS {
        let none = None::<&str>;
        mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        race_for_first_use();
        nix::mount::umount2("/run", nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

fn race_for_first_use() {
    const THREADS: usize = 16;
    const IPS: usize = 4;
    // What the machine's own /run/netns has, under the fresh /run.
    let before = mounts();
    let start = Barrier::new(THREADS + IPS);
    thread::scope(|scope| {
        for n in 0..THREADS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                Netns::create(&format!("ours{n}")).unwrap();
            });
        }
        for n in 0..IPS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                ip(&["netns", "add", &format!("theirs{n}")]);
            });
        }
    });

    let since = mounts_since(&before);
    let at = |point: &str| -> Vec<&String> {
        let mut mounts: Vec<_> = since.iter().collect();
        mounts.retain(|mount| mount.split(' ').nth(4) == Some(point));
        mounts
    };
    let folder = at("/run/netns");
    assert_eq!(folder.len(), 1, "{folder:#?}");
    assert!(folder[0].contains(" shared:"), "{}", folder[0]);

    let listed = Netns::list().unwrap();
    assert_eq!(listed.len(), THREADS + IPS);
    assert_eq!(listed.iter().collect::<HashSet<_>>().len(), THREADS + IPS);
    assert_eq!(names_by_ip().len(), THREADS + IPS);
    for netns in &listed {
        let mounts = at(&path_of(netns.label()));
        assert_eq!(mounts.len(), 1, "{mounts:#?}");
        Netns::delete(netns.label()).unwrap();
    }
    assert_eq!(fs::read_dir("/run/netns").unwrap().count(), 0);
}

#[test]
fn first_use_waits_for_whoever_prepares_the_folder() {
    alone!(Alone::FreshRun);
    let before = mounts();
    fs::create_dir("/run/netns").unwrap();
    // As `ip netns add` does while it prepares the folder.
    let folder = File::open("/run/netns").unwrap();
    let inode = folder.metadata().unwrap().ino();
    let lock = Flock::lock(folder, FlockArg::LockExclusive).unwrap();
    let created = thread::spawn(|| Netns::create("blue"));

    // proc_locks(5): "1: -> FLOCK ADVISORY WRITE 4711 00:2b:1234 0 EOF".
    let file = format!(":{inode} ");
    let waits = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        (locks.lines()).any(|line| line.contains("-> FLOCK") && line.contains(&file))
    };
    while !waits() {
        assert!(!created.is_finished(), "it did not wait");
        thread::yield_now();
    }
    assert_eq!(mounts_since(&before), [""; 0]);
    assert_eq!(fs::read_dir("/run/netns").unwrap().count(), 0);

    drop(lock);
    created.join().unwrap().unwrap();
    let since = mounts_since(&before);
    assert_eq!(since.len(), 2, "the folder and the name: {since:#?}");
}

#[test]
fn on_a_shared_run_deleting_leaves_no_mount_anywhere() {
    alone!(Alone::FreshRun);
    // As systemd makes it. The folder's mount is then a peer of that of /run,
    // and what is mounted on a name appears below both.
    let none = None::<&str>;
    mount(none, "/run", none, MsFlags::MS_SHARED, none).unwrap();
    let before = mounts();
    let ours = Netns::create("ours").unwrap().downgrade();
    ip(&["netns", "add", "theirs"]);
    let theirs = Netns::open("theirs").unwrap().downgrade();
    assert!(ours.upgrade().is_some() && theirs.upgrade().is_some());

    ip(&["netns", "del", "ours"]);
    Netns::delete("theirs").unwrap();

    // A mount that came by propagation is let go of a moment later.
    wait_until_dead(&ours);
    wait_until_dead(&theirs);
    assert_eq!(fs::read_dir("/run/netns").unwrap().count(), 0);
    assert_eq!(mounts_since(&before).len(), 1, "the folder's own");
}

#[test]
fn names_come_and_go_in_other_mount_namespaces_too() {
    alone!(Alone::FreshRun);
    Netns::create("first").unwrap();
    // A thread that copied the mounts when `first` was there.
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let second = Netns::create("second").unwrap();
        assert_eq!(Netns::open("second").unwrap(), second);
        let weak = Netns::open("first").unwrap().downgrade();
        Netns::delete("first").unwrap();
        assert_eq!(weak.upgrade(), None, "no mount left holds on to it");
    });
}

#[test]
fn taken_name_is_an_error_that_leaves_the_old_one_intact() {
    let old = TempNetns::new();
    let error = Netns::create(old.name()).unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    assert_eq!(error.raw_os_error(), Some(nix::libc::EEXIST));
    assert_eq!(Netns::open(old.name()).unwrap(), *old.netns());
    old.check_enter().unwrap();
}

#[test]
fn one_of_many_who_want_the_same_name_gets_it() {
    let name = TempName::new();
    let start = Barrier::new(8);
    let made: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    Netns::create(&name)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for result in lost {
        assert!(result.unwrap_err().is_already_exists());
    }
    assert_eq!(Netns::open(&name).unwrap(), *won[0].as_ref().unwrap());
}

#[test]
fn failed_create_leaves_no_debris() {
    alone!(Alone::FreshRun);
    Netns::create("blue").unwrap();
    // Without /proc there is nothing to mount from.
    mount(
        Some("tmpfs"),
        "/proc",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let error = Netns::create("red").unwrap_err();
    nix::mount::umount("/proc").unwrap();

    assert!(error.to_string().contains("`red`"), "{error}");
    let left: Vec<_> = fs::read_dir("/run/netns").unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(Netns::open("red").unwrap_err().is_not_found());
    assert_eq!(Netns::list().unwrap().len(), 1);
    Netns::create("red").unwrap();
}

#[test]
fn limit_on_namespaces_is_named_and_leaves_no_debris() {
    alone!(Alone::OwnUserNamespace);
    Netns::create("blue").unwrap();
    fs::write("/proc/sys/user/max_net_namespaces", "1").unwrap();
    let errors = [Netns::create("red").unwrap_err(), Netns::new().unwrap_err()];
    for error in errors {
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
        assert!(error.to_string().contains("max_net_namespaces"), "{error}");
    }
    assert_eq!(fs::read_dir("/run/netns").unwrap().count(), 1);
    assert_eq!(Netns::list().unwrap().len(), 1);
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    require_root();
    let long = "x".repeat(256);
    for name in [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "../x",
        "/run/netns/x",
        "a\0b",
        &long,
    ] {
        for error in [
            Netns::create(name).unwrap_err(),
            Netns::open(name).unwrap_err(),
            Netns::delete(name).unwrap_err(),
        ] {
            assert!(error.is_invalid_input(), "{name:?}: {error}");
        }
    }
}

#[test]
fn delete_takes_what_a_crash_left_and_nothing_else() {
    let name = TempName::new();
    let path = path_of(&name);
    drop(TempNetns::new()); // makes the folder

    File::create_new(&path).unwrap();
    Netns::delete(&name).unwrap();
    assert!(!Path::new(&path).exists());

    fs::write(&path, "precious").unwrap();
    assert!(Netns::delete(&name).unwrap_err().is_not_a_netns());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    let error = Netns::delete(&name).unwrap_err();
    assert!(error.is_not_a_netns(), "{error}");
    assert!(error.to_string().contains("directory"), "{error}");
    fs::remove_dir(&path).unwrap();

    let error = Netns::delete(&name).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains(&*name), "{error}");
}

#[test]
fn name_made_anew_is_another_namespace_and_the_old_handle_means_the_old_one() {
    let temp = TempNetns::new();
    let old = temp.netns().clone();
    ip(&[
        "-n",
        temp.name(),
        "link",
        "add",
        "old0",
        "type",
        "veth",
        "peer",
        "name",
        "old1",
    ]);
    Netns::delete(temp.name()).unwrap();
    let new = Netns::create(temp.name()).unwrap();

    assert_ne!(old, new);
    assert_ne!(old.id(), new.id());
    assert_eq!(old.label(), new.label());
    let has_old0 = |netns: &Netns| {
        netns_exec::run(netns, || {
            fs::read_to_string("/proc/thread-self/net/dev")
                .unwrap()
                .contains("old0")
        })
    };
    assert!(has_old0(&old).unwrap());
    assert!(!has_old0(&new).unwrap());
}
