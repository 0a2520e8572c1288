//! The deletion watch: says when a namespace's last bind mount has gone.
//!
//! `ip netns del` is an umount and an unlink. The namespace itself lives on for
//! as long as a thread is in it, and with it the physical and veth devices that
//! were moved there, so an executor that keeps idle threads in it must hear of it.
//!
//! One thread serves the whole process. It starts with the first
//! [`Subscription`] and ends with the last; in between it sleeps in poll(2). It
//! is born at home, so "mounted" means in the mount namespace the home thread
//! is in.
//!
//! The watch hears of a mount a moment after it was made. So its view alone
//! neither proves that a namespace is not mounted, which is why a subscriber
//! looks into the mount table itself, nor that it is no longer mounted, which is
//! why the table is looked at before a subscriber is called.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tracing::{error, info, warn};

use crate::error::{Error, Result};
use crate::home::Home;
use crate::netns::NetnsId;
use crate::sys;
use crate::sys::mount_table::{MountWaiter, MountWatch, Notification};

/// The watch of this process.
static WATCH: DeletionWatch =
    DeletionWatch::new(&[Notification::MountEvents, Notification::MountInfo]);

/// What the watch has to say. A subscriber of `tracing` is user code, which runs on
/// no thread of ours but workers, and under no lock: a worker tells it.
pub(crate) enum Note {
    CannotBeHad(&'static str, io::Error),
    Failed(&'static str, io::Error),
    Blind(io::Error),
    Panicked(NetnsId),
}

impl Note {
    /// Tells the subscriber of `tracing`.
    pub(crate) fn tell(&self) {
        match self {
            Note::CannotBeHad(notification, cause) => {
                info!(notification, error = %cause, "mount notification cannot be had");
            }
            Note::Failed(notification, cause) => {
                warn!(notification, error = %cause, "mount notification failed");
            }
            Note::Blind(cause) => {
                error!(error = %cause, "deletion of network namespaces goes unnoticed");
            }
            Note::Panicked(id) => {
                error!(netns_id = %id, "panic while a network namespace was let go");
            }
        }
    }
}

static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());

fn note(note: Note) {
    const MOST: usize = 64;
    let mut notes = NOTES.lock();
    if notes.len() < MOST {
        notes.push(note);
    }
}

/// Takes what there is to tell: for a thread that may run user code, after it has
/// [subscribed](subscribe).
pub(crate) fn take_notes() -> Vec<Note> {
    std::mem::take(&mut NOTES.lock())
}

/// Calls `on_unmounted` each time the namespace is left without a bind mount in
/// this process's mount namespace after it had one; not when it never had one.
///
/// With `had_name` it is known that it once had one, so if that is gone already,
/// the call comes at once.
///
/// While subscribed, the caller holds the namespace (a thread in it will do):
/// its inode number, which is what the mount table shows, would otherwise come
/// to mean another one. A call too many is possible when the number was another
/// namespace's a moment ago, so `on_unmounted` does what is harmless for a
/// namespace in use.
///
/// `on_unmounted` runs on the watch's thread, under no lock of this module; it
/// may subscribe and unsubscribe, and had better not block: others wait for
/// their call. It may still be running when the subscription has been dropped.
///
/// # Errors
///
/// Fails when the watch's thread cannot be started, or neither notification can
/// be had: no file descriptor left, no /proc.
pub(crate) fn subscribe(
    inode: u64,
    id: NetnsId,
    had_name: bool,
    on_unmounted: impl Fn() + Send + Sync + 'static,
) -> Result<Subscription> {
    WATCH.subscribe(inode, id, had_name, Arc::new(on_unmounted))
}

/// Waits until the watch's thread has ended, unless a subscription is left.
///
/// For an executor that promises to leave no thread behind. Not to be called by
/// `on_unmounted`.
pub(crate) fn join_thread() {
    WATCH.join_thread();
}

/// Ends with its drop.
#[must_use]
pub(crate) struct Subscription {
    watch: &'static DeletionWatch,
    token: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.watch.state.lock();
        let ended = state.subscribers.remove(&self.token);
        if state.subscribers.is_empty() {
            state.wake();
        }
        drop(state);
        // What the closure captured goes only now: it may hold a subscription.
        drop(ended);
    }
}

struct DeletionWatch {
    /// What to try, best first.
    notifications: &'static [Notification],
    state: Mutex<WatchState>,
}

