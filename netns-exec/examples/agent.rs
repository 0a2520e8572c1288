//! An agent with a task that belongs to a container's namespace, and name look-ups there
//! (mirrord).
//!
//! Today: the agent keeps a thread that has entered the container's namespace, with a
//! runtime on it, and gives that runtime's handle to the rest of the program. What is
//! spawned there runs on that thread. But a blocking task that is asked for by the handle,
//! such as a reverse look-up, gets a thread that is started by whichever thread asked: when
//! that was one at home, it resolves in the wrong network, and only sometimes.
//!
//! Here the task is a future on the container's pinned thread, driven by the agent's one
//! runtime, and a look-up is a job there: both say where they run, at each call. Cancelling
//! the task drops it, and its socket, in the container; a look-up that has started runs to
//! its end, and its caller does not have to wait for it.
//!
//! `cargo run --example agent`; needs root.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use netns_exec::{Executor, JoinHandle, Netns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the rest of the agent asks of the task in the container.
enum Command {
    /// How many connections it has stolen so far.
    Stolen(oneshot::Sender<usize>),
}

/// Steals the connections to `port`, and answers questions about it.
async fn steal(port: u16, mut commands: mpsc::Receiver<Command>) -> io::Result<()> {
    // Made in a poll, so made in the container.
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let mut stolen = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut stream, _) = accepted?;
                stolen += 1;
                // The stream belongs to the container wherever it is polled: at home, here.
                tokio::spawn(async move { stream.write_all(b"stolen").await });
            }
            command = commands.recv() => match command {
                Some(Command::Stolen(reply)) => drop(reply.send(stolen)),
                None => return Ok(()),
            },
        }
    }
}

/// Looks a name up in the container: with the resolver of the C library, on its thread.
async fn look_up(
    executor: &Executor,
    container: &Netns,
    name: &'static str,
) -> Outcome<Vec<SocketAddr>> {
    let job = executor.spawn(container, move || {
        (name, 80).to_socket_addrs().map(Iterator::collect)
    });
    // Given up, the look-up goes on; it keeps no thread of the runtime.
    Ok(timeout(Duration::from_secs(5), job?).await???)
}

async fn agent(executor: &Executor, container: &Netns) -> Outcome {
    let (send, commands) = mpsc::channel(8);
    let task: JoinHandle<_> = executor.spawn_future(container, steal(80, commands));

    // A program in the container, and the same port at home.
    let program = executor.spawn_future(container, async {
        let mut stream = loop {
            match TcpStream::connect("127.0.0.1:80").await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        io::Result::Ok(text)
    });
    println!(
        "the program in the container was told: {:?}",
        program.await??
    );

    let (reply, stolen) = oneshot::channel();
    send.send(Command::Stolen(reply)).await?;
    println!("connections stolen: {}", stolen.await?);
    println!(
        "localhost there: {:?}",
        look_up(executor, container, "localhost").await?
    );

    assert!(task.cancel(), "it would go on for ever");
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    Ok(())
}

fn main() -> Outcome {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let handle: Handle = runtime.handle().clone();
    let executor = Executor::builder()
        .around(move |poll| {
            let _entered = handle.enter();
            poll();
        })
        // A look-up that takes long keeps no poll waiting.
        .workers_per_netns(2)
        .build()?;
    let container = Netns::new()?;
    container.set_loopback_up()?;
    runtime.block_on(agent(&executor, &container))?;
    match executor.audit()?.strays().count() {
        0 => Ok(()),
        strays => Err(format!("{strays} threads are in the container").into()),
    }
}
