//! Which network namespaces are mounted, kept up to date: by fanotify(7), or by poll(2)
//! on mountinfo.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::stat::stat;

use super::mount_table::{netns_inode, parse};

/// How the kernel tells that mounts have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// fanotify(7) names each mount that comes or goes: Linux 6.14, and
    /// CAP_SYS_ADMIN. Work done is proportional to what changed.
    MountEvents,
    /// poll(2) on mountinfo says that something changed, and the table is read
    /// again: every kernel, no privilege.
    MountInfo,
}

impl Notification {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Notification::MountEvents => "fanotify",
            Notification::MountInfo => "mountinfo",
        }
    }
}

/// The network namespaces that are mounted in one mount namespace: that of the
/// thread that makes the watch, which is also the one to refresh it.
pub(crate) struct MountWatch {
    notification: Notification,
    /// The fanotify group, or mountinfo.
    file: Arc<File>,
    /// Mount id (never reused) to inode, of every netns mount. Empty when the
    /// notification names no mounts.
    mounts: HashMap<u64, u64>,
    /// How many mounts each namespace has, by inode number.
    mounted: HashMap<u64, usize>,
    /// Where each of them has one of its mounts, where the table says that.
    targets: HashMap<u64, PathBuf>,
    /// When the whole table was last read.
    read: Instant,
    /// It has changed since.
    is_stale: bool,
}

/// How long what is new in the table may wait to be read, for namespaces that have no
/// mount yet. The whole table is long where there are many containers.
const LATER: Duration = Duration::from_millis(500);
/// The same, where there is none of them.
const MUCH_LATER: Duration = Duration::from_secs(10);

/// Waits for a [`MountWatch`] to need a refresh.
pub(crate) struct MountWaiter {
    file: Arc<File>,
    events: PollFlags,
}

impl MountWaiter {
    /// Blocks until mounts may have changed, the time `until` has come, or `wake` is
    /// readable. Mounts alone do not end it before `pause` is over.
    ///
    /// `true` when [`MountWatch::refresh`] is due. Whether it was woken, the caller learns
    /// when it reads `wake`, which may be written between this and that.
    pub(crate) fn wait(
        &self,
        wake: BorrowedFd<'_>,
        pause: Duration,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(wake, PollFlags::POLLIN),
            PollFd::new(self.file.as_fd(), self.events),
        ];
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let mut is_woken = false;
        if !pause.is_zero() {
            wait(&mut fds[..1], Some(pause))?;
            is_woken = ready(&fds[0]);
        }
        let left = match is_woken {
            true => Some(Duration::ZERO),
            false => until.map(|until| until.saturating_duration_since(Instant::now())),
        };
        let is_time = wait(&mut fds, left)? == 0;
        Ok(ready(&fds[1]) || is_time)
    }
}

/// poll(2); a signal is as good as an event.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(timeout) => {
            PollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        }
    };
    match poll(fds, timeout) {
        Ok(ready) => Ok(ready.unsigned_abs() as usize),
        Err(Errno::EINTR) => Ok(fds.len()),
        Err(errno) => Err(errno.into()),
    }
}

impl MountWatch {
    /// Watches by the means asked for.
    pub(crate) fn new(notification: Notification) -> io::Result<MountWatch> {
        let file = match notification {
            Notification::MountEvents => File::from(OwnedFd::from(mount_events()?)),
            Notification::MountInfo => File::open("/proc/thread-self/mountinfo")?,
        };
        let mut watch = MountWatch {
            notification,
            file: Arc::new(file),
            mounts: HashMap::new(),
            mounted: HashMap::new(),
            targets: HashMap::new(),
            read: Instant::now(),
            is_stale: false,
        };
        // After the notification is in force, so that nothing falls in between.
        watch.read_all()?;
        Ok(watch)
    }

    pub(crate) fn notification(&self) -> Notification {
        self.notification
    }

    /// Tells whether a namespace was mounted at the last refresh.
    pub(crate) fn is_mounted(&self, inode: u64) -> bool {
        self.mounted.contains_key(&inode)
    }

    /// Returns what waits, for use while the watch itself is locked by others.
    pub(crate) fn waiter(&self) -> MountWaiter {
        MountWaiter {
            file: Arc::clone(&self.file),
            events: match self.notification {
                Notification::MountEvents => PollFlags::POLLIN,
                Notification::MountInfo => PollFlags::POLLPRI,
            },
        }
    }

