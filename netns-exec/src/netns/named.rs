//! Named namespaces, kept as `ip netns` keeps them.
//!
//! A name is a file in `/run/netns` with the namespace bind-mounted on it. The
//! folder is a shared mount, so that in every mount namespace that has it the
//! names come and go together; otherwise a deleted namespace would live on
//! wherever the mount had been copied. Making it one must happen once:
//! each further bind mount of the folder on itself doubles the number of
//! mounts below it, so the process that does it holds a lock on the folder (flock(2)),
//! as iproute2 does.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use super::source::{creation_failed, not_a_netns, open_at};
use super::why::{self, is_permission};
use super::{Netns, Origin};
use crate::error::{Error, Kind, Result};
use crate::home::Home;
use crate::sys::mount;
use crate::sys::netns::{self, FileKind};

const FOLDER: &str = "/run/netns";

impl Netns {
    /// Opens the namespace that `ip netns` calls `name`; never creates one.
    ///
    /// What lies in `/run/netns` may also be a symbolic link to a namespace,
    /// as is common for containers. The label is the name.
    ///
    /// # Errors
    ///
    /// - [`is_not_found`](Error::is_not_found): there is no such name.
    /// - [`is_not_a_netns`](Error::is_not_a_netns): the name stands for
    ///   something else. A regular file is a name that is just being made, or
    ///   was left by a crash; a link may lead nowhere.
    /// - [`is_invalid_input`](Error::is_invalid_input): no namespace can have
    ///   that name: it is empty, `.` or `..`, has a slash or a NUL in it, or
    ///   is longer than 255 bytes.
    /// - Otherwise what open(2) failed with. Without `/proc` nothing can be opened,
    ///   and the text says that.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue = Netns::open("blue")?; // after `ip netns add blue`
    /// assert_eq!(blue.label(), "blue");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn open(name: &str) -> Result<Netns> {
        Netns::open_os(name)
    }

    /// Opens a namespace as [`open`](Netns::open) does, by a name that need not be
    /// UTF-8: a file's name is any bytes.
    ///
    /// The label is the name with U+FFFD in the place of what is not UTF-8.
    ///
    /// # Errors
    ///
    /// As [`open`](Netns::open).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// for name in std::env::args_os().skip(1) {
    ///     println!("{name:?} has id {}", Netns::open_os(&name)?.id());
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn open_os(name: impl AsRef<OsStr>) -> Result<Netns> {
        let name = name.as_ref();
        let attempt = format!("cannot open netns `{}`", name.display());
        let path = path_of(name, &attempt)?;
        open_at(&path, &name.to_string_lossy(), &attempt).map_err(|error| {
            if let Ok(target) = fs::read_link(&path)
                && error.is_not_found()
            {
                // The name is there, and taken.
                let what = format!("a link to `{}`, where nothing is", target.display());
                not_a_netns(&attempt, &what)
            } else if error.is_not_found() {
                error.hint(format!("{FOLDER} has no such name, see `ip netns list`"))
            } else if error.is_not_a_netns() {
                error.hint(format!(
                    "{}: a name that is being made, or was left by a crash, is a regular file",
                    path.display()
                ))
            } else {
                error
            }
        })
    }

    /// Makes a namespace with a name, as `ip netns add` does.
    ///
    /// It outlives this process, until [`delete`](Netns::delete) or
    /// `ip netns del`. The label is the name. Like [`new`](Netns::new) it
    /// comes with a loopback device that is down.
    ///
    /// Waits for a short-lived thread that makes it, and, where another
    /// process is just preparing `/run/netns`, for that.
    ///
    /// # Errors
    ///
    /// After an error nothing is left behind.
    ///
    /// - [`is_already_exists`](Error::is_already_exists): the name is taken;
    ///   its owner is left as it was.
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM` or
    ///   `EACCES` without `CAP_SYS_ADMIN` and write access to `/run`.
    /// - [`is_invalid_input`](Error::is_invalid_input): as with
    ///   [`open`](Netns::open).
    /// - Whatever mkdir(2), flock(2), open(2), unshare(2) and mount(2) can
    ///   fail with; the text says which.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue = Netns::create("blue")?;
    /// assert_eq!(Netns::open("blue")?, blue);
    /// assert!(Netns::create("blue").unwrap_err().is_already_exists());
    /// Netns::delete("blue")?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn create(name: &str) -> Result<Netns> {
        Netns::create_os(name)
    }

    /// Makes a namespace as [`create`](Netns::create) does, with a name that need not
    /// be UTF-8. The label is as with [`open_os`](Netns::open_os).
    ///
    /// # Errors
    ///
    /// As [`create`](Netns::create).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::ffi::{OsStr, OsString};
    /// use std::os::unix::ffi::OsStrExt;
    ///
    /// use netns_exec::Netns;
    ///
    /// let latin1 = OsStr::from_bytes(b"gr\xfcn");
    /// let netns = Netns::create_os(latin1)?;
    /// assert_eq!(Netns::open_os(latin1)?, netns);
    /// Netns::delete_os(latin1)?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn create_os(name: impl AsRef<OsStr>) -> Result<Netns> {
        let name = name.as_ref();
        let attempt = format!("cannot create netns `{}`", name.display());
        let path = path_of(name, &attempt)?;
        let made = {
            let (attempt, label) = (attempt.clone(), name.to_string_lossy().into_owned());
            // Not on the home thread itself: unshare(2) moves it, and the lock
            // may have to be waited for.
            Home::get()?.visit(move || {
                prepare_folder().map_err(|(step, cause)| {
                    failed_to_make(&format!("{attempt}: {step}"), cause)
                })?;
                make(&path, &label, &attempt)
            })
        };
        made.map_err(|cause| creation_failed(attempt, cause))?
            .map(|netns| netns.made(Origin::Named))
    }

    /// Makes a namespace and mounts it at `path`, where it stays: for names that are kept
    /// elsewhere than `ip netns` keeps them, such as `/var/run/myd/netns/blue`.
    ///
    /// A file is made at `path`, whose folder must be there, and the namespace is mounted
    /// on it in the mount namespace of the process's main thread. It outlives this process,
    /// until [`delete_at`](Netns::delete_at) or umount(8). Where the folder is no shared
    /// mount, a mount namespace that was copied meanwhile keeps the namespace alive as well.
    /// The label is the path.
    ///
    /// # Errors
    ///
    /// As [`create`](Netns::create), but that no folder is made and no lock is waited for.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue = Netns::create_at("/run/myd/blue")?;
    /// assert_eq!(Netns::from_path("/run/myd/blue")?, blue);
    /// Netns::delete_at("/run/myd/blue")?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn create_at(path: impl AsRef<Path>) -> Result<Netns> {
        let (path, attempt) = absolute(path.as_ref(), "create")?;
        let shown = path.display().to_string();
        let made = {
            let attempt = attempt.clone();
            Home::get()?.visit(move || make(&path, &shown, &attempt))
        };
        made.map_err(|cause| creation_failed(attempt, cause))?
            .map(|netns| netns.made(Origin::Named))
    }

    /// Takes away what [`create_at`](Netns::create_at) has made: the mount and its file.
    ///
    /// # Errors
    ///
    /// As [`delete`](Netns::delete).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// // What an earlier run of the program left, if it did.
    /// match Netns::delete_at("/run/myd/blue") {
    ///     Err(error) if error.is_not_found() => {}
    ///     deleted => deleted?,
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn delete_at(path: impl AsRef<Path>) -> Result<()> {
        let (path, attempt) = absolute(path.as_ref(), "delete")?;
        Home::get()?.call(move || remove(&path, &attempt))
    }

    /// Takes the name away, as `ip netns del` does.
    ///
    /// The namespace itself goes when nothing else refers to it: no process,
    /// socket or [`Netns`]. What a crash left of a name, an empty file or a
    /// link, is removed too.
    ///
    /// # Errors
    ///
    /// - [`is_not_found`](Error::is_not_found): there is no such name.
    /// - [`is_not_a_netns`](Error::is_not_a_netns): the name stands for
    ///   something that is not a namespace nor left by one. It stays.
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM` or
    ///   `EACCES` without `CAP_SYS_ADMIN`.
    /// - [`is_invalid_input`](Error::is_invalid_input): as with
    ///   [`open`](Netns::open).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// Netns::delete("blue")?;
    /// assert!(Netns::delete("blue").unwrap_err().is_not_found());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn delete(name: &str) -> Result<()> {
        Netns::delete_os(name)
    }

    /// Takes a name away as [`delete`](Netns::delete) does; it need not be UTF-8.
    ///
    /// # Errors
    ///
    /// As [`delete`](Netns::delete).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// // By what the folder has: a label may stand for a name that is not UTF-8.
    /// for entry in std::fs::read_dir("/run/netns")? {
    ///     let name = entry?.file_name();
    ///     if name.as_encoded_bytes().starts_with(b"test-") {
    ///         Netns::delete_os(name)?;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn delete_os(name: impl AsRef<OsStr>) -> Result<()> {
        let name = name.as_ref();
        let attempt = format!("cannot delete netns `{}`", name.display());
        let path = path_of(name, &attempt)?;
        Home::get()?.call(move || remove(&path, &attempt))
    }

    /// Opens all named namespaces, sorted by name, as `ip netns list` shows
    /// them.
    ///
    /// What is not a namespace, or no longer, is left out, and so is a file
    /// that is not yet one. Without `/run/netns` the list is empty. The labels are as
    /// with [`open_os`](Netns::open_os).
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be read, or when there are more names than
    /// file descriptors (`EMFILE`).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// for netns in Netns::list()? {
    ///     println!("{netns} has id {}", netns.id());
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn list() -> Result<Vec<Netns>> {
        let failed = |cause| Error::kernel(format!("cannot read {FOLDER}"), cause);
        let entries = match fs::read_dir(FOLDER) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = (entries.map(|entry| entry.map(|entry| entry.file_name())))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        names.sort();

        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let shown = name.to_string_lossy();
            let attempt = format!("cannot open netns `{shown}`");
            match open_at(&Path::new(FOLDER).join(&name), &shown, &attempt) {
                Ok(netns) => found.push(netns),
                Err(error) if error.is_not_found() || error.is_not_a_netns() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The name by which things are kept for the namespace: the one that the handle was
    /// opened or made by, also when that has been taken away since; else the first of
    /// those that it has now.
    pub(crate) fn name(&self) -> Option<OsString> {
        let mine = fstat(self.as_fd()).ok()?;
        let has = |name: &OsStr| {
            fs::metadata(Path::new(FOLDER).join(name))
                .is_ok_and(|it| (it.dev(), it.ino()) == (mine.st_dev, mine.st_ino))
        };
        let label = OsStr::new(self.label());
        let is_name = path_of(label, "").is_ok();
        if is_name && has(label) {
            return Some(label.to_owned());
        }
        let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        let first = names.filter(|name| has(name)).min();
        let was_named = self.inner.origin == Origin::Named || netns::is_detached(self.as_fd());
        first.or_else(|| (is_name && was_named).then(|| label.to_owned()))
    }
}

fn path_of(name: &OsStr, attempt: &str) -> Result<PathBuf> {
    const NAME_MAX: usize = 255;
    let reason = match name.as_bytes() {
        b"" => "a name must not be empty",
        b"." | b".." => "that is a folder's name",
        bytes if bytes.contains(&b'/') => "a name has no slash; see `Netns::from_path`",
        bytes if bytes.contains(&0) => "a name has no NUL byte",
        _ if name.len() > NAME_MAX => "a name has at most 255 bytes",
        _ => return Ok(Path::new(FOLDER).join(name)),
    };
    Err(Error::new(Kind::Invalid, attempt.to_owned()).hint(reason))
}

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(super) fn fuzz(name: &OsStr) {
    if let Ok(path) = path_of(name, "fuzz") {
        assert_eq!(path.parent(), Some(Path::new(FOLDER)));
        assert_eq!(path.file_name(), Some(name));
    }
}

/// The path for threads that may have another working directory, and what is attempted.
fn absolute(path: &Path, what: &str) -> Result<(PathBuf, String)> {
    let attempt = format!("cannot {what} netns at `{}`", path.display());
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::new(Kind::Invalid, attempt).hint("a path has no NUL byte"));
    }
    match std::path::absolute(path) {
        Ok(path) => Ok((path, attempt)),
        Err(cause) if path.as_os_str().is_empty() => {
            Err(Error::new(Kind::Invalid, attempt).caused_by(cause))
        }
        Err(cause) => Err(Error::kernel(attempt, cause)),
    }
}

