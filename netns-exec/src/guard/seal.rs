//! `Guard::Seal`: the thread can neither move nor breed.
//!
//! Moving takes `CAP_SYS_ADMIN`, which the thread gives up. Breeding takes
//! clone(2), which a seccomp filter refuses, and so does what would give the thread
//! files or a working directory of its own. What the filter refuses to whom is said
//! at `filter`, and how it is counted at [`bell`](crate::bell).
//!
//! Whether `pthread_create` is covered is not taken for granted but tried, on a
//! thread that ends afterwards; a libc that is built in another way (musl hides
//! its clone) gets these calls refused for all objects as well.
//!
//! Objects may be loaded later. A worker that starts then has a filter of its own.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use libc::sock_filter;
use parking_lot::Mutex;

use super::filter::{Code, Refusal, program};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::bell::ear::{self, Listened};
use crate::error::{Error, Kind, Result};
use crate::home::Home;
use crate::home::roster::Registration;
use crate::refused::Refused;
use crate::sys;

/// What creating a thread fails with when clone(2) fails with `EPERM`.
const REFUSED: i32 = if cfg!(target_env = "musl") {
    // pthread_create(3) of musl knows no other error.
    libc::EAGAIN
} else {
    libc::EPERM
};

/// What becomes of `CAP_SYS_ADMIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admin {
    Dropped,
    /// The filter alone keeps the thread in its namespaces.
    Kept,
}

/// Filters that were tried.
pub(super) struct Seal {
    /// Refused to all objects, not only to the functions that are known.
    wide: bool,
    /// Whether a thread here can have its refusals counted.
    counts: bool,
    admin: Admin,
    programs: Mutex<Arc<Programs>>,
}

struct Programs {
    /// Of the objects that the programs know.
    generation: u64,
    /// Refuses by errno.
    plain: Vec<sock_filter>,
    /// Has it counted.
    counting: Vec<sock_filter>,
}

impl Programs {
    fn assemble(wide: bool, admin: Admin) -> Programs {
        // First: what is loaded in between is looked for once more.
        let generation = sys::text::generation();
        let code = Code::of_this_process();
        let callers = if wide { &code.objects } else { &code.callers };
        let assemble = |refusal| program(callers, &code.objects, refusal);
        Programs {
            generation,
            plain: assemble(match admin {
                Admin::Dropped => Refusal::Errno,
                Admin::Kept => Refusal::ErrnoAndMoves,
            }),
            counting: assemble(Refusal::Notify),
        }
    }
}

/// What is known of a thread that has been sealed.
pub(super) struct Sealed {
    listened: Option<Listened>,
    /// What the jobs before this one were refused.
    before: Refused,
}

impl Mechanism for Seal {
    type OnThread = Sealed;

    fn prepare() -> Result<Seal> {
        Seal::tried(Admin::Dropped)
    }

    fn describe(&self) -> &'static str {
        match (self.counts, self.admin) {
            (true, Admin::Dropped) => "seccomp with notification, capset",
            (false, Admin::Dropped) => "seccomp, capset",
            (true, Admin::Kept) => "seccomp with notification",
            (false, Admin::Kept) => "seccomp",
        }
    }

    fn install(&self) -> io::Result<Sealed> {
        let programs = self.programs();
        // In this order: with the capability, no NO_NEW_PRIVS is needed.
        let counting = self.counts.then_some(&programs.counting);
        let listened = counting.and_then(|program| ear::install(program));
        if listened.is_none() {
            sys::seccomp::install(&programs.plain)?;
        }
        if self.admin == Admin::Dropped {
            sys::caps::drop_sys_admin()?;
        }
        Ok(Sealed {
            listened,
            before: Refused::default(),
        })
    }
}

impl Seal {
    /// A seal that leaves `CAP_SYS_ADMIN` to jobs.
    pub(super) fn keeping_admin() -> Result<Seal> {
        Seal::tried(Admin::Kept)
    }

