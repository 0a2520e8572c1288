//! What a child gets of this process: standard input and output, and nothing of the library's.

use std::fs;
use std::process::{Command, Stdio};

use netns_exec::ports::{Allocator, Broker, Fallback, Gate, Ports, Protocol};
use netns_exec::{CommandExt, Executor, audit};
use netns_exec_tests::ports::V4;
use netns_exec_tests::{Alone, GUARDS, Sleeper, TempNetns, alone, fresh};

fn sleeper() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo; exec cat"]).stdin(Stdio::piped());
    command
}

/// What `child` has open, by number.
fn descriptors(child: &Sleeper) -> Vec<(u32, String)> {
    let folder = format!("/proc/{}/fd", child.pid());
    let number = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).unwrap();
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        (number, link.display().to_string())
    };
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(number)
        .collect();
    all.sort();
    all
}

fn numbers(child: &Sleeper) -> Vec<u32> {
    let all = descriptors(child);
    all.iter().map(|(number, _)| *number).collect()
}

#[test]
fn child_has_three_descriptors_after_everything_was_used() {
    alone!(Alone::FreshRun);
    // As a rule 0, 1 and 2. More where the test itself was started with more.
    let before = numbers(&Sleeper::start(&mut sleeper()));
    assert!(before.starts_with(&[0, 1, 2]), "{before:?}");
    let assert_only_standard = |child: &Sleeper, by: &str| {
        let now = descriptors(child);
        assert_eq!(numbers(child), before, "a child {by} has {now:?}");
    };

    let named = TempNetns::with_loopback();
    let unnamed = fresh();
    unnamed.set_loopback_up().unwrap();
    // Before there are sockets that a copy of this process could hold.
    let broker = Broker::spawn().unwrap();
    let executors = GUARDS.map(|guard| Executor::builder().guard(guard).build().unwrap());
    let mut pinned = Vec::new();
    for executor in &executors {
        for netns in [&*named, &unnamed] {
            executor.run(netns, || ()).unwrap();
            executor.spawn(netns, || ()).unwrap().join().unwrap();
            pinned.push(executor.pin(netns).unwrap());
        }
        executor.audit().unwrap();
    }
    audit::holders(&named).unwrap();
    let ports = Allocator::new(&executors[0]);
    let gate = Gate::Drop {
        otherwise: Fallback::Queue,
    };
    let leases = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let request = ports.request(protocol).gate(gate);
        let request = request.on(&named, [V4]).on_broker(&broker, [V4]);
        request
            .ports(Ports::Range(20000..=29999))
            .acquire()
            .unwrap()
    });
    let socket = broker.try_clone_socket().unwrap();

    assert_only_standard(&Sleeper::start(&mut sleeper()), "of the standard library");
    assert_only_standard(
        &Sleeper::start(sleeper().in_netns(&unnamed)),
        "of a prepared command",
    );
    let spawned = Sleeper::of(sleeper().stdout(Stdio::piped()).spawn_in(&named).unwrap());
    assert_only_standard(&spawned, "of spawn_in");
    for executor in &executors {
        let child = executor.run(&named, || Sleeper::start(&mut sleeper()));
        assert_only_standard(
            &child.unwrap(),
            &format!("of a job, {:?}", executor.guard()),
        );
    }
    drop((leases, socket, pinned));
}
