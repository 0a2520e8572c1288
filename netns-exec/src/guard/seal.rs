//! `Guard::Seal`: the thread can neither move nor breed.
//!
//! Moving takes `CAP_SYS_ADMIN`, which the thread gives up. Breeding takes
//! clone(2), which a seccomp filter refuses.
//!
//! What the filter refuses to whom is said at [`filter`](super::filter).
//! Whether `pthread_create` is covered is not taken for granted but tried, on a
//! thread that ends afterwards; a libc that is built in another way (musl hides
//! its clone) gets clone(2) refused for all objects as well.

use std::any::Any;
use std::io;
use std::rc::Rc;
use std::thread;

use libc::sock_filter;

use super::filter::{Code, program};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::error::{Error, Kind, Result};
use crate::home::Home;
use crate::home::roster::Registration;
use crate::sys;

/// What creating a thread fails with when clone(2) fails with `EPERM`.
const REFUSED: i32 = if cfg!(target_env = "musl") {
    // pthread_create(3) of musl knows no other error.
    libc::EAGAIN
} else {
    libc::EPERM
};

/// A filter that was tried.
#[derive(Clone)]
pub(super) struct Seal {
    program: Vec<sock_filter>,
}

/// What is known of a thread that has been sealed.
pub(super) struct Sealed {
    /// It had `CAP_SYS_ADMIN` before, so that its not having it is our doing.
    gave_up_admin: bool,
}

impl Mechanism for Seal {
    type OnThread = Sealed;

    fn prepare() -> Result<Seal> {
        let code = Code::of_this_process();
        for cloners in [&code.cloners, &code.objects] {
            let seal = Seal {
                program: program(cloners, &code.objects),
            };
            if seal.holds()? {
                return Ok(seal);
            }
        }
        Err(Error::new(
            Kind::Kernel,
            "cannot seal workers: libc creates threads in a way that the seccomp filter does not see",
        )
        .hint("choose `Guard::Detect`"))
    }

    fn describe(&self) -> &'static str {
        "seccomp, capset"
    }

    fn install(&self) -> io::Result<Sealed> {
        let gave_up_admin = sys::caps::has_sys_admin()?;
        // In this order: with the capability, no NO_NEW_PRIVS is needed.
        sys::seccomp::install(&self.program)?;
        sys::caps::drop_sys_admin()?;
        Ok(Sealed { gave_up_admin })
    }
}

impl Seal {
    /// Tries the seal on a thread of its own: `false` when that thread could
    /// create another one in spite of it.
    fn holds(&self) -> Result<bool> {
        let seal = self.clone();
        (Home::get()?.visit(move || seal.attempt()))
            .map_err(|cause| Error::kernel("cannot start a thread to try the seal on", cause))?
    }

    /// Seals the calling thread, and does what is forbidden then.
    #[expect(
        clippy::disallowed_methods,
        reason = "asks whether the seal of this thread, made for it, refuses one"
    )]
    fn attempt(&self) -> Result<bool> {
        let failed = |cause: io::Error| {
            let hint = match cause.raw_os_error() {
                Some(libc::EINVAL | libc::ENOSYS) => "needs a kernel with CONFIG_SECCOMP_FILTER",
                Some(libc::EPERM | libc::EACCES) => {
                    "a container's seccomp profile or a security module refuses seccomp(2) or capset(2)"
                }
                _ => "seccomp(2) and capset(2) must work",
            };
            Error::kernel("cannot seal workers", cause).hint(hint)
        };
        let here = sys::netns::of_this_thread().map_err(failed)?;
        self.install().map_err(failed)?;

        match sys::netns::enter(&here) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(failed(error)),
            Ok(()) => {
                return Err(Error::new(
                    Kind::Kernel,
                    "cannot seal workers: setns(2) works without CAP_SYS_ADMIN on this kernel",
                )
                .hint("choose `Guard::Detect`"));
            }
        }
        match thread::Builder::new().spawn(|| {}) {
            Err(error) if error.raw_os_error() == Some(REFUSED) => Ok(true),
            Err(error) => Err(failed(error)),
            Ok(thread) => {
                thread.join().expect("an empty closure does not panic");
                Ok(false)
            }
        }
    }
}

impl OnThread for Sealed {
    /// There is nothing that the job can have done.
    #[inline]
    fn after_job(&mut self, _worker: &Registration) -> ThreadState {
        ThreadState::Clean
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        None
    }

    /// All there is to go by is its text. `EPERM` from a thread that lost
    /// `CAP_SYS_ADMIN` here, and otherwise has what the process has, is taken
    /// for ours; from one that never had it only when it speaks of threads.
    /// `ENOSYS` is what the filter says and current kernels hardly ever do.
    fn explains(&self, payload: &(dyn Any + Send)) -> bool {
        let text = if let Some(text) = payload.downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = payload.downcast_ref::<String>() {
            text.clone()
        } else if let Some(error) = payload.downcast_ref::<io::Error>() {
            format!("{error:?}")
        } else if let Some(error) = payload.downcast_ref::<Error>() {
            error.to_string()
        } else {
            return false;
        };
        let holds = |errno: i32, name: &str| {
            // How io::Error shows itself to people and to programmers, and how
            // the Errno of nix and rustix does.
            [
                &format!("(os error {errno})"),
                &format!("code: {errno},"),
                name,
            ]
            .iter()
            .any(|marker| text.contains(*marker))
        };
        let of_threads = ["thread", "pool", "runtime", "spawn"]
            .iter()
            .any(|word| text.contains(word));
        let refused = holds(libc::EPERM, "EPERM") || text.contains("peration not permitted");
        refused && (self.gave_up_admin || of_threads)
            || holds(libc::ENOSYS, "ENOSYS")
            || of_threads && holds(REFUSED, "EPERM")
    }
}
