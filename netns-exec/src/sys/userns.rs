//! A user namespace of this process's own: see user_namespaces(7).
//!
//! It is entered before a second thread exists, by a caller at the top of `main` or by
//! a function that runs before `main`: unshare(2) refuses it to a process with threads.
//! A process that has threads already executes itself once more, with a [`MARKER`] in
//! its environment, and [`BEFORE_MAIN`] enters there.
#![allow(unsafe_code)]

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getegid, geteuid, pipe};

/// What to enter beside a user and a mount namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// A network namespace, with its loopback up.
    pub(crate) own_net: bool,
    /// A `/run` to write to, and not only a `/run/netns`.
    pub(crate) own_run: bool,
}

/// The steps of [`enter`], in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryStep {
    Unshare,
    DenySetgroups,
    MapUser,
    MapGroup,
    Run,
    Loopback,
    /// To try the others in a copy of this process first.
    Try,
    /// To execute this program once more.
    Exec,
}

const STEPS: [EntryStep; 8] = [
    EntryStep::Unshare,
    EntryStep::DenySetgroups,
    EntryStep::MapUser,
    EntryStep::MapGroup,
    EntryStep::Run,
    EntryStep::Loopback,
    EntryStep::Try,
    EntryStep::Exec,
];

/// Which step failed, and how.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: EntryStep,
    pub(crate) cause: io::Error,
}

impl EntryStep {
    fn failed(self, cause: impl Into<io::Error>) -> Failed {
        Failed {
            step: self,
            cause: cause.into(),
        }
    }
}

/// Whether this process has a second thread. So it is assumed where `/proc` does not
/// tell.
pub(crate) fn has_threads() -> bool {
    fs::read_dir("/proc/self/task").map_or(true, |tasks| tasks.count() != 1)
}

/// Makes this process root of a user namespace of its own, in a mount namespace with a
/// `/run/netns` of its own, and of that shape.
///
/// All steps are tried in a copy of this process first: after an error nothing has
/// changed.
pub(crate) fn enter(shape: Shape) -> Result<(), Failed> {
    // A copy made beside other threads could wait for one of them for ever.
    if has_threads() {
        return Err(EntryStep::Unshare.failed(Errno::EINVAL));
    }
    try_in_a_copy(shape)?;
    enter_here(shape)
}

