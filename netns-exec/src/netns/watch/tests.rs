//! The deletion watch by itself, with each kind of notification.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::fstat;

use super::*;
use crate::netns::Netns;

const KINDS: [&[Notification]; 2] = [&[Notification::MountEvents], &[Notification::MountInfo]];
/// Far more than any of this takes; reached only by a failure.
const LONG: Duration = Duration::from_secs(20);

fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("nx-{what}-{}-{count}", std::process::id())
}

fn fresh_watch(notifications: &'static [Notification]) -> &'static DeletionWatch {
    Box::leak(Box::new(DeletionWatch::new(notifications)))
}

/// A directory with files to mount on; unmounts what is left there.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let dir = PathBuf::from("/run").join(unique("watch"));
        fs::create_dir(&dir).expect("needs root: cargo test as root");
        // Private, so that mounts can be moved within it.
        mount(
            Some("none"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("needs CAP_SYS_ADMIN");
        mount(
            None::<&str>,
            &dir,
            None::<&str>,
            MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .expect("a mount can be made private");
        Dir(dir)
    }

    fn bind(&self, netns: &Netns, name: &str) -> PathBuf {
        let target = self.0.join(name);
        fs::write(&target, "").expect("tmpfs takes files");
        let source = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&netns.as_fd())
        );
        mount(
            Some(&*source),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("a namespace can be mounted");
        target
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn unmount(target: &Path) {
    umount2(target, MntFlags::MNT_DETACH).expect("it is mounted");
}

fn listen(watch: &'static DeletionWatch, netns: &Netns) -> (Subscription, Receiver<()>) {
    let (told, calls) = channel();
    let inode = fstat(netns).expect("an open file").st_ino;
    let subscription = watch
        .subscribe(
            inode,
            netns.id(),
            false,
            Arc::new(move || told.send(()).unwrap_or_default()),
        )
        .expect("the watch can be had");
    (subscription, calls)
}

/// Returns when the watch has taken in everything that happened so far.
fn sync(watch: &'static DeletionWatch, dir: &Dir) {
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    let name = unique("sync");
    let target = dir.bind(&netns, &name);
    let (_subscription, calls) = listen(watch, &netns);
    unmount(&target);
    calls.recv_timeout(LONG).expect("an unmount is reported");
}

#[test]
fn unmounting_the_last_of_several_mounts_is_reported_once() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        let (first, second) = (dir.bind(&netns, "first"), dir.bind(&netns, "second"));
        let (_subscription, calls) = listen(watch, &netns);
        unmount(&first);
        sync(watch, &dir);
        assert!(calls.try_recv().is_err(), "{kind:?}: one mount is left");
        unmount(&second);
        calls.recv_timeout(LONG).expect("the last one has gone");
        sync(watch, &dir);
        assert!(calls.try_recv().is_err(), "{kind:?}: reported twice");
    }
}

#[test]
fn mounts_made_later_count_and_namespaces_without_any_are_left_alone() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let (named, unnamed) = (Netns::new(), Netns::new());
        let (named, unnamed) = (
            named.expect("needs CAP_SYS_ADMIN"),
            unnamed.expect("as above"),
        );
        let (_one, calls) = listen(watch, &named);
        let (_other, none) = listen(watch, &unnamed);
        sync(watch, &dir);
        assert!(calls.try_recv().is_err(), "{kind:?}: never mounted");
        for _ in 0..3 {
            let target = dir.bind(&named, "later");
            unmount(&target);
            // Mounted and unmounted faster than the watch looks is no event.
            let target = dir.bind(&named, "later");
            sync(watch, &dir);
            while calls.try_recv().is_ok() {}
            unmount(&target);
            calls
                .recv_timeout(LONG)
                .expect("it was mounted, and no longer is");
        }
        assert!(none.try_recv().is_err(), "{kind:?}: never mounted");
    }
}

