//! Namespaces that go with an owner, those at a path, and all of them awaited.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Waker};

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    Alone, TempName, TempNetns, alone, eventually, here, names_by_ip, require_root, unique_name,
};

#[test]
fn owned_name_goes_with_its_owner() {
    let name = TempName::new();
    let owned = Netns::create_owned(&*name).unwrap();
    assert_eq!(owned.name(), OsStr::new(&*name));
    assert_eq!(*owned, Netns::open(&name).unwrap());
    assert!(names_by_ip().contains(&name.0));
    drop(owned);
    assert!(Netns::open(&name).unwrap_err().is_not_found());
    // And can be made again at once.
    Netns::create_owned(&*name).unwrap().delete().unwrap();
    assert!(Netns::open(&name).unwrap_err().is_not_found());
}

#[test]
fn owned_name_goes_by_a_panic_and_on_a_sealed_worker() {
    let name = TempName::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _owned = Netns::create_owned(&*name).unwrap();
        panic!("with a namespace in hand");
    }));
    assert!(panicked.is_err());
    assert!(Netns::open(&name).unwrap_err().is_not_found());

    let owned = Netns::create_owned(&*name).unwrap();
    let executor = Executor::new().unwrap();
    let netns = TempNetns::new();
    executor.run(&netns, move || drop(owned)).unwrap();
    assert!(Netns::open(&name).unwrap_err().is_not_found());
}

#[test]
fn owner_keeps_off_a_name_that_is_not_its_own_any_more() {
    let name = TempName::new();
    let owned = Netns::create_owned(&*name).unwrap();
    Netns::delete(&name).unwrap();
    let other = Netns::create(&name).unwrap();
    drop(owned);
    assert_eq!(Netns::open(&name).unwrap(), other);

    let kept = Netns::create_owned(&*name);
    assert!(kept.unwrap_err().is_already_exists());
    Netns::delete(&name).unwrap();
    let kept = Netns::create_owned(&*name).unwrap().keep();
    assert_eq!(Netns::open(&name).unwrap(), kept);
}

#[test]
fn owned_namespace_is_gone_soon_although_a_worker_idles_in_it() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let executor = Executor::builder().idle_timeout(None).build().unwrap();
    let owned = Netns::create_owned(unique_name()).unwrap();
    assert_eq!(executor.run(&owned, here).unwrap(), owned.id());
    let weak = owned.downgrade();
    drop(owned);
    eventually("the worker has left", || weak.upgrade().is_none());
}

/// A folder that goes away with all that is mounted below it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        require_root();
        let folder = std::env::temp_dir().join(unique_name());
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = Netns::delete_at(entry.path());
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn namespace_at_a_path_is_one_until_it_is_deleted_there() {
    let folder = Folder::new();
    let path = folder.0.join("blue");
    let made = Netns::create_at(&path).unwrap();
    assert_eq!(made.label(), path.to_str().unwrap());
    assert_eq!(Netns::from_path(&path).unwrap(), made);
    assert!(Netns::create_at(&path).unwrap_err().is_already_exists());
    let executor = Executor::new().unwrap();
    assert_eq!(executor.run(&made, here).unwrap(), made.id());
    Netns::delete_at(&path).unwrap();
    assert!(!path.exists());
    let error = Netns::delete_at(&path).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn path_that_cannot_be_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    for path in [OsStr::new(""), OsStr::from_bytes(b"a\0b")] {
        assert!(Netns::create_at(path).unwrap_err().is_invalid_input());
        assert!(Netns::delete_at(path).unwrap_err().is_invalid_input());
    }
    let error = Netns::create_at(folder.0.join("missing/blue")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOENT), "{error}");
    let file = folder.0.join("in-use");
    fs::write(&file, "precious").unwrap();
    assert!(Netns::create_at(&file).unwrap_err().is_already_exists());
    assert!(Netns::delete_at(&file).unwrap_err().is_not_a_netns());
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let error = Netns::delete_at(&folder.0).unwrap_err();
    assert!(error.is_not_a_netns(), "{error}");
}

#[test]
fn awaited_forms_do_what_the_others_do() {
    let name = TempName::new();
    pollster::block_on(async {
        let fresh = Netns::new_async().await.unwrap();
        fresh.set_loopback_up_async().await.unwrap();
        let executor = Executor::new().unwrap();
        let bound = executor.run(&fresh, || std::net::TcpListener::bind("127.0.0.1:80"));
        assert!(bound.unwrap().is_ok());
        let named = Netns::create_async(&*name).await.unwrap();
        assert_eq!(Netns::open(&name).unwrap(), named);
        let error = Netns::create_async(&*name).await.unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        assert_eq!(Netns::open(&name).unwrap(), named);
        Netns::delete_async(&*name).await.unwrap();
        let error = Netns::delete_async(&*name).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let error = Netns::create_async("a/b").await.unwrap_err();
        assert!(error.is_invalid_input(), "{error}");
    });
}

#[test]
fn creation_that_is_given_up_leaves_no_name() {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        let name = TempName::new();
        {
            let mut making = pin!(Netns::create_async(&*name));
            let polled = making.as_mut().poll(&mut cx);
            if polled.is_ready() {
                continue;
            }
        }
        // Whether it was under way or had not begun.
        let free = || {
            Netns::open(&name).is_err_and(|error| error.is_not_found())
                && !PathBuf::from("/run/netns").join(&*name).exists()
        };
        pollster::block_on(Netns::new_async()).unwrap();
        eventually("the name is free", free);
    }
    drop(Netns::create_async(unique_name()));
}
