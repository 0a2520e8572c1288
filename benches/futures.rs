//! What does awaiting something in a namespace cost, and what does a poll there cost?
//!
//! `await` is one call after the other, from a runtime of one thread. The baseline is
//! `spawn_blocking, setns`: what async programs do today, a closure on the runtime's pool
//! that enters the namespace and comes back. `poll` is a future that gives up its turn and
//! goes on at once, per turn; the baseline is the same future on tokio's own threads.
//! `wake` is a wake-up from another thread and back, of a future that waits: the baseline
//! is one that waits on the thread of another tokio runtime.
//! `accept` is a proxy's loop: a connection of a pod is accepted at home, and given a
//! socket of the pod to go on with. The baseline is the pool's `spawn_blocking, setns`
//! again; `nothing` is the loop without that socket.
//! `cargo bench -p benches --bench futures`; needs root.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::fs::File;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use netns_exec::net::{self, SocketKind, SocketStock};
use netns_exec::{Executor, Netns};
use nix::libc::linger;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt::Linger};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

const POSSIBLE: &str = "root may do all of this";

fn one_thread() -> Runtime {
    Builder::new_current_thread().build().expect(POSSIBLE)
}

fn two_threads() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).build().expect(POSSIBLE)
}

/// Awaits one call after the other, and times all of them.
fn in_turn<F: Future>(bencher: &mut Bencher<'_>, call: impl Fn() -> F) {
    let runtime = one_thread();
    bencher.iter_custom(|calls| {
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..calls {
                black_box(call().await);
            }
            start.elapsed()
        })
    });
}

fn awaits(criterion: &mut Criterion) {
    let (netns, executor) = (
        Netns::new().expect(POSSIBLE),
        Executor::new().expect(POSSIBLE),
    );
    let pinned = executor.pin(&netns).expect(POSSIBLE);
    let mut group = criterion.benchmark_group("futures/await");
    group.bench_function("spawn_blocking, setns", |bencher| {
        in_turn(bencher, || {
            let netns = netns.clone();
            tokio::task::spawn_blocking(move || {
                let home = File::open("/proc/thread-self/ns/net").expect(POSSIBLE);
                setns(&netns, CloneFlags::CLONE_NEWNET).expect(POSSIBLE);
                let seven = black_box(7);
                setns(&home, CloneFlags::CLONE_NEWNET).expect(POSSIBLE);
                seven
            })
        });
    });
    group.bench_function("spawn", |bencher| {
        in_turn(bencher, || pinned.spawn(|| black_box(7)).expect(POSSIBLE));
    });
    group.bench_function("spawn_future", |bencher| {
        in_turn(bencher, || pinned.spawn_future(async { black_box(7) }));
    });
    group.bench_function("spawn_local", |bencher| {
        // So that its worker stays.
        let stays = executor.spawn_local(&netns, std::future::pending::<()>);
        in_turn(bencher, || {
            executor.spawn_local(&netns, || async { black_box(7) })
        });
        stays.cancel();
    });
    group.finish();
}

/// Gives up its turn so many times; how long that took.
async fn turns(count: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        let mut waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
    start.elapsed()
}

fn polls(criterion: &mut Criterion) {
    let (netns, executor) = (
        Netns::new().expect(POSSIBLE),
        Executor::new().expect(POSSIBLE),
    );
    let mut group = criterion.benchmark_group("futures/poll");
    group.bench_function("tokio", |bencher| {
        let runtime = two_threads();
        bencher.iter_custom(|count| {
            runtime.block_on(async { tokio::spawn(turns(count)).await.expect(POSSIBLE) })
        });
    });
    group.bench_function("spawn_future", |bencher| {
        bencher.iter_custom(|count| {
            let handle = executor.spawn_future(&netns, turns(count));
            handle.join().expect(POSSIBLE)
        });
    });
    group.bench_function("spawn_local", |bencher| {
        bencher.iter_custom(|count| {
            let handle = executor.spawn_local(&netns, move || turns(count));
            handle.join().expect(POSSIBLE)
        });
    });
    group.finish();
}

/// Sends so many words to the other side and awaits each reply; how long that took.
async fn asks(count: u64, to: mpsc::Sender<u64>, mut from: mpsc::Receiver<u64>) -> Duration {
    let start = Instant::now();
    for word in 0..count {
        to.send(word).await.expect("it answers");
        black_box(from.recv().await);
    }
    start.elapsed()
}

async fn answers(mut from: mpsc::Receiver<u64>, to: mpsc::Sender<u64>) {
    while let Some(word) = from.recv().await {
        if to.send(word).await.is_err() {
            return;
        }
    }
}

