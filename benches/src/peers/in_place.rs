//! Without a resident worker: the caller goes there itself, or sends a thread
//! that was made for the one call.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;

use netns_exec::Netns;

use super::ship::{Ship, Shipper};
use super::{Peer, Site};
use crate::Result;
use crate::conditions::namespace::{enter, path};

/// setns there, call, setns back, and hope that nothing happens in between.
struct ThereAndBack {
    there: Netns,
    back: OwnedFd,
}

pub(super) fn there_and_back(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(ThereAndBack {
        there: site.netns.clone(),
        back: File::open("/proc/thread-self/ns/net")?.into(),
    })))
}

impl Ship for ThereAndBack {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        enter(&self.there).expect("the namespace can be entered");
        let result = f();
        enter(&self.back).expect("there is a way back");
        result
    }
}

/// The same as a crate, which looks up the way back at each call.
struct NetnsRs(netns_rs::NetNs);

pub(super) fn netns_rs(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    let there = netns_rs::get_from_path(path(site.netns))?;
    Ok(Box::new(Shipper(NetnsRs(there))))
}

impl Ship for NetnsRs {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.run(|_| f()).expect("the namespace can be entered")
    }
}

/// A thread that enters, calls and ends.
struct ThreadPerCall(Netns);

pub(super) fn thread_per_call(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(ThreadPerCall(site.netns.clone()))))
}

impl Ship for ThreadPerCall {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                enter(&self.0).expect("the namespace can be entered");
                f()
            });
            visitor.join().expect("the visitor does not panic")
        })
    }
}