fn try_in_a_copy(shape: Shape) -> Result<(), Failed> {
    let failed = |errno: Errno| EntryStep::Try.failed(errno);
    let (reader, writer) = pipe().map_err(failed)?;
    // SAFETY: this is the only thread, so the child is a whole copy of the process.
    match unsafe { fork() }.map_err(failed)? {
        ForkResult::Child => {
            let mut report = [0; 8];
            if let Err(Failed { step, cause }) = enter_here(shape) {
                let errno = cause.raw_os_error().unwrap_or(libc::EIO);
                report[..4].copy_from_slice(&(step as i32 + 1).to_ne_bytes());
                report[4..].copy_from_slice(&errno.to_ne_bytes());
            }
            let sent = fs::File::from(writer).write_all(&report);
            // SAFETY: ends the copy without running what the original's end runs.
            unsafe { libc::_exit(sent.is_err().into()) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut report = [0; 8];
            let read = fs::File::from(reader).read_exact(&mut report);
            // The program may ignore its children, and then this one is gone by itself.
            while waitpid(child, None) == Err(Errno::EINTR) {}
            read.map_err(|cause| EntryStep::Try.failed(cause))?;
            let [step, errno] = [&report[..4], &report[4..]]
                .map(|bytes| i32::from_ne_bytes(bytes.try_into().expect("half of eight")));
            match usize::try_from(step - 1)
                .ok()
                .and_then(|step| STEPS.get(step))
            {
                None => Ok(()),
                Some(step) => Err(step.failed(Errno::from_raw(errno))),
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "no other thread exists: the whole process moves"
)]
fn enter_here(shape: Shape) -> Result<(), Failed> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    if shape.own_net {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    nix::sched::unshare(flags).map_err(|errno| EntryStep::Unshare.failed(errno))?;
    // Needed before an ordinary user may write the map of groups.
    match write("/proc/self/setgroups", "deny") {
        // Denied already, where this process comes from.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        done => done.map_err(|cause| EntryStep::DenySetgroups.failed(cause))?,
    }
    write("/proc/self/uid_map", &format!("0 {uid} 1\n"))
        .map_err(|cause| EntryStep::MapUser.failed(cause))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1\n"))
        .map_err(|cause| EntryStep::MapGroup.failed(cause))?;
    own_names(shape.own_run).map_err(|cause| EntryStep::Run.failed(cause))?;
    if shape.own_net {
        super::netns::set_loopback_up().map_err(|cause| EntryStep::Loopback.failed(cause))?;
    }
    Ok(())
}

/// At once: the kernel takes a map with the first write(2) and never another.
fn write(file: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    match file.write(text.as_bytes())? {
        length if length == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Gives this mount namespace an empty `/run/netns`, which other ones do not see.
///
/// Where the host has none, an ordinary user cannot make the folder: then, and with
/// `own_run`, `/run` is made anew, and everything else that is in it appears in the new
/// one, at its place.
fn own_names(own_run: bool) -> io::Result<()> {
    let names = Path::new("/run/netns");
    if names.is_dir() && !own_run {
        return tmpfs(names);
    }
    let run = Path::new("/run");
    let before = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(run)?;
    tmpfs(run)?;
    DirBuilder::new().mode(0o755).create(names)?;
    // What the new one covers is reached by the descriptor only.
    let covered = format!("/proc/self/fd/{}", before.as_raw_fd());
    for entry in fs::read_dir(&covered)? {
        let entry = entry?;
        if entry.file_name() == "netns" {
            continue;
        }
        // What cannot be shown is an empty file or folder: it may have gone meanwhile.
        let _ = show(&entry, &run.join(entry.file_name()));
    }
    Ok(())
}

fn show(entry: &fs::DirEntry, target: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, target);
    }
    if kind.is_dir() {
        fs::create_dir(target)?;
    } else {
        fs::File::create_new(target)?;
    }
    super::mount::bind(&entry.path(), target)
}

fn tmpfs(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        flags,
        Some("mode=0755"),
    )?;
    Ok(())
}

/// Tells the program that this process executes next, which is this one again, what it
/// is to enter: its own process id, `own_net`, and the number of a descriptor.
const MARKER: &str = "NETNS_EXEC_ROOTLESS";

/// What [`BEFORE_MAIN`] did.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) outcome: Result<(), Failed>,
    /// What [`exec_again`] was given.
    pub(crate) kept: Option<OwnedFd>,
}

static ENTERED: OnceLock<parking_lot::Mutex<Option<Entered>>> = OnceLock::new();

/// What was done before `main`, in a process that [`exec_again`] made; once.
pub(crate) fn entered_before_main() -> Option<Entered> {
    ENTERED.get()?.lock().take()
}

/// Executes this program once more, to be root of a user namespace of its own from its
/// beginning, and to have `kept` open there. Returns only when that fails.
///
/// The same process with the same arguments; what is closed on exec, and every other
/// thread, is gone.
pub(crate) fn exec_again(shape: Shape, kept: Option<OwnedFd>) -> Failed {
    if env::var_os(MARKER).is_some_and(|value| is_ours(value.as_bytes())) {
        // It was, and `BEFORE_MAIN` is not in the program: it would go on for ever.
        return EntryStep::Exec.failed(Errno::ELOOP);
    }
    let mut number: RawFd = -1;
    if let Some(kept) = &kept {
        if let Err(errno) = fcntl(kept, FcntlArg::F_SETFD(FdFlag::empty())) {
            return EntryStep::Exec.failed(errno);
        }
        number = kept.as_raw_fd();
    }
    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let marker = format!("{} {} {number}", process::id(), i32::from(shape.own_net));
    EntryStep::Exec.failed(command.args(arguments).env(MARKER, marker).exec())
}

/// Whether this very process left the marker: a child may have inherited it.
fn is_ours(marker: &[u8]) -> bool {
    parse(marker).is_some()
}

/// Whether to enter a network namespace, and the descriptor that was kept.
fn parse(marker: &[u8]) -> Option<(bool, Option<RawFd>)> {
    let mut words = std::str::from_utf8(marker).ok()?.split(' ');
    let mut next = || words.next()?.parse::<i64>().ok();
    let (pid, own_net, fd) = (next()?, next()?, next()?);
    let fd = RawFd::try_from(fd).ok()?;
    (pid == i64::from(process::id())).then_some((own_net != 0, (fd >= 0).then_some(fd)))
}

extern "C" fn before_main() {
    // Nothing of the environment of another user's program is believed.
    // SAFETY: the call takes an integer and reads what the kernel gave this process.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return;
    }
    let marker = env::var_os(MARKER);
    let Some((own_net, fd)) = marker.as_ref().and_then(|marker| parse(marker.as_bytes())) else {
        return;
    };
    // SAFETY: no other thread exists before `main` that could read the environment.
    unsafe { env::remove_var(MARKER) };
    // SAFETY: `exec_again` left this descriptor, which was its own, to this process.
    let kept = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    if let Some(kept) = &kept {
        // A number that no descriptor has is found out by who uses it.
        let _ = fcntl(kept, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    let shape = Shape {
        own_net,
        own_run: false,
    };
    let entered = Entered {
        outcome: enter(shape),
        kept,
    };
    let _ = ENTERED.set(parking_lot::Mutex::new(Some(entered)));
}

// SAFETY: the linker puts functions of this signature there, which the C library calls
// before `main`; without a marker in the environment this one does nothing.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

#[cfg(test)]
mod tests {
    use super::*;

    // Of all unit tests of this crate. Here, because it stands for unsafe code.
    crate::rootless::test_harness!(own_net);

    #[test]
    fn marker_of_another_process_is_not_ours() {
        let own = process::id();
        let other = own + 1;
        assert_eq!(parse(format!("{own} 0 -1").as_bytes()), Some((false, None)));
        assert_eq!(
            parse(format!("{own} 1 7").as_bytes()),
            Some((true, Some(7)))
        );
        for text in [format!("{other} 0 -1"), String::new(), format!("{own} 0")] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn steps_are_listed_in_their_order() {
        for (index, step) in STEPS.into_iter().enumerate() {
            assert_eq!(step as usize, index);
        }
    }
}