    /// Takes in what has changed since the last call, as far as it matters to those who
    /// ask; tells whether anything may have.
    ///
    /// `known` are the namespaces that were mounted when last looked at, and
    /// `waits_for_more` says that there are others which may get a mount. Where the
    /// whole table would have to be read, it is looked whether the known ones are still
    /// where they were, and the rest is put off: see [`put_off`](MountWatch::put_off).
    pub(crate) fn refresh(
        &mut self,
        known: impl Iterator<Item = u64>,
        waits_for_more: bool,
    ) -> io::Result<bool> {
        match self.notification {
            Notification::MountEvents => self.read_events(),
            Notification::MountInfo => {
                self.is_stale = true;
                let due = self.put_off(waits_for_more);
                let is_due = due.is_none_or(|due| Instant::now() >= due);
                let mut known = known;
                if !is_due && known.all(|inode| self.shows(inode)) {
                    return Ok(false);
                }
                self.read_all()?;
                Ok(true)
            }
        }
    }

    /// Until when a refresh has put off what it did not read.
    pub(crate) fn put_off(&self, waits_for_more: bool) -> Option<Instant> {
        let later = match waits_for_more {
            true => LATER,
            false => MUCH_LATER,
        };
        self.is_stale.then(|| self.read + later)
    }

    /// Whether a namespace is still where the table had it.
    fn shows(&self, inode: u64) -> bool {
        let Some(target) = self.targets.get(&inode) else {
            return false;
        };
        stat(&**target).is_ok_and(|stat| stat.st_ino == inode && is_nsfs(stat.st_dev))
    }

    /// Makes the next refresh of a watch that reads events fail.
    #[cfg(test)]
    pub(crate) fn break_events(&mut self) {
        self.file = Arc::new(File::open("/").expect("read(2) of it is EISDIR"));
    }

    fn read_events(&mut self) -> io::Result<bool> {
        // An event is 40 bytes: a hundred at a time.
        let mut buffer = [0; 4096];
        let mut changed = false;
        loop {
            let filled = match (&*self.file).read(&mut buffer) {
                Ok(filled) => filled,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in MountEvents(&buffer[..filled]) {
                match event {
                    // Most mounts that come and go are others'.
                    Some((mount, Change::Detached)) if !self.mounts.contains_key(&mount) => {}
                    Some((mount, _)) => changed |= self.look_at(mount)?,
                    None => {
                        self.read_all()?;
                        return Ok(true);
                    }
                }
            }
            // It was not full, so there is no more; what comes now wakes the waiter.
            if filled + EVENT_AT_MOST <= buffer.len() {
                return Ok(changed);
            }
        }
    }

    /// Takes in where an event left its mount; tells whether a network namespace is or
    /// was mounted by it. What the event says does not matter: a mount that was moved
    /// has been detached and is there all the same.
    fn look_at(&mut self, mount: u64) -> io::Result<bool> {
        let inode = statmount_netns(mount)?;
        let before = match inode {
            Some(inode) => self.mounts.insert(mount, inode),
            None => self.mounts.remove(&mount),
        };
        if let Some(inode) = inode {
            *self.mounted.entry(inode).or_default() += 1;
        }
        if let Some(inode) = before {
            forget_one(&mut self.mounted, inode);
        }
        Ok(inode.or(before).is_some())
    }

    /// Forgets what is known and reads the whole table.
    fn read_all(&mut self) -> io::Result<()> {
        self.mounts.clear();
        self.mounted.clear();
        self.targets.clear();
        self.read = Instant::now();
        self.is_stale = false;
        match self.notification {
            Notification::MountEvents => {
                listmount(|mount| self.look_at(mount).map(drop))?;
            }
            Notification::MountInfo => {
                // The same open file that is polled: seq_file starts over.
                let mut mountinfo = &*self.file;
                mountinfo.rewind()?;
                for mount in parse(BufReader::with_capacity(32 * 1024, mountinfo))? {
                    *self.mounted.entry(mount.inode).or_default() += 1;
                    self.targets.insert(mount.inode, mount.target);
                }
            }
        }
        Ok(())
    }
}

/// Whether a device is that of namespace files.
fn is_nsfs(device: u64) -> bool {
    static NSFS: OnceLock<Option<u64>> = OnceLock::new();
    let ask = || {
        stat("/proc/thread-self/ns/net")
            .map(|stat| stat.st_dev)
            .ok()
    };
    *NSFS.get_or_init(ask) == Some(device)
}

fn forget_one(mounted: &mut HashMap<u64, usize>, inode: u64) {
    if let Some(count) = mounted.get_mut(&inode) {
        *count -= 1;
        if *count == 0 {
            mounted.remove(&inode);
        }
    }
}

// Not in the C library's headers yet; the values are in linux/fanotify.h.
const FAN_MNT_ATTACH: u64 = 0x0100_0000;
const FAN_MNT_DETACH: u64 = 0x0200_0000;

/// Asks for an event for each mount attached to or detached from the calling
/// thread's mount namespace.
fn mount_events() -> io::Result<Fanotify> {
    // Not in the C library's headers yet; the values are in linux/fanotify.h.
    const FAN_REPORT_MNT: u32 = 0x4000;
    const FAN_MARK_MNTNS: u32 = 0x110;

    let fanotify = Fanotify::init(
        InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::from_bits_retain(FAN_REPORT_MNT),
        EventFFlags::O_RDONLY,
    )?;
    fanotify.mark(
        MarkFlags::FAN_MARK_ADD | MarkFlags::from_bits_retain(FAN_MARK_MNTNS),
        MaskFlags::from_bits_retain(FAN_MNT_ATTACH | FAN_MNT_DETACH),
        File::open("/proc/thread-self/ns/mnt")?,
        None::<&CStr>,
    )?;
    Ok(fanotify)
}

/// What an event says of its mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It is gone, and was not attached elsewhere in the same moment.
    Detached,
    Other,
}

