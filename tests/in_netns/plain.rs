//! What a plain function allows is allowed.

use std::fmt::Debug;
use std::sync::Mutex;

use netns_exec::{Netns, NetnsId, in_netns};
use netns_exec_tests::{fresh, here};

/// Names that the expansion uses itself.
#[in_netns(ns = outcome)]
#[expect(
    clippy::too_many_arguments,
    reason = "each is a name of the expansion's"
)]
fn hygienic(
    outcome: &Netns,
    target: u8,
    executor: u8,
    failure: u8,
    value: u8,
    error: u8,
    run: u8,
    unnamed_8: u8,
    _: String,
) -> u8 {
    target + executor + failure + value + error + run + unnamed_8 + u8::from(here() == outcome.id())
}

/// Shadows what the expansion's paths begin with.
mod shadowed {
    #![allow(unused, non_camel_case_types, non_snake_case)]
    use super::{Netns, NetnsId, here, in_netns};

    mod netns_exec {}
    mod core {}
    mod std {}
    enum Result {}
    enum Option {}
    fn Ok() {}
    fn Err() {}

    #[in_netns(ns = ns)]
    pub(super) fn visit(ns: &Netns) -> NetnsId {
        here()
    }
}

macro_rules! annotated {
    ($name:ident, $arg:ident: $ty:ty, $ret:ty, $body:block) => {
        #[in_netns(ns = ns)]
        fn $name(ns: &Netns, $arg: $ty) -> $ret $body

        impl Shape {
            #[in_netns(fresh)]
            fn $name(self) -> u8 {
                self.0
            }
        }
    };
}

struct Shape(u8);

annotated!(by_macro, count: u8, u8, { count + 1 });

#[in_netns(ns = ns)]
extern "C" fn callback(ns: &Netns, number: u32) -> u32 {
    number + 1
}

#[in_netns(ns = ns)]
fn inner_attributes(ns: &Netns) -> u8 {
    #![allow(unused_variables)]
    let unused = 1;
    2
}

#[in_netns(ns = ns)]
fn conditional(ns: &Netns, #[cfg(windows)] never: Never, #[cfg(unix)] always: Vec<u8>) -> usize {
    always.len()
}

#[in_netns(ns = ns)]
fn lock_in_tail(ns: &Netns, mutex: Mutex<u8>) -> u8 {
    *mutex.lock().expect("not poisoned")
}

/// Documented, and must be used.
#[must_use]
#[inline]
#[in_netns(ns = ns)]
fn attributes(ns: &Netns) -> u8 {
    1
}

#[in_netns(ns = ns)]
fn calls_another(ns: &Netns) {
    nothing();
}

#[in_netns(ns = ns)]
fn only_calls(ns: &Netns) {
    nothing()
}

#[in_netns(ns = ns)]
fn empty(ns: &Netns) {}

fn nothing() {}

#[in_netns(ns = ns)]
fn debug<'a, T>(ns: &Netns, value: &'a T) -> Vec<Box<dyn Debug + Send + 'a>>
where
    T: Debug + Sync + ?Sized,
{
    vec![Box::new(value)]
}

#[test]
fn what_a_plain_function_allows_is_allowed() {
    let ns = fresh();
    assert_eq!(hygienic(&ns, 1, 1, 1, 1, 1, 1, 1, String::new()), 8);
    assert_eq!(shadowed::visit(&ns), ns.id());
    assert_eq!(by_macro(&ns, 1), 2);
    assert_eq!(Shape(3).by_macro(), 3);
    assert_eq!(callback(&ns, 1), 2);
    assert_eq!(inner_attributes(&ns), 2);
    assert_eq!(conditional(&ns, vec![1, 2]), 2);
    assert_eq!(lock_in_tail(&ns, Mutex::new(5)), 5);
    assert_eq!(attributes(&ns), 1);
    assert_eq!(format!("{:?}", debug(&ns, "x")), "[\"x\"]");
    calls_another(&ns);
    only_calls(&ns);
    empty(&ns);
}
