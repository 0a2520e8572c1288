use std::borrow::Cow;
use std::rc::Rc;

use netns_exec::{Netns, in_netns};

#[in_netns("blue")]
async fn reference(name: &str, length: usize) -> bool {
    name.len() == length
}

#[in_netns("blue")]
async fn nested<'a>(names: Vec<&'a str>, other: Option<Cow<'_, str>>) -> usize {
    names.len() + other.map_or(0, |other| other.len())
}

struct Router {
    ns: Netns,
    ports: Vec<u16>,
}

impl Router {
    #[in_netns(ns = self.ns)]
    async fn method(&self) -> usize {
        self.ports.len()
    }

    #[in_netns(ns = self.ns)]
    async fn method_that_changes(&mut self) {
        self.ports.clear();
    }
}

#[in_netns("blue")]
async fn bound_to_a_thread(items: Rc<Vec<u8>>) -> usize {
    items.len()
}

#[in_netns("blue")]
async fn returns_what_stays(items: Vec<u8>) -> Rc<Vec<u8>> {
    Rc::new(items)
}

fn main() {}
