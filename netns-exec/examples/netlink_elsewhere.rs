//! Netlink in another namespace (rust-netlink/rtnetlink #68).
//!
//! Today: rtnetlink speaks to the namespace of the thread that calls `new_connection`.
//! Who wants `ip -n blue link set lo up` is sent to unshare(2) and setns(2): a thread, or a
//! whole process, goes to the namespace and stays there, and so does each thread that a
//! runtime starts from it; the question in the issue is why the program then never comes
//! to an end.
//!
//! Here the socket is made inside and driven outside. A netlink socket belongs to the
//! namespace in which it was made for as long as it lives, so that one short job is all
//! that has to be there. The handle is used from any task, at home; cancelling is
//! dropping, as with any other.
//!
//! `cargo run --example netlink_elsewhere`; needs root.

use std::error::Error;

use futures_util::TryStreamExt;
use netns_exec::{Executor, Netns};
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::{Handle, LinkUnspec};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Connects to the netlink of `netns`, from a task of a tokio runtime.
async fn netlink_of(executor: &Executor, netns: &Netns) -> Outcome<Handle> {
    let runtime = tokio::runtime::Handle::current();
    let made = executor.spawn(netns, move || {
        // What watches the socket is that runtime; who made it is this thread.
        let _entered = runtime.enter();
        rtnetlink::new_connection()
    });
    let (connection, handle, _) = made?.await??;
    tokio::spawn(connection);
    Ok(handle)
}

/// `ip link set lo up`, and whether it was before.
async fn set_loopback_up(handle: &Handle) -> Outcome<bool> {
    let mut links = handle.link().get().match_name("lo".to_owned()).execute();
    let lo = links.try_next().await?.ok_or("there is no loopback")?;
    let up = LinkUnspec::new_with_index(lo.header.index).up().build();
    handle.link().set(up).execute().await?;
    Ok(lo.header.flags.contains(LinkFlags::Up))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let executor = Executor::new()?;
    let blue = Netns::new()?;
    let netlink = netlink_of(&executor, &blue).await?;
    let before = set_loopback_up(&netlink).await?;
    let after = set_loopback_up(&netlink).await?;
    println!(
        "lo of {}: up before {before}, up after {after}",
        blue.label()
    );
    if before || !after {
        return Err("the wrong loopback".into());
    }
    // Nothing was moved, so nothing has to go back, and nothing waits for anything.
    drop(netlink);
    match executor.audit()?.strays().count() {
        0 => Ok(()),
        strays => Err(format!("{strays} threads were left behind").into()),
    }
}
