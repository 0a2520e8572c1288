//! Running one test in a process of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the process of its own is like.
#[derive(Clone, Copy, Debug)]
pub enum Alone {
    /// Like this one.
    AsIs,
    /// In a mount namespace of its own with an empty `/run`.
    FreshRun,
    /// Root of a user namespace of its own, and of nothing outside it; with an
    /// empty `/run`, too.
    OwnUserNamespace,
    /// As that, but in the network namespace of everybody: where a rootless
    /// daemon is that detached only its children.
    DetachedChildren,
    /// Root of a user namespace of its own, which an ordinary user made: limits
    /// that do not hold for root hold here. With an empty `/run`, too.
    LimitedRoot,
    /// An ordinary user without any privilege.
    OrdinaryUser,
    /// An ordinary user who is root of a user namespace of its own: to limits
    /// on users it is still an ordinary one.
    OrdinaryUserAsRoot,
}

const MARK: &str = "NETNS_EXEC_TEST_ALONE";
const NOTE: &str = "NETNS_EXEC_TEST_NOTE";

/// What [`alone_with`] was given, in the process that it started.
pub fn note() -> Option<String> {
    env::var(NOTE).ok()
}

/// Runs the calling test again in a process of its own, and returns `true`
/// there; here it waits for that, and returns `false`.
///
/// ```no_run
/// use netns_exec_tests::{Alone, alone};
///
/// if !alone("name_of_the_test", Alone::FreshRun) {
///     return;
/// }
/// // Only here `/run` is empty.
/// ```
///
/// # Panics
///
/// When the test fails there.
pub fn alone(test: &str, how: Alone) -> bool {
    alone_with(test, how, "", Stdio::null())
}

/// As [`alone`], with something for the test to find as [`note`] there, and
/// an open file as its standard input.
///
/// # Panics
///
/// When the test fails there.
pub fn alone_with(test: &str, how: Alone, note: &str, stdin: Stdio) -> bool {
    if env::var_os(MARK).is_some_and(|mark| mark == test) {
        return true;
    }
    super::require_root();
    let this = env::current_exe().expect("this program has a path");
    let binary = Binary::reachable_by_all(&this);
    let mut command = match how {
        Alone::AsIs => Command::new(&binary.path),
        Alone::FreshRun
        | Alone::OwnUserNamespace
        | Alone::DetachedChildren
        | Alone::LimitedRoot => {
            let mut command = Command::new("unshare");
            if matches!(how, Alone::LimitedRoot) {
                command = Command::new("setpriv");
                command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
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
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
            if matches!(how, Alone::OrdinaryUserAsRoot) {
                command.args(["unshare", "--user", "--map-root-user", "--net"]);
            }
            command.arg(&binary.path);
            command
        }
    };
    let output = command
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(MARK, test)
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
    false
}

/// A copy of a program: the build's own folder may be closed to others. It is
/// removed on drop.
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
}

impl Binary {
    /// Copies a program to where everybody may execute it.
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