#[test]
fn moved_and_renamed_mounts_are_still_there() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        let mut target = dir.bind(&netns, "start");
        let (_subscription, calls) = listen(watch, &netns);
        for step in 0..20 {
            let next = dir.0.join(format!("step{step}"));
            fs::write(&next, "").expect("tmpfs takes files");
            mount(
                Some(&target),
                &next,
                None::<&str>,
                MsFlags::MS_MOVE,
                None::<&str>,
            )
            .expect("private mounts move");
            target = next;
        }
        sync(watch, &dir);
        let renamed = dir.bind(&netns, "renamed");
        unmount(&target);
        sync(watch, &dir);
        assert!(calls.try_recv().is_err(), "{kind:?}: still mounted");
        unmount(&renamed);
        calls.recv_timeout(LONG).expect("the last one has gone");
    }
}

#[test]
fn subscribing_just_before_the_unmount_is_early_enough() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        // Keeps the thread running, and pausing between looks.
        let other = Netns::new().expect("needs CAP_SYS_ADMIN");
        let _running = listen(watch, &other);
        for _ in 0..100 {
            let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
            let target = dir.bind(&netns, "brief");
            let (_subscription, calls) = listen(watch, &netns);
            unmount(&target);
            calls
                .recv_timeout(LONG)
                .expect("it was mounted when we subscribed");
        }
    }
}

#[test]
fn ip_netns_del_is_noticed_within_a_tenth_of_a_second() {
    for kind in KINDS {
        let watch = fresh_watch(kind);
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let name = unique("del");
                let ip = |verb| {
                    let status = Command::new("ip").args(["netns", verb, &name]).status();
                    assert!(
                        status.expect("iproute2 is installed").success(),
                        "ip netns {verb}"
                    );
                };
                ip("add");
                let inode = fs::metadata(format!("/run/netns/{name}"));
                let inode = std::os::unix::fs::MetadataExt::ino(&inode.expect("just added"));
                let held = fs::File::open(format!("/run/netns/{name}")).expect("just added");
                let id = Netns::current().expect("there is one").id();
                let (told, calls) = channel();
                let told = move || told.send(Instant::now()).unwrap_or_default();
                let _subscription = watch
                    .subscribe(inode, id, false, Arc::new(told))
                    .expect("as above");
                ip("del");
                let deleted = Instant::now();
                let noticed = calls.recv_timeout(LONG).expect("a deletion is noticed");
                drop(held);
                noticed.saturating_duration_since(deleted)
            })
            .collect();
        times.sort();
        // The median: this machine may be busy with other things.
        assert!(times[4] < Duration::from_millis(100), "{kind:?}: {times:?}");
    }
}

#[test]
fn two_thousand_mounts_that_go_at_once_are_all_reported() {
    const COUNT: usize = 2000;
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let rare = Netns::new().expect("needs CAP_SYS_ADMIN");
        let common = Netns::new().expect("needs CAP_SYS_ADMIN");
        let (_one, rare_calls) = listen(watch, &rare);
        let (_other, common_calls) = listen(watch, &common);
        dir.bind(&rare, "rare");
        for mount in 0..COUNT {
            dir.bind(&common, &mount.to_string());
        }
        let elsewhere = Dir::new();
        sync(watch, &elsewhere);
        assert!(rare_calls.try_recv().is_err(), "{kind:?}");
        assert!(common_calls.try_recv().is_err(), "{kind:?}");
        unmount(&dir.0);
        let gone = rare_calls.recv_timeout(LONG);
        assert!(gone.is_ok(), "{kind:?}: its one mount has gone");
        common_calls
            .recv_timeout(LONG)
            .expect("its mounts have all gone");
        sync(watch, &elsewhere);
        assert!(
            common_calls.try_recv().is_err(),
            "{kind:?}: reported more than once"
        );
    }
}

