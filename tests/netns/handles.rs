//! What a handle can be made of, what it refuses, and which namespace it means.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use netns_exec::{Error, Netns};
use netns_exec_tests::{
    Sleeper, TempName, TempNetns, is_cloexec, netns_cookie_of, path_of, require_root, unique_name,
};

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
    let sleeper = Sleeper::in_named(temp.name());
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
    let sleeper = Sleeper::in_named(temp.name());
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
