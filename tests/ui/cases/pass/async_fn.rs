//! What an `async fn` can look like under the attribute, without a warning.
#![deny(warnings, clippy::all)]

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::sync::Arc;

use netns_exec::{Executor, Netns, in_netns};

#[in_netns("blue")]
async fn nothing() {}

#[in_netns(name = name)]
async fn owned(name: String, _unused: Vec<u8>, (a, _): (u8, u8), _: Arc<str>) -> io::Result<u8> {
    let _ = name.len();
    if a > 1 {
        return Ok(a);
    }
    Err(io::Error::other("small"))?;
    Ok(0)
}

#[in_netns("blue", executor = executor)]
async fn borrowed_outside(executor: &Executor, name: &'static str) -> usize {
    name.len()
}

#[in_netns("blue")]
async fn generic<T: Display + Send + 'static>(item: T, f: impl Fn(&str) -> usize + Send + 'static) -> usize {
    f(&item.to_string())
}

#[in_netns("blue")]
async fn coerced(small: bool) -> Result<Box<dyn Display + Send>, Box<dyn Error + Send + Sync>> {
    if small {
        return Ok(Box::new(1));
    }
    std::future::ready(()).await;
    Ok(Box::new("eth0"))
}

#[in_netns("blue")]
async fn opaque() -> Result<impl Iterator<Item = u8>, netns_exec::Error> {
    Ok([1, 2].into_iter())
}

struct Router {
    ns: Netns,
}

impl Router {
    #[in_netns(ns = self.ns)]
    pub async fn outside_only(&self, port: u16) -> u16 {
        port
    }

    #[in_netns(ns = self.ns)]
    async fn shared(self: Arc<Self>) -> u64 {
        self.ns.id().as_u64()
    }
}

fn is_send<T: Send>(_: impl Future<Output = T> + Send) {}

fn main() {
    is_send(nothing());
    is_send(owned(String::new(), Vec::new(), (1, 2), "".into()));
    is_send(borrowed_outside(Executor::global(), ""));
    is_send(generic(1, |text| text.len()));
    is_send(coerced(true));
    is_send(opaque());
    if let Ok(ns) = Netns::current() {
        let router = Arc::new(Router { ns });
        is_send(router.outside_only(80));
        is_send(router.shared());
    }
}
