//! Running one test in a process of its own.

use std::env;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netns_exec::Netns;

use crate::{as_ordinary_user, listen_to, refuse_traps};

/// What the process of its own is like.
#[derive(Clone, Copy, Debug)]
pub enum Alone {
    /// Like this one.
    AsIs,
    /// Under a seccomp filter that another program listens to.
    Listened,
    /// Under one that refuses workers their traps.
    WithoutTraps,
    /// In a mount namespace of its own with an empty `/run`.
    FreshRun,
    /// Root of a user namespace of its own, and of nothing outside it; with an
    /// empty `/run`, too.
    OwnUserNamespace,
    /// As that, but in the network namespace that this process is in:
    /// where a rootless daemon is that detached only its children.
    DetachedChildren,
    /// Root of a user namespace of its own, which an ordinary user made: limits
    /// that do not hold for root hold here. With an empty `/run`, too.
    LimitedRoot,
    /// An ordinary user without any privilege.
    OrdinaryUser,
    /// An ordinary user that is root of a user namespace of its own: to limits
    /// on users it is still an ordinary one.
    OrdinaryUserAsRoot,
}

const MARK: &str = "NETNS_EXEC_TEST_ALONE";
const NOTE: &str = "NETNS_EXEC_TEST_NOTE";

/// What [`run_alone`] was given, in the process that it started.
pub fn note() -> Option<String> {
    env::var(NOTE).ok()
}

/// The name of the test that this stands in, as the harness knows it:
/// `shutdown::pinned_is_a_handle_too`.
///
/// It is taken from the type of a function that stands in the test too, so it is
/// right in the test's own body and not in a function that the test calls.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn marker() {}
        $crate::test_of(::std::any::type_name_of_val(&marker))
    }};
}

/// The name of a test by the path of what is inside of it.
#[doc(hidden)]
pub fn test_of(path: &'static str) -> &'static str {
    let test = path.strip_suffix("::marker").expect("see this_test!");
    let (_binary, test) = test.split_once("::").expect("a binary has a name");
    // What the harness knows has no closures in it.
    test.split("::{{closure}}").next().expect("at least one")
}

/// Runs what comes after it in a process of its own: the test runs again there.
/// Here it waits for that, fails if that failed, and returns from the test.
///
/// With two more arguments, which are evaluated here only: what the test finds
/// as [`note`] there, and what its standard input is.
///
/// ```no_run
/// use netns_exec_tests::{Alone, alone};
///
/// # fn test() {
/// alone!(Alone::FreshRun);
/// // Only here `/run` is empty.
/// # }
/// ```
#[macro_export]
macro_rules! alone {
    ($how:expr) => {
        $crate::alone!($how, "", ::std::process::Stdio::null())
    };
    ($how:expr, $note:expr, $stdin:expr) => {
        if !$crate::is_alone($crate::this_test!()) {
            $crate::run_alone($crate::this_test!(), $how, $note, $stdin);
            return;
        }
    };
}

/// Tells whether this process was made to run `test`.
pub fn is_alone(test: &str) -> bool {
    env::var_os(MARK).is_some_and(|mark| mark == test)
}

/// Runs a test in a process of its own, and waits for that. For a test that goes
/// on afterwards: there, it finds a [`note`].
///
/// # Panics
///
/// When the test fails there.
pub fn run_alone(test: &str, how: Alone, note: &str, stdin: Stdio) {
    super::require_root();
    let this = env::current_exe().expect("this program has a path");
    let binary = Binary::reachable_by_all(&this);
    let mut command = match how {
        Alone::AsIs => Command::new(&binary.path),
        Alone::Listened => {
            let mut command = Command::new(&binary.path);
            listen_to(&mut command);
            command
        }
        Alone::WithoutTraps => {
            let mut command = Command::new(&binary.path);
            refuse_traps(&mut command);
            command
        }
        Alone::FreshRun
        | Alone::OwnUserNamespace
        | Alone::DetachedChildren
        | Alone::LimitedRoot => {
            let mut command = Command::new("unshare");
            if matches!(how, Alone::LimitedRoot) {
                command = as_ordinary_user();
                command.arg("unshare");
            }
            if !matches!(how, Alone::FreshRun) {
                command.args(["--user", "--map-root-user"]);
            }
            if matches!(how, Alone::OwnUserNamespace | Alone::LimitedRoot) {
                command.arg("--net");
            }
            let script = "mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"";
            command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
            command.arg(&binary.path);
            command
        }
        Alone::OrdinaryUser | Alone::OrdinaryUserAsRoot => {
            let mut command = as_ordinary_user();
            if matches!(how, Alone::OrdinaryUserAsRoot) {
                command.args(["unshare", "--user", "--map-root-user", "--net"]);
            }
            command.arg(&binary.path);
            command
        }
    };
    let output = only(test, &mut command)
        .env(NOTE, note)
        .current_dir("/")
        .stdin(stdin)
        .output()
        .expect("the tests need unshare and setpriv of util-linux");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        // A misspelt name would run no test, successfully.
        output.status.success() && out.contains("1 passed"),
        "{test} failed in a process of its own ({how:?}, {}):\n{out}\n{err}",
        output.status
    );
}

/// What runs a test again, where [`is_alone`] holds, for a caller that has a way
/// of its own to look at how that ends.
pub fn rerun(test: &str) -> Command {
    super::require_root();
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    only(test, &mut command).stdin(Stdio::null());
    command
}

fn only<'a>(test: &str, command: &'a mut Command) -> &'a mut Command {
    let command = command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    command.env(MARK, test)
}

/// An open namespace as the standard input of a process of its own, where it is
/// [`handed_over`].
pub fn to_hand_over(netns: &Netns) -> Stdio {
    let fd = netns.as_fd().try_clone_to_owned();
    fd.expect("a copy of the descriptor").into()
}

/// The namespace that is open as the standard input.
pub fn handed_over() -> Netns {
    let fd = io::stdin().as_fd().try_clone_to_owned();
    Netns::from_fd(fd.expect("a copy of the descriptor")).expect("having it open is enough")
}

/// A copy of a program: the build's own folder may be closed to others. It is
/// removed on drop.
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
}

impl Binary {
    /// Copies a program to where every user may execute it.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn reachable_by_all(program: &Path) -> Binary {
        let path = env::temp_dir().join(super::unique_name());
        // Written by another process: a child that a test running beside this one
        // forks would hold a file that we write open, and then it cannot be
        // executed (ETXTBSY).
        let status = (Command::new("install").args(["-m", "755"]))
            .args([program, &path])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot copy this program to {}",
            path.display()
        );
        Binary { path }
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