/// No event takes more room than this.
const EVENT_AT_MOST: usize = 256;

/// The mount ids in a buffer of fanotify events; `None` where events were lost.
struct MountEvents<'a>(&'a [u8]);

impl Iterator for MountEvents<'_> {
    type Item = Option<(u64, Change)>;

    fn next(&mut self) -> Option<Option<(u64, Change)>> {
        // struct fanotify_event_metadata: event_len u32, vers u8, reserved u8,
        // metadata_len u16, mask u64, fd i32, pid i32. Then records, each a
        // header (info_type u8, pad u8, len u16) and, in ours, a u64 mount id
        // that the header is padded to.
        const INFO_TYPE_MNT: u8 = 7;

        while !self.0.is_empty() {
            let length = u32::from_ne_bytes(bytes_at(self.0, 0)?) as usize;
            let start = u16::from_ne_bytes(bytes_at(self.0, 6)?) as usize;
            let mask = u64::from_ne_bytes(bytes_at(self.0, 8)?);
            let event = self.0.get(..length).filter(|event| !event.is_empty())?;
            self.0 = &self.0[length..];
            if mask & libc::FAN_Q_OVERFLOW != 0 {
                return Some(None);
            }
            let mut records = event.get(start..).unwrap_or_default();
            while let Some([kind, _, length @ ..]) = bytes_at::<4>(records, 0) {
                let length = usize::from(u16::from_ne_bytes(length));
                let Some(record) = records.get(..length).filter(|r| !r.is_empty()) else {
                    break;
                };
                records = &records[length..];
                let id = (record.len().checked_sub(8)).and_then(|at| bytes_at(record, at));
                if let (INFO_TYPE_MNT, Some(id)) = (kind, id) {
                    let change = match mask & (FAN_MNT_ATTACH | FAN_MNT_DETACH) {
                        FAN_MNT_DETACH => Change::Detached,
                        _ => Change::Other,
                    };
                    return Some(Some((u64::from_ne_bytes(id), change)));
                }
            }
        }
        None
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// `struct mnt_id_req`, as of Linux 6.8.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
}

impl MountRequest {
    fn new(mount: u64, param: u64) -> MountRequest {
        MountRequest {
            size: size_of::<MountRequest>() as u32,
            spare: 0,
            mount,
            param,
        }
    }
}

/// Calls `each` with the id of every mount in the calling thread's mount
/// namespace: listmount(2), Linux 6.8.
fn listmount(mut each: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
    // The same number on every architecture.
    const SYS_LISTMOUNT: libc::c_long = 458;
    const LSMT_ROOT: u64 = u64::MAX;

    let mut ids = [0_u64; 512];
    let mut last = 0;
    loop {
        let request = MountRequest::new(LSMT_ROOT, last);
        // SAFETY: the kernel reads one request and writes at most as many ids
        // as it is told there is room for; both live in this frame.
        let count = Errno::result(unsafe {
            libc::syscall(
                SYS_LISTMOUNT,
                &raw const request,
                ids.as_mut_ptr(),
                ids.len(),
                0,
            )
        })?;
        let listed = &ids[..count as usize];
        listed.iter().try_for_each(|id| each(*id))?;
        match listed.last() {
            Some(id) => last = *id,
            None => return Ok(()),
        }
    }
}

