//! Who is in which namespace, and what keeps one alive: shown on real threads,
//! descriptors, sockets and mounts, in this process and in others.

mod holders;
mod leaving;
mod outside;
mod ring;
mod serialized;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use netns_exec::audit::{self, Hold, Holders, Process, Thread, Verdict};
use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, Parked, Sleeper, TempNetns, alone, note, on_a_thread, run_alone, this_test,
};
use nix::sched::{CloneFlags, setns};
use nix::unistd::gettid;

netns_exec::rootless::test_harness!(own_net);

/// One test at a time: while another starts a program, its child has for a
/// moment a copy of every descriptor there is, which counts as a holder.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    // A test that failed has said so itself.
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn row(audit: &Process, tid: u32) -> &Thread {
    let mut rows = audit.threads().iter();
    rows.find(|row| row.tid() == tid)
        .expect("the thread is alive")
}

#[test]
fn the_old_way_leaves_a_stray() {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let stray = Parked::left_in(&netns, "parked");
    let home = Parked::here("parked");

    let audit = Process::this().expect("our own");
    assert_eq!(
        (audit.pid(), audit.home_id()),
        (id(), Some(Netns::home().expect("ours").id()))
    );
    let found = row(&audit, stray.tid());
    assert_eq!(found.verdict(), Verdict::Stray);
    assert_eq!(found.netns_id(), Some(netns.id()));
    assert_eq!((found.label(), found.name()), (netns.name(), "parked"));
    assert!(audit.strays().any(|thread| thread.tid() == stray.tid()));
    assert!(
        audit
            .to_string()
            .contains(&format!("stray: thread {} (parked)", stray.tid()))
    );
    let at_home = row(&audit, home.tid());
    assert_eq!(at_home.verdict(), Verdict::Home);
    assert_eq!(
        (at_home.netns_id(), at_home.label()),
        (audit.home_id(), "home")
    );

    let tid = stray.tid();
    drop(stray);
    let audit = Process::this().expect("our own");
    assert!(audit.threads().iter().all(|thread| thread.tid() != tid));
}

#[test]
fn stray_in_an_unnamed_namespace_is_told_by_its_id() {
    let _alone = one_at_a_time();
    netns_exec_tests::require_root();
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    let stray = Parked::left_in(&netns, "parked");
    let audit = Process::this().expect("our own");
    let found = row(&audit, stray.tid());
    assert_eq!(found.label(), format!("netns:{}", netns.id()));
    assert_eq!(found.verdict(), Verdict::Stray);
}

#[test]
fn workers_are_known_from_inside_and_outside() {
    let _alone = one_at_a_time();
    if let Some(note) = note() {
        let (pid, expected) = note.split_once(' ').expect("written below");
        let audit = Process::of(pid.parse().expect("a pid")).expect("it waits for us");
        let elsewhere = audit
            .threads()
            .iter()
            .filter(|row| row.verdict() != Verdict::Home);
        let verdicts: Vec<_> = elsewhere.map(|row| row.verdict().to_string()).collect();
        assert_eq!(verdicts, [expected], "{audit}");
        return;
    }
    let netns = TempNetns::new();
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        let executor = Executor::builder().guard(guard).build().expect("root may");
        let tid = executor.run(&netns, || gettid().as_raw().unsigned_abs());
        let tid = tid.expect("root may enter");
        let audit = Process::this().expect("our own");
        let worker = row(&audit, tid);
        assert_eq!(worker.verdict(), Verdict::Worker, "{guard:?}");
        assert_eq!(
            (worker.netns_id(), worker.label()),
            (Some(netns.id()), netns.name())
        );
        assert_eq!(audit.strays().count(), 0, "{audit}");
        let note = format!("{} worker", id());
        run_alone(this_test!(), Alone::AsIs, &note, Stdio::null());
        executor.shutdown(None).expect("nothing is running");
    }
}

