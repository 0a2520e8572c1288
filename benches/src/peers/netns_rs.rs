//! The crate netns-rs: setns there and back, with the way back looked up at each
//! call.

use super::peer::{Peer, Setup};
use super::ship::{Ship, Shipper};
use crate::Result;
use crate::conditions::namespace::path;

struct NetnsRs(::netns_rs::NetNs);

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    let there = ::netns_rs::get_from_path(path(setup.netns))?;
    Ok(Box::new(Shipper(NetnsRs(there))))
}

impl Ship for NetnsRs {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.run(|_| f()).expect("the namespace can be entered")
    }
}
