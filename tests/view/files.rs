//! The namespace's files over `/etc`.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::thread;

use netns_exec::{Executor, Netns, View};
use netns_exec_tests::{Alone, TempNetns, alone, fresh, try_ip};
use nix::mount::{MsFlags, mount};

use super::{Files, empty_etc, facts, look_up, read, read_in};

facts! {
    hosts_entry_is_found_in_its_namespace_and_nowhere_else,
    hosts_file_has_what_was_written_and_nothing_else,
    one_host_has_another_address_in_each_namespace_at_the_same_time,
    every_namespace_has_its_own_resolv_conf,
    entry_that_is_added_later_is_found,
    file_that_was_replaced_is_seen_by_the_next_worker,
    folder_takes_the_place_of_a_folder,
    files_stay_when_the_name_is_removed,
    namespace_without_a_name_has_the_files_of_its_label,
    handle_by_path_or_pid_has_the_files_of_the_name,
    first_of_several_names_decides_for_a_handle_without_one,
    namespace_without_files_sees_the_hosts_ones,
    next_name_in_another_view_is_unaffected,
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

fn hosts_entry_is_found_in_its_namespace_and_nowhere_else() {
    let (files, blue, red) = (Files::new(), TempNetns::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "10.99.0.1 secret.test\n");
    let before = read("/etc/hosts");
    let executor = files.executor();
    let found = executor.run(&blue, || look_up("secret.test"));
    assert_eq!(found.expect("the job ran"), address("10.99.0.1"));
    let found = executor.run(&red, || look_up("secret.test"));
    assert_eq!(found.expect("the job ran"), None);
    assert_eq!(look_up("secret.test"), None);
    // In between, others have had glibc read other files.
    let found = executor.run(&blue, || look_up("secret.test"));
    assert_eq!(found.expect("the job ran"), address("10.99.0.1"));
    assert_eq!(read("/etc/hosts"), before);
}

fn hosts_file_has_what_was_written_and_nothing_else() {
    let (files, blue) = (Files::new(), TempNetns::new());
    let text = "127.0.0.1\tlocalhost\n::1\tlocalhost\n10.0.0.2\tbeta.test\n";
    files.write(blue.name(), "hosts", text);
    assert_eq!(read_in(&files.executor(), &blue, "/etc/hosts"), text);
}

fn one_host_has_another_address_in_each_namespace_at_the_same_time() {
    const NAMESPACES: usize = 6;
    const ROUNDS: usize = 40;
    let files = Files::new();
    let all: Vec<(TempNetns, String)> = (0..NAMESPACES)
        .map(|n| {
            let netns = TempNetns::new();
            let address = format!("10.1.{n}.1");
            files.write(netns.name(), "hosts", &format!("{address} shared.test\n"));
            (netns, address)
        })
        .collect();
    let executor = files.executor();
    thread::scope(|scope| {
        for (netns, expected) in &all {
            let executor = &executor;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let found = executor.run(netns, || look_up("shared.test"));
                    assert_eq!(found.expect("the job ran"), address(expected));
                }
            });
        }
        // The process's own look-ups go on meanwhile.
        for _ in 0..ROUNDS {
            assert_eq!(look_up("shared.test"), None);
        }
    });
}

fn every_namespace_has_its_own_resolv_conf() {
    let (files, blue, red) = (Files::new(), TempNetns::new(), TempNetns::new());
    let before = read("/etc/resolv.conf");
    files.write(blue.name(), "resolv.conf", "nameserver 10.0.0.1\n");
    files.write(red.name(), "resolv.conf", "nameserver 10.0.0.2\n");
    let executor = files.executor();
    for _ in 0..2 {
        let of = |netns| read_in(&executor, netns, "/etc/resolv.conf");
        assert_eq!(of(&blue), "nameserver 10.0.0.1\n");
        assert_eq!(of(&red), "nameserver 10.0.0.2\n");
        assert_eq!(read("/etc/resolv.conf"), before);
    }
}

fn entry_that_is_added_later_is_found() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "");
    let executor = files.executor();
    let late = || executor.run(&blue, || look_up("late.test"));
    assert_eq!(late().expect("the job ran"), None);
    files.write(blue.name(), "hosts", "192.168.1.1 late.test\n");
    assert_eq!(late().expect("the job ran"), address("192.168.1.1"));
}