#[test]
fn audits_while_workers_come_and_go_accuse_nobody() {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let (end, ended) = channel::<()>();
    thread::scope(|scope| {
        let netns = &netns;
        let churn = scope.spawn(move || {
            let mut rounds = 0;
            while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let executor = Executor::new().expect("takes no privilege");
                executor.run(netns, || ()).expect("root may enter");
                drop(Netns::new().expect("root may"));
                executor.shutdown(None).expect("nothing is running");
                rounds += 1;
            }
            rounds
        });
        for _ in 0..200 {
            let audit = Process::this().expect("our own");
            assert_eq!(audit.strays().count(), 0, "{audit}");
        }
        drop(end);
        assert!(churn.join().expect("no panic") > 0);
    });
}

#[test]
fn stray_of_another_process_is_found_from_there() {
    let _alone = one_at_a_time();
    if let Some(note) = note() {
        let (pid, tid) = note.split_once(' ').expect("written below");
        let (pid, tid): (u32, u32) = (pid.parse().expect("a pid"), tid.parse().expect("a tid"));
        let audit = Process::of(pid).expect("it waits for us");
        assert_eq!(row(&audit, tid).verdict(), Verdict::Stray);
        assert_eq!(row(&audit, pid).verdict(), Verdict::Home);
        // A thread's number stands for its process.
        assert_eq!(Process::of(tid).expect("it waits for us").pid(), pid);
        return;
    }
    let netns = TempNetns::new();
    let stray = Parked::left_in(&netns, "parked");
    let note = format!("{} {}", id(), stray.tid());
    run_alone(this_test!(), Alone::AsIs, &note, Stdio::null());
}

#[test]
fn process_that_lives_in_a_namespace_is_at_home_there() {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let child = Sleeper::in_named(netns.name());
    let audit = Process::of(child.pid()).expect("it sleeps");
    assert_eq!(audit.home_id(), Some(netns.id()));
    assert_eq!(audit.strays().count(), 0);
    assert_eq!(row(&audit, child.pid()).verdict(), Verdict::Home);
}

#[test]
fn process_that_has_ended_is_not_found() {
    let _alone = one_at_a_time();
    let mut child = Command::new("true").spawn().expect("it can be started");
    let pid = child.id();
    child.wait().expect("it is ours");
    let error = Process::of(pid).expect_err("it has ended");
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains(&pid.to_string()));
    for nobody in [0, u32::MAX] {
        assert!(
            Process::of(nobody)
                .expect_err("no such process")
                .is_not_found()
        );
    }
}

#[test]
fn what_may_not_be_read_is_unknown_and_never_fine() {
    let _alone = one_at_a_time();
    alone!(Alone::OrdinaryUser);
    let audit = Process::of(1).expect("/proc shows it");
    assert!(!audit.threads().is_empty());
    for thread in audit.threads() {
        assert_eq!(thread.verdict(), Verdict::Unknown);
        assert_eq!((thread.netns_id(), thread.label()), (None, "?"));
        assert!(!thread.name().is_empty());
    }
    assert_eq!(audit.home_id(), None);
    // One's own threads are no secret.
    let audit = Process::this().expect("our own");
    assert!(
        audit
            .threads()
            .iter()
            .all(|thread| thread.verdict() == Verdict::Home)
    );

    let netns = Netns::current().expect("our own");
    let holders = audit::holders(&netns).expect("some of it can be read");
    assert!(
        holders
            .unreadable()
            .iter()
            .any(|process| process.pid() == 1)
    );
    assert!(holds(&holders, id(), |hold| matches!(
        hold,
        Hold::Thread { .. }
    )));
}

#[test]
fn threads_that_come_and_go_meanwhile_are_no_error() {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let (end, ended) = channel::<()>();
    thread::scope(|scope| {
        let churn = scope.spawn(move || {
            let mut count = 0;
            while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let fleeting: Vec<_> = (0..8).map(|_| thread::spawn(|| ())).collect();
                fleeting
                    .into_iter()
                    .for_each(|thread| thread.join().expect("no panic"));
                count += 1;
            }
            count
        });
        for _ in 0..100 {
            let audit = Process::this().expect("threads that end are left out");
            assert!(audit.threads().iter().any(|thread| thread.tid() == id()));
        }
        for _ in 0..5 {
            audit::holders(&netns).expect("threads that end are left out");
        }
        drop(end);
        assert!(churn.join().expect("no panic") > 0);
    });
}