fn failed_to_make(attempt: &str, cause: io::Error) -> Error {
    match is_permission(&cause) {
        true => Error::kernel(attempt.to_owned(), cause)
            .hint(why::name_denied("creating network namespaces")),
        false => creation_failed(attempt, cause),
    }
}

/// Makes a namespace and mounts it at `path`. Moves the calling thread there.
fn make(path: &Path, label: &str, attempt: &str) -> Result<Netns> {
    let failed = |step: &str, cause| failed_to_make(&format!("{attempt}: {step}"), cause);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o000)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::new(Kind::Exists, attempt.to_owned())
                .caused_by(error)
                .hint("open it, or delete it first"));
        }
        Err(error) => return Err(failed("cannot make its file", error)),
    };
    let made = netns::unshare()
        .map_err(|cause| creation_failed(format!("{attempt}: cannot make the namespace"), cause))
        .and_then(|netns| {
            // Before it has its name: what fails from here on must take that back.
            let netns = Netns::wrap(netns, Some(label), attempt)?;
            // Bound by the thread's own entry: this thread is in it.
            mount::bind(Path::new("/proc/thread-self/ns/net"), path)
                .map_err(|cause| failed("cannot mount it", cause))?;
            Ok(netns)
        });
    if made.is_err() {
        withdraw(path, &file);
    }
    made
}