    /// Seals the calling thread, which is no worker and ends soon.
    #[cfg(feature = "births-at-home")]
    pub(super) fn install_to_try(&self) -> io::Result<()> {
        sys::seccomp::install(&self.programs().plain)
    }

    /// The same where no listener can be had.
    #[cfg(test)]
    pub(super) fn uncounted(self) -> Seal {
        Seal {
            counts: false,
            ..self
        }
    }

    fn tried(admin: Admin) -> Result<Seal> {
        for wide in [false, true] {
            let programs = Arc::new(Programs::assemble(wide, admin));
            let tried = Arc::clone(&programs);
            let holds = (Home::get()?.visit(move || tried.attempt(admin))).map_err(|cause| {
                Error::kernel("cannot start a thread to try the seal on", cause)
            })?;
            if let Some(Holds { counts }) = holds? {
                return Ok(Seal {
                    wide,
                    counts,
                    admin,
                    programs: Mutex::new(programs),
                });
            }
        }
        Err(Error::new(
            Kind::Kernel,
            "cannot seal workers: libc creates threads in a way that the seccomp filter does not see",
        )
        .hint("choose `Guard::Detect`"))
    }

    /// The programs for the objects that are loaded now.
    fn programs(&self) -> Arc<Programs> {
        let known = Arc::clone(&self.programs.lock());
        if known.generation == sys::text::generation() {
            return known;
        }
        let fresh = Arc::new(Programs::assemble(self.wide, self.admin));
        *self.programs.lock() = Arc::clone(&fresh);
        fresh
    }
}

/// The seal holds.
struct Holds {
    /// And what it refuses can be counted.
    counts: bool,
}

impl Programs {
    /// Seals the calling thread, which ends afterwards, and does what is forbidden then;
    /// `None` when it could create a thread in spite of it.
    #[expect(
        clippy::disallowed_methods,
        reason = "asks whether the seal of this thread, made for it, refuses one"
    )]
    fn attempt(&self, admin: Admin) -> Result<Option<Holds>> {
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
        sys::seccomp::install(&self.plain).map_err(failed)?;
        if admin == Admin::Dropped {
            sys::caps::drop_sys_admin().map_err(failed)?;
        }

        match sys::netns::enter(&here) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(failed(error)),
            Ok(()) => {
                return Err(Error::new(
                    Kind::Kernel,
                    match admin {
                        Admin::Dropped => {
                            "cannot seal workers: setns(2) works without CAP_SYS_ADMIN on this kernel"
                        }
                        Admin::Kept => {
                            "cannot seal workers: libc calls setns(2) in a way that the seccomp \
                             filter does not see"
                        }
                    },
                )
                .hint("choose `Guard::Detect`"));
            }
        }
        match thread::Builder::new().spawn(|| {}) {
            Err(error) if error.raw_os_error() == Some(REFUSED) => Ok(Some(Holds {
                counts: sys::seccomp::install_with_listener(&self.counting).is_ok(),
            })),
            Err(error) => Err(failed(error)),
            Ok(thread) => {
                thread.join().expect("an empty closure does not panic");
                Ok(None)
            }
        }
    }
}

impl OnThread for Sealed {
    #[inline]
    fn before_job(&mut self, _worker: &Registration) {
        if let Some(listened) = &self.listened {
            self.before = listened.bell().refused();
        }
    }

    /// There is nothing that the job can have done.
    #[inline]
    fn after_job(&mut self, _worker: &Registration) -> ThreadState {
        ThreadState::Clean
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        None
    }

    #[inline]
    fn refused(&self) -> Refused {
        let listened = self.listened.as_ref();
        listened.map_or_else(Refused::default, |listened| {
            listened.bell().refused() - self.before
        })
    }

    fn listened(&self) -> Option<&Listened> {
        self.listened.as_ref()
    }
}