fn holds(holders: &Holders, pid: u32, what: impl Fn(&Hold) -> bool) -> bool {
    let mut holders = holders.holders().iter();
    holders.any(|holder| holder.pid() == pid && what(holder.hold()))
}

/// Makes something in `netns`, and nothing else there.
fn inside<T: Send>(netns: &Netns, f: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
        f()
    })
}

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

#[test]
fn everything_of_this_process_that_keeps_a_namespace_is_found() {
    let _alone = one_at_a_time();
    netns_exec_tests::require_root();
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    let found = audit::holders(&netns).expect("root may read all");
    // The handle, and nothing else.
    let only: Vec<_> = found
        .holders()
        .iter()
        .map(|holder| (holder.pid(), holder.hold()))
        .collect();
    assert_eq!(only.len(), 1, "{only:?}");
    let handle = number(&netns);
    assert!(holds(
        &found,
        id(),
        |hold| matches!(hold, Hold::Fd { fd, .. } if *fd == handle)
    ));

    let thread = Parked::left_in(&netns, "parked");
    let fd = netns
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor is free");
    let (udp, unix, tun) = inside(&netns, || {
        let udp = UdpSocket::bind("0.0.0.0:0").expect("no address is needed");
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        (
            udp,
            UnixDatagram::unbound().expect("no address is needed"),
            tun,
        )
    });
    let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("at home");
    let mount = Mounted::new(&netns);

    let found = audit::holders(&netns).expect("root may read all");
    let tid = thread.tid();
    let has = |hold: &dyn Fn(&Hold) -> bool| holds(&found, id(), hold);
    assert!(
        has(&|hold| matches!(hold, Hold::Thread { tid: t, .. } if *t == tid)),
        "{found:?}"
    );
    assert!(has(
        &|hold| matches!(hold, Hold::Fd { fd: f, .. } if *f == number(&fd))
    ));
    for socket in [number(&udp), number(&unix)] {
        assert!(has(
            &|hold| matches!(hold, Hold::Socket { fd, .. } if *fd == socket)
        ));
    }
    // Where this kernel has such a device.
    if let Ok(tun) = &tun {
        assert!(has(
            &|hold| matches!(hold, Hold::Fd { fd, .. } if *fd == number(tun))
        ));
    }
    let mounted = |holders: &Holders| {
        let mut holders = holders.holders().iter();
        holders.any(|holder| matches!(holder.hold(), Hold::Mount { path, .. } if *path == mount.0))
    };
    assert!(mounted(&found), "{found:?}");
    let strange = number(&elsewhere);
    assert!(!has(
        &|hold| matches!(hold, Hold::Socket { fd, .. } if *fd == strange)
    ));

    drop((thread, fd, udp, unix, tun, mount));
    let found = audit::holders(&netns).expect("root may read all");
    assert_eq!(found.holders().len(), 1, "{found:?}");
}

/// A namespace mounted outside /run/netns.
struct Mounted(PathBuf);

