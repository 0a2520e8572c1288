//! `Guard::BirthsAtHome`: the seal, and threads that jobs ask for are the home thread's.
//!
//! The seal refuses clone(2). Here `pthread_create` does not get that far on a worker: the
//! executable's own ([`sys::births`]) has the home thread create the thread, while the
//! worker waits for the answer. What calls clone(2) in another way is refused as before.
//!
//! That it works is tried, on a thread that ends afterwards: where it is sealed and gets a
//! thread all the same, the home thread has created that.

use std::ffi::c_int;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::seal::{Seal, Sealed};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::bell::ear::Listened;
use crate::error::{Error, Kind, Result};
use crate::home::Home;
use crate::home::roster::Registration;
use crate::refused::Refused;
use crate::sys;
use crate::sys::births::Birth;

pub(super) struct BirthsAtHome {
    seal: Seal,
}

/// The seal on one thread, which asks the home thread for others.
pub(super) struct Asks(Sealed);

impl Mechanism for BirthsAtHome {
    type OnThread = Asks;

    fn prepare() -> Result<BirthsAtHome> {
        if !sys::births::is_in_place() {
            return Err(not_in_place());
        }
        let seal = Seal::prepare()?;
        let tried = Home::get()?.visit(move || attempt(&seal).map(|()| seal));
        let seal = tried.and_then(|tried| tried).map_err(|cause| {
            Error::kernel(
                "cannot have threads of jobs created by the home thread",
                cause,
            )
            .hint("choose `Guard::Seal`")
        })?;
        Ok(BirthsAtHome { seal })
    }

    fn describe(&self) -> &'static str {
        self.seal.describe()
    }

    fn install(&self) -> io::Result<Asks> {
        let sealed = self.seal.install()?;
        sys::births::forward_to(by_home);
        Ok(Asks(sealed))
    }
}

fn not_in_place() -> Error {
    Error::new(
        Kind::Invalid,
        "cannot have threads of jobs created by the home thread: \
         the `pthread_create` of this process is not the one that netns-exec defines",
    )
    .hint(match cfg!(target_feature = "crt-static") {
        true => {
            "a static executable cannot have it: link without `crt-static`, or choose `Guard::Seal`"
        }
        false => {
            "netns-exec must be linked into the executable itself, and no other \
             library may define `pthread_create` before it; or choose `Guard::Seal`"
        }
    })
}

/// Seals the calling thread and asks for one.
#[expect(
    clippy::disallowed_methods,
    reason = "asks whether this thread, sealed, gets one from the home thread"
)]
fn attempt(seal: &Seal) -> io::Result<()> {
    seal.install_to_try()?;
    sys::births::forward_to(by_home);
    let thread = thread::Builder::new().spawn(|| {})?;
    thread.join().expect("an empty closure does not panic");
    Ok(())
}

/// Has the home thread create what the calling thread wants, and waits for it: what a
/// birth takes, and the births before it. Uses no thread-local of the standard library's,
/// for a thread that is ending may ask as well.
fn by_home(birth: Birth) -> c_int {
    let Some(home) = Home::started() else {
        // A child that a job forked has this thread alone.
        return birth.create();
    };
    let answer = Arc::new((Mutex::new(None), Condvar::new()));
    let reply = Arc::clone(&answer);
    home.post(Box::new(move || {
        let errno = birth.create();
        let (place, replied) = &*reply;
        *place.lock() = Some(errno);
        replied.notify_one();
    }));
    let (place, replied) = &*answer;
    let mut errno = place.lock();
    loop {
        match *errno {
            Some(errno) => return errno,
            None => replied.wait(&mut errno),
        }
    }
}

impl OnThread for Asks {
    #[inline]
    fn before_job(&mut self, worker: &Registration) {
        self.0.before_job(worker);
    }

    #[inline]
    fn after_job(&mut self, worker: &Registration) -> ThreadState {
        self.0.after_job(worker)
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        self.0.netns_check()
    }

    fn refused(&self) -> Refused {
        self.0.refused()
    }

    fn listened(&self) -> Option<&Listened> {
        self.0.listened()
    }

    fn lack(&self) -> Option<&'static str> {
        self.0.lack()
    }
}
