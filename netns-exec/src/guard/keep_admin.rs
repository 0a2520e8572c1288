//! `Guard::KeepAdmin`: the seal, for jobs that need `CAP_SYS_ADMIN` themselves.
//!
//! The seal takes the capability away because setns(2) and unshare(2) then fail whatever
//! code calls them. Here the filter refuses these calls as it refuses threads: to the code that
//! is known to make them. What gets past it, with the capability still there, moves
//! the thread; so the thread's place is looked at after each job, and the rest of its state
//! when it idles, as `Guard::Off` does.

use std::io;
use std::rc::Rc;

use super::check::{HomeTid, StateCheck};
use super::seal::{Seal, Sealed};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::bell::ear::Listened;
use crate::error::Result;
use crate::home::roster::Registration;
use crate::refused::Refused;

pub(super) struct KeepAdmin {
    seal: Seal,
    home: HomeTid,
}

pub(super) struct Kept {
    sealed: Sealed,
    netns: Rc<NetnsCheck>,
    state: StateCheck,
}

impl Mechanism for KeepAdmin {
    type OnThread = Box<Kept>;

    fn prepare() -> Result<KeepAdmin> {
        Ok(KeepAdmin {
            seal: Seal::keeping_admin()?,
            home: HomeTid::get()?,
        })
    }

    fn describe(&self) -> &'static str {
        self.seal.describe()
    }

    fn install(&self) -> io::Result<Box<Kept>> {
        // Looked at before the filter is there, which what looks may run into.
        let netns = Rc::new(NetnsCheck::of_this_thread()?);
        let state = StateCheck::of_this_thread(self.home)?;
        Ok(Box::new(Kept {
            sealed: self.seal.install()?,
            netns,
            state,
        }))
    }
}

impl OnThread for Box<Kept> {
    #[inline]
    fn before_job(&mut self, worker: &Registration) {
        self.sealed.before_job(worker);
    }

    #[inline]
    fn after_job(&mut self, worker: &Registration) -> ThreadState {
        match self.netns.state() {
            ThreadState::Clean => self.sealed.after_job(worker),
            state => state,
        }
    }

    fn when_idle(&mut self) -> ThreadState {
        self.state.look_closely()
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        Some(Rc::clone(&self.netns))
    }

    fn refused(&self) -> Refused {
        self.sealed.refused()
    }

    fn listened(&self) -> Option<&Listened> {
        self.sealed.listened()
    }

    fn lack(&self) -> Option<&'static str> {
        self.sealed.lack()
    }
}
