//! What a worker or a child sees of the file system that shows a network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::netns::Netns;
use crate::sys;
use crate::sys::view::{Plan, Refusal, Shown};

/// Where `ip netns` looks for the files of namespaces.
const FOLDER: &str = "/etc/netns";

/// Shows a worker or a child what the file system has for its network namespace, as
/// `ip netns exec` does, and more.
///
/// Without a view a job sees the `/sys/class/net`, `/proc/net` and `/etc/resolv.conf` of
/// the process, whatever namespace it is in. With one it sees:
///
/// | | |
/// |---|---|
/// | `/sys` | the devices of its namespace. What was mounted below (`/sys/fs/cgroup`, `/sys/fs/bpf`, the masks of a container) is there as before; a `/sys` that was read-only is |
/// | `/etc/X` | `/etc/netns/NAME/X`, for each file and folder in there: `resolv.conf`, `hosts`, `nsswitch.conf`. Where `/etc/X` is a symbolic link, the file takes the link's place, wherever that leads |
/// | `/proc/net`, `/proc/self/net` | what `/proc/thread-self/net` shows: those of its own namespace and not of the process's main thread. `/proc/sys/net` is right without a view |
///
/// In a place that is a mount already, as in a container, they are mounted on top.
///
/// It is given to [`Builder::view`](crate::Builder::view) and to
/// [`CommandExt::view`](crate::CommandExt::view). It is made once, when a worker is born
/// or a child starts, which takes 0.3 ms longer, and 4 microseconds for each mount that
/// there is, names of namespaces included: a mount namespace is a copy. Jobs cost nothing
/// more. Where thousands of namespaces have workers with a view at the same time, each of
/// them has a copy of all names, and a name that comes or goes does so in all.
///
/// # How
///
/// The thread gets a mount namespace of its own (unshare(2) with `CLONE_NEWNS`), from
/// which no mount reaches any other thread: what they see is what they saw. The other
/// way, mounts that come and go elsewhere come and go in the view, if what they are
/// mounted on was a shared mount when the view was made; `/run/netns` is one, so that a
/// view keeps no deleted namespace alive. Where the mounts of a system are private, a
/// file system that is unmounted elsewhere stays busy until the view is gone.
///
/// With its mount namespace a thread has a working directory and a umask of its own
/// (`CLONE_FS`): those of the process at that time. A job that changes them changes them
/// for no other thread; the worker is retired when it has nothing to do, and jobs that it
/// runs before that find them changed. Nothing is shown in another place than before, so
/// paths mean what they meant.
///
/// # NAME
///
/// The name in `/run/netns` by which the handle was opened or made; for a handle that
/// came another way (path, pid, socket) the first of the names that the namespace has.
/// It keeps the name when that is taken away. A namespace without a name has no files,
/// unless there is a folder `netns:ID` with its [`NetnsId`](crate::NetnsId), as its
/// [`label`](Netns::label) is.
///
/// # Resolvers
///
/// `getaddrinfo` (and so [`ToSocketAddrs`](std::net::ToSocketAddrs)) in a job uses the
/// namespace's files. glibc keeps one parsed `resolv.conf` for the process, and compares
/// it at every look-up with what the *calling thread* finds at `/etc/resolv.conf` (since
/// 2.26; for `nsswitch.conf` since 2.33), so that threads with different views get
/// different servers; one that finds another file than the last caller reads it anew,
/// some microseconds. `hosts` is read at every look-up. `host.conf` and `gai.conf` are read once, for
/// the process. musl reads all at each look-up. Pure Rust resolvers read the file when
/// they are made: make one in a job.
///
/// What asks a *daemon* does not see the view: nscd, and `resolve` of `nsswitch.conf`
/// (systemd-resolved), answer with what they have found at home, as under
/// `ip netns exec`. Give such namespaces an `nsswitch.conf` with `hosts: files dns`.
///
/// A file that is rewritten in place has new contents in every view. One that is replaced
/// (written beside it and renamed, as most programs do) is seen by workers born
/// afterwards: [`Executor::retire`](crate::Executor::retire).
///
/// # Privileges
///
/// `CAP_SYS_ADMIN`, and for `/sys` it must hold in the user namespace that owns the
/// network namespace: root has it, and root of a user namespace for namespaces made
/// there. In a container in which parts of `/sys` or `/proc` are hidden the kernel
/// may refuse a new `/sys` to a user namespace. What is refused is an error of the call
/// that wanted the worker or the child, with the step that was refused; none is left out
/// in silence.
///
/// # Examples
///
/// ```no_run
/// use std::net::ToSocketAddrs;
///
/// use netns_exec::{Executor, Netns, View};
///
/// let executor = Executor::builder().view(View::new()).build()?;
/// let blue = Netns::open("blue")?;
/// // By /etc/netns/blue/hosts, and the servers in /etc/netns/blue/resolv.conf.
/// let address = executor.run(&blue, || "db.internal:5432".to_socket_addrs())?;
/// let devices = executor.run(&blue, || std::fs::read_dir("/sys/class/net"))?;
/// # let _ = (address, devices);
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[must_use = "a view is seen by what it is given to"]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    folder: Option<PathBuf>,
    skips_missing: bool,
}