fn file_that_was_replaced_is_seen_by_the_next_worker() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "old\n");
    let executor = files.executor();
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), "old\n");
    files.write(blue.name(), "hosts.new", "new\n");
    let folder = files.folder_of(blue.name());
    fs::rename(folder.join("hosts.new"), folder.join("hosts")).expect("our own");
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), "old\n");
    executor.retire(&blue).expect("alive");
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), "new\n");
}

fn folder_takes_the_place_of_a_folder() {
    let (files, blue) = (Files::new(), TempNetns::new());
    // Every system has this one.
    assert!(fs::metadata("/etc/profile.d").expect("there").is_dir());
    let folder = files.folder_of(blue.name()).join("profile.d");
    fs::create_dir(&folder).expect("our own");
    fs::write(folder.join("only.sh"), "").expect("our own");
    let seen = files.executor().run(&blue, || {
        let entries = fs::read_dir("/etc/profile.d").expect("a folder");
        entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect::<Vec<_>>()
    });
    assert_eq!(seen.expect("the job ran"), ["only.sh"]);
}

fn files_stay_when_the_name_is_removed() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "kept\n");
    let opened = Netns::open(blue.name()).expect("its name");
    let executor = files.executor();
    Netns::delete(blue.name()).expect("its name");
    // Made and opened by that name: neither worker has seen it.
    for handle in [&opened, blue.netns()] {
        assert_eq!(read_in(&executor, handle, "/etc/hosts"), "kept\n");
        executor.retire(handle).expect("alive");
    }
}

fn namespace_without_a_name_has_the_files_of_its_label() {
    let (files, netns, other) = (Files::new(), fresh(), fresh());
    files.write(netns.label(), "hosts", "nameless\n");
    let executor = files.executor();
    assert_eq!(read_in(&executor, &netns, "/etc/hosts"), "nameless\n");
    assert_eq!(read_in(&executor, &other, "/etc/hosts"), read("/etc/hosts"));
}

fn handle_by_path_or_pid_has_the_files_of_the_name() {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "by name\n");
    // What such a label says is no name.
    for label in ["home", "thread"] {
        files.write(label, "hosts", "by label\n");
    }
    let path = format!("/run/netns/{}", blue.name());
    let by_path = Netns::from_path(path).expect("a namespace");
    assert_eq!(
        read_in(&files.executor(), &by_path, "/etc/hosts"),
        "by name\n"
    );
    let home = Netns::home().expect("home");
    let seen = read_in(&files.executor(), &home, "/etc/hosts");
    assert_eq!(seen, read("/etc/hosts"));
}

fn first_of_several_names_decides_for_a_handle_without_one() {
    let (files, blue) = (Files::new(), TempNetns::new());
    let second = format!("{}-0", blue.name());
    symlink(blue.name(), format!("/run/netns/{second}")).expect("our own");
    files.write(blue.name(), "hosts", "first\n");
    files.write(&second, "hosts", "second\n");
    let by_path = Netns::from_path(format!("/run/netns/{second}")).expect("a namespace");
    let by_name = Netns::open(&second).expect("a namespace");
    assert_eq!(
        read_in(&files.executor(), &by_path, "/etc/hosts"),
        "first\n"
    );
    assert_eq!(
        read_in(&files.executor(), &by_name, "/etc/hosts"),
        "second\n"
    );
    Netns::delete(&second).expect("our own");
}

fn namespace_without_files_sees_the_hosts_ones() {
    let (files, blue) = (Files::new(), TempNetns::new());
    let executor = files.executor();
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), read("/etc/hosts"));
}

fn next_name_in_another_view_is_unaffected() {
    let (one, other, blue) = (Files::new(), Files::new(), TempNetns::new());
    one.write(blue.name(), "hosts", "one\n");
    other.write(blue.name(), "hosts", "other\n");
    let plain = Executor::new().expect("an executor");
    let (one, other) = (one.executor(), other.executor());
    assert_eq!(read_in(&one, &blue, "/etc/hosts"), "one\n");
    assert_eq!(read_in(&other, &blue, "/etc/hosts"), "other\n");
    assert_eq!(read_in(&plain, &blue, "/etc/hosts"), read("/etc/hosts"));
}

