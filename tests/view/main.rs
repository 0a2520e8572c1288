//! What workers and children with a view see: `View`.
//!
//! Most facts hold for root and for an ordinary user that is root of a user namespace:
//! [`facts!`] states them twice.

mod command;
mod dns;
mod files;
mod mounts;
mod refusals;

use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use netns_exec::{Executor, Netns, View};
use netns_exec_tests::unique_name;
use nix::mount::{MsFlags, mount};

/// Has each function be a test as root, and another one as an ordinary user in namespaces
/// of its own (`unshare -Urmn`) with an empty `/run`.
macro_rules! facts {
    ($($fact:ident,)*) => {
        mod as_root {
            $(#[test] fn $fact() {
                super::$fact();
            })*
        }

        mod as_ordinary_user {
            $(#[test] fn $fact() {
                netns_exec_tests::alone!(netns_exec_tests::Alone::LimitedRoot);
                super::$fact();
            })*
        }
    };
}
pub(crate) use facts;

/// The files of namespaces, in a folder of the test's own.
struct Files(PathBuf);

impl Files {
    fn new() -> Files {
        let folder = std::env::temp_dir().join(unique_name());
        fs::create_dir(&folder).expect("a folder of our own");
        Files(folder)
    }

    fn view(&self) -> View {
        View::new().files_in(&self.0)
    }

    fn executor(&self) -> Executor {
        let executor = Executor::builder().view(self.view()).build();
        executor.expect("an executor")
    }

    fn folder_of(&self, name: &str) -> PathBuf {
        let folder = self.0.join(name);
        fs::create_dir_all(&folder).expect("our own");
        folder
    }

    /// Writes the file that namespace `name` has as `/etc/file`.
    fn write(&self, name: &str, file: &str, text: &str) {
        fs::write(self.folder_of(name).join(file), text).expect("our own");
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the standard library's resolver makes of a host's name, on the calling thread.
fn look_up(host: &str) -> Option<IpAddr> {
    let mut found = (host, 80).to_socket_addrs().ok()?;
    found.next().map(|address| address.ip())
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a job that reads a file.
fn read_in(executor: &Executor, netns: &Netns, path: &str) -> String {
    executor.run(netns, || read(path)).expect("the job ran")
}

/// Mounts an empty `/etc` for this process, which has its mounts for itself.
fn empty_etc() {
    let tmpfs = Some("tmpfs");
    mount(tmpfs, "/etc", tmpfs, MsFlags::empty(), None::<&str>).expect("root may mount");
    fs::write("/etc/nsswitch.conf", "hosts: files dns\n").expect("our own");
}
