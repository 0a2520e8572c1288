//! The embedded DNS server of a container engine, done so that no thread of the
//! engine ever is in a container's network namespace.
//!
//! This is the story of docker/libnetwork #1113. The engine opened its server's
//! sockets inside the container and ran iptables there, with a helper that
//! started threads; one of them kept the container's namespace, was used for
//! other work, and a day later image pulls failed. Here, what must happen inside
//! a container is shipped there as a job; all threads stay at home.
//!
//! `cargo run --example embedded_dns -- [ROUNDS]`; needs root, iproute2, and
//! iptables or nft. Each round starts ten containers at once.
// A program of its own, with threads of its own.
#![allow(clippy::disallowed_methods)]

mod containers;
mod dns;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use netns_exec::Executor;
use netns_exec::audit::Verdict;

const CONTAINERS: usize = 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedded_dns: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let rounds: usize = env::args().nth(1).map_or(Ok(3), |rounds| rounds.parse())?;
    let executor = Executor::new()?;
    let engine = containers::Engine::start(&executor)?;
    println!("redirecting with {}", engine.firewall());
    for round in 1..=rounds {
        let answers = engine.round(CONTAINERS)?;
        println!(
            "round {round}: {} names resolved, all torn down",
            answers.len()
        );
    }
    let audit = executor.audit()?;
    println!(
        "{} threads: {} at home, {} workers, {} strays",
        audit.threads().len(),
        audit.with(Verdict::Home).count(),
        audit.with(Verdict::Worker).count(),
        audit.strays().count()
    );
    match audit.strays().next() {
        None => Ok(()),
        Some(stray) => Err(format!("thread {} is a stray", stray.tid()).into()),
    }
}