/// In a process whose `/etc` is its own: root's.
#[test]
fn view_shows_what_ip_netns_exec_shows() {
    alone!(Alone::FreshRun);
    empty_etc();
    for file in ["hosts", "resolv.conf", "other"] {
        fs::write(format!("/etc/{file}"), "the host's\n").expect("our own");
    }
    let blue = TempNetns::new();
    let folder = format!("/etc/netns/{}", blue.name());
    fs::create_dir_all(&folder).expect("our own");
    for file in ["hosts", "resolv.conf"] {
        fs::write(format!("{folder}/{file}"), format!("blue's {file}\n")).expect("our own");
    }
    let executor = Executor::builder().view(View::new()).build();
    let executor = executor.expect("an executor");
    for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/other"] {
        let by_ip = try_ip(&["netns", "exec", blue.name(), "cat", file]).stdout;
        assert_eq!(
            read_in(&executor, &blue, file),
            String::from_utf8_lossy(&by_ip)
        );
    }
    let by_ip = try_ip(&["netns", "exec", blue.name(), "ls", "/sys/class/net"]).stdout;
    let devices = executor.run(&blue, super::mounts::devices);
    assert_eq!(
        devices.expect("the job ran").join("\n"),
        String::from_utf8_lossy(&by_ip).trim()
    );
}

/// The folder that the files are in is covered by one of them.
#[test]
fn namespace_may_have_an_etc_netns_of_its_own() {
    alone!(Alone::FreshRun);
    empty_etc();
    let blue = TempNetns::new();
    let folder = format!("/etc/netns/{}", blue.name());
    fs::create_dir_all(format!("{folder}/netns")).expect("our own");
    fs::write(format!("{folder}/netns/inner"), "").expect("our own");
    for file in ["hosts", "resolv.conf"] {
        fs::write(format!("/etc/{file}"), "").expect("our own");
        fs::write(format!("{folder}/{file}"), "blue's\n").expect("our own");
    }
    let executor = Executor::builder().view(View::new()).build();
    let executor = executor.expect("an executor");
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        assert_eq!(read_in(&executor, &blue, file), "blue's\n");
    }
    assert_eq!(read_in(&executor, &blue, "/etc/netns/inner"), "");
}

#[test]
fn link_at_resolv_conf_gives_way_wherever_it_leads() {
    alone!(Alone::FreshRun);
    link_gives_way();
}

#[test]
fn link_at_resolv_conf_gives_way_to_an_ordinary_user() {
    alone!(Alone::LimitedRoot);
    link_gives_way();
}

fn link_gives_way() {
    empty_etc();
    let target = "/run/stub-resolv.conf";
    symlink(target, "/etc/resolv.conf").expect("our own");
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "resolv.conf", "nameserver 10.0.0.1\n");
    // It leads nowhere, and then to a file that stays as it was.
    for text in [None, Some("nameserver 127.0.0.53\n")] {
        if let Some(text) = text {
            fs::write(target, text).expect("our own");
        }
        let executor = files.executor();
        let seen = read_in(&executor, &blue, "/etc/resolv.conf");
        assert_eq!(seen, "nameserver 10.0.0.1\n");
        let there = executor.run(&blue, || fs::read_to_string(target).ok());
        assert_eq!(there.expect("the job ran").as_deref(), text);
    }
    let link = fs::read_link("/etc/resolv.conf").expect("still a link");
    assert_eq!(link.to_str(), Some(target));
}

#[test]
fn file_that_is_a_mount_already_is_covered() {
    alone!(Alone::FreshRun);
    mount_is_covered();
}

#[test]
fn file_that_is_a_mount_already_is_covered_for_an_ordinary_user() {
    alone!(Alone::LimitedRoot);
    mount_is_covered();
}

/// As a container's runtime leaves them.
fn mount_is_covered() {
    empty_etc();
    let (files, blue) = (Files::new(), TempNetns::new());
    let none = None::<&str>;
    for file in ["hosts", "resolv.conf"] {
        let source = format!("/run/{file}");
        fs::write(&source, "the runtime's\n").expect("our own");
        fs::write(format!("/etc/{file}"), "").expect("our own");
        let target = format!("/etc/{file}");
        mount(Some(&*source), &*target, none, MsFlags::MS_BIND, none).expect("root may mount");
    }
    files.write(blue.name(), "hosts", "blue's\n");
    let executor = files.executor();
    assert_eq!(read_in(&executor, &blue, "/etc/hosts"), "blue's\n");
    let kept = read_in(&executor, &blue, "/etc/resolv.conf");
    assert_eq!(kept, "the runtime's\n");
    assert_eq!(read("/etc/hosts"), "the runtime's\n");
}
