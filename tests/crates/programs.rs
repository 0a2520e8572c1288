//! What a job does with each crate: as its users write it, and nothing about namespaces.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use netns_exec::{Netns, NetnsId};
use rayon::prelude::*;
use tokio::io::AsyncReadExt;

use crate::c_library;
use crate::servers::{self, HTTP, Place};

/// One row of the table.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) of: Of,
    pub(crate) what: &'static str,
    pub(crate) run: fn() -> Outcome,
}

/// Whose code a program tries.
pub(crate) enum Of {
    Std,
    /// The C library's own, without a crate.
    CLibrary,
    /// Whose version the row shows.
    Crate(&'static str),
}

use Of::{CLibrary, Crate, Std};

/// What a program saw; an error of the crate's as text.
pub(crate) type Outcome = Result<Seen, String>;

#[derive(Default)]
pub(crate) struct Seen {
    /// Where the crate's own threads are, as far as it can be seen.
    pub(crate) threads: Vec<NetnsId>,
    /// Which server answered.
    pub(crate) reached: Option<Place>,
}

macro_rules! programs {
    ($($run:path, $of:expr, $what:literal;)+) => {
        pub(crate) const PROGRAMS: &[Program] = &[$(Program {
            name: stringify!($run),
            of: $of,
            what: $what,
            run: $run,
        }),+];
    };
}

programs! {
    std_thread, Std, "`thread::spawn`, joined";
    std_lookup, Std, "`ToSocketAddrs` of a name";
    rayon_global, Crate("rayon"), "`par_iter` on the global pool";
    tokio_threads, Crate("tokio"), "a multi-thread runtime, built in the job";
    tokio_blocking, Crate("tokio"), "a current-thread runtime: `spawn_blocking`";
    tokio_connect, Crate("tokio"), "a current-thread runtime: connect to an address";
    tokio_connect_name, Crate("tokio"), "a current-thread runtime: connect to a name";
    tokio_file, Crate("tokio"), "a current-thread runtime: `tokio::fs::read`";
    async_io_timer, Crate("async-io"), "`block_on` of a `Timer`";
    smol_connect, Crate("smol"), "`block_on`: connect to an address";
    smol_spawn, Crate("smol"), "`spawn` on the global executor";
    blocking_unblock, Crate("blocking"), "`unblock`";
    ureq_get, Crate("ureq"), "`get` of an address";
    ureq_timeout, Crate("ureq"), "`get` of a name, with a time-out";
    reqwest_get, Crate("reqwest"), "a current-thread runtime: `get` of an address";
    reqwest_get_name, Crate("reqwest"), "a current-thread runtime: `get` of a name";
    reqwest_blocking, Crate("reqwest"), "`blocking::get` of an address";
    hickory_lookup, Crate("hickory-resolver"), "a look-up, on a current-thread runtime";
    c_library::timer, CLibrary, "`timer_create` with `SIGEV_THREAD`";
    c_library::look_up, CLibrary, "`getaddrinfo_a`";
    c_library::aio, CLibrary, "`aio_write`";
}

pub(crate) fn here() -> NetnsId {
    Netns::current().expect("procfs is mounted").id()
}

pub(crate) fn threads(threads: Vec<NetnsId>) -> Outcome {
    Ok(Seen {
        threads,
        ..Seen::default()
    })
}

fn reached(text: &str) -> Outcome {
    let place = Place::of(text).ok_or_else(|| format!("not from our server: {text}"))?;
    Ok(Seen {
        reached: Some(place),
        ..Seen::default()
    })
}

pub(crate) fn text(error: impl ToString) -> String {
    error.to_string()
}

fn std_thread() -> Outcome {
    threads(vec![thread::spawn(here).join().expect("no panic")])
}

fn std_lookup() -> Outcome {
    let addresses = ("localhost", HTTP).to_socket_addrs().map_err(text)?;
    assert_ne!(addresses.count(), 0);
    Ok(Seen::default())
}

fn rayon_global() -> Outcome {
    assert_eq!((1..=1000_u64).into_par_iter().sum::<u64>(), 500_500);
    threads(rayon::broadcast(|_| here()))
}

fn tokio_threads() -> Outcome {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).build().map_err(text)?;
    threads(vec![
        runtime
            .block_on(runtime.spawn(async { here() }))
            .map_err(text)?,
    ])
}

