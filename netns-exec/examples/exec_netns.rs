//! A node agent's macro, and what replaces it (netavark's `exec_netns!`).
//!
//! Today: `exec_netns!(host, container, result, expression)` moves the calling thread to
//! the container with setns(2), evaluates, and moves it back. A `?` or a `return` in the
//! expression leaves out the way back, and so does a panic; and when the way back itself
//! fails, what the expression returned is lost and the thread goes on in the container,
//! where the next firewall rule is written.
//!
//! Here the expression is a closure that runs on the container's own thread. It borrows
//! what it needs, returns what it returns, may leave early, and may panic: the calling
//! thread was never away. Nothing can be cancelled half way, because the caller waits.
//!
//! `cargo run --example exec_netns`; needs root.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use netns_exec::{CommandExt, Executor, Netns, NetnsId};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the agent notes while it sets a container up.
#[derive(Debug, Default)]
struct Status {
    addresses: Vec<Ipv4Addr>,
    listening: Option<u16>,
}

fn here() -> Result<NetnsId, netns_exec::Error> {
    Netns::current().map(|netns| netns.id())
}

/// As the macro was used, line by line: borrow, fail early, go on.
fn set_up(executor: &Executor, container: &Netns, status: &mut Status) -> Outcome {
    container.set_loopback_up()?;
    let ip = ["address", "add", "10.88.0.2/16", "dev", "lo"];
    let done = std::process::Command::new("ip")
        .args(ip)
        .status_in(container)?;
    if !done.success() {
        return Err("ip failed, or is not there: install iproute2".into());
    }
    // exec_netns!(host, container, result, { .. });
    executor.run(container, || -> io::Result<()> {
        let address = Ipv4Addr::new(10, 88, 0, 2);
        // The address is the container's: no other thread could bind it.
        let listener = TcpListener::bind((address, 0))?;
        status.addresses.push(address);
        status.listening = Some(listener.local_addr()?.port());
        Ok(())
    })??;
    Ok(())
}

fn main() -> Outcome {
    let executor = Executor::new()?;
    let (host, container) = (here()?, Netns::new()?);

    let mut status = Status::default();
    set_up(&executor, &container, &mut status)?;
    println!("{status:?}");
    assert_eq!(here()?, host);

    // An error on the way out.
    let early = executor.run(&container, || -> io::Result<()> {
        TcpListener::bind((Ipv4Addr::new(10, 99, 0, 1), 0))?;
        unreachable!("the container has no such address")
    })?;
    println!("left early: {}", early.expect_err("no such address"));
    assert_eq!(here()?, host);

    // A panic goes on in the caller, who is at home.
    panic::set_hook(Box::new(|panic| println!("panicked: {panic}")));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        executor.run(&container, || -> () { panic!("in the container") })
    }));
    assert!(panicked.is_err());
    assert_eq!(here()?, host);

    assert_eq!(executor.run(&container, here)??, container.id());
    println!("the calling thread never left {host}");
    Ok(())
}
