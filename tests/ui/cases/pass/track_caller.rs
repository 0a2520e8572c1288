//! A program of its own, because a panic hook is the process's.
#![deny(warnings)]

use std::panic::{catch_unwind, set_hook};
use std::sync::atomic::{AtomicU32, Ordering};

use netns_exec::in_netns;

#[track_caller]
#[in_netns("no-such-netns")]
fn tracked() {}

#[in_netns("no-such-netns")]
fn plain() {}

static LINE: AtomicU32 = AtomicU32::new(0);

/// The line that the panic of `f` is blamed on.
fn line_of_panic(f: fn()) -> u32 {
    catch_unwind(f).expect_err("there is no such namespace");
    LINE.load(Ordering::Relaxed)
}

fn main() {
    set_hook(Box::new(|info| {
        let location = info.location().expect("always given");
        assert_eq!(location.file().rsplit('/').next(), Some("track_caller.rs"));
        LINE.store(location.line(), Ordering::Relaxed);
    }));
    let line_of_call = line!() + 1;
    assert_eq!(line_of_panic(|| tracked()), line_of_call);
    let line_of_attribute = 13;
    assert_eq!(line_of_panic(|| plain()), line_of_attribute);
}
