//! Children in a namespace.

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};
use crate::executor::current;
use crate::home::Home;
use crate::netns::Netns;
use crate::sys;
use crate::sys::process::Entry;
use crate::sys::view::Plan;
use crate::view::{self, View};

/// Starts the child processes of a [`Command`] in a network namespace.
///
/// Nothing moves but the child: it enters the namespace itself, between fork(2)
/// and execve(2). [`spawn_in`](CommandExt::spawn_in),
/// [`output_in`](CommandExt::output_in) and [`status_in`](CommandExt::status_in)
/// work on any thread, also inside a job and for any namespace, because it is
/// a thread born of the home thread that forks. So the child
///
/// - has no signal blocked, whatever the caller blocks (workers block all),
/// - is under no seccomp filter and misses no capability that a sealed worker
///   gave up,
/// - outlives the worker whose job asked for it, even when it has a
///   parent-death signal (`PR_SET_PDEATHSIG`, which follows the *thread* that
///   forked): that thread stays until the child has been waited for,
/// - starts in the process's working directory with the process's umask, should
///   the caller have private ones.
///
/// What the child sees of `/sys/class/net` and `/etc/resolv.conf` is what the
/// process sees, unless it is given a [`view`](CommandExt::view): `ip netns exec` puts
/// those of the namespace in their place.
///
/// # Changing the user
///
/// The standard library changes the user, the group and the root directory of a
/// child ([`uid`], [`gid`]) before the child can enter the namespace, and an
/// ordinary user may not enter. Start such a command inside a job:
/// `run(&ns, || command.uid(1000).spawn())`.
///
/// [`uid`]: std::os::unix::process::CommandExt::uid
/// [`gid`]: std::os::unix::process::CommandExt::gid
///
/// # Using a command again
///
/// A command can be started many times and in different namespaces. It keeps no
/// namespace alive in between (one prepared with
/// [`in_netns`](CommandExt::in_netns) does), but a few bytes in it remember
/// each start, as the standard library can take no step of a command back: what
/// starts a million children should make more than one `Command`.
///
/// # Examples
///
/// ```no_run
/// use std::process::Command;
///
/// use netns_exec::{CommandExt, Netns};
///
/// let blue = Netns::open("blue")?;
/// let routes = Command::new("ip").arg("route").output_in(&blue)?;
/// print!("{}", String::from_utf8_lossy(&routes.stdout));
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub trait CommandExt: sealed::Sealed {
    /// Starts the command as a child process in `ns`, and returns a handle to it.
    ///
    /// Standard input, output and error are inherited unless the command says
    /// otherwise, as with [`Command::spawn`].
    ///
    /// # Errors
    ///
    /// Fails when the child may not enter `ns`
    /// ([`is_permission_denied`](Error::is_permission_denied)), when there is no
    /// such program ([`is_not_found`](Error::is_not_found)), and when no process
    /// can be started at all; the text tells which. The command can be used
    /// again after every one of them.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns};
    ///
    /// let mut server = Command::new("iperf3").arg("-s").spawn_in(&Netns::open("blue")?)?;
    /// let client = Command::new("iperf3").args(["-c", "10.0.0.1"]).status_in(&Netns::open("red")?)?;
    /// server.kill()?;
    /// server.wait()?;
    /// assert!(client.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn spawn_in(&mut self, ns: &Netns) -> Result<Child>;

    /// Runs the command as a child process in `ns`, waits for its end, and
    /// returns all it wrote.
    ///
    /// Standard output and error are captured and standard input is empty unless
    /// the command says otherwise, as with [`Command::output`].
    ///
    /// # Errors
    ///
    /// As [`spawn_in`](CommandExt::spawn_in), and when reading or waiting fails. A
    /// command that ran and failed is not an error: see [`Output::status`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    /// use netns_exec::{CommandExt, Netns};
    ///
    /// let links = Command::new("ip").args(["-json", "link"]).output_in(&Netns::open("blue")?)?;
    /// match links.status.success() {
    ///     true => println!("{}", String::from_utf8_lossy(&links.stdout)),
    ///     false => eprintln!("{}", String::from_utf8_lossy(&links.stderr)),
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    fn output_in(&mut self, ns: &Netns) -> Result<Output>;

    /// Runs the command as a child process in `ns`, waits for its end, and
    /// returns its exit status.
    ///
    /// Standard input, output and error are inherited unless the command says
    /// otherwise, as with [`Command::status`].
    ///
    /// # Errors
    ///
    /// As [`spawn_in`](CommandExt::spawn_in), and when waiting fails.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    /// use netns_exec::{CommandExt, Netns};
    ///
    /// let ping = Command::new("ping").args(["-c1", "-W1", "10.0.0.1"]).status_in(&Netns::open("blue")?)?;
    /// println!("{}", if ping.success() { "reached" } else { "no answer" });
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    fn status_in(&mut self, ns: &Netns) -> Result<ExitStatus>;

    /// Prepares the command: from whichever thread and by whichever call it is
    /// started, its children enter `ns`.
    ///
    /// This is for what starts commands itself, such as tokio (through its
    /// `Command::as_std_mut`) or the standard library's `exec`. The child
    /// inherits the signal mask, and whatever else, of the thread that starts
    /// it, which must be allowed to enter: a sealed job is not. Prefer
    /// [`spawn_in`](CommandExt::spawn_in) where you can.
    ///
    /// The command holds `ns` from now on. When it is called again, or the
    /// command is started with `spawn_in`, the last one decides. A failure to
    /// enter comes out of the start as a plain [`io::Error`] with the errno of
    /// setns(2).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::os::unix::process::CommandExt as _;
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns};
    ///
    /// // Becomes a shell in the namespace.
    /// let error = Command::new("sh").in_netns(&Netns::open("blue")?).exec();
    /// # Err::<(), _>(error)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn in_netns(&mut self, ns: &Netns) -> &mut Command;

    /// Gives what is started by the returned handle a view: it sees the `/sys` of its
    /// namespace, and the namespace's files over `/etc`.
    ///
    /// The command itself is not changed: started without the handle, it has no view.
    /// A child in a namespace sees its own `/proc/net` with a view and without.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns, View};
    ///
    /// // As `ip netns exec blue getent hosts db.internal`.
    /// let blue = Netns::open("blue")?;
    /// let mut getent = Command::new("getent");
    /// let found = getent.args(["hosts", "db.internal"]).view(View::new()).output_in(&blue)?;
    /// print!("{}", String::from_utf8_lossy(&found.stdout));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    fn view(&mut self, view: View) -> ViewedCommand<'_>;
}