struct WatchState {
    /// What the thread works with, while there is one.
    running: Option<Running>,
    /// Threads that may not have ended yet: that one, and its predecessors.
    threads: Vec<JoinHandle<()>>,
    subscribers: BTreeMap<u64, Subscriber>,
    next_token: u64,
}

struct Running {
    /// Refreshed by the watch's thread alone: what the kernel answers depends
    /// on the thread that asks.
    mounts: MountWatch,
    wake: Arc<EventFd>,
    /// The table as the watch's thread sees it; other threads may be in other
    /// mount namespaces.
    mountinfo: PathBuf,
}

struct Subscriber {
    inode: u64,
    id: NetnsId,
    /// Whether it had a mount when last looked at.
    mounted: bool,
    on_unmounted: Arc<dyn Fn() + Send + Sync>,
}

impl DeletionWatch {
    const fn new(notifications: &'static [Notification]) -> DeletionWatch {
        DeletionWatch {
            notifications,
            state: Mutex::new(WatchState {
                running: None,
                threads: Vec::new(),
                subscribers: BTreeMap::new(),
                next_token: 0,
            }),
        }
    }

    fn subscribe(
        &'static self,
        inode: u64,
        id: NetnsId,
        had_name: bool,
        on_unmounted: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Subscription> {
        let mut state = self.state.lock();
        let token = state.next_token;
        state.next_token += 1;
        let subscriber = Subscriber {
            inode,
            id,
            mounted: had_name,
            on_unmounted,
        };
        // Before the thread is there, which would end without a subscriber.
        state.subscribers.insert(token, subscriber);
        let subscription = Subscription { watch: self, token };
        if state.running.is_none() {
            drop(state);
            self.start()?;
            state = self.state.lock();
        }
        let Some(running) = &state.running else {
            // It started, failed and said why: see `serve`.
            let gone = io::Error::from_raw_os_error(libc::ESRCH);
            return Err(Error::kernel("cannot watch for unmounted netns", gone));
        };
        let mounted = running.mounts.is_mounted(inode) || {
            let mountinfo = running.mountinfo.clone();
            drop(state);
            // A long table is read without the lock. If it cannot be read, the
            // thread finds out before it calls.
            let mounted = is_mounted(inode, &mountinfo).unwrap_or(true);
            state = self.state.lock();
            mounted
        };
        if let Some(subscriber) = state.subscribers.get_mut(&token) {
            subscriber.mounted |= mounted;
        }
        // By now it may have been unmounted, and the watch may have heard of
        // that when there was no subscriber.
        if mounted || had_name {
            state.wake();
        }
        Ok(subscription)
    }

    /// Starts the thread and waits until it watches.
    ///
    /// No lock is held: what the home thread is busy with may want it.
    fn start(&'static self) -> Result<()> {
        const STACK: usize = 256 * 1024;
        let failed = |cause| Error::kernel("cannot watch for unmounted netns", cause);

        let (ready, started) = sync_channel(1);
        let thread = Home::get()?
            .spawn_thread("netns-watch".to_owned(), STACK, move || {
                let waiter = self.set_up();
                let _ = ready.send(waiter.as_ref().map(|_| ()).map_err(raw_copy));
                if let Ok(Some((waiter, wake))) = waiter {
                    self.serve(waiter, &wake);
                }
            })
            .map_err(failed)?;
        let started = started.recv().expect("`set_up` does not panic");
        let mut state = self.state.lock();
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        drop(state);
        started.map_err(failed)
    }

    /// Makes the calling thread the watch's thread, if there is none and
    /// a subscription is left.
    fn set_up(&self) -> io::Result<Option<(MountWaiter, Arc<EventFd>)>> {
        let mut state = self.state.lock();
        if state.running.is_some() || state.subscribers.is_empty() {
            return Ok(None);
        }
        let mounts = self.watch_mounts(self.notifications)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let wake = Arc::new(wake);
        let waiter = mounts.waiter();
        state.running = Some(Running {
            mounts,
            wake: Arc::clone(&wake),
            mountinfo: format!("/proc/self/task/{}/mountinfo", sys::thread::tid()).into(),
        });
        Ok(Some((waiter, wake)))
    }

    /// Watches by the best of `notifications` that can be had.
    fn watch_mounts(&self, notifications: &[Notification]) -> io::Result<MountWatch> {
        let mut failure = io::Error::from_raw_os_error(libc::ENOSYS);
        for &notification in notifications {
            match MountWatch::new(notification) {
                Ok(mounts) => return Ok(mounts),
                Err(cause) => {
                    note(Note::CannotBeHad(notification.name(), raw_copy(&cause)));
                    failure = cause;
                }
            }
        }
        Err(failure)
    }

    fn serve(&self, mut waiter: MountWaiter, wake: &EventFd) {
        loop {
            let woken = waiter.wait(wake.as_fd());
            let begun = Instant::now();
            // Before the lock is taken: what wakes it after this has not been seen.
            // An error is the absence of a value, and then there is nothing to take.
            let _ = wake.read();

            let mut state = self.state.lock();
            if state.subscribers.is_empty() {
                let ended = state.running.take();
                drop(state);
                // Closing a fanotify group takes the kernel a while.
                drop(ended);
                return;
            }
            let running = state.running.as_mut();
            let running = running.expect("taken by this thread alone, which then ends");
            let changed = !matches!(woken, Ok(woken) if !woken.mounts);
            let refreshed = woken.and_then(|_| match changed {
                true => running.mounts.refresh(),
                false => Ok(()),
            });
            if let Err(cause) = refreshed {
                let notification = running.mounts.notification();
                note(Note::Failed(notification.name(), cause));
                let failed = self.notifications.iter().position(|&n| n == notification);
                let others = &self.notifications[failed.map_or(0, |at| at + 1)..];
                match self.watch_mounts(others) {
                    Ok(mounts) => {
                        waiter = mounts.waiter();
                        running.mounts = mounts;
                    }
                    Err(cause) => {
                        note(Note::Blind(cause));
                        state.running = None;
                        return;
                    }
                }
            }
            let due = state.due();
            drop(state);
            let cost = begun.elapsed();

            for (id, on_unmounted) in due {
                if catch_unwind(AssertUnwindSafe(|| on_unmounted())).is_err() {
                    note(Note::Panicked(id));
                }
            }
            // Others may be mounting by the thousand: let some of that pile up,
            // so that no more than a fifth of a CPU goes into following it.
            if changed {
                thread::sleep((cost * 4).clamp(Duration::from_millis(1), LONGEST_PAUSE));
            }
        }
    }

    fn join_thread(&self) {
        let mut state = self.state.lock();
        if state.subscribers.is_empty() {
            let threads = std::mem::take(&mut state.threads);
            drop(state);
            for thread in threads {
                // It reports its own failures.
                let _ = thread.join();
            }
        }
    }
}

/// Well below the tenth of a second within which a deletion is to be noticed.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

impl WatchState {
    /// Wakes the watch's thread.
    fn wake(&self) {
        if let Some(running) = &self.running {
            // Fails when the counter is full, and then it is readable anyway.
            let _ = running.wake.write(1);
        }
    }

