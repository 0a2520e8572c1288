//! `Guard::Off`: nothing but the worker's own state is checked.

use std::io;
use std::rc::Rc;

use super::check::{HomeTid, StateCheck};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::error::Result;
use crate::home::roster::Registration;

pub(super) struct Off {
    home: HomeTid,
}

/// What is checked on a worker.
pub(super) struct Checked {
    netns: Rc<NetnsCheck>,
    state: StateCheck,
}

impl Mechanism for Off {
    type OnThread = Box<Checked>;

    fn prepare() -> Result<Off> {
        Ok(Off {
            home: HomeTid::get()?,
        })
    }

    fn describe(&self) -> &'static str {
        "own namespace only"
    }

    fn install(&self) -> io::Result<Box<Checked>> {
        Ok(Box::new(Checked {
            netns: Rc::new(NetnsCheck::of_this_thread()?),
            state: StateCheck::of_this_thread(self.home)?,
        }))
    }
}

impl OnThread for Box<Checked> {
    #[inline]
    fn after_job(&mut self, _worker: &Registration) -> ThreadState {
        match self.netns.state() {
            ThreadState::Clean => self.state.look_at_files(),
            state => state,
        }
    }

    fn when_idle(&mut self) -> ThreadState {
        self.state.look_closely()
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        Some(Rc::clone(&self.netns))
    }
}
