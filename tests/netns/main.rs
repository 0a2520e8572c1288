//! Namespace handles: where they come from, what they mean, what they refuse.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Error, Netns, WeakNetns};
use netns_exec_tests::{
    Alone, TempName, TempNetns, alone, drop_all_capabilities, drop_sys_admin, fresh, handed_over,
    ip, is_cloexec, names_by_ip, netns_cookie_of, netns_link_of_this_thread, note, require_root,
    run_alone, this_test, to_hand_over, try_ip, unique_name,
};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

fn path_of(name: &str) -> String {
    format!("/run/netns/{name}")
}

fn inode_of(netns: &Netns) -> u64 {
    let file = File::from(netns.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

/// Runs `f` on a thread of its own, which it may ruin.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// A process that lives until it is dropped, in the namespace `ip netns exec`
/// puts it in.
struct Sleeper(Child);

impl Sleeper {
    fn in_netns(name: &str) -> Sleeper {
        let mut child = Command::new("ip")
            .args(["netns", "exec", name, "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Has arrived once it speaks.
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Sleeper(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

// iproute2

#[test]
fn what_we_create_ip_lists_enters_and_deletes() {
    let name = TempName::new();
    let netns = Netns::create(&name).unwrap();

    assert!(names_by_ip().contains(&name.to_string()));
    let seen = ip(&["netns", "exec", &name, "readlink", "/proc/self/ns/net"]);
    assert_eq!(seen.trim(), format!("net:[{}]", inode_of(&netns)));
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
    assert_eq!(seen.trim(), format!("net:[{}]", inode_of(&netns)));
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
    // Somebody who copied the mounts when `first` was there.
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let second = Netns::create("second").unwrap();
        assert_eq!(Netns::open("second").unwrap(), second);
        let weak = Netns::open("first").unwrap().downgrade();
        Netns::delete("first").unwrap();
        assert_eq!(weak.upgrade(), None, "no mount left holds on to it");
    });
}

// creating and deleting

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

// what is not a network namespace

#[test]
fn four_ways_to_be_wrong_are_four_errors() {
    drop(TempNetns::new()); // makes the folder
    let missing = Netns::open(&unique_name()).unwrap_err();

    let name = TempName::new();
    File::create_new(path_of(&name)).unwrap();
    let plain = Netns::open(&name).unwrap_err();
    fs::remove_file(path_of(&name)).unwrap();

    let other = Netns::from_path("/proc/self/ns/mnt").unwrap_err();

    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let dead = Netns::from_pid(child.id()).unwrap_err();

    assert!(missing.is_not_found() && !missing.is_not_a_netns());
    assert_eq!(missing.raw_os_error(), Some(nix::libc::ENOENT));
    assert!(missing.to_string().contains("/run/netns"), "{missing}");

    assert!(plain.is_not_a_netns() && !plain.is_not_found());
    assert!(plain.to_string().contains("a regular file"), "{plain}");

    assert!(other.is_not_a_netns());
    assert!(other.to_string().contains("a mount namespace"), "{other}");

    assert!(dead.is_not_found());
    assert_eq!(dead.raw_os_error(), Some(nix::libc::ESRCH));
    assert!(
        dead.to_string().contains(&format!("pid {}", child.id())),
        "{dead}"
    );

    let texts: HashSet<_> = [missing, plain, other, dead]
        .iter()
        .map(Error::to_string)
        .collect();
    assert_eq!(texts.len(), 4);
}

#[test]
fn process_that_exited_unreaped_is_not_found() {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // End of file: it has exited, or is about to.
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut nothing).unwrap();
    let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
    let id = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::wait::waitid(nix::sys::wait::Id::Pid(id), flags).unwrap();

    let error = Netns::from_pid(child.id()).unwrap_err();
    child.wait().unwrap();
    assert!(error.is_not_found(), "{error}");
}

#[test]
fn pids_that_cannot_be_are_refused() {
    for pid in [0, u32::MAX, i32::MAX as u32 + 1] {
        let error = Netns::from_pid(pid).unwrap_err();
        assert!(error.is_invalid_input(), "{pid}: {error}");
    }
}

#[test]
fn from_path_neither_follows_into_a_fifo_nor_hangs_on_it() {
    let path = std::env::temp_dir().join(unique_name());
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let result = Netns::from_path(&path);
    fs::remove_file(&path).unwrap();
    let error = result.unwrap_err();
    assert!(error.is_not_a_netns());
    assert!(error.to_string().contains("a pipe"), "{error}");
}

#[test]
fn from_fd_refuses_what_is_no_netns_and_says_what_it_is() {
    for (path, name) in [
        ("/proc/self/ns/user", "a user namespace"),
        ("/proc/self/status", "a regular file"),
        ("/dev/null", "a device"),
        ("/", "a directory"),
    ] {
        let error = Netns::from_fd(File::open(path).unwrap().into()).unwrap_err();
        assert!(error.is_not_a_netns(), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = Netns::from_fd(socket.into()).unwrap_err();
    assert!(error.is_not_a_netns());
}

#[test]
fn of_socket_refuses_what_is_no_socket() {
    let error = Netns::of_socket(File::open("/dev/null").unwrap()).unwrap_err();
    assert!(error.is_invalid_input(), "{error}");
}

// identity

#[test]
fn same_namespace_by_name_path_pid_fd_and_socket_is_equal() {
    let temp = TempNetns::new();
    let other = TempNetns::new();
    let sleeper = Sleeper::in_netns(temp.name());
    let (socket, current) = netns_exec::run(&temp, || {
        (
            UdpSocket::bind("0.0.0.0:0").unwrap(),
            Netns::current().unwrap(),
        )
    })
    .unwrap();

    let handles = [
        Netns::open(temp.name()).unwrap(),
        Netns::from_path(path_of(temp.name())).unwrap(),
        Netns::from_path(format!("/proc/{}/ns/net", sleeper.pid())).unwrap(),
        Netns::from_pid(sleeper.pid()).unwrap(),
        Netns::from_fd(temp.as_fd().try_clone_to_owned().unwrap()).unwrap(),
        Netns::of_socket(&socket).unwrap(),
        current,
        temp.downgrade().upgrade().unwrap(),
    ];
    for handle in &handles {
        assert_eq!(handle, temp.netns(), "{handle:?}");
        assert_ne!(handle, other.netns());
    }
    assert_eq!(handles.iter().collect::<HashSet<_>>().len(), 1);
    assert_eq!(handles[3].label(), format!("pid {}", sleeper.pid()));
    assert_eq!(handles[5].label(), format!("netns:{}", temp.id()));
    assert_eq!(format!("{}", temp.netns()), temp.name());
    assert!(format!("{:?}", temp.netns()).contains(&temp.id().to_string()));
}

#[test]
fn id_is_the_cookie_that_sockets_and_ebpf_see() {
    let temp = TempNetns::new();
    let socket = netns_exec::run(&temp, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    assert_eq!(temp.id().as_u64(), netns_cookie_of(socket.as_fd()));
}

#[test]
fn ids_are_not_reused_where_inodes_are() {
    require_root();
    let mut ids = HashSet::new();
    for _ in 0..50 {
        assert!(ids.insert(Netns::new().unwrap().id()));
    }
}

#[test]
fn home_is_the_main_threads_namespace_from_wherever_it_is_asked() {
    let temp = TempNetns::new();
    let main = Netns::from_pid(std::process::id()).unwrap();
    assert_eq!(Netns::home().unwrap(), main);
    let (home, current) = netns_exec::run(&temp, || {
        (Netns::home().unwrap(), Netns::current().unwrap())
    })
    .unwrap();
    assert_eq!(home, main);
    assert_eq!(current, *temp.netns());
}

#[test]
fn every_descriptor_is_closed_by_exec() {
    let temp = TempNetns::new();
    let sleeper = Sleeper::in_netns(temp.name());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let weak = {
        let other = Netns::open(temp.name()).unwrap();
        other.downgrade()
    };
    let bare = temp.as_fd().try_clone_to_owned().unwrap();
    nix::fcntl::fcntl(
        &bare,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    assert!(!is_cloexec(bare.as_fd()));

    let mut handles = vec![
        Netns::new().unwrap(),
        Netns::open(temp.name()).unwrap(),
        Netns::from_path(path_of(temp.name())).unwrap(),
        Netns::from_pid(sleeper.pid()).unwrap(),
        Netns::from_fd(bare).unwrap(),
        Netns::of_socket(&socket).unwrap(),
        Netns::current().unwrap(),
        Netns::home().unwrap(),
        weak.upgrade().unwrap(),
        temp.netns().clone(),
    ];
    handles.extend(Netns::list().unwrap());
    for handle in &handles {
        assert!(is_cloexec(handle.as_fd()), "{handle:?}");
    }
}

// callers

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
    let sleeper = Sleeper::in_netns(temp.name());
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
            assert_ne!(link.to_str(), Some(&*format!("net:[{}]", inode_of(&temp))));
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

// life and death

/// Waits until the namespace has died: a child that another test just forked
/// holds copies of our descriptors until it has called exec.
fn wait_until_dead(weak: &WeakNetns) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while weak.upgrade().is_some() {
        assert!(Instant::now() < deadline, "{weak:?} is still alive");
        thread::yield_now();
    }
}

/// Waits until the peer of a veth pair is gone from `name`.
fn wait_until_gone(name: &str, device: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while try_ip(&["-n", name, "link", "show", "dev", device])
        .status
        .success()
    {
        assert!(Instant::now() < deadline, "{device} is still in {name}");
    }
}

#[test]
fn weak_handle_pins_nothing() {
    let doomed = TempNetns::new();
    let witness = TempNetns::new();
    let (doomed_name, witness_name) = (doomed.name().to_owned(), witness.name().to_owned());
    ip(&[
        "-n",
        &witness_name,
        "link",
        "add",
        "near",
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        &doomed_name,
    ]);
    let weak = doomed.downgrade();
    let copy = weak.clone();
    assert_eq!(weak.upgrade().as_ref(), Some(doomed.netns()));

    Netns::delete(&doomed_name).unwrap();
    assert!(weak.upgrade().is_some(), "the handle still pins it");
    drop(doomed);

    wait_until_dead(&weak);
    assert_eq!(copy.upgrade(), None);
    wait_until_gone(&witness_name, "near");
    assert_eq!(weak.label(), doomed_name);
    assert_eq!(weak, copy);
}

#[test]
fn weak_handle_finds_what_lives_on_without_us() {
    let temp = TempNetns::new();
    let name = temp.name().to_owned();
    let sleeper = Sleeper::in_netns(&name);
    let weak = temp.downgrade();
    let id = temp.id();
    temp.delete();

    let again = weak.upgrade().expect("a process is in it");
    assert_eq!(again.id(), id);
    assert_eq!(again.label(), name);
    drop(again);
    drop(sleeper);
    wait_until_dead(&weak);
}

#[test]
fn weak_handle_of_a_dead_namespace_is_never_one_that_came_later() {
    require_root();
    for _ in 0..8 {
        let old = Netns::new().unwrap();
        let weak = old.downgrade();
        drop(old);
        wait_until_dead(&weak);
        // One of these may well have the old one's inode number.
        let new: Vec<_> = (0..16).map(|_| Netns::new().unwrap()).collect();
        assert_eq!(weak.upgrade(), None);
        assert!(new.iter().all(|new| new.downgrade() != weak));
    }
}

#[test]
fn unnamed_namespace_has_no_name_and_dies_with_its_last_handle() {
    require_root();
    let netns = Netns::new().unwrap();
    let twin = netns.clone();
    assert_eq!(netns.label(), format!("netns:{}", netns.id()));
    assert!(!Netns::list().unwrap().contains(&netns));
    let weak = netns.downgrade();
    drop(netns);
    assert!(weak.upgrade().is_some());
    drop(twin);
    wait_until_dead(&weak);
}

#[test]
fn loopback_carries_traffic_once_it_is_up() {
    require_root();
    let netns = Netns::new().unwrap();
    let connect = || {
        netns_exec::run(&netns, || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            TcpStream::connect(listener.local_addr()?).map(drop)
        })
        .unwrap()
    };
    assert!(connect().is_err());
    netns.set_loopback_up().unwrap();
    connect().unwrap();
    netns.set_loopback_up().unwrap();
    connect().unwrap();
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
