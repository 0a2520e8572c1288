//! What of sockets, stocks and names is awaited keeps no runtime waiting, whatever its
//! worker does meanwhile.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use netns_exec::net::{self, SocketKind, SocketStock};
use netns_exec::{Executor, Guard, Netns, blocking};
use netns_exec_tests::late::{LONG, never_blocks, open_later, slow_to_start};
use netns_exec_tests::{Gate, Held, TempNetns, eventually, fresh};
use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::sockets::{LOCAL, with_black_hole};

type Place<'a> = (&'a Executor, &'a Netns);
type Made<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What makes a socket, by name.
type Maker = (&'static str, fn(Place<'_>) -> Made<'_>);

/// Each that is awaited.
const ALL: [Maker; 8] = [
    ("tcp_listen_async", |place| {
        Box::pin(async move { drop(net::tcp_listen_async(place, LOCAL).await.unwrap()) })
    }),
    ("tcp_connect_async", |place| {
        Box::pin(async move {
            let closed = SocketAddr::from(([127, 0, 0, 1], 1));
            let error = net::tcp_connect_async(place, closed, None).await;
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        })
    }),
    ("udp_bind_async", |place| {
        Box::pin(async move { drop(net::udp_bind_async(place, LOCAL).await.unwrap()) })
    }),
    ("unix_abstract_async", |place| {
        Box::pin(async move { drop(net::unix_abstract_async(place, "a").await.unwrap()) })
    }),
    ("unix_abstract_connect_async", |place| {
        Box::pin(async move {
            let error = net::unix_abstract_connect_async(place, "b").await;
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        })
    }),
    ("raw_async", |place| {
        let any = Ipv4Addr::UNSPECIFIED;
        Box::pin(async move { drop(net::raw_async(place, any, 1).await.unwrap()) })
    }),
    ("packet_async", |place| {
        Box::pin(async move { drop(net::packet_async(place, 0x0800, "lo").await.unwrap()) })
    }),
    ("netlink_async", |place| {
        Box::pin(async move { drop(net::netlink_async(place, 0, 0).await.unwrap()) })
    }),
];

#[test]
fn sockets_keep_no_runtime_waiting_for_a_birth() {
    for (what, make) in ALL {
        let prepare = || (slow_to_start(), TempNetns::with_loopback());
        never_blocks(what, prepare, |(executor, netns)| async move {
            make((&executor, netns.netns())).await;
        });
    }
}

#[test]
fn sockets_keep_no_runtime_waiting_for_a_busy_worker() {
    for (what, make) in ALL {
        let prepare = || {
            let builder = Executor::builder().queue_depth(1);
            let (executor, netns) = (builder.build().unwrap(), TempNetns::with_loopback());
            let held = Held::new(&executor, &netns);
            let queued = executor.spawn(&netns, || ()).unwrap();
            (executor, netns, held, queued)
        };
        never_blocks(
            what,
            prepare,
            |(executor, netns, held, queued)| async move {
                let Held { job, gate } = held;
                open_later(gate);
                make((&executor, netns.netns())).await;
                job.await.unwrap();
                queued.await.unwrap();
            },
        );
    }
}

#[test]
fn peer_that_does_not_answer_keeps_no_runtime_waiting() {
    let silent = SocketAddr::from(([10, 9, 0, 2], 80));
    let prepare = || (Executor::new().unwrap(), with_black_hole());
    never_blocks(
        "tcp_connect_async",
        prepare,
        |(executor, netns)| async move {
            let place = (&executor, netns.netns());
            let error = net::tcp_connect_async(place, silent, LONG).await;
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
        },
    );
}

/// A stock that is full, with no refill under way.
fn full(executor: &Executor, netns: &Netns) -> SocketStock {
    let stock = builder().build(executor, netns).unwrap();
    stock.fill().unwrap();
    // Behind the refill that `build` has begun.
    executor.spawn(netns, || ()).unwrap().join().unwrap();
    stock
}

fn builder() -> net::StockBuilder {
    SocketStock::builder()
        .kinds([SocketKind::Tcp4, SocketKind::Udp4])
        .marks(4, 16)
}

/// Takes all that a stock has on hand, so that it wants to be filled again, and more.
async fn take_more_than_there_is(stock: &SocketStock) {
    for _ in 0..20 {
        drop(stock.take_async(SocketKind::Tcp4).await.unwrap());
    }
}

#[test]
fn stock_keeps_no_runtime_waiting_for_its_first_worker() {
    let prepare = || (slow_to_start(), fresh());
    never_blocks("build_async", prepare, |(executor, netns)| async move {
        let stock = builder().build_async(&executor, &netns).await.unwrap();
        assert_eq!(stock.id(), netns.id());
        stock.fill_async().await.unwrap();
        assert_eq!(stock.on_hand(SocketKind::Tcp4), 16);
        take_more_than_there_is(&stock).await;
    });
}

#[test]
fn stock_keeps_no_runtime_waiting_for_a_busy_worker() {
    let prepare = || {
        let executor = Executor::builder().queue_depth(1).build().unwrap();
        let netns = fresh();
        let stock = full(&executor, &netns);
        let held = Held::new(&executor, &netns);
        (executor, netns, stock, held)
    };
    never_blocks("a busy worker", prepare, |prepared| async move {
        let (_executor, _netns, stock, Held { job, gate }) = prepared;
        open_later(gate);
        take_more_than_there_is(&stock).await;
        stock.fill_async().await.unwrap();
        job.await.unwrap();
    });
}

#[test]
fn stock_keeps_no_runtime_waiting_for_the_worker_after_a_spoiled_one() {
    let prepare = || {
        let builder_of = Executor::builder().guard(Guard::Off);
        let builder_of = builder_of.on_worker_start(|_| {
            std::thread::sleep(LONG);
            Ok(())
        });
        let (executor, netns, elsewhere) = (builder_of.build().unwrap(), fresh(), fresh());
        let stock = full(&executor, &netns);
        let moves = move || setns(&elsewhere, CloneFlags::CLONE_NEWNET).unwrap();
        assert!(executor.run(&netns, moves).unwrap_err().is_escaped());
        eventually("its worker has left", || executor.stats().workers == 0);
        (executor, netns, stock)
    };
    never_blocks("a spoiled worker", prepare, |prepared| async move {
        let (_executor, _netns, stock) = prepared;
        take_more_than_there_is(&stock).await;
    });
}

#[test]
fn stock_keeps_no_runtime_waiting_for_a_worker_beside_one_that_waits() {
    let prepare = || {
        let (executor, netns) = (slow_to_start(), fresh());
        let stock = full(&executor, &netns);
        let gate = Gate::new();
        let pass = gate.pass();
        let waits = executor.spawn(&netns, move || blocking(|| pass.stop()));
        gate.wait_for(1);
        (executor, netns, stock, waits.unwrap(), gate)
    };
    never_blocks("a worker that waits", prepare, |prepared| async move {
        let (_executor, _netns, stock, waits, gate) = prepared;
        take_more_than_there_is(&stock).await;
        gate.open();
        waits.await.unwrap();
    });
}
