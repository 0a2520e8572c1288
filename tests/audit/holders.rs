//! Descriptors that are easily missed: opened through a mount, in a table of a
//! thread's own, in a process whose main thread has ended.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::audit::{self, Hold};
use netns_exec::{Error, Netns};
use netns_exec_tests::{Sleeper, TempNetns};
use nix::sched::{CloneFlags, unshare};

use super::{holds, id, inside, number, one_at_a_time};

fn path_of(netns: &TempNetns) -> String {
    format!("/run/netns/{}", netns.name())
}

/// Tells whether the process holds `netns` by a descriptor: asked of it, and read
/// from the list of all.
fn has_fd(netns: &Netns, pid: u32, number: u32) -> Result<[bool; 2], Error> {
    let is_it = |hold: &Hold| matches!(hold, Hold::Fd { fd, .. } if *fd == number);
    let asked = holds(&audit::holders(netns)?, pid, is_it);
    let all = audit::namespaces()?;
    let mut all = all.namespaces().iter();
    let listed = all.find(|namespace| namespace.id() == Some(netns.id()));
    let mut holders = listed
        .map(|found| found.holders().iter())
        .into_iter()
        .flatten();
    let listed = holders.any(|holder| holder.pid() == pid && is_it(holder.hold()));
    Ok([asked, listed])
}

#[test]
fn descriptor_opened_through_the_mount_is_a_holder() -> Result<(), Error> {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let other = TempNetns::new();
    let start = |of: &TempNetns| {
        let stdin = File::open(path_of(of)).expect("it is mounted there");
        let script = ["-c", "echo; exec sleep 1000"];
        Sleeper::start(Command::new("sh").args(script).stdin(Stdio::from(stdin)))
    };
    let (child, stranger) = (start(&netns), start(&other));
    assert_eq!(has_fd(&netns, child.pid(), 0)?, [true; 2]);
    assert_eq!(has_fd(&netns, stranger.pid(), 0)?, [false; 2]);

    // Found without being opened, it is held all the same.
    use std::os::unix::fs::OpenOptionsExt;
    let mut located = File::options();
    located.read(true).custom_flags(nix::libc::O_PATH);
    let located = located.open(path_of(&netns)).expect("it is mounted there");
    assert_eq!(has_fd(&netns, id(), number(&located))?, [true; 2]);
    Ok(())
}

#[test]
fn descriptor_whose_mount_was_taken_away_is_a_holder() -> Result<(), Error> {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let file = File::open(path_of(&netns)).expect("it is mounted there");
    let handle = Netns::from_fd(file.try_clone().expect("a descriptor is free").into())?;
    nix::mount::umount2(path_of(&netns).as_str(), nix::mount::MntFlags::MNT_DETACH)
        .expect("needs CAP_SYS_ADMIN");
    assert_eq!(has_fd(&handle, id(), number(&file))?, [true; 2]);
    Ok(())
}

#[test]
fn other_files_with_paths_are_no_holders() -> Result<(), Error> {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let mounts = File::open("/proc/self/ns/mnt").expect("/proc is mounted");
    let null = File::open("/dev/null").expect("every system has it");
    for file in [&mounts, &null] {
        assert_eq!(has_fd(&netns, id(), number(file))?, [false; 2]);
    }
    let all = audit::namespaces()?;
    let inode = std::os::unix::fs::MetadataExt::ino(&mounts.metadata().expect("open"));
    assert!(
        all.namespaces()
            .iter()
            .all(|namespace| namespace.inode() != inode)
    );
    Ok(())
}

#[test]
fn table_of_a_threads_own_is_looked_at() -> Result<(), Error> {
    let _alone = one_at_a_time();
    let netns = TempNetns::new();
    let (opened, numbers) = channel();
    let (end, ended) = channel::<()>();
    thread::scope(|scope| {
        let netns = &netns;
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_FILES).expect("takes no privilege");
            let file = File::open(path_of(netns)).expect("it is mounted there");
            let socket = inside(netns, || UdpSocket::bind("0.0.0.0:0").expect("no address"));
            // `inside` shares this table: the number is known here only.
            let numbers = (file.as_raw_fd() as u32, socket.as_raw_fd() as u32);
            opened.send(numbers).expect("awaited below");
            let _ = ended.recv();
        });
        let (file, socket) = numbers.recv().expect("no panic");
        assert_eq!(has_fd(netns, id(), file)?, [true; 2]);
        let found = audit::holders(netns)?;
        let is_socket = |hold: &Hold| matches!(hold, Hold::Socket { fd, .. } if *fd == socket);
        assert!(holds(&found, id(), is_socket), "{found:?}");
        drop(end);
        Ok(())
    })
}