    /// Brings the subscribers up to date, and returns who is to be called.
    fn due(&mut self) -> Vec<(NetnsId, Arc<dyn Fn() + Send + Sync>)> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        // Read when first needed, and then once for all.
        let mut table = None;
        let mut due = Vec::new();
        for subscriber in self.subscribers.values_mut() {
            let inode = subscriber.inode;
            if running.mounts.is_mounted(inode) {
                subscriber.mounted = true;
            } else if subscriber.mounted {
                let table = table.get_or_insert_with(|| mounted(&running.mountinfo));
                // Unreadable: as if it were mounted, until a later look.
                subscriber.mounted = table.as_ref().map_or(true, |t| t.contains(&inode));
                if !subscriber.mounted {
                    due.push((subscriber.id, Arc::clone(&subscriber.on_unmounted)));
                }
            }
        }
        due
    }
}

fn is_mounted(inode: u64, mountinfo: &Path) -> io::Result<bool> {
    Ok(mounted(mountinfo)?.contains(&inode))
}

/// The inode numbers of all network namespaces in a mount table.
fn mounted(mountinfo: &Path) -> io::Result<HashSet<u64>> {
    let mounts = sys::mount_table::netns_mounts(mountinfo)?;
    Ok(mounts.iter().map(|mount| mount.inode).collect())
}

/// An [`io::Error`] cannot be cloned; the kernel's can be made again.
fn raw_copy(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

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
            rare_calls
                .recv_timeout(LONG)
                .expect("its one mount has gone");
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
            drop(many);
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
}