impl Mounted {
    fn new(netns: &Netns) -> Mounted {
        use nix::mount::{MsFlags, mount};
        let target = std::env::temp_dir().join(netns_exec_tests::unique_name());
        fs::write(&target, "").expect("a file to mount on");
        let source = format!("/proc/self/fd/{}", number(netns));
        mount(
            Some(&*source),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("needs CAP_SYS_ADMIN");
        Mounted(target)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn everything_of_another_process_that_keeps_a_namespace_is_found() {
    let _alone = one_at_a_time();
    netns_exec_tests::require_root();
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    // Inherited by number, as its standard input.
    let child_with = |stdin: Stdio| {
        Sleeper::start(
            Command::new("sh")
                .args(["-c", "echo; exec sleep 1000"])
                .stdin(stdin),
        )
    };
    let socket = inside(&netns, || {
        UdpSocket::bind("0.0.0.0:0").expect("no address is needed")
    });
    let with_socket = child_with(std::os::fd::OwnedFd::from(socket).into());
    let fd = netns
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor is free");
    let with_fd = child_with(fd.into());
    let with_thread = inside(&netns, || child_with(Stdio::null()));
    // In a mount namespace of its own, with the only mount there is.
    let target = std::env::temp_dir().join(netns_exec_tests::unique_name());
    fs::write(&target, "").expect("a file to mount on");
    let script = format!(
        "mount --bind /proc/{}/fd/{} {} && echo && exec sleep 1000",
        id(),
        number(&netns),
        target.display()
    );
    let with_mount = Sleeper::start(Command::new("unshare").args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &script,
    ]));

    let found = audit::holders(&netns).expect("root may read all");
    let has = |child: &Sleeper, hold: &dyn Fn(&Hold) -> bool| holds(&found, child.pid(), hold);
    assert!(
        has(&with_socket, &|hold| matches!(
            hold,
            Hold::Socket { fd: 0, .. }
        )),
        "{found:?}"
    );
    assert!(
        has(&with_fd, &|hold| matches!(hold, Hold::Fd { fd: 0, .. })),
        "{found:?}"
    );
    let pid = with_thread.pid();
    assert!(has(
        &with_thread,
        &|hold| matches!(hold, Hold::Thread { tid, .. } if *tid == pid)
    ));
    let mount = |hold: &Hold| matches!(hold, Hold::Mount { path, .. } if *path == target);
    assert!(has(&with_mount, &mount), "{found:?}");
    // Each is there once, beside the handle.
    assert_eq!(found.holders().len(), 5, "{found:?}");
    let shell = found.holders().iter().find(|holder| holder.pid() == pid);
    assert_eq!(shell.expect("found above").process(), "sleep");

    drop(with_mount);
    fs::remove_file(&target).expect("made above");
}

#[test]
fn every_namespace_on_the_system_is_listed() {
    let _alone = one_at_a_time();
    let named = TempNetns::new();
    let kept_by_a_socket = Netns::new().expect("needs CAP_SYS_ADMIN");
    let (socket, id_of_socket) = {
        let netns = &kept_by_a_socket;
        (
            inside(netns, || UnixDatagram::unbound().expect("a socket")),
            netns.id(),
        )
    };
    drop(kept_by_a_socket);
    let stray = Parked::left_in(&named, "parked");

    let found = audit::namespaces().expect("root may read all");
    let by_id = |id| {
        let mut all = found.namespaces().iter();
        all.find(|namespace| namespace.id() == Some(id))
            .expect("it is there")
    };
    let home = by_id(Netns::home().expect("ours").id());
    assert!(home.processes().iter().any(|(pid, ..)| *pid == id()));

    let listed = by_id(named.id());
    assert_eq!(listed.names(), [named.name()]);
    let path = Path::new("/run/netns").join(named.name());
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).expect("it is there"));
    assert_eq!(listed.inode(), inode);
    let processes = listed.processes();
    assert_eq!(
        (processes.len(), processes[0].0, processes[0].2),
        (1, id(), 1)
    );
    let kinds =
        |what: fn(&Hold) -> bool| listed.holders().iter().filter(|h| what(h.hold())).count();
    // One more for each mount namespace that was copied from this one meanwhile.
    let mounts = kinds(|hold| matches!(hold, Hold::Mount { .. }));
    let of_ours = listed.holders().iter().filter(
        |held| matches!(held.hold(), Hold::Mount { path: mounted, .. } if *mounted == path),
    );
    assert!(mounts >= 1 && of_ours.count() == mounts, "{listed:?}");
    // The handle; none that the audit itself had open.
    assert_eq!(
        kinds(|hold| matches!(hold, Hold::Fd { .. })),
        1,
        "{listed:?}"
    );
    drop(stray);

    let listed = by_id(id_of_socket);
    assert_eq!(listed.holders().len(), 1, "{listed:?}");
    let fd = number(&socket);
    assert!(matches!(listed.holders()[0].hold(), Hold::Socket { fd: f, .. } if *f == fd));
    assert!(listed.names().is_empty() && listed.processes().is_empty());
}
