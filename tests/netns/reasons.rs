//! What an error says of its reason: a name that is not there is told from a /proc
//! that is not, and a missing privilege from a namespace of other owners.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use netns_exec::{CommandExt, Error, Netns};
use netns_exec_tests::{
    Alone, Sleeper, TempName, TempNetns, alone, as_ordinary_user, fresh, handed_over, is_alone,
    note, path_of, run_alone, this_test, to_hand_over,
};
use nix::mount::{MsFlags, mount, umount};

/// Calls `f` while nothing is in `/proc`.
fn without_proc<T>(f: impl FnOnce() -> T) -> T {
    let tmpfs = Some("tmpfs");
    mount(tmpfs, "/proc", tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    let result = f();
    umount("/proc").unwrap();
    result
}

#[track_caller]
fn assert_names_proc(error: &Error) {
    assert!(!error.is_not_found(), "{error}");
    let text = error.to_string();
    assert!(text.contains("/proc is not mounted"), "{text}");
}

#[test]
fn without_proc_it_is_proc_that_is_not_found() {
    alone!(Alone::FreshRun);
    Netns::create("blue").unwrap();
    symlink("/proc/1/ns/net", "/run/netns/link").unwrap();
    let (errors, missing) = without_proc(|| {
        let errors = [
            Netns::open("blue").unwrap_err(),
            Netns::open("link").unwrap_err(),
            Netns::from_path("/run/netns/blue").unwrap_err(),
            Netns::from_path("/proc/1/ns/net").unwrap_err(),
            Netns::list().unwrap_err(),
            Netns::current().unwrap_err(),
            Netns::home().unwrap_err(),
            Netns::new().unwrap_err(),
            Netns::create("red").unwrap_err(),
            Netns::delete("blue").unwrap_err(),
        ];
        let missing = [
            Netns::open("red").unwrap_err(),
            Netns::from_path("/run/netns/red").unwrap_err(),
            Netns::delete("red").unwrap_err(),
        ];
        (errors, missing)
    });
    errors.iter().for_each(assert_names_proc);
    for error in missing {
        assert!(error.is_not_found(), "{error}");
        assert!(!error.to_string().contains("/proc"), "{error}");
    }
    assert!(Netns::open("blue").is_ok());
}

#[test]
fn first_call_without_proc_names_it_and_the_next_one_with_it_works() {
    alone!(Alone::FreshRun);
    let error = without_proc(|| Netns::new().unwrap_err());
    assert_names_proc(&error);
    Netns::new().unwrap();
}

#[test]
fn what_is_no_netns_is_told_without_proc_too() {
    alone!(Alone::FreshRun);
    drop(TempNetns::new()); // makes the folder
    fs::write("/run/netns/file", "").unwrap();
    let error = without_proc(|| Netns::open("file").unwrap_err());
    assert!(error.is_not_a_netns(), "{error}");
    assert!(error.to_string().contains("a regular file"), "{error}");
}

#[test]
fn name_that_leads_nowhere_is_there_all_the_same() {
    drop(TempNetns::new()); // makes the folder
    let name = TempName::new();
    symlink("/nowhere/at/all", path_of(&name)).unwrap();

    let error = Netns::open(&name).unwrap_err();
    assert!(!error.is_not_found() && error.is_not_a_netns(), "{error}");
    assert!(error.to_string().contains("`/nowhere/at/all`"), "{error}");
    assert!(Netns::create(&name).unwrap_err().is_already_exists());
    // By its path it is as for open(2).
    assert!(Netns::from_path(path_of(&name)).unwrap_err().is_not_found());

    Netns::delete(&name).unwrap();
    assert!(Netns::open(&name).unwrap_err().is_not_found());
}

/// `user:[4026531837]`
fn user_ns_of(pid: &str) -> String {
    let link = fs::read_link(Path::new("/proc").join(pid).join("ns/user"));
    link.unwrap().into_os_string().into_string().unwrap()
}

#[test]
fn owner_above_is_out_of_sight_and_said_to_be() {
    alone!(Alone::OwnUserNamespace, "", to_hand_over(&fresh()));
    let theirs = handed_over();
    let errors = [
        theirs.check_enter().unwrap_err(),
        std::process::Command::new("true")
            .status_in(&theirs)
            .unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_permission_denied(), "{error}");
        let text = error.to_string();
        assert!(text.contains("another user namespace"), "{text}");
        assert!(text.contains(&user_ns_of("self")), "{text}");
    }
}

/// As a rootless container: its user owns it from outside, without a privilege there.
#[test]
fn owner_below_is_named_and_so_is_where_the_process_is() {
    if !is_alone(this_test!()) {
        let mut command = as_ordinary_user();
        command.args(["unshare", "--user", "--map-root-user", "--net"]);
        command.args(["sh", "-c", "echo; exec cat"]);
        let container = Sleeper::start(command.stdin(Stdio::piped()));
        let stdin = to_hand_over(&Netns::from_pid(container.pid()).unwrap());
        let owner = user_ns_of(&container.pid().to_string());
        run_alone(this_test!(), Alone::OrdinaryUser, &owner, stdin);
        return;
    }
    let theirs = handed_over();
    let error = theirs.check_enter().unwrap_err();
    assert!(error.is_permission_denied(), "{error}");
    let text = error.to_string();
    assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
    assert!(text.contains(&note().unwrap()), "{text}");
    assert!(text.contains(&user_ns_of("self")), "{text}");
}

/// As after `unshare --user --net` without `--mount`: it may do all but mount.
#[test]
fn name_that_the_mount_namespace_refuses_tells_who_owns_that() {
    if !is_alone(this_test!()) {
        let temp = TempNetns::new();
        run_alone(
            this_test!(),
            Alone::OrdinaryUserAsRoot,
            temp.name(),
            Stdio::null(),
        );
        return;
    }
    assert!(Netns::can_enter_others().unwrap());
    Netns::new().unwrap();
    let name = note().unwrap();
    for error in [
        Netns::create("nxt-forbidden").unwrap_err(),
        Netns::delete(&name).unwrap_err(),
    ] {
        assert!(error.is_permission_denied(), "{error}");
        let text = error.to_string();
        assert!(text.contains("mount namespace"), "{text}");
        assert!(text.contains("another user namespace"), "{text}");
        assert!(text.contains(&user_ns_of("self")), "{text}");
    }
}

#[test]
fn missing_privilege_in_the_own_user_namespace_is_no_matter_of_owners() {
    if !is_alone(this_test!()) {
        let stdin = to_hand_over(&fresh());
        run_alone(this_test!(), Alone::OrdinaryUser, "", stdin);
        return;
    }
    let error = handed_over().check_enter().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
    assert!(!text.contains("belongs"), "{text}");
}
