//! `Guard::Off`: nothing but the worker's own namespace is checked.

use std::io;
use std::rc::Rc;

use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::error::Result;
use crate::home::roster::Registration;

pub(super) struct Off;

impl Mechanism for Off {
    type OnThread = Rc<NetnsCheck>;

    fn prepare() -> Result<Off> {
        Ok(Off)
    }

    fn describe(&self) -> &'static str {
        "own namespace only"
    }

    fn install(&self) -> io::Result<Rc<NetnsCheck>> {
        NetnsCheck::of_this_thread().map(Rc::new)
    }
}

impl OnThread for Rc<NetnsCheck> {
    #[inline]
    fn after_job(&mut self, _worker: &Registration) -> ThreadState {
        self.state()
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        Some(Rc::clone(self))
    }
}
