//! The public operations that are made to fail, each with a look at what came of it.
//!
//! Where a thread is, is asked by a call that never fails here. An operation that ended
//! in the wrong place panics, which counts as a violation, as every panic does.

use std::error::Error;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use netns_exec::audit;
use netns_exec::ports::{Allocator, Broker, Fallback, Gate, Lease, Ports, Protocol};
use netns_exec::{CommandExt, Executor, Guard, Netns};
use netns_exec_tests::ports::V4;
use nix::sched::{CloneFlags, setns};

use crate::calls::place;

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// What the operations work upon.
pub(crate) struct World {
    netns: Netns,
    /// Where a thread of `netns` is.
    inside: [u8; 32],
    /// Where this program is.
    outside: [u8; 32],
    other: Netns,
    executor: Executor,
    ports: Allocator,
    socket: UdpSocket,
}

const NAME: &str = "known";
const NEW: &str = "new";

impl World {
    pub(crate) fn new() -> World {
        let netns = Netns::create(NAME).expect("an empty /run, and root");
        let other = Netns::new().expect("root");
        for netns in [&netns, &other] {
            netns.set_loopback_up().expect("root");
        }
        // Its workers stay, so that they are the same before and after.
        let executor = Executor::builder().idle_timeout(None).build();
        let executor = executor.expect("an executor");
        let inside = executor.run(&netns, place).expect("a worker");
        let bind = || UdpSocket::bind("127.0.0.1:0");
        World {
            socket: executor
                .run(&netns, bind)
                .expect("a worker")
                .expect("a port"),
            ports: Allocator::new(&executor),
            outside: place(),
            inside,
            netns,
            other,
            executor,
        }
    }
}

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Makes what the operation needs, where that is more than the world.
    pub(crate) before: fn(),
    pub(crate) run: fn(Option<&World>) -> Outcome,
    /// Looks at what is left, knowing whether it succeeded, and takes it away.
    pub(crate) after: fn(bool),
    /// Each fault meets a process of its own, that has not used the library yet.
    pub(crate) first: bool,
    /// What is left alone, for a reason that stands beside it.
    pub(crate) spares: &'static [&'static str],
}

const PLAIN: Operation = Operation {
    name: "",
    before: || (),
    run: |_| Ok(()),
    after: |_| (),
    first: false,
    spares: &[],
};

macro_rules! operation {
    ($name:literal, $run:expr $(, $field:ident: $value:expr)*) => {
        Operation { name: $name, run: |world| {
            #[allow(clippy::redundant_closure_call)]
            ($run)(world.expect("all but the first call have one"))
        }, $($field: $value,)* ..PLAIN }
    };
}

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "the first call of a process",
        run: |_| first(),
        first: true,
        ..PLAIN
    },
    operation!("run, Guard::Seal", |w| run(w, Guard::Seal)),
    operation!("run, Guard::Detect", |w| run(w, Guard::Detect)),
    operation!("run, Guard::Off", |w| run(w, Guard::Off)),
    operation!("spawn", |w: &World| {
        let executor = Executor::new()?;
        let at = executor.spawn(&w.netns, place)?.join()?;
        inside(w, at);
        end(executor)
    }),
    operation!("scope", |w: &World| {
        let executor = Executor::new()?;
        let at = executor.scope(|scope| scope.spawn(&w.netns, place)?.join())?;
        inside(w, at);
        end(executor)
    }),
    operation!("pin", |w: &World| {
        let executor = Executor::new()?;
        let pinned = executor.pin(&w.netns)?;
        inside(w, pinned.run(place)?);
        drop(pinned);
        end(executor)
    }),
    operation!("prewarm", |_: &World| {
        end(Executor::builder().prewarm(|| ()).build()?)
    }),
    operation!("Netns::new", |w: &World| other(w, &Netns::new()?)),
    operation!("Netns::create", |w: &World| other(w, &Netns::create(NEW)?),
    after: |created| {
        let there = Netns::open(NEW).is_ok();
        let file = fs::symlink_metadata(format!("/run/netns/{NEW}")).is_ok();
        assert_eq!((there, file), (created, created), "what is left of a failed create");
        if created {
            Netns::delete(NEW).expect("it is there");
        }
    }),
    operation!("Netns::delete", |_: &World| Ok(Netns::delete(NEW)?),
    before: || drop(Netns::create(NEW).expect("a new name")),
    after: |deleted| {
        let file = fs::symlink_metadata(format!("/run/netns/{NEW}")).is_ok();
        assert_eq!(file, !deleted, "a delete that failed, and deleted");
        if !deleted {
            Netns::delete(NEW).expect("a second attempt");
        }
    }),
    operation!("Netns::open", |w: &World| same(w, &Netns::open(NAME)?)),
    operation!("Netns::list", |w: &World| {
        let all = Netns::list()?;
        assert_eq!(all.len(), 1, "there is one name");
        same(w, &all[0])
    }),
    operation!("Netns::from_path", |w: &World| {
        same(w, &Netns::from_path(format!("/run/netns/{NAME}"))?)
    }),
    operation!("Netns::from_fd", |w: &World| {
        same(w, &Netns::from_fd(w.netns.as_fd().try_clone_to_owned()?)?)
    }),
    operation!("Netns::from_pid", |w: &World| {
        here(w, &Netns::from_pid(std::process::id())?)
    }),
    operation!("Netns::of_socket", |w: &World| same(
        w,
        &Netns::of_socket(&w.socket)?
    )),
    operation!("Netns::current", |w: &World| here(w, &Netns::current()?)),
    operation!("Netns::home", |w: &World| here(w, &Netns::home()?)),
    operation!("Netns::check_enter", |w: &World| Ok(w
        .netns
        .check_enter()?)),
    operation!("Netns::can_enter_others", |_: &World| {
        Netns::can_enter_others()?;
        Ok(())
    }),
    operation!("Netns::set_loopback_up", |w: &World| Ok(w
        .netns
        .set_loopback_up()?)),
    operation!("Command::output_in", |w: &World| {
        child_was_inside(w, &where_am_i().output_in(&w.netns)?.stdout)
    // The standard library's wait for the output panics when one of these fails.
    }, spares: &["poll", "read"]),
    operation!("Command::spawn_in", |w: &World| {
        let mut child = Command::new("true").spawn_in(&w.netns)?;
        let _ = child.wait();
        Ok(())
    }),
    operation!("Command::in_netns", |w: &World| {
        child_was_inside(w, &where_am_i().in_netns(&w.netns).output()?.stdout)
    // As above.
    }, spares: &["poll", "read"]),
    operation!("a lease, Gate::Drop", |w: &World| leased(
        w,
        w.both(Protocol::Tcp).acquire()
    )),
    operation!("a lease, Gate::Refuse", |w: &World| {
        leased(w, w.both(Protocol::Tcp).gate(Gate::Refuse).acquire())
    }),
    operation!("a lease, udp, awaited", |w: &World| {
        leased(w, pollster::block_on(w.both(Protocol::Udp).acquire_async()))
    }),
    operation!("a lease, of a broker", |w: &World| {
        let broker = Broker::spawn()?;
        let request = w.ports.request(Protocol::Tcp).on_broker(&broker, [V4]);
        let gate = Gate::Drop {
            otherwise: Fallback::Queue,
        };
        leased(
            w,
            request
                .ports(Ports::Range(34000..=34100))
                .gate(gate)
                .acquire(),
        )
    // A broker that may not be killed any more (this process has changed its user) ends
    // by itself when its socket is closed, and is not waited for: it stays a zombie.
    }, spares: &["pidfd_send_signal"]),
    operation!("audit::Process::this", |_: &World| {
        audit::Process::this()?;
        Ok(())
    }),
    operation!("audit::holders", |w: &World| {
        audit::holders(&w.netns)?;
        Ok(())
    }),
];

