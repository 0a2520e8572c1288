//! Threads that call: no call moves them, forks, or asks for more than it needs.

use std::fs;
use std::net::UdpSocket;
use std::process::Stdio;

use netns_exec::Netns;
use netns_exec_tests::{
    Alone, Sleeper, TempName, TempNetns, alone, drop_all_capabilities, drop_sys_admin, fresh,
    handed_over, ip, names_by_ip, netns_link_of, netns_link_of_this_thread, note, on_a_thread,
    path_of, run_alone, this_test, to_hand_over,
};
use nix::sched::{CloneFlags, setns, unshare};

use super::wait_until_dead;

/// Everything there is to call, and that it works.
///
/// `socket` and `pid` are of `elsewhere`.
fn call_everything(elsewhere: &Netns, socket: &UdpSocket, pid: u32) {
    let before = netns_link_of_this_thread();
    let name = TempName::new();
    let made = Netns::create(&name).unwrap();
    assert_eq!(Netns::open(&name).unwrap(), made);
    assert_eq!(Netns::from_path(path_of(&name)).unwrap(), made);
    assert!(Netns::create(&name).unwrap_err().is_already_exists());
    assert!(Netns::list().unwrap().contains(&made));
    made.set_loopback_up().unwrap();
    made.check_enter().unwrap();
    elsewhere.check_enter().unwrap();
    assert_eq!(Netns::of_socket(socket).unwrap(), *elsewhere);
    assert_eq!(
        Netns::from_pid(std::process::id()).unwrap(),
        Netns::home().unwrap()
    );
    assert_eq!(Netns::from_pid(pid).unwrap(), *elsewhere);
    let fresh = Netns::new().unwrap();
    assert_ne!(fresh, made);
    Netns::current().unwrap();
    let weak = made.downgrade();
    drop(made);
    assert_eq!(weak.upgrade().expect("its name keeps it").id(), weak.id());
    Netns::delete(&name).unwrap();
    wait_until_dead(&weak);
    assert_eq!(netns_link_of_this_thread(), before, "the caller was moved");
}

#[test]
fn every_call_works_on_any_thread_and_moves_none() {
    let temp = TempNetns::new();
    // No worker: one that stays there would hide a thread that was moved.
    let socket = on_a_thread(|| {
        setns(temp.netns(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind("0.0.0.0:0").unwrap()
    });
    let sleeper = Sleeper::in_named(temp.name());
    let pid = sleeper.pid();
    let here = netns_link_of_this_thread();

    call_everything(&temp, &socket, pid);
    on_a_thread(|| {
        setns(temp.netns(), CloneFlags::CLONE_NEWNET).unwrap();
        call_everything(&temp, &socket, pid);
        // As the thread of a sealed job.
        drop_sys_admin();
        assert!(setns(temp.netns(), CloneFlags::CLONE_NEWNET).is_err());
        call_everything(&temp, &socket, pid);
        drop_all_capabilities();
        call_everything(&temp, &socket, pid);
    });
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        call_everything(&temp, &socket, pid);
    });

    assert_eq!(netns_link_of_this_thread(), here);
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let link = task.unwrap().path().join("ns/net");
        // Threads of other tests come and go.
        if let Ok(link) = fs::read_link(link) {
            assert_ne!(link.to_str(), Some(&*netns_link_of(&temp)));
        }
    }
}

#[test]
fn no_call_forks() {
    alone!(Alone::AsIs);
    let home = Netns::home().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    call_everything(&home, &socket, std::process::id());

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let every_kind = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    assert_eq!(
        waitpid(None, Some(every_kind)),
        Err(nix::errno::Errno::ECHILD)
    );
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    assert_eq!(
        (usage.minor_page_faults(), usage.max_rss()),
        (0, 0),
        "a child was waited for"
    );
}

// privilege

#[test]
fn ordinary_user_is_told_what_is_missing_and_how_to_get_it() {
    let Some(name) = note() else {
        let temp = TempNetns::new();
        run_alone(
            this_test!(),
            Alone::OrdinaryUser,
            temp.name(),
            Stdio::null(),
        );
        assert_eq!(Netns::open(temp.name()).unwrap(), *temp.netns());
        return;
    };
    let netns = Netns::open(&name).expect("looking takes no privilege");
    assert!(Netns::list().unwrap().contains(&netns));
    for error in [
        netns.check_enter().unwrap_err(),
        netns.set_loopback_up().unwrap_err(),
        Netns::new().unwrap_err(),
        Netns::create("nxt-forbidden").unwrap_err(),
        Netns::create(&name).unwrap_err(),
        Netns::delete(&name).unwrap_err(),
    ] {
        assert!(error.is_permission_denied(), "{error}");
        let text = error.to_string();
        assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
        assert!(text.contains("run as root"), "{text}");
    }
    let error = Netns::from_pid(1).unwrap_err();
    assert!(error.is_permission_denied(), "{error}");
    assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
}

#[test]
fn ordinary_user_needs_no_privilege_at_home() {
    alone!(Alone::OrdinaryUser);
    let home = Netns::home().unwrap();
    home.check_enter().unwrap();
    assert_eq!(Netns::current().unwrap(), home);
    assert_eq!(Netns::from_pid(std::process::id()).unwrap(), home);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let by_socket = Netns::of_socket(&socket).unwrap();
    assert_eq!(by_socket, home);
    assert_eq!(by_socket.label(), format!("netns:{}", home.id()));
    let weak = home.downgrade();
    drop((home, by_socket));
    assert!(
        weak.upgrade().is_some(),
        "its own namespace may be reopened"
    );
}

#[test]
fn root_of_an_own_user_namespace_has_all_of_it() {
    alone!(Alone::OwnUserNamespace);
    let made = Netns::create("blue").unwrap();
    made.set_loopback_up().unwrap();
    assert_eq!(names_by_ip(), ["blue"]);
    ip(&["netns", "exec", "blue", "true"]);
    assert_eq!(Netns::list().unwrap(), std::slice::from_ref(&made));
    let weak = made.downgrade();
    drop(made);
    assert!(weak.upgrade().is_some());
    Netns::delete("blue").unwrap();
    assert!(weak.upgrade().is_none());
}

#[test]
fn namespace_of_another_user_namespace_is_refused_for_that_reason() {
    alone!(Alone::OwnUserNamespace, "", to_hand_over(&fresh()));
    let theirs = handed_over();
    let error = theirs.check_enter().unwrap_err();
    assert!(error.is_permission_denied(), "{error}");
    let text = error.to_string();
    assert!(text.contains("another user namespace"), "{text}");

    let weak = theirs.downgrade();
    assert_eq!(weak.upgrade().as_ref(), Some(&theirs));
    drop(theirs);
    assert_eq!(weak.upgrade(), None, "not reopened without the privilege");
}
