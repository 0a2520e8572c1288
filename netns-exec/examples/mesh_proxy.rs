//! A mesh proxy's socket factory (ztunnel).
//!
//! Today: the node's proxy has a factory for each pod. For every connection it opens or
//! accepts on a pod's behalf, it calls setns(2) to the pod, socket(2), and setns(2) back, on
//! whichever thread of the runtime polls the task just then. Nothing awaits in between,
//! so that the thread is its own; but an error on the way back cannot be handled, since the
//! thread would stay in the pod with all the tasks that it has still to poll, and the proxy
//! ends itself instead.
//!
//! Here the socket is made inside and driven outside: each pod has a stock of sockets that a
//! worker there makes ahead; one that is taken is connected, read and written at home.
//! Cancelling drops a socket, and nothing else; no thread of the runtime is ever anywhere.
//!
//! `cargo run --example mesh_proxy`; needs root.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{Executor, Netns, NetnsId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;

const PODS: usize = 3;
const CONNECTIONS: usize = 300;
/// The same in each pod.
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Has the sockets of one pod.
struct SocketFactory(SocketStock);

impl SocketFactory {
    async fn new(executor: &Executor, pod: &Netns) -> netns_exec::Result<SocketFactory> {
        let stock = SocketStock::builder()
            .kinds([SocketKind::Tcp4])
            .nonblocking(true);
        Ok(SocketFactory(stock.build_async(executor, pod).await?))
    }

    async fn tcp(&self) -> Outcome<TcpSocket> {
        // No trip to the pod, unless the stock has run out.
        let socket = self.0.take_async(SocketKind::Tcp4).await?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    async fn connect(&self, peer: SocketAddr) -> Outcome<TcpStream> {
        Ok(self.tcp().await?.connect(peer).await?)
    }

    async fn listen(&self, address: SocketAddr) -> Outcome<TcpListener> {
        let socket = self.tcp().await?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket.listen(1024)?)
    }
}

/// The pod's program: tells each client which pod it is.
async fn serve(listener: TcpListener, pod: NetnsId) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move { stream.write_u64(pod.as_u64()).await });
    }
}

async fn proxy(executor: &Executor, pods: &[Netns]) -> Outcome {
    let mut factories = Vec::new();
    for pod in pods {
        factories.push(Arc::new(SocketFactory::new(executor, pod).await?));
    }
    let mut servers = Vec::new();
    for factory in &factories {
        let listener = factory.listen(SERVICE).await?;
        servers.push(tokio::spawn(serve(listener, factory.0.id())));
    }
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let factory = Arc::clone(&factories[number % PODS]);
            let task = tokio::spawn(async move {
                let mut stream = factory.connect(SERVICE).await?;
                Outcome::Ok(stream.read_u64().await?)
            });
            (factories[number % PODS].0.id(), task)
        })
        .collect();
    let (mut answered, mut cancelled) = (0, 0);
    for (number, (pod, task)) in connections.into_iter().enumerate() {
        if number % 4 == 0 {
            task.abort();
        }
        match task.await {
            Ok(answer) if answer.as_ref().is_ok_and(|id| *id != pod.as_u64()) => {
                return Err("a connection reached another pod".into());
            }
            Ok(answer) => answered += u64::from(answer.is_ok()),
            Err(error) if error.is_cancelled() => cancelled += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if answered + cancelled != CONNECTIONS as u64 {
        return Err("some connections failed".into());
    }
    println!("{answered} connections reached their pod, {cancelled} were cancelled");
    servers.iter().for_each(|server| server.abort());
    Ok(())
}

fn main() -> Outcome {
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()?;
    let executor = Executor::new()?;
    let pods = (0..PODS)
        .map(|_| Netns::new())
        .collect::<Result<Vec<_>, _>>()?;
    for pod in &pods {
        pod.set_loopback_up()?;
    }
    runtime.block_on(proxy(&executor, &pods))?;
    match executor.audit()?.strays().count() {
        0 => Ok(()),
        strays => Err(format!("{strays} threads are in a pod").into()),
    }
}