fn current_thread() -> Result<tokio::runtime::Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(text)
}

fn tokio_blocking() -> Outcome {
    let task = async { tokio::task::spawn_blocking(here).await };
    threads(vec![current_thread()?.block_on(task).map_err(text)?])
}

fn read_by_tokio(server: impl tokio::net::ToSocketAddrs) -> Outcome {
    let task = async {
        let mut said = String::new();
        let mut stream = tokio::net::TcpStream::connect(server).await?;
        stream.read_to_string(&mut said).await.map(|_| said)
    };
    reached(&current_thread()?.block_on(task).map_err(text)?)
}

fn tokio_connect() -> Outcome {
    read_by_tokio((Ipv4Addr::LOCALHOST, HTTP))
}

fn tokio_connect_name() -> Outcome {
    read_by_tokio(("localhost", HTTP))
}

fn tokio_file() -> Outcome {
    let read = tokio::fs::read("/proc/self/comm");
    current_thread()?.block_on(read).map_err(text)?;
    Ok(Seen::default())
}

fn async_io_timer() -> Outcome {
    async_io::block_on(async_io::Timer::after(Duration::from_millis(10)));
    Ok(Seen::default())
}

fn smol_connect() -> Outcome {
    let said = smol::block_on(async {
        use smol::io::AsyncReadExt;
        let mut said = String::new();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP));
        let mut stream = smol::net::TcpStream::connect(server).await?;
        stream.read_to_string(&mut said).await.map(|_| said)
    });
    reached(&said.map_err(text)?)
}

fn smol_spawn() -> Outcome {
    threads(vec![smol::block_on(smol::spawn(async { here() }))])
}

fn blocking_unblock() -> Outcome {
    threads(vec![async_io::block_on(blocking::unblock(here))])
}

fn get(agent: &ureq::Agent, host: &str) -> Outcome {
    let mut answer = agent
        .get(format!("http://{host}:{HTTP}/"))
        .call()
        .map_err(text)?;
    reached(&answer.body_mut().read_to_string().map_err(text)?)
}

fn ureq_get() -> Outcome {
    get(&ureq::Agent::new_with_defaults(), "127.0.0.1")
}

fn ureq_timeout() -> Outcome {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5)));
    get(&config.build().into(), "localhost")
}

fn get_by_reqwest(host: &str) -> Outcome {
    let url = format!("http://{host}:{HTTP}/");
    let said = async { reqwest::get(url).await?.text().await };
    reached(&current_thread()?.block_on(said).map_err(text)?)
}

fn reqwest_get() -> Outcome {
    get_by_reqwest("127.0.0.1")
}

fn reqwest_get_name() -> Outcome {
    get_by_reqwest("localhost")
}

fn reqwest_blocking() -> Outcome {
    let answer = reqwest::blocking::get(format!("http://127.0.0.1:{HTTP}/"));
    reached(&answer.map_err(text)?.text().map_err(text)?)
}

fn hickory_lookup() -> Outcome {
    let server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let found = current_thread()?.block_on(async {
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.build().map_err(text)?;
        resolver.lookup_ip("service.test.").await.map_err(text)
    })?;
    let address = found.iter().next().ok_or("no address")?;
    let place = servers::place_of(address).ok_or_else(|| format!("not ours: {address}"))?;
    Ok(Seen {
        reached: Some(place),
        ..Seen::default()
    })
}

/// Whether the server of the calling thread's namespace answers.
pub(crate) fn is_served() -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, HTTP)) else {
        return false;
    };
    let mut said = String::new();
    stream.read_to_string(&mut said).is_ok() && Place::of(&said).is_some()
}
