//! A thread that is made for the one call, enters, calls and ends.

use std::thread;

use netns_exec::Netns;

use super::peer::{Peer, Setup};
use super::ship::{Ship, Shipper};
use crate::Result;
use crate::conditions::namespace::enter;

struct ThreadPerCall(Netns);

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(ThreadPerCall(setup.netns.clone()))))
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