/// By a thread that is elsewhere, so that the home thread has a way to go.
fn first() -> Outcome {
    let main = place();
    let elsewhere = File::open(NETNS_OF_ITS_OWN)?;
    let outcome = std::thread::Builder::new().spawn(move || {
        setns(elsewhere, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
        let attempt = || {
            let executor = Executor::new()?;
            let home = Netns::home()?;
            let at = executor.run(&home, place)?;
            executor.shutdown(Some(Duration::from_secs(10)))?;
            Ok(at)
        };
        attempt().map_err(|error: netns_exec::Error| error.to_string())
    });
    let at = outcome?.join().expect("it does not panic")?;
    assert_eq!(
        at, main,
        "WRONG PLACE: the home thread stayed where it was born"
    );
    Ok(())
}

/// Of the process that starts this one: see `main.rs`.
const NETNS_OF_ITS_OWN: &str = "/run/elsewhere";

fn run(w: &World, guard: Guard) -> Outcome {
    let executor = Executor::builder().guard(guard).build()?;
    inside(w, executor.run(&w.netns, place)?);
    end(executor)
}

fn end(executor: Executor) -> Outcome {
    Ok(executor.shutdown(Some(Duration::from_secs(10)))?)
}

fn inside(w: &World, at: [u8; 32]) {
    assert_eq!(at, w.inside, "WRONG PLACE");
    assert_eq!(place(), w.outside, "WRONG PLACE: the caller was moved");
}

fn same(w: &World, netns: &Netns) -> Outcome {
    assert_eq!(netns.id(), w.netns.id(), "WRONG PLACE: another namespace");
    Ok(())
}

fn here(w: &World, netns: &Netns) -> Outcome {
    let ids = [w.netns.id(), w.other.id()];
    assert!(!ids.contains(&netns.id()), "WRONG PLACE: another namespace");
    assert_eq!(place(), w.outside, "WRONG PLACE: the caller was moved");
    Ok(())
}

fn other(w: &World, netns: &Netns) -> Outcome {
    here(w, netns)
}

fn where_am_i() -> Command {
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    command
}

fn child_was_inside(w: &World, said: &[u8]) -> Outcome {
    assert!(
        w.inside.starts_with(said.trim_ascii()) && !said.is_empty(),
        "WRONG PLACE: the child was in {}",
        String::from_utf8_lossy(said)
    );
    Ok(())
}

impl World {
    fn both(&self, protocol: Protocol) -> netns_exec::ports::Request {
        let request = self.ports.request(protocol);
        let request = request.on(&self.netns, [V4]).on(&self.other, [V4]);
        request.ports(Ports::Range(34000..=34100))
    }
}

fn leased(w: &World, outcome: Result<Lease, netns_exec::ports::Error>) -> Outcome {
    let activated = outcome.and_then(|lease| lease.activate());
    assert_eq!(w.ports.leased(), [], "a lease that has ended");
    // The workers that opened the sockets are where they were.
    inside(w, w.executor.run(&w.netns, place)?);
    Ok(activated?)
}