impl View {
    /// Makes the view that `ip netns exec` gives, with the files in `/etc/netns`.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, View};
    ///
    /// let executor = Executor::builder().view(View::new()).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn new() -> View {
        View::default()
    }

    /// Takes the namespaces' files from another folder than `/etc/netns`: for `blue`,
    /// what is in `folder/blue`.
    ///
    /// For a program that makes the files itself, and for one that may not write to
    /// `/etc`. A relative path is one from the process's working directory at the time
    /// when a worker is born.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns, View};
    ///
    /// let netns = Netns::new()?;
    /// let files = std::path::Path::new("/run/lab").join(netns.label());
    /// std::fs::create_dir_all(&files)?;
    /// std::fs::write(files.join("hosts"), "10.0.0.2 db.internal\n")?;
    ///
    /// let view = View::new().files_in("/run/lab");
    /// let executor = Executor::builder().view(view).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn files_in(mut self, folder: impl Into<PathBuf>) -> View {
        self.folder = Some(folder.into());
        self
    }

    /// Sets whether a file is left out that `/etc` has nothing of the same name for, or
    /// that is a link to nowhere.
    /// Default: `false`, and it is an error ([`is_not_found`](Error::is_not_found)).
    ///
    /// A mount needs something to be mounted on, and to make that in `/etc` would show
    /// everywhere. `ip netns exec` leaves the file out, and says so.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, View};
    ///
    /// let lenient = View::new().skip_missing(true);
    /// let executor = Executor::builder().view(lenient).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn skip_missing(mut self, skip: bool) -> View {
        self.skips_missing = skip;
        self
    }

    /// Finds out whether a worker of `netns` can have this view.
    ///
    /// A short-lived thread enters the namespace, takes the view and ends; the caller
    /// waits for it.
    ///
    /// # Errors
    ///
    /// Those that a call which starts a worker would get: as
    /// [`check_enter`](Netns::check_enter);
    /// [`is_permission_denied`](Error::is_permission_denied) where the kernel refuses a
    /// step; [`is_not_found`](Error::is_not_found) for a file that has no place in
    /// `/etc`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Netns, View};
    ///
    /// if let Err(error) = View::new().check(&Netns::open("blue")?) {
    ///     eprintln!("names are looked up with the host's servers: {error}");
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn check(&self, netns: &Netns) -> Result<()> {
        let (view, target) = (self.clone(), netns.kept());
        netns.visit(move || view.put_on_worker(&target))
    }

    /// Gives it to the calling thread, a worker that has entered `netns`.
    pub(crate) fn put_on_worker(&self, netns: &Netns) -> Result<()> {
        let plan = self.plan(netns, true)?;
        plan.apply()
            .map_err(|refusal| refused(&plan, refusal, netns))
    }

    /// What a child of the calling thread has to do to get it.
    pub(crate) fn plan_for_child(&self, netns: &Netns) -> Result<Plan> {
        self.plan(netns, false)
    }

    fn plan(&self, netns: &Netns, is_thread: bool) -> Result<Plan> {
        let files = self.files(netns)?;
        Plan::new(&files, is_thread).map_err(|cause| {
            let attempt = format!("{}: cannot read what is mounted", attempt(netns));
            Error::kernel(attempt, cause)
        })
    }

    /// The namespace's files, and where they are to be seen.
    fn files(&self, netns: &Netns) -> Result<Vec<Shown>> {
        let own = format!("netns:{}", netns.id());
        let name = (netns.name()).or_else(|| (netns.label() == own).then_some(own.into()));
        let Some(name) = name else {
            return Ok(Vec::new());
        };
        let folder = self.folder.as_deref().unwrap_or(Path::new(FOLDER));
        let folder = folder.join(name);
        let failed = |cause| {
            let attempt = format!("{}: cannot read {}", attempt(netns), folder.display());
            Error::kernel(attempt, cause)
        };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = (entries.map(|entry| Ok(entry?.file_name())))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        names.sort();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let (source, target) = (folder.join(&name), Path::new("/etc").join(&name));
            match what_keeps(&source, &target) {
                None => files.push(Shown { source, target }),
                Some((Kind::NotFound, _)) if self.skips_missing => {}
                Some((kind, why)) => {
                    let (source, target) = (source.display(), target.display());
                    let attempt = attempt(netns);
                    let text = format!("{attempt}: cannot show {source} as {target}: {why}");
                    let hint = "make an empty one, or leave such files out";
                    return Err(Error::new(kind, text).hint(hint));
                }
            }
        }
        // What covers the folder itself goes last: the others are looked for in it.
        files.sort_by_key(|file| folder.starts_with(&file.target));
        Ok(files)
    }
}