fn wakes(criterion: &mut Criterion) {
    let (netns, executor) = (
        Netns::new().expect(POSSIBLE),
        Executor::new().expect(POSSIBLE),
    );
    let mut group = criterion.benchmark_group("futures/wake");
    let runtime = two_threads();
    let time = |count, answer: &dyn Fn(mpsc::Receiver<u64>, mpsc::Sender<u64>)| {
        let ((to, asked), (answered, from)) = (mpsc::channel(1), mpsc::channel(1));
        answer(asked, answered);
        let asks = runtime.spawn(asks(count, to, from));
        runtime.block_on(asks).expect(POSSIBLE)
    };
    group.bench_function("tokio", |bencher| {
        let other = two_threads();
        bencher.iter_custom(|count| time(count, &|from, to| drop(other.spawn(answers(from, to)))));
    });
    group.bench_function("spawn_future", |bencher| {
        bencher.iter_custom(|count| {
            time(count, &|from, to| {
                drop(executor.spawn_future(&netns, answers(from, to)))
            })
        });
    });
    group.finish();
}

/// A socket as proxies open it.
fn open() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).expect(POSSIBLE)
}

/// Connects from the pod so many times, one after the other.
fn connect(count: u64, to: SocketAddr) -> io::Result<()> {
    for _ in 0..count {
        let mut stream = TcpStream::connect(to)?;
        // Until the proxy has done with it, which it says by a reset.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

/// Accepts so many connections, and has a socket of the pod for each; how long that took.
async fn accepts<F: Future>(
    count: u64,
    listener: &TcpListener,
    open: impl Fn() -> F,
) -> io::Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        let (client, _) = listener.accept().await?;
        black_box(open().await);
        // No state is left of it, which would use the ports up.
        let at_once = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, Linger, &at_once)?;
    }
    Ok(start.elapsed())
}

/// Times a proxy's loop with a way to have a socket of the pod.
fn proxy<F: Future>(
    bencher: &mut Bencher<'_>,
    (executor, pod): (&Executor, &Netns),
    open: impl Fn() -> F,
) {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_io().build().expect(POSSIBLE);
    let listener = runtime.block_on(async {
        let service = (Ipv4Addr::LOCALHOST, 0);
        let listener = net::tcp_listen_async((executor, pod), service).await;
        TcpListener::from_std(listener.expect(POSSIBLE)).expect(POSSIBLE)
    });
    let service = listener.local_addr().expect(POSSIBLE);
    bencher.iter_custom(|count| {
        let client = executor.thread(pod, move |_| connect(count, service));
        let took = runtime.block_on(accepts(count, &listener, &open));
        let connected = client.expect(POSSIBLE).join().expect(POSSIBLE);
        connected.expect(POSSIBLE);
        took.expect(POSSIBLE)
    });
}

fn sockets(criterion: &mut Criterion) {
    let (pod, executor) = (
        Netns::new().expect(POSSIBLE),
        Executor::new().expect(POSSIBLE),
    );
    pod.set_loopback_up().expect(POSSIBLE);
    let place = (&executor, &pod);
    let mut group = criterion.benchmark_group("futures/accept");
    group.bench_function("nothing", |bencher| proxy(bencher, place, async || ()));
    group.bench_function("spawn_blocking, setns", |bencher| {
        proxy(bencher, place, || {
            let pod = pod.clone();
            tokio::task::spawn_blocking(move || {
                let home = File::open("/proc/thread-self/ns/net").expect(POSSIBLE);
                setns(&pod, CloneFlags::CLONE_NEWNET).expect(POSSIBLE);
                let socket = open();
                setns(&home, CloneFlags::CLONE_NEWNET).expect(POSSIBLE);
                socket
            })
        });
    });
    group.bench_function("spawn_async", |bencher| {
        proxy(bencher, place, async || {
            let handle = executor.spawn_async(&pod, open).await;
            handle.expect(POSSIBLE).await.expect(POSSIBLE)
        });
    });
    let builder = SocketStock::builder().kinds([SocketKind::Tcp4]);
    let stock = builder.nonblocking(true).build(&executor, &pod);
    let stock = stock.expect(POSSIBLE);
    group.bench_function("SocketStock", |bencher| {
        proxy(bencher, place, async || {
            let socket = stock.take_async(SocketKind::Tcp4).await;
            socket.expect(POSSIBLE)
        });
    });
    group.finish();
}

criterion_group!(benches, awaits, polls, wakes, sockets);
criterion_main!(benches);
