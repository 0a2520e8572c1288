//! `#[in_netns]` on an `async fn`.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use futures_util::future::{Either, select};
use netns_exec::{Executor, Netns, NetnsId, in_netns};
use netns_exec_tests::{
    Alone, Gate, Pass, TempNetns, alone, eventually, fresh, here, panic_text, threads_named,
};
use pollster::block_on;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::home;

/// Says where it is dropped.
struct Tells(Sender<NetnsId>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send(here());
    }
}

#[in_netns(ns = ns)]
async fn where_am_i(
    ns: Netns,
    woken: tokio::sync::oneshot::Receiver<()>,
    _unmentioned: Tells,
) -> (NetnsId, NetnsId) {
    let first = here();
    woken.await.expect("its sender sends");
    (first, here())
}

#[test]
fn body_is_polled_and_its_arguments_are_dropped_in_the_namespace() {
    let ns = fresh();
    let (dropped, drops) = channel();
    let (sender, woken) = tokio::sync::oneshot::channel();
    let sender = std::thread::spawn(move || sender.send(()));
    let places = block_on(where_am_i(ns.clone(), woken, Tells(dropped)));
    assert_eq!(places, (ns.id(), ns.id()));
    assert_eq!(drops.recv(), Ok(ns.id()));
    sender.join().expect("it does not panic").expect("received");
}

#[in_netns(name = name)]
async fn fallible(name: String, fails: bool) -> io::Result<NetnsId> {
    std::future::ready(()).await;
    if fails {
        Err(io::Error::from(io::ErrorKind::AddrInUse))?;
    }
    Ok(here())
}

