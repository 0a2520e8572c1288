//! The traits of the standard library on handles, names of any bytes, and what may be
//! entered.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, TempNetns, alone, drop_all_capabilities, fresh, is_cloexec, on_a_thread, unique_name,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

fn own() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

#[test]
fn every_kind_of_open_file_becomes_the_handle_it_is() {
    let here = Netns::current().unwrap();
    assert_eq!(Netns::try_from(own()).unwrap(), here);
    assert_eq!(Netns::try_from(OwnedFd::from(own())).unwrap(), here);
    assert_eq!(Netns::try_from(own().as_fd()).unwrap(), here);
    assert_eq!(Netns::try_from(here.as_fd()).unwrap(), here);

    let other = || File::open("/proc/self/status").unwrap();
    for error in [
        Netns::try_from(other()).unwrap_err(),
        Netns::try_from(OwnedFd::from(other())).unwrap_err(),
        Netns::try_from(other().as_fd()).unwrap_err(),
    ] {
        assert!(error.is_not_a_netns(), "{error}");
    }
}

#[test]
fn borrowed_descriptor_stays_as_it_was_and_the_handle_outlives_it() {
    let file = own();
    // As one that is meant for a child to inherit.
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let netns = Netns::try_from(file.as_fd()).unwrap();
    assert_ne!(netns.as_raw_fd(), file.as_raw_fd());
    assert!(is_cloexec(netns.as_fd()));
    assert!(!is_cloexec(file.as_fd()));
    drop(file);
    netns.check_enter().unwrap();
}

#[test]
fn number_is_that_of_the_borrowed_descriptor() {
    let netns = Netns::current().unwrap();
    assert_eq!(netns.as_raw_fd(), netns.as_fd().as_raw_fd());
}

#[test]
fn name_parses_as_open_takes_it() {
    let temp = TempNetns::new();
    let parsed: Netns = temp.name().parse().unwrap();
    assert_eq!(parsed, *temp.netns());
    assert_eq!(parsed.label(), temp.name());
    let missing = unique_name().parse::<Netns>().unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert!("a/b".parse::<Netns>().unwrap_err().is_invalid_input());
}

#[test]
fn errno_of_a_refused_descriptor_survives_in_an_io_error() {
    let mut path_only = File::options();
    path_only.read(true).custom_flags(nix::libc::O_PATH);
    let file = path_only.open("/proc/self/ns/net").unwrap();
    let error = Netns::try_from(file).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
    let error = std::io::Error::from(error);
    assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
}

/// A name that is not UTF-8, deleted with this.
struct Bytes(OsString);

impl Bytes {
    fn new() -> Bytes {
        let mut name = unique_name().into_bytes();
        name.extend_from_slice(b"-\xff\xfe");
        Bytes(OsString::from_vec(name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let _ = Netns::delete_os(&self.0);
    }
}

#[test]
fn name_of_any_bytes_is_made_opened_listed_and_deleted() {
    let name = Bytes::new();
    let missing = Netns::open_os(&name.0).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");

    let made = Netns::create_os(&name.0).unwrap();
    assert!(name.path().exists());
    assert_eq!(Netns::open_os(&name.0).unwrap(), made);
    assert!(Netns::create_os(&name.0).unwrap_err().is_already_exists());
    assert_eq!(made.label(), name.0.to_string_lossy());
    assert!(made.label().ends_with("-\u{fffd}\u{fffd}"), "{made}");
    let listed = Netns::list().unwrap();
    let found = listed.iter().find(|netns| **netns == made).unwrap();
    assert_eq!(found.label(), made.label());

    Netns::delete_os(&name.0).unwrap();
    assert!(!name.path().exists());
    assert!(Netns::delete_os(&name.0).unwrap_err().is_not_found());
}

#[test]
fn bytes_that_no_file_can_have_are_refused() {
    let long = vec![0xff; 256];
    for bytes in [&b""[..], b"..", b"\xff/x", b"\xff\0", &long] {
        let name = OsStr::from_bytes(bytes);
        for error in [
            Netns::create_os(name).unwrap_err(),
            Netns::open_os(name).unwrap_err(),
            Netns::delete_os(name).unwrap_err(),
        ] {
            assert!(error.is_invalid_input(), "{name:?}: {error}");
        }
    }
}

#[test]
fn root_can_enter_others_whatever_the_calling_thread_gave_up() {
    let netns = fresh();
    assert!(Netns::can_enter_others().unwrap());
    on_a_thread(|| {
        drop_all_capabilities();
        assert!(Netns::can_enter_others().unwrap());
    });
    let sealed = Executor::builder().guard(Guard::Seal).build().unwrap();
    let asked = sealed.run(&netns, || Netns::can_enter_others().unwrap());
    assert!(asked.unwrap(), "it is the process that is asked about");
}

#[test]
fn ordinary_user_cannot_enter_others() {
    alone!(Alone::OrdinaryUser);
    assert!(!Netns::can_enter_others().unwrap());
    assert!(Netns::home().unwrap().check_enter().is_ok());
}

#[test]
fn root_of_an_own_user_namespace_can_enter_what_it_owns() {
    alone!(Alone::OwnUserNamespace);
    assert!(Netns::can_enter_others().unwrap());
}

#[test]
fn root_of_an_own_user_namespace_in_the_hosts_network_cannot() {
    alone!(Alone::DetachedChildren);
    assert!(!Netns::can_enter_others().unwrap());
    Netns::new().unwrap().check_enter().unwrap();
}

#[test]
fn asking_leaves_nothing_behind() {
    alone!(Alone::AsIs);
    let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
    Netns::can_enter_others().unwrap();
    let fds = netns_exec_tests::fds_of_this_process();
    for _ in 0..10 {
        Netns::can_enter_others().unwrap();
    }
    assert_eq!(netns_exec_tests::fds_of_this_process(), fds);
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
}