/// A command whose children see the file system as their namespace has it; made by
/// [`CommandExt::view`].
///
/// # Examples
///
/// ```no_run
/// use std::process::Command;
///
/// use netns_exec::{CommandExt, Netns, View};
///
/// let devices = Command::new("ls")
///     .arg("/sys/class/net")
///     .view(View::new())
///     .output_in(&Netns::open("blue")?)?;
/// print!("{}", String::from_utf8_lossy(&devices.stdout));
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a command does nothing before it is started"]
pub struct ViewedCommand<'a> {
    command: &'a mut Command,
    view: View,
}

#[expect(
    clippy::disallowed_methods,
    reason = "named here, called on the home thread, whose children enter"
)]
impl ViewedCommand<'_> {
    /// Starts the command as a child in `ns`, as [`CommandExt::spawn_in`] does, with the
    /// view.
    ///
    /// # Errors
    ///
    /// As [`CommandExt::spawn_in`]; what the view needs and cannot have, by name
    /// ([`is_permission_denied`](Error::is_permission_denied) without `CAP_SYS_ADMIN`;
    /// [`is_not_found`](Error::is_not_found) for a file that has no place in `/etc`, see
    /// [`View::skip_missing`]).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns, View};
    ///
    /// let blue = Netns::open("blue")?;
    /// let mut child = Command::new("dnsmasq").arg("-k").view(View::new()).spawn_in(&blue)?;
    /// child.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn_in(&mut self, ns: &Netns) -> Result<Child> {
        start_by(
            Parent::Forker,
            self.command,
            ns,
            Some(&self.view),
            Command::spawn,
        )
    }

    /// Runs the command in `ns` to its end with the view, and returns all it wrote, as
    /// [`CommandExt::output_in`] does.
    ///
    /// # Errors
    ///
    /// As [`spawn_in`](ViewedCommand::spawn_in), and when reading or waiting fails.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns, View};
    ///
    /// let blue = Netns::open("blue")?;
    /// let servers = Command::new("cat").arg("/etc/resolv.conf").view(View::new()).output_in(&blue)?;
    /// # let _ = servers;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn output_in(&mut self, ns: &Netns) -> Result<Output> {
        start_by(
            Parent::Visitor,
            self.command,
            ns,
            Some(&self.view),
            Command::output,
        )
    }

    /// Runs the command in `ns` to its end with the view, and returns its exit status,
    /// as [`CommandExt::status_in`] does.
    ///
    /// # Errors
    ///
    /// As [`spawn_in`](ViewedCommand::spawn_in), and when waiting fails.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns, View};
    ///
    /// let blue = Netns::open("blue")?;
    /// let found = Command::new("getent").args(["hosts", "db"]).view(View::new()).status_in(&blue)?;
    /// assert!(found.success());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn status_in(&mut self, ns: &Netns) -> Result<ExitStatus> {
        start_by(
            Parent::Visitor,
            self.command,
            ns,
            Some(&self.view),
            Command::status,
        )
    }

    /// Prepares the command as [`CommandExt::in_netns`] does: by whichever call it is
    /// started, its children enter `ns` and have the view.
    ///
    /// What is to be shown is decided now. A failure comes out of the start as a plain
    /// [`io::Error`]; [`View::check`] tells more.
    ///
    /// # Errors
    ///
    /// When the namespace's files cannot be read or one has no place in `/etc`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::os::unix::process::CommandExt as _;
    /// use std::process::Command;
    ///
    /// use netns_exec::{CommandExt, Netns, View};
    ///
    /// // Becomes what `ip netns exec blue sh` becomes.
    /// let blue = Netns::open("blue")?;
    /// let error = Command::new("sh").view(View::new()).in_netns(&blue)?.exec();
    /// # Err::<(), _>(error)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_netns(&mut self, ns: &Netns) -> Result<&mut Command> {
        let plan = self.view.plan_for_child(ns)?;
        sys::process::enter_before_exec(self.command, entry(ns.clone(), Some(plan)));
        Ok(self.command)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::process::Command {}
}

