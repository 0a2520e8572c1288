//! A VM runtime's network set-up, half of it cancelled (kata-containers #13885).
//!
//! Today: the runtime's shim enters the pod's namespace with a guard object, whose drop
//! goes back, and holds it while it awaits the set-up or removal of each endpoint. On a
//! runtime of several threads, the task may go on on another thread, and the first one
//! polls other tasks meanwhile: they find themselves in the pod, the way back is taken by
//! a thread that never went, and a thread of the runtime stays in a pod that is no more.
//! The shim's remedy is a thread, or a `spawn_blocking`, with a runtime of its own for each
//! set-up.
//!
//! Here each set-up is a future on the pod's pinned thread. It awaits rtnetlink as often as
//! it wants, all threads of the runtime stay at home, and what is cancelled half way is
//! dropped in the pod.
//!
//! `cargo run --example vm_network`; needs root.

use std::collections::HashSet;
use std::error::Error;
use std::fs;
use std::io;
use std::time::Duration;

use futures_util::TryStreamExt;
use netns_exec::{Executor, Netns};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use tokio::runtime::Builder;
use tokio::time::timeout;

const PODS: usize = 4;
const ENDPOINTS: usize = 40;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Makes an endpoint's pair of devices and sets it up.
async fn attach(handle: &Handle, endpoint: usize) -> Outcome {
    let (tap, peer) = (format!("eth{endpoint}"), format!("tap{endpoint}"));
    let pair = LinkVeth::new(&tap, &peer).build();
    handle.link().add(pair).execute().await?;
    for name in [tap, peer] {
        let mut links = handle.link().get().match_name(name).execute();
        let link = links.try_next().await?.ok_or("a device is gone")?;
        let up = LinkUnspec::new_with_index(link.header.index).up().build();
        handle.link().set(up).execute().await?;
    }
    Ok(())
}

/// Removes what there is of it: all, or nothing, or what was made before a cancellation.
async fn detach(handle: &Handle, endpoint: usize) -> Outcome {
    let name = format!("eth{endpoint}");
    let mut links = handle.link().get().match_name(name).execute();
    if let Ok(Some(link)) = links.try_next().await {
        handle.link().del(link.header.index).execute().await?;
    }
    Ok(())
}

/// A netlink connection of the namespace that the caller is polled in. The runtime's own
/// threads drive it: the socket stays where it was made.
fn netlink() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn set_up_and_remove(executor: &Executor, pods: &[Netns]) -> Outcome<usize> {
    let mut cancelled = 0;
    let attached: Vec<_> = (0..ENDPOINTS)
        .map(|endpoint| {
            let job = executor.spawn_future(&pods[endpoint % PODS], async move {
                attach(&netlink()?, endpoint).await
            });
            (endpoint, job)
        })
        .collect();
    let (given_up, awaited): (Vec<_>, Vec<_>) = attached
        .into_iter()
        .partition(|(endpoint, _)| endpoint % 2 == 1);
    for (endpoint, mut job) in given_up {
        let patience = Duration::from_micros(10 * endpoint as u64);
        if timeout(patience, &mut job).await.is_err() {
            // Dropped in the pod, wherever it has come to.
            cancelled += usize::from(job.cancel());
        }
    }
    for (_, job) in awaited {
        job.await??;
    }
    let detached: Vec<_> = (0..ENDPOINTS)
        .map(|endpoint| {
            executor.spawn_future(&pods[endpoint % PODS], async move {
                detach(&netlink()?, endpoint).await
            })
        })
        .collect();
    for job in detached {
        job.await??;
    }
    Ok(cancelled)
}

fn main() -> Outcome {
    let runtime = Builder::new_multi_thread()
        .worker_threads(8)
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    let executor = Executor::builder()
        // The runtime that drives what is made in a poll.
        .around(move |poll| {
            let _entered = handle.enter();
            poll();
        })
        .build()?;
    let pods = (0..PODS)
        .map(|_| Netns::new())
        .collect::<Result<Vec<_>, _>>()?;

    let cancelled = runtime.block_on(set_up_and_remove(&executor, &pods))?;
    println!("{ENDPOINTS} endpoints in {PODS} pods, {cancelled} cancelled half way");

    for pod in &pods {
        let left = executor.run(pod, || fs::read_to_string("/proc/thread-self/net/dev"))??;
        let left: HashSet<_> = left
            .lines()
            .skip(2)
            .filter_map(|l| l.split(':').next())
            .collect();
        println!("left in {}: {:?}", pod.label(), left);
        if left.iter().any(|name| name.trim() != "lo") {
            return Err("a device was left behind".into());
        }
    }
    match executor.audit()?.strays().count() {
        0 => {
            println!("every thread of the runtime is at home");
            Ok(())
        }
        strays => Err(format!("{strays} threads are in a pod").into()),
    }
}
