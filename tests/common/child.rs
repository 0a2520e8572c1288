//! Children that stay where they are put.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

/// A process in a namespace, which lives until this is dropped.
pub struct Sleeper(Child);

impl Sleeper {
    /// In a namespace that has a name, as `ip netns exec` enters it.
    pub fn in_named(name: &str) -> Sleeper {
        Sleeper::waiting(Command::new("ip").args(["netns", "exec", name]))
    }

    /// In a namespace of its own, which has no name.
    pub fn in_its_own() -> Sleeper {
        super::require_root();
        Sleeper::waiting(Command::new("unshare").arg("--net"))
    }

    /// Ends with its standard input, if this process is killed.
    fn waiting(command: &mut Command) -> Sleeper {
        let command = command.args(["sh", "-c", "echo; exec cat"]);
        Sleeper::start(command.stdin(Stdio::piped()))
    }

    /// Starts a program that writes a line when it is where it is to stay.
    ///
    /// # Panics
    ///
    /// When it ends without one.
    #[track_caller]
    pub fn start(command: &mut Command) -> Sleeper {
        let child = command.stdout(Stdio::piped()).spawn();
        Sleeper::of(child.expect("a program that can be started"))
    }

    /// Waits for a line of a child whose standard output is a pipe.
    ///
    /// # Panics
    ///
    /// When it ends without one.
    #[track_caller]
    pub fn of(child: Child) -> Sleeper {
        let mut sleeper = Sleeper(child);
        let out = sleeper.0.stdout.as_mut().expect("piped above");
        out.read_exact(&mut [0]).expect("a line");
        sleeper
    }

    /// What the kernel calls it.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the user namespace that this process is in has more ids than one.
fn has_other_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("/proc is mounted");
    let lengths =
        (map.lines()).filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    lengths.sum::<u64>() > 1
}

/// What starts a program as an ordinary user, without any privilege and without
/// a way to one: the program is its next argument.
///
/// Where this process has no other user to be, because it is root of a user namespace
/// with a single id, that user is one of a further user namespace.
pub fn as_ordinary_user() -> Command {
    let mut command;
    if has_other_users() {
        command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    } else {
        command = Command::new("unshare");
        command.args(["--user", "--map-user=65534", "--map-group=65534", "setpriv"]);
    }
    command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    command.env("NETNS_EXEC_TEST_HARNESS", "off");
    command
}