#[expect(
    clippy::disallowed_methods,
    reason = "named here, called on the home thread, whose children enter"
)]
impl CommandExt for Command {
    fn spawn_in(&mut self, ns: &Netns) -> Result<Child> {
        start_by(Parent::Forker, self, ns, None, Command::spawn)
    }

    fn output_in(&mut self, ns: &Netns) -> Result<Output> {
        start_by(Parent::Visitor, self, ns, None, Command::output)
    }

    fn status_in(&mut self, ns: &Netns) -> Result<ExitStatus> {
        start_by(Parent::Visitor, self, ns, None, Command::status)
    }

    fn in_netns(&mut self, ns: &Netns) -> &mut Command {
        sys::process::enter_before_exec(self, entry(ns.clone(), None));
        self
    }

    fn view(&mut self, view: View) -> ViewedCommand<'_> {
        ViewedCommand {
            command: self,
            view,
        }
    }
}

/// Waits for what another thread does: for the duration of that, this one serves no
/// namespace, if it is a worker.
fn wait<T>(other: impl FnOnce() -> io::Result<T>) -> Result<T> {
    current::check_may_wait()?;
    current::blocking(other).map_err(|cause| {
        Error::kernel("cannot start a thread for a child", cause)
            .hint("see `ulimit -u` and pids.max")
    })
}

/// The thread that forks a child, whose end is the end of what the child may be tied to.
#[derive(Clone, Copy)]
enum Parent {
    /// Stays for as long as it has children.
    Forker,
    /// Stays until `run` returns, by which the child has ended.
    Visitor,
}

