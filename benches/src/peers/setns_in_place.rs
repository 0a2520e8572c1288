//! Without a resident worker: the caller goes there itself and comes back.

use std::fs::File;
use std::os::fd::OwnedFd;

use netns_exec::Netns;

use super::peer::{Peer, Setup};
use super::ship::{Ship, Shipper};
use crate::Result;
use crate::conditions::namespace::enter;

/// setns there, call, setns back, and hope that nothing happens in between.
struct SetnsInPlace {
    target: Netns,
    home: OwnedFd,
}

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(SetnsInPlace {
        target: setup.netns.clone(),
        home: File::open("/proc/thread-self/ns/net")?.into(),
    })))
}

impl Ship for SetnsInPlace {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        enter(&self.target).expect("the namespace can be entered");
        let result = f();
        enter(&self.home).expect("there is a way back");
        result
    }
}
