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
//! Others may mount without end, and following that must cost next to nothing: what
//! happens is looked at at once while it is little, and otherwise a few times a second,
//! see [`Budget`]. So a name that comes and goes in less time may go unnoticed, if the
//! namespace had none before.
//!
//! The watch hears of a mount a moment after it was made. So its view alone
//! neither proves that a namespace is not mounted, which is why a subscriber
//! looks into the mount table itself, nor that it is no longer mounted, which is
//! why the table is looked at before a subscriber is called.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tracing::{debug, error, info, warn};

use crate::error::{Error, Result, copy_of};
use crate::home::{self, Home};
use crate::netns::{Netns, NetnsId};
use crate::sys;
use crate::sys::mount_watch::{MountWaiter, MountWatch, Notification};

/// Something for the log. The watch's thread runs no subscriber of tracing's, and none
/// runs under the watch's lock: it may call into a namespace, and wait for the watch.
pub(crate) enum News {
    Watching(Notification),
    NotToBeHad(Notification, io::Error),
    Failed(Notification, io::Error),
    GoesUnnoticed(io::Error),
    Unmounted(NetnsId),
    Panicked(NetnsId),
    Ended,
}

impl News {
    /// Tells the subscriber. To be called where user code may run.
    pub(crate) fn tell(&self) {
        match self {
            News::Watching(notification) => {
                let notification = notification.name();
                debug!(notification, "watching for unmounted network namespaces");
            }
            News::NotToBeHad(notification, error) => {
                let notification = notification.name();
                info!(notification, %error, "mount notification cannot be had");
            }
            News::Failed(notification, error) => {
                let notification = notification.name();
                warn!(notification, %error, "mount notification failed");
            }
            News::GoesUnnoticed(error) => {
                error!(%error, "deletion of network namespaces goes unnoticed");
            }
            News::Unmounted(id) => {
                debug!(netns_id = %id, "network namespace is no longer mounted");
            }
            News::Panicked(id) => {
                error!(netns_id = %id, "panic while a network namespace was let go");
            }
            News::Ended => debug!("no longer watching for unmounted network namespaces"),
        }
    }
}

/// What the watch's thread has to say, oldest first: for a worker that may run user
/// code just now. Cheap when there is nothing.
pub(crate) fn take_news() -> VecDeque<News> {
    WATCH.news.take()
}

/// The last so many: without a worker that comes by they are not told.
struct Newspaper {
    any: AtomicBool,
    news: Mutex<VecDeque<News>>,
}

impl Newspaper {
    const ROOM: usize = 256;

    const fn new() -> Newspaper {
        Newspaper {
            any: AtomicBool::new(false),
            news: Mutex::new(VecDeque::new()),
        }
    }