/// The inode of the network namespace that this mount shows; `None` when it
/// shows something else or is not mounted here (any more): statmount(2), Linux 6.8.
fn statmount_netns(mount: u64) -> io::Result<Option<u64>> {
    // The same number on every architecture.
    const SYS_STATMOUNT: libc::c_long = 457;
    const STATMOUNT_SB_BASIC: u64 = 0x1;
    const STATMOUNT_MNT_ROOT: u64 = 0x8;
    // Offsets in struct statmount.
    const SB_MAGIC: usize = 24;
    const MNT_ROOT: usize = 104;
    const STRINGS: usize = 512;
    const NSFS_MAGIC: u64 = 0x6e73_6673;

    /// Aligned as the kernel's struct is.
    #[repr(C, align(8))]
    struct Statmount([u8; 1024]);

    let request = MountRequest::new(mount, STATMOUNT_SB_BASIC | STATMOUNT_MNT_ROOT);
    let mut buffer = Statmount([0; 1024]);
    // SAFETY: the kernel reads one request and writes at most the size of the
    // buffer; both live in this frame.
    let done = Errno::result(unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            &raw mut buffer,
            size_of::<Statmount>(),
            0,
        )
    });
    match done {
        Ok(_) => {}
        // A root longer than the buffer is a path; a namespace's is short.
        Err(Errno::ENOENT | Errno::EOVERFLOW) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let buffer = &buffer.0;
    if bytes_at(buffer, SB_MAGIC).map(u64::from_ne_bytes) != Some(NSFS_MAGIC) {
        return Ok(None);
    }
    let root = bytes_at(buffer, MNT_ROOT).map(u32::from_ne_bytes);
    let root = root.and_then(|offset| buffer.get(STRINGS + offset as usize..));
    let root = root.and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok());
    Ok(root.and_then(|root| netns_inode(root.to_bytes())))
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn event(mask: u64, id: u64) -> Vec<u8> {
        let mut event = Vec::new();
        event.extend(40_u32.to_ne_bytes());
        event.extend([3, 0]);
        event.extend(24_u16.to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(0_i32.to_ne_bytes());
        event.extend([7, 0]);
        event.extend(16_u16.to_ne_bytes());
        event.extend([0; 4]);
        event.extend(id.to_ne_bytes());
        event
    }

    #[test]
    fn lost_events_are_noticed_among_others() {
        let mut buffer = event(0x0100_0000, 11);
        let mut overflow = event(libc::FAN_Q_OVERFLOW, 0);
        overflow.truncate(24);
        overflow[..4].copy_from_slice(&24_u32.to_ne_bytes());
        buffer.extend(overflow);
        buffer.extend(event(0x0200_0000, 12));
        let seen: Vec<_> = MountEvents(&buffer).collect();
        let attached = Some((11, Change::Other));
        assert_eq!(seen, [attached, None, Some((12, Change::Detached))]);
    }

    #[test]
    fn broken_events_end_the_iteration() {
        let whole = event(0x0100_0000, 11);
        for length in 0..whole.len() {
            assert_eq!(MountEvents(&whole[..length]).count(), 0, "{length} bytes");
        }
        assert_eq!(MountEvents(&[0; 64]).count(), 0);
    }

    #[test]
    fn more_events_than_the_queue_holds_are_made_up_for() {
        // In a mount namespace of its own, which no other thread mounts in.
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("needs CAP_SYS_ADMIN");
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("our own");
            let tmpfs = Some("tmpfs");
            mount(tmpfs, "/tmp", tmpfs, MsFlags::empty(), None::<&str>).expect("our own");
            let bind = |target: &str| {
                let netns = Some("/proc/thread-self/ns/net");
                mount(netns, target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a file");
            };
            let inode = netns_inode(
                std::fs::read_link("/proc/thread-self/ns/net")
                    .expect("/proc is mounted")
                    .as_os_str()
                    .as_encoded_bytes(),
            )
            .expect("a network namespace");

            let names = ["gone", "stays"].map(|name| format!("/tmp/{name}"));
            let [gone, stays] = &names;
            names
                .iter()
                .for_each(|name| std::fs::write(name, "").expect("a tmpfs"));
            let mut watch = MountWatch::new(Notification::MountEvents).expect("Linux 6.14");
            let count_before = watch.mounted.get(&inode).copied().unwrap_or(0);
            bind(gone);
            watch.refresh([].into_iter(), true).expect("still there");
            assert_eq!(watch.mounted[&inode], count_before + 1);

            umount2(gone.as_str(), MntFlags::empty()).expect("mounted above");
            let queue = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
            let queue: usize = queue.expect("fanotify").trim().parse().expect("a number");
            for _ in 0..queue / 2 + 100 {
                bind(stays);
                umount2(stays.as_str(), MntFlags::empty()).expect("just mounted");
            }
            bind(stays);
            bind(stays);

            let mut buffer = vec![0; 40 * queue + 4096];
            let filled = { &*watch.file }.read(&mut buffer).expect("events");
            assert!(
                MountEvents(&buffer[..filled]).any(|event| event.is_none()),
                "the queue did not overflow, so this proves nothing"
            );
            // As a refresh does that comes upon such an event.
            watch.read_all().expect("still there");
            assert_eq!(watch.mounted[&inode], count_before + 2);
        });
        thread.join().expect("no panic");
    }
}
