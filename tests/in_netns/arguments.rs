//! Arguments, generics and receivers reach the body as they reach any function's.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Mutex;

use netns_exec::{Executor, Netns, NetnsId, in_netns};
use netns_exec_tests::{fresh, here};

use super::home;

#[in_netns(ns = ns)]
fn push_here(ns: &Netns, ids: &mut Vec<NetnsId>) -> usize {
    ids.push(here());
    ids.len()
}

#[in_netns(ns = ns)]
fn longest<'a>(ns: &Netns, one: &'a str, other: &'a str) -> &'a str {
    if one.len() > other.len() {
        return one;
    }
    other
}

#[in_netns(ns = ns)]
fn patterns(ns: &Netns, (mut left, right): (Vec<u8>, u8), [a, .., z]: [u8; 4], _: String) -> u32 {
    left.push(right);
    left.push(a);
    left.push(z);
    left.into_iter().map(u32::from).sum()
}

#[in_netns(ns = ns)]
fn mutable_argument(ns: &Netns, mut text: String) -> String {
    text.push('!');
    text
}

#[test]
fn arguments_are_borrowed_taken_apart_and_changed() {
    let ns = fresh();
    let mut ids = Vec::new();
    assert_eq!(push_here(&ns, &mut ids), 1);
    assert_eq!(push_here(&ns, &mut ids), 2);
    assert_eq!(ids, [ns.id(), ns.id()]);
    assert_eq!(longest(&ns, "short", "longer"), "longer");
    assert_eq!(longest(&ns, "longer", "short"), "longer");
    let sum = patterns(&ns, (vec![1], 2), [10, 0, 0, 20], String::new());
    assert_eq!(sum, 33);
    assert_eq!(mutable_argument(&ns, "hey".to_owned()), "hey!");
}

/// Says where and in which order it was dropped.
struct Dropped<'a>(u8, &'a Mutex<Vec<(u8, NetnsId)>>);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.1.lock().expect("not poisoned").push((self.0, here()));
    }
}

type Pair<'a> = (Dropped<'a>, Dropped<'a>);

#[in_netns(ns = ns)]
fn drop_all(ns: &Netns, _first: Dropped<'_>, pair: Pair<'_>, _: Dropped<'_>, last: Dropped<'_>) {
    let _local = Dropped(0, last.1);
    drop(pair.0);
}

impl Dropped<'_> {
    #[in_netns(ns = ns)]
    fn drop_self(self, ns: &Netns) -> u8 {
        self.0
    }
}

#[test]
fn owned_arguments_are_dropped_in_the_namespace_and_in_order() {
    let ns = fresh();
    let log = Mutex::new(Vec::new());
    let dropped = |number| Dropped(number, &log);
    drop_all(
        &ns,
        dropped(5),
        (dropped(1), dropped(4)),
        dropped(3),
        dropped(2),
    );
    assert_eq!(dropped(6).drop_self(&ns), 6);
    // As in the plain function: what the body drops, then its locals, then
    // the arguments from the last to the first.
    let expected = [1, 0, 2, 3, 4, 5, 6].map(|number| (number, ns.id()));
    assert_eq!(*log.lock().expect("not poisoned"), expected);
}

#[test]
fn plain_function_drops_in_the_same_order() {
    fn drop_all(_first: Dropped<'_>, pair: Pair<'_>, _: Dropped<'_>, last: Dropped<'_>) {
        let _local = Dropped(0, last.1);
        drop(pair.0);
    }
    let log = Mutex::new(Vec::new());
    let dropped = |number| Dropped(number, &log);
    drop_all(dropped(5), (dropped(1), dropped(4)), dropped(3), dropped(2));
    let order: Vec<_> = (log.lock().expect("not poisoned").iter())
        .map(|(n, _)| *n)
        .collect();
    assert_eq!(order, [1, 0, 2, 3, 4, 5]);
}

#[in_netns(ns = ns)]
fn describe<T, const N: usize>(ns: &Netns, items: [T; N]) -> String
where
    T: Display + Send,
{
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{N}: {}", items.join(" "))
}

#[in_netns(ns = ns)]
fn opaque<'a>(ns: &Netns, text: &'a str) -> impl Iterator<Item = char> + Send + use<'a> {
    assert_ne!(here(), home());
    text.chars().rev()
}

#[in_netns(ns = ns)]
fn boxed<'a>(ns: &Netns, text: &'a str) -> Box<dyn Fn() -> usize + Send + 'a> {
    assert_ne!(here(), home());
    Box::new(move || text.len())
}

#[in_netns(ns = Netns::open(name)?)]
fn opaque_result(name: &str) -> Result<impl Iterator<Item = u8> + use<>, netns_exec::Error> {
    Ok(0..3)
}

#[test]
fn generics_and_opaque_types_pass_through() {
    let ns = fresh();
    assert_eq!(describe(&ns, [1, 2]), "2: 1 2");
    assert_eq!(describe(&ns, ["x"]), "1: x");
    assert_eq!(opaque(&ns, "abc").collect::<String>(), "cba");
    assert_eq!(boxed(&ns, "abc")(), 3);
    assert!(opaque_result("no-such-netns").is_err());
}

// Receivers

struct Router {
    ns: Netns,
    executor: Executor,
    seen: Vec<NetnsId>,
}

trait Visit {
    fn visit(&mut self) -> usize;

    #[in_netns(fresh)]
    fn default_visit(&self) -> NetnsId
    where
        Self: Sync,
    {
        here()
    }
}

impl Visit for Router {
    #[in_netns(ns = self.ns, executor = self.executor)]
    fn visit(&mut self) -> usize {
        self.seen.push(here());
        self.seen.len()
    }
}

impl Visit for () {
    fn visit(&mut self) -> usize {
        0
    }
}

impl Router {
    fn new() -> Router {
        Router {
            ns: fresh(),
            executor: Executor::new().expect("an executor"),
            seen: Vec::new(),
        }
    }

    #[in_netns(ns = self.ns)]
    fn shared(&self) -> (NetnsId, usize) {
        (here(), self.seen.len())
    }

    #[in_netns(ns = self.ns)]
    fn seen_mut(&mut self) -> &mut Vec<NetnsId> {
        self.seen.push(here());
        &mut self.seen
    }

    #[in_netns(ns = self.ns)]
    fn owned(mut self) -> Self {
        self.seen.push(here());
        self
    }

    #[in_netns(ns = self.ns)]
    fn boxed(self: Box<Self>) -> Vec<NetnsId> {
        let mut seen = self.seen;
        seen.push(here());
        seen
    }

    #[in_netns(ns = self.ns)]
    fn pinned(mut self: Pin<&mut Self>) -> usize {
        self.seen.push(here());
        self.seen.len()
    }
}

#[test]
fn every_receiver_reaches_the_body() {
    let mut router = Router::new();
    let id = router.ns.id();
    assert_eq!(router.visit(), 1);
    assert_eq!(router.shared(), (id, 1));
    router.seen_mut().push(id);
    assert_eq!(Pin::new(&mut router).pinned(), 4);
    let router = router.owned();
    assert_eq!(Box::new(router).boxed(), [id; 6]);
    assert_ne!(().default_visit(), here());
    assert_eq!(().visit(), 0);
}