#[test]
fn name_that_was_lost_before_anybody_watched_is_reported_at_once() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        // The thread has nothing to look at when the subscriber comes.
        let other = Netns::new().expect("needs CAP_SYS_ADMIN");
        let _running = listen(watch, &other);
        sync(watch, &dir);
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        let inode = fstat(&netns).expect("an open file").st_ino;
        let subscribe = || {
            let (told, calls) = channel();
            let callback = Arc::new(move || told.send(()).unwrap_or_default());
            let subscription = watch.subscribe(inode, netns.id(), true, callback);
            (subscription.expect("the watch can be had"), calls)
        };
        let (_subscription, calls) = subscribe();
        calls.recv_timeout(LONG).expect("it has no name");

        let target = dir.bind(&netns, "name");
        let (_subscription, calls) = subscribe();
        sync(watch, &dir);
        assert!(calls.try_recv().is_err(), "{kind:?}: it has one");
        unmount(&target);
        calls.recv_timeout(LONG).expect("an unmount is reported");
    }
}

#[test]
fn callback_may_unsubscribe_subscribe_and_panic() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        let inode = fstat(&netns).expect("an open file").st_ino;
        let id = netns.id();
        let target = dir.bind(&netns, "name");
        let own = Arc::new(Mutex::new(None));
        let (told, calls) = channel();
        let callback = {
            let own = Arc::clone(&own);
            move || {
                let told = told.clone();
                let next = watch.subscribe(
                    inode,
                    id,
                    false,
                    Arc::new(move || told.send(()).unwrap_or_default()),
                );
                drop(own.lock().replace(next.expect("the watch is running")));
                panic!("part of the test");
            }
        };
        let subscription = watch
            .subscribe(inode, id, false, Arc::new(callback))
            .expect("as above");
        *own.lock() = Some(subscription);
        unmount(&target);
        sync(watch, &dir);
        let target = dir.bind(&netns, "again");
        sync(watch, &dir);
        unmount(&target);
        calls
            .recv_timeout(LONG)
            .expect("the second subscription took over");
    }
}

#[test]
fn thread_ends_with_the_last_subscription_and_a_new_one_starts_another() {
    for kind in KINDS {
        let (watch, dir) = (fresh_watch(kind), Dir::new());
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        for _ in 0..20 {
            let target = dir.bind(&netns, "name");
            let (subscription, calls) = listen(watch, &netns);
            unmount(&target);
            calls.recv_timeout(LONG).expect("an unmount is reported");
            drop(subscription);
        }
        let many: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| listen(watch, &netns)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .collect()
        });
        assert!(watch.state.lock().running.is_some());
        watch.join_thread();
        assert!(
            watch.state.lock().running.is_some(),
            "{kind:?}: still wanted"
        );
        // What has happened is no reason to look any more, so that only the last drop is.
        sync(watch, &dir);
        drop(many);
        let begun = Instant::now();
        while watch.state.lock().running.is_some() {
            assert!(
                begun.elapsed() < LONG,
                "{kind:?}: it does not hear of the last"
            );
            thread::yield_now();
        }
        watch.join_thread();
        let state = watch.state.lock();
        assert!(state.running.is_none(), "{kind:?}");
        assert!(
            state.threads.is_empty() && state.subscribers.is_empty(),
            "{kind:?}"
        );
    }
}

#[test]
fn falls_back_when_the_kernel_tells_less() {
    let watch = fresh_watch(&[Notification::MountEvents, Notification::MountInfo]);
    let dir = Dir::new();
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    let target = dir.bind(&netns, "name");
    let (_subscription, calls) = listen(watch, &netns);
    let notification = || {
        let state = watch.state.lock();
        state
            .running
            .as_ref()
            .expect("there is a subscription")
            .mounts
            .notification()
    };
    assert_eq!(notification(), Notification::MountEvents);
    {
        // As if the events had failed: reading a group from a file opened
        // for nothing but its name does.
        let mut state = watch.state.lock();
        let running = state.running.as_mut().expect("there is a subscription");
        running.mounts.break_events();
        state.wake();
    }
    unmount(&target);
    calls.recv_timeout(LONG).expect("the fallback reports it");
    assert_eq!(notification(), Notification::MountInfo);
}