/// What keeps `source` from being shown in the place of `target`, if anything does. A file
/// can take the place of a link.
fn what_keeps(source: &Path, target: &Path) -> Option<(Kind, &'static str)> {
    let Ok(file) = source.metadata() else {
        return Some((Kind::NotFound, "the first is a link that leads nowhere"));
    };
    let place = match file.is_dir() {
        true => target.metadata(),
        false => target.symlink_metadata(),
    };
    match place {
        Err(_) => Some((Kind::NotFound, "there is nothing to mount it on")),
        Ok(place) if place.is_dir() != file.is_dir() => {
            Some((Kind::Invalid, "one is a folder and the other is not"))
        }
        Ok(_) => None,
    }
}

fn attempt(netns: &Netns) -> String {
    format!("cannot show the file system as netns `{netns}` has it")
}

/// Says which step of a view was refused, and what helps.
pub(crate) fn refused(plan: &Plan, refusal: Refusal, netns: &Netns) -> Error {
    let Refusal { step, errno } = refusal;
    let what = plan.describe(step).unwrap_or_default();
    let error = Error::kernel(format!("{}: cannot {what}", attempt(netns)), errno);
    match errno as i32 {
        libc::EPERM | libc::EACCES if !matches!(sys::caps::has_sys_admin(), Ok(true)) => {
            error.hint("mounting needs CAP_SYS_ADMIN")
        }
        libc::EPERM | libc::EACCES if plan.is_sysfs(step) => match netns.foreign_owner() {
            Some(foreign) => error.hint(format!(
                "that needs CAP_SYS_ADMIN in the user namespace that owns the netns: {foreign}"
            )),
            None => error.hint(
                "the kernel gives no new sysfs to a user namespace where parts of /sys are hidden, \
                 as in a container",
            ),
        },
        libc::ENOSPC => error.hint("see sysctl user.max_mnt_namespaces and fs.mount-max"),
        libc::EINVAL if step == 1 => {
            error.hint("/ must be a mount point: a chroot(2) into a plain folder is none")
        }
        _ => error,
    }
}