/// Removes the file of a name that came to nothing, unless another process
/// has removed it meanwhile and made the name its own.
fn withdraw(path: &Path, file: &File) {
    let key = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let ours = file.metadata().map(key);
    let there = fs::symlink_metadata(path).map(key);
    if matches!((ours, there), (Ok(ours), Ok(there)) if ours == there) {
        // Nothing is to be done about a failure: the one that brought us here
        // is the one worth reporting.
        let _ = fs::remove_file(path);
    }
}

/// Makes sure that the folder is there and is one shared mount.
fn prepare_folder() -> std::result::Result<(), (&'static str, io::Error)> {
    let folder = Path::new(FOLDER);
    match DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(("cannot make /run/netns", error));
        }
        _ => {}
    }
    // Given back with the file.
    let lock = File::open(folder).and_then(|folder| {
        mount::lock(folder.as_fd())?;
        Ok(folder)
    });
    let _lock = lock.map_err(|cause| ("cannot lock /run/netns", cause))?;

    let shared = match mount::make_shared(folder) {
        // Not a mount yet.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount::bind(folder, folder).and_then(|()| mount::make_shared(folder))
        }
        result => result,
    };
    shared.map_err(|cause| ("cannot make /run/netns a shared mount", cause))
}

/// Removes a name, if that is what it is.
fn remove(path: &Path, attempt: &str) -> Result<()> {
    let failed = |cause: io::Error| {
        if cause.kind() == io::ErrorKind::NotFound {
            return Error::new(Kind::NotFound, attempt.to_owned())
                .caused_by(cause)
                .hint(match path.starts_with(FOLDER) {
                    true => format!("{FOLDER} has no such name, see `ip netns list`"),
                    false => format!("nothing is at `{}`", path.display()),
                });
        }
        let denied = is_permission(&cause);
        let error = Error::kernel(attempt.to_owned(), cause);
        match denied {
            true => error.hint(why::name_denied("deleting network namespaces")),
            false => error,
        }
    };
    // One mount as a rule; more where the folder was mounted over itself.
    loop {
        let located = netns::locate(path, false).map_err(failed)?;
        if !netns::is_on_nsfs(located.as_fd()).map_err(failed)? {
            break;
        }
        let open = netns::reopen(located.as_fd())
            .map_err(|cause| why::no_proc(attempt, &cause).unwrap_or_else(|| failed(cause)))?;
        if let FileKind::Other(what) = netns::file_kind(open.as_fd()).map_err(failed)? {
            return Err(not_a_netns(attempt, what));
        }
        mount::detach(path).map_err(failed)?;
    }
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let left_by_a_name = meta.is_symlink() || (meta.is_file() && meta.len() == 0);
    if !left_by_a_name {
        let what = match meta.is_dir() {
            true => "a directory",
            false => "a file that is in use for something else",
        };
        return Err(not_a_netns(attempt, what));
    }
    fs::remove_file(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        let long = "x".repeat(256);
        for name in ["", ".", "..", "/", "a/b", "../blue", "a\0b", &long] {
            let error = path_of(name.as_ref(), "cannot create it").unwrap_err();
            assert!(error.is_invalid_input(), "{name:?}: {error}");
        }
        for name in ["blue", "...", "-", "a b", "größe", &long[1..]] {
            assert!(
                path_of(name.as_ref(), "cannot create it").is_ok(),
                "{name:?}"
            );
        }
    }
}