/// Has a thread `run` the command, and waits for that.
fn start_by<T: Send + 'static>(
    parent: Parent,
    command: &mut Command,
    ns: &Netns,
    view: Option<&View>,
    run: fn(&mut Command) -> io::Result<T>,
) -> Result<T> {
    let loan = Loan::of(command);
    let start = loan.start(ns, view, run);
    let home = Home::get()?;
    let started = wait(|| match parent {
        Parent::Forker => home.fork_by(start),
        Parent::Visitor => home.visit(start),
    });
    started?.map_err(|failure| loan.failed(ns, failure))
}

fn entry(netns: Netns, view: Option<Plan>) -> Entry<Netns> {
    Entry {
        id: netns.id().as_u64(),
        inode: netns.known_inode(),
        netns,
        view,
    }
}

/// Why a start failed.
enum Failure {
    Start(io::Error),
    View(Error),
}

/// Calls `run` on the command; a child made meanwhile enters `target`, and has the view.
fn start<T>(
    command: &mut Command,
    target: &Netns,
    view: Option<View>,
    run: fn(&mut Command) -> io::Result<T>,
) -> std::result::Result<T, Failure> {
    // Here and not at the caller's, who may have a view: the child begins with the
    // mounts of this thread.
    let plan = (view.map(|view| view.plan_for_child(target)).transpose()).map_err(Failure::View)?;
    let entry = Arc::new(entry(target.clone(), plan));
    sys::process::enter_clean_before_exec(command, Arc::downgrade(&entry));
    run(command).map_err(
        |cause| match (&entry.view, sys::process::view_refusal(&cause)) {
            (Some(plan), Some(refusal)) => Failure::View(view::refused(plan, refusal, target)),
            _ => Failure::Start(cause),
        },
    )
}

/// A caller's command on its way to another thread; the caller has it back when
/// this is dropped, whatever happened there.
struct Loan<'a> {
    owner: &'a mut Command,
    command: Arc<Mutex<Command>>,
}

impl<'a> Loan<'a> {
    fn of(owner: &'a mut Command) -> Self {
        let command = mem::replace(owner, Command::new(OsStr::new("")));
        Loan {
            owner,
            command: Arc::new(Mutex::new(command)),
        }
    }

    /// What is to be done on another thread.
    fn start<T: 'static>(
        &self,
        ns: &Netns,
        view: Option<&View>,
        run: fn(&mut Command) -> io::Result<T>,
    ) -> impl FnOnce() -> std::result::Result<T, Failure> + Send + 'static + use<T> {
        let (command, target, view) = (Arc::clone(&self.command), ns.clone(), view.cloned());
        move || start(&mut command.lock(), &target, view, run)
    }

    /// Says what a failure made impossible.
    fn failed(&self, ns: &Netns, failure: Failure) -> Error {
        let cause = match failure {
            Failure::Start(cause) => cause,
            Failure::View(error) => return error,
        };
        if let Some(errno) = sys::process::enter_errno(&cause) {
            let error = Error::kernel(
                format!("cannot enter netns `{ns}`"),
                io::Error::from_raw_os_error(errno),
            );
            return match errno {
                libc::EPERM => {
                    let need = "needs CAP_SYS_ADMIN in the user namespace that owns the netns, and in \
                                the child's own; a command with `uid` or `gid` has given it up by \
                                then: start it inside a job";
                    match ns.foreign_owner() {
                        Some(foreign) => error.hint(format!("{need}; {foreign}")),
                        None => error.hint(need),
                    }
                }
                libc::EBADF | libc::EINVAL => error.hint(crate::netns::NOT_THE_SAME_FILE),
                _ => error,
            };
        }
        let program = self.command.lock().get_program().to_owned();
        let attempt = format!("cannot execute `{}` in netns `{ns}`", program.display());
        match cause.raw_os_error() {
            Some(libc::ENOENT) => Error::new(Kind::NotFound, attempt).caused_by(cause),
            _ => Error::kernel(attempt, cause),
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        mem::swap(self.owner, &mut self.command.lock());
    }
}