    fn add(&self, item: News) {
        let mut news = self.news.lock();
        if news.len() == Newspaper::ROOM {
            news.pop_front();
        }
        news.push_back(item);
        self.any.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> VecDeque<News> {
        if !self.any.load(Ordering::Relaxed) {
            return VecDeque::new();
        }
        let mut news = self.news.lock();
        self.any.store(false, Ordering::Relaxed);
        mem::take(&mut news)
    }
}

/// The watch of this process.
static WATCH: DeletionWatch =
    DeletionWatch::new(&[Notification::MountEvents, Notification::MountInfo]);

/// Calls `on_lost` each time the namespace is left without a bind mount in this
/// process's mount namespace after it had one, and has noted that for its handles;
/// not when it never had one.
///
/// With `had_name` it is known that it once had one, so if that is gone already, the
/// call comes at once.
///
/// While subscribed, the caller holds the namespace (a thread in it will do):
/// its inode number, which is what the mount table shows, would otherwise come
/// to mean another one. A call too many is possible when the number was another
/// namespace's a moment ago, so `on_lost` does what is harmless for a
/// namespace in use.
///
/// `on_lost` runs on the watch's thread, under no lock of this module; it
/// may subscribe and unsubscribe, and had better not block: others wait for
/// their call. It may still be running when the subscription has been dropped.
///
/// # Errors
///
/// Fails when the watch's thread cannot be started, or neither notification can
/// be had: no file descriptor left, no /proc.
pub(crate) fn on_lost_name(
    netns: &Netns,
    had_name: bool,
    on_lost: impl Fn() + Send + Sync + 'static,
) -> Result<Subscription> {
    let weak = netns.downgrade();
    let lost = move || {
        weak.note_lost_name();
        on_lost();
    };
    WATCH.subscribe(netns.inode()?, netns.id(), had_name, Arc::new(lost))
}

/// Waits until the watch's thread has ended, unless a subscription is left.
///
/// For an executor that promises to leave no thread behind. Not to be called by
/// what is called on a loss.
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
    news: Newspaper,
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
            news: Newspaper::new(),
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
            .spawn_thread("netns-watch".to_owned(), Some(STACK), move || {
                home::forbid_waiting();
                let waiter = self.set_up();
                let _ = ready.send(waiter.as_ref().map(|_| ()).map_err(copy_of));
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
                Ok(mounts) => {
                    self.news.add(News::Watching(notification));
                    return Ok(mounts);
                }
                Err(cause) => {
                    self.news
                        .add(News::NotToBeHad(notification, copy_of(&cause)));
                    failure = cause;
                }
            }
        }
        Err(failure)
    }

    fn serve(&self, mut waiter: MountWaiter, wake: &EventFd) {
        let mut budget = Budget::new();
        let mut until = None;
        loop {
            let waited = waiter.wait(wake.as_fd(), budget.pause(), until);
            let begun = sys::thread::cpu_time();
            // Before the lock is taken: what wakes it after this has not been seen.
            // An error is the absence of a value.
            let is_woken = wake.read().is_ok() || waited.is_err();

            let mut state = self.state.lock();
            if state.subscribers.is_empty() {
                let ended = state.running.take();
                drop(state);
                // Closing a fanotify group takes the kernel a while.
                drop(ended);
                self.news.add(News::Ended);
                return;
            }
            let refreshed = waited.and_then(|has_changed| {
                // A new subscriber has looked for itself, and may know of a mount that
                // was put off: without it, it would be told of a loss.
                let is_behind = is_woken && state.put_off().is_some();
                match has_changed || is_behind {
                    true => state.refresh(),
                    false => Ok(false),
                }
            });
            let mut changed = matches!(refreshed, Ok(true)) || is_woken;
            if let Err(cause) = refreshed {
                match self.watch_otherwise(&mut state, cause) {
                    Ok(other) => waiter = other,
                    Err(cause) => {
                        self.news.add(News::GoesUnnoticed(cause));
                        state.running = None;
                        return;
                    }
                }
                changed = true;
            }
            let due = match changed {
                true => state.due(),
                false => Vec::new(),
            };
            until = state.put_off();
            drop(state);
            // What subscribers ask for, and what they wait for, has to be done.
            if !is_woken && due.is_empty() {
                budget.spend(sys::thread::cpu_time().saturating_sub(begun));
            }

            for (id, on_unmounted) in due {
                // First: the worker that retires for it tells it.
                self.news.add(News::Unmounted(id));
                if catch_unwind(AssertUnwindSafe(|| on_unmounted())).is_err() {
                    self.news.add(News::Panicked(id));
                }
            }
        }
    }

    /// Watches by the next best notification, since the one in use has failed.
    fn watch_otherwise(&self, state: &mut WatchState, cause: io::Error) -> io::Result<MountWaiter> {
        let running = state.running.as_mut();
        let running = running.expect("taken by this thread alone, which then ends");
        let notification = running.mounts.notification();
        self.news.add(News::Failed(notification, cause));
        let failed = self.notifications.iter().position(|&n| n == notification);
        let others = &self.notifications[failed.map_or(0, |at| at + 1)..];
        // One read may fail where the next succeeds: what was tried before is tried
        // again, after a pause, before deletions go unnoticed.
        running.mounts = self.watch_mounts(others).or_else(|_| {
            thread::sleep(LONG_PAUSE);
            self.watch_mounts(self.notifications)
        })?;
        Ok(running.mounts.waiter())
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

/// Below the tenth of a second within which a deletion is to be noticed.
const LONG_PAUSE: Duration = Duration::from_millis(90);

/// Where others mount without end: a few looks a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// What part of a CPU goes into following the mounts of others, as long as the pauses
/// allow: one in so many.
const SHARE: u32 = 4000;

/// For so long a quiet system saves up what it may then spend at once: the mounts that a
/// container is made of are each looked at without a pause.
const SAVED_UP: Duration = Duration::from_secs(2);

/// What takes longer than this to be earned is no burst any more.
const BURST: Duration = Duration::from_secs(8);

/// What the watch may spend on looking: mounts that others make by the thousand pile up
/// meanwhile, and are taken in together.
struct Budget {
    /// When all that was spent has been earned.
    earned: Instant,
}

impl Budget {
    fn new() -> Budget {
        Budget {
            earned: Instant::now(),
        }
    }

    fn spend(&mut self, cost: Duration) {
        let now = Instant::now();
        let saved_up = now.checked_sub(SAVED_UP);
        let earned = saved_up.map_or(self.earned, |at| self.earned.max(at)) + cost * SHARE;
        // What is owed for longer is forgiven: a quiet system is soon looked at again.
        self.earned = earned.min(now + 2 * BURST);
    }

    /// How long to wait before the next look.
    fn pause(&self) -> Duration {
        let owed = self.earned.saturating_duration_since(Instant::now());
        match owed < BURST {
            true => owed.min(LONG_PAUSE),
            false => LONGEST_PAUSE,
        }
    }
}

impl WatchState {
    /// Wakes the watch's thread.
    fn wake(&self) {
        if let Some(running) = &self.running {
            // Fails when the counter is full, and then it is readable anyway.
            let _ = running.wake.write(1);
        }
    }

    /// Has the watch's own view of the mounts brought up to date; tells whether it may
    /// have changed.
    fn refresh(&mut self) -> io::Result<bool> {
        let waits_for_more = self.waits_for_more();
        let Some(running) = &mut self.running else {
            return Ok(false);
        };
        let subscribers = self.subscribers.values();
        let known = subscribers.filter(|it| it.mounted).map(|it| it.inode);
        running.mounts.refresh(known, waits_for_more)
    }

    /// Until when a part of that was put off.
    fn put_off(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        running.mounts.put_off(self.waits_for_more())
    }

    /// Whether a subscriber's namespace has no mount as yet. Events tell of each, so
    /// that it does not matter there.
    fn waits_for_more(&self) -> bool {
        let by_table =
            |running: &Running| matches!(running.mounts.notification(), Notification::MountInfo);
        self.running.as_ref().is_some_and(by_table)
            && self
                .subscribers
                .values()
                .any(|subscriber| !subscriber.mounted)
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

#[cfg(test)]
mod tests;