#[test]
fn question_mark_and_failures_to_open_end_in_the_result() {
    let ns = TempNetns::new();
    let name = || ns.name().to_owned();
    assert_eq!(block_on(fallible(name(), false)).unwrap(), ns.id());
    let error = block_on(fallible(name(), true)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let error = block_on(fallible("no-such-netns".to_owned(), false)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
}

struct Router {
    ns: Netns,
    executor: Executor,
}

impl Router {
    #[in_netns(ns = self.ns, executor = self.executor)]
    async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::bind(("127.0.0.1", port)).await
    }

    #[in_netns(ns = self.ns)]
    async fn id(self: Arc<Self>) -> (NetnsId, NetnsId) {
        (self.ns.id(), here())
    }

    #[in_netns(ns = self.ns)]
    async fn panics(self: Arc<Self>) {
        panic!("in {}", self.ns.id() == here());
    }
}

#[test]
fn methods_ship_their_bodies_too() {
    let ns = fresh();
    ns.set_loopback_up().unwrap();
    let router = Arc::new(Router {
        ns: ns.clone(),
        executor: Executor::new().unwrap(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = router.listen(80).await.unwrap();
        assert_eq!(Netns::of_socket(&listener).unwrap().id(), ns.id());
        assert_eq!(
            router.listen(80).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        assert_eq!(Arc::clone(&router).id().await, (ns.id(), ns.id()));
    });
    let text = panic_text(|| block_on(Arc::clone(&router).panics()));
    assert_eq!(text, "in true");
}

async fn echo() -> io::Result<[u8; 4]> {
    assert_ne!(here(), home());
    let listener = TcpListener::bind("127.0.0.1:80").await?;
    let mut word = [0; 4];
    let (client, server) = tokio::join!(
        async {
            let mut stream = TcpStream::connect("127.0.0.1:80").await?;
            stream.write_all(b"ping").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            stream.read_exact(&mut word).await
        },
        async {
            let (mut stream, _): (_, SocketAddr) = listener.accept().await?;
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await
        },
    );
    client?;
    server?;
    assert_ne!(here(), home());
    Ok(word)
}

#[in_netns(fresh)]
#[tokio::test]
async fn tokio_test_below_the_attribute_runs_in_the_namespace() {
    assert_eq!(&echo().await.unwrap(), b"ping");
}

#[in_netns(fresh)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_test_with_many_threads_runs_in_the_namespace() -> io::Result<()> {
    assert_eq!(&echo().await?, b"ping");
    Ok(())
}

#[tokio::test]
#[in_netns(fresh)]
async fn tokio_test_above_the_attribute_runs_in_the_namespace() {
    assert_eq!(&echo().await.unwrap(), b"ping");
}

#[in_netns(fresh)]
#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
#[tokio::test]
async fn rstest_below_the_attribute_passes_its_cases(
    #[case] length: usize,
    #[case] text: &'static str,
) {
    assert_eq!(text.len(), length);
    assert_eq!(&echo().await.unwrap(), b"ping");
}

#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
#[tokio::test]
#[in_netns(fresh)]
async fn rstest_above_the_attribute_passes_its_cases(
    #[case] length: usize,
    #[case] text: &'static str,
) {
    assert_eq!(text.len(), length);
    assert_ne!(here(), home());
}

#[in_netns(ns = ns)]
async fn hangs(ns: Netns, tells: Tells, began: tokio::sync::oneshot::Sender<()>) {
    let _tells = tells;
    began.send(()).expect("awaited by the test");
    pending().await
}

#[test]
fn body_is_dropped_in_the_namespace_when_its_caller_stops_waiting() {
    let ns = fresh();
    let (dropped, drops) = channel();
    let (began, begins) = tokio::sync::oneshot::channel();
    block_on(async {
        let call = pin!(hangs(ns.clone(), Tells(dropped), began));
        let begins = pin!(begins);
        // The caller stops waiting when the body has begun.
        let Either::Right((begun, _call)) = select(call, begins).await else {
            panic!("the body has no end");
        };
        begun.expect("the body began");
    });
    assert_eq!(drops.recv(), Ok(ns.id()));
}

#[in_netns(fresh)]
async fn downgrade() -> netns_exec::WeakNetns {
    Netns::current().expect("own namespace").downgrade()
}

#[test]
fn fresh_namespace_of_an_async_fn_is_gone_soon_afterwards() {
    let weak = block_on(downgrade());
    eventually("the namespace is gone", || weak.upgrade().is_none());
}

#[in_netns(fresh)]
async fn begin(has_begun: Arc<AtomicBool>) -> NetnsId {
    has_begun.store(true, Ordering::SeqCst);
    here()
}

/// Keeps a thread in its end.
struct Lingers(Pass);

impl Drop for Lingers {
    fn drop(&mut self) {
        self.0.stop();
    }
}

thread_local! {
    static LINGERS: Cell<Option<Lingers>> = const { Cell::new(None) };
}

#[test]
fn runtime_goes_on_while_a_fresh_namespace_is_made() {
    alone!(Alone::AsIs);
    const MAKERS: usize = 4;
    let gate = Gate::new();
    let executor = Executor::new().unwrap();
    let ends: Vec<_> = (0..MAKERS)
        .map(|_| {
            let (netns, pass) = (fresh(), gate.pass());
            let job = || LINGERS.set(Some(Lingers(pass)));
            executor.run(&netns, job).unwrap();
            executor.retire_async(&netns)
        })
        .collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap().block_on(async {
        let tick = || tokio::time::sleep(Duration::from_millis(5));
        let ends: Vec<_> = ends.into_iter().map(tokio::spawn).collect();
        // All threads that make namespaces wait for the end of a worker.
        while threads_named("netns-aside") < MAKERS {
            tick().await;
        }
        let has_begun = Arc::new(AtomicBool::new(false));
        let body = tokio::spawn(begin(Arc::clone(&has_begun)));
        for _ in 0..5 {
            tick().await;
        }
        assert!(!has_begun.load(Ordering::SeqCst), "there is no namespace");
        gate.open();
        assert_ne!(body.await.unwrap(), home());
        for end in ends {
            end.await.unwrap().unwrap();
        }
    });
}
