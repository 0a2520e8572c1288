//! What a view cannot have is an error that names it.

use std::fs;
use std::process::Command;

use netns_exec::{CommandExt, Executor, Netns, View};
use netns_exec_tests::{Alone, TempNetns, alone, fresh, handed_over, to_hand_over};
use nix::mount::{MsFlags, mount};

use super::{Files, facts, read_in};

const EPERM: i32 = 1;

facts! {
    file_that_etc_has_no_place_for_is_named,
    file_is_no_place_for_a_folder,
    folder_that_cannot_be_read_is_named,
    link_of_the_namespace_that_leads_nowhere_is_named,
    worker_is_born_once_the_reason_is_gone,
}

fn refused(files: &Files, netns: &Netns) -> netns_exec::Error {
    let error = files.view().check(netns).expect_err("refused");
    let by_worker = files.executor().run(netns, || ()).expect_err("refused");
    assert_eq!(error.to_string(), by_worker.to_string());
    let mut command = Command::new("true");
    let by_child = command.view(files.view()).status_in(netns);
    assert_eq!(
        by_child.expect_err("refused").to_string(),
        error.to_string()
    );
    // The command is intact.
    assert!(command.status_in(netns).expect("no view").success());
    error
}

fn file_that_etc_has_no_place_for_is_named() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "no-such-file", "");
    files.write(blue.name(), "hosts", "blue's\n");
    let error = refused(&files, &blue);
    assert!(error.is_not_found(), "{error}");
    let text = error.to_string();
    for part in [
        blue.name(),
        "as /etc/no-such-file",
        "nothing to mount it on",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Nothing was made for it, and it can be done without.
    assert!(!fs::exists("/etc/no-such-file").expect("/etc can be read"));
    let view = files.view().skip_missing(true);
    let executor = Executor::builder().view(view).build().expect("an executor");
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), "blue's\n");
}

fn file_is_no_place_for_a_folder() {
    let (files, blue) = (Files::new(), TempNetns::new());
    fs::create_dir(files.folder_of(blue.name()).join("hosts")).expect("our own");
    let text = refused(&files, &blue).to_string();
    assert!(text.contains("as /etc/hosts: one is a folder"), "{text}");
}

fn folder_that_cannot_be_read_is_named() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(".", blue.name(), "a file in the place of a folder");
    let text = refused(&files, &blue).to_string();
    assert!(
        text.contains("cannot read") && text.contains(blue.name()),
        "{text}"
    );
}

fn link_of_the_namespace_that_leads_nowhere_is_named() {
    let (files, blue) = (Files::new(), TempNetns::new());
    let link = files.folder_of(blue.name()).join("hosts");
    std::os::unix::fs::symlink("/no/such/file", link).expect("our own");
    let error = refused(&files, &blue);
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("leads nowhere"), "{error}");
}

fn worker_is_born_once_the_reason_is_gone() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "no-such-file", "");
    let executor = files.executor();
    executor.run(&blue, || ()).expect_err("refused");
    fs::remove_file(files.folder_of(blue.name()).join("no-such-file")).expect("our own");
    executor.run(&blue, || ()).expect("the job ran");
}

#[test]
fn ordinary_user_is_told_what_a_view_needs() {
    alone!(Alone::OrdinaryUser);
    let home = Netns::home().expect("home");
    let error = View::new().check(&home).expect_err("needs CAP_SYS_ADMIN");
    assert_eq!(error.raw_os_error(), Some(EPERM));
    assert!(error.is_permission_denied(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("mount namespace") && text.contains("CAP_SYS_ADMIN"),
        "{text}"
    );
    // No privilege is needed without one.
    let plain = Executor::new().expect("an executor");
    plain.run(&home, || ()).expect("the job ran");
}

/// Root of a user namespace that does not own the network namespace it is in.
#[test]
fn root_of_a_user_namespace_is_told_whose_the_namespace_is() {
    alone!(Alone::DetachedChildren);
    let home = Netns::home().expect("home");
    let error = View::new().check(&home).expect_err("another owner");
    let text = error.to_string();
    assert!(error.is_permission_denied(), "{error}");
    assert!(
        text.contains("mount sysfs on /sys") && text.contains("user namespace"),
        "{text}"
    );
    // One that is made there can be viewed.
    View::new().check(&fresh()).expect("its owner is here");
}

#[test]
fn namespace_that_may_not_be_entered_is_refused_before_the_view() {
    alone!(Alone::OrdinaryUser, "", to_hand_over(&fresh()));
    let error = View::new().check(&handed_over()).expect_err("no privilege");
    assert!(error.to_string().contains("cannot enter netns"), "{error}");
}

/// Lets this user namespace, which is the test's own, have so many mount namespaces.
fn limit_mount_namespaces(count: u32) {
    fs::write("/proc/sys/user/max_mnt_namespaces", count.to_string()).expect("its root may");
}

#[test]
fn limit_on_mount_namespaces_is_named() {
    alone!(Alone::OrdinaryUserAsRoot);
    limit_mount_namespaces(0);
    let error = View::new().check(&fresh()).expect_err("no room");
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
    let text = error.to_string();
    assert!(
        text.contains("mount namespace") && text.contains("max_mnt_namespaces"),
        "{text}"
    );
}

/// As with threads and descriptors.
#[test]
fn idle_workers_make_room_for_a_view() {
    alone!(Alone::OrdinaryUserAsRoot);
    // One for a worker, and one for what is just being mounted.
    limit_mount_namespaces(2);
    let (blue, red) = (fresh(), fresh());
    let executor = Executor::builder().view(View::new()).build();
    let executor = executor.expect("an executor");
    for netns in [&blue, &red, &blue] {
        executor.run(netns, || ()).expect("the idle one has left");
        assert_eq!(executor.stats().workers, 1);
    }
}

/// In a container's `/sys`: read-only, and with a part that is hidden.
#[test]
fn sys_that_was_read_only_is_and_what_was_hidden_stays_so() {
    alone!(Alone::FreshRun);
    let none = None::<&str>;
    let tmpfs = Some("tmpfs");
    let flags = MsFlags::MS_RDONLY;
    mount(tmpfs, "/sys/kernel", tmpfs, flags, none).expect("root may mount");
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    mount(none, "/sys", none, flags, none).expect("root may mount");
    let executor = Executor::builder().view(View::new()).build();
    let executor = executor.expect("an executor");
    let seen = executor.run(&fresh(), || {
        let hidden = fs::read_dir("/sys/kernel").expect("a folder").count();
        let written = fs::write("/sys/class/net/lo/ifalias", "x");
        (hidden, written.map_err(|error| error.raw_os_error()))
    });
    let (hidden, written) = seen.expect("the job ran");
    assert_eq!(hidden, 0);
    assert_eq!(written, Err(Some(nix::libc::EROFS)));
}
