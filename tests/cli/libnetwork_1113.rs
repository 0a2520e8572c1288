//! docker/libnetwork #1113, the report that this project answers, with the code
//! of the example `embedded_dns`: done with the executor, no thread is ever left
//! in a container; done the old way, one is, and `netns-exec audit` says so.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use netns_exec::audit::Verdict;
use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    Alone, TempNetns, alone, eventually, fds_of_this_process, here, is_alone, names_by_ip, rerun,
    this_test, threads_of_this_process,
};
use nix::sched::{CloneFlags, setns};

#[path = "../../netns-exec/examples/embedded_dns/containers.rs"]
mod containers;
#[path = "../../netns-exec/examples/embedded_dns/dns.rs"]
mod dns;

use containers::{DNS, Engine, Firewall, RESOLVER};

use super::output;

#[test]
fn ten_containers_in_twenty_rounds_leave_no_thread_and_no_namespace() {
    const CONTAINERS: usize = 10;
    const ROUNDS: usize = 20;
    alone!(Alone::AsIs);
    let executor = Executor::new().unwrap();
    let engine = Engine::start(&executor).expect("root, with iproute2 and iptables or nft");
    println!("redirecting with {}", engine.firewall());
    let own = |name: &String| name.starts_with(&format!("dns-{}-", std::process::id()));
    let mut before = None;
    for round in 0..ROUNDS {
        // Returns when the namespaces are gone, and the far ends of their veths.
        let answers = engine.round(CONTAINERS).unwrap();
        let right = (0..CONTAINERS).map(|number| Ipv4Addr::new(10, 11, 13, number as u8));
        assert_eq!(answers, right.collect::<Vec<_>>(), "round {round}");

        let audit = executor.audit().unwrap();
        for thread in audit.threads() {
            let verdict = thread.verdict();
            assert!(
                matches!(verdict, Verdict::Home | Verdict::Worker),
                "round {round}: {thread:?}"
            );
        }
        eventually("all workers have left", || executor.stats().workers == 0);
        // The first round starts what stays.
        let now = || (threads_of_this_process(), fds_of_this_process());
        let before = *before.get_or_insert_with(now);
        eventually("threads and descriptors are as before", || {
            let now = now();
            now.0 <= before.0 && now.1 <= before.1
        });
    }
    assert_eq!(names_by_ip().iter().find(|name| own(name)), None);
    let stats = executor.stats();
    assert_eq!((stats.panicked, stats.queued, stats.running), (0, 0, 0));
    // Sockets and rules, the client, and what wakes the server.
    assert_eq!(stats.done as usize, ROUNDS * CONTAINERS * 3);
}

/// A pool of one thread, started by the first caller that needs it: what the
/// reported program ran iptables with.
fn pool() -> &'static Sender<Box<dyn FnOnce() + Send>> {
    static POOL: OnceLock<Sender<Box<dyn FnOnce() + Send>>> = OnceLock::new();
    POOL.get_or_init(|| {
        let (sender, work) = channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::Builder::new().name("helper".to_owned());
        thread
            .spawn(move || work.iter().for_each(|task| task()))
            .expect("a thread");
        sender
    })
}

fn on_the_pool<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> T {
    let (reply, answer) = channel();
    let task = move || drop(reply.send(task()));
    pool().send(Box::new(task)).expect("it lives for ever");
    answer.recv().expect("no panic")
}

#[test]
fn old_way_leaves_a_thread_behind_and_the_audit_finds_it() {
    alone!(Alone::AsIs);
    let home = Netns::current().unwrap();
    let container = TempNetns::new();
    let name = container.name().to_owned();
    let address = Ipv4Addr::new(10, 11, 13, 1);
    container.set_loopback_up().unwrap();
    let firewall = Firewall::find().expect("iptables or nft");

    // setns, call, setns back: each time in full, on a thread that does return.
    let inside = |call: &mut dyn FnMut()| {
        setns(container.netns(), CloneFlags::CLONE_NEWNET).unwrap();
        call();
        setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
    };
    let mut sockets = None;
    inside(&mut || {
        let opened = dns::Sockets::open(RESOLVER).unwrap();
        let (udp, tcp) = opened.addresses().unwrap();
        on_the_pool(move || firewall.redirect(udp, tcp)).unwrap();
        sockets = Some((opened, udp, tcp));
    });
    let (sockets, udp, tcp) = sockets.unwrap();
    let server = dns::Server::start(sockets, &name, address);
    inside(&mut || {
        let resolver = SocketAddr::from((RESOLVER, DNS));
        assert_eq!(dns::resolve_udp(resolver, &name).unwrap(), address);
        assert_eq!(dns::resolve_tcp(resolver, &name).unwrap(), address);
    });
    server
        .stop(|| {
            let mut knocked = Ok(());
            inside(&mut || knocked = dns::knock(udp, tcp));
            knocked
        })
        .unwrap();
    // All went well, it seems.
    assert_eq!(here(), home.id());

    let pid = std::process::id().to_string();
    let output = output(&["audit", &pid]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    let row = table.lines().find(|line| line.contains("helper"));
    let row = row.unwrap_or_else(|| panic!("no helper in:\n{table}"));
    assert!(row.contains("stray") && row.contains(&name), "{row}");

    let audit = Executor::new().unwrap().audit().unwrap();
    let strays: Vec<_> = audit.strays().collect();
    let [stray] = &strays[..] else {
        panic!("{audit:?}");
    };
    assert_eq!(stray.netns_id(), Some(container.id()));
    assert!(row.contains(&stray.tid().to_string()), "{row}");

    // A day later: the container is gone for all but that thread, and the
    // program has it pull an image.
    let (id, weak) = (container.id(), container.downgrade());
    container.delete();
    assert_eq!(on_the_pool(here), id);
    assert!(weak.upgrade().is_some());
}

#[test]
fn missing_iptables_and_nft_is_an_error_with_the_cure() {
    if is_alone(this_test!()) {
        let executor = Executor::new().unwrap();
        let error = Engine::start(&executor).err().expect("no program is found");
        assert!(
            error.to_string().contains("apt install iptables"),
            "{error}"
        );
        return;
    }
    let output = rerun(this_test!())
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
