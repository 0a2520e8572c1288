//! Pins, threads beside the pool, stocks and leases, which are kept for some steps.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::ports::{Allocator, Gate, Ports, Protocol};
use netns_exec::{Error, NetnsId, WeakNetns};

use crate::soak::arena::{Arena, Target};
use crate::soak::dice::Dice;
use crate::soak::held::Held;
use crate::soak::tally::{Token, count};

/// The most of each kind.
const MOST: usize = 3;

/// In every namespace alike, and out of the way of the ports that outgoing connections get.
const PORTS: std::ops::RangeInclusive<u16> = 24_000..=24_255;

impl Held {
    pub(super) fn join_spawned(&mut self, arena: &Arena) {
        for (handle, since, runs) in self.spawned.drain(..) {
            if let Some(result) = arena.join("spawn", handle) {
                arena.expect_ran("spawn", since, result, &runs);
            }
        }
    }

    /// Lets go of everything.
    pub(in crate::soak) fn let_go(&mut self, arena: &Arena) {
        self.join_spawned(arena);
        while !self.threads.is_empty() {
            self.end_thread(arena, 0);
        }
        self.pins.clear();
        self.stocks.clear();
        self.leases.clear();
        // What is not used is not to count as growth.
        *self = Held::default();
    }

    fn end_thread(&mut self, arena: &Arena, index: usize) {
        let (handle, since, runs) = self.threads.swap_remove(index);
        handle.stop();
        arena.expect_ran("a thread beside the pool", since, handle.join(), &runs);
    }
}

/// One of those that there are, if there are enough of them or by chance.
fn oldest_is_due<T>(dice: &mut Dice, held: &[T]) -> bool {
    held.len() >= MOST || !held.is_empty() && dice.roll(3) == 0
}

pub(super) fn pin(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    if oldest_is_due(dice, &held.pins) {
        drop(held.pins.remove(0));
    }
    if let Some(target) = arena.target(dice) {
        let since = arena.faults.since();
        // Not the narrow one: pins that are kept could take all the room that it has.
        let executor = *dice.pick(&[&arena.sealed, &arena.detecting]);
        let pinned = executor.pin(&target);
        if let Some(pinned) = arena.expect("pin", since, pinned) {
            held.pins.push((pinned, target.downgrade(), target.inode));
        }
    }
    for (pinned, weak, inode) in &held.pins {
        let (token, runs) = Token::new(&arena.tally, *inode);
        let since = arena.faults.since();
        match pinned.run(|| token.begin()) {
            Err(error) if error.is_not_found() => expect_gone(arena, "a pin", &error, weak, &runs),
            other => drop(arena.expect_ran("run on a pin", since, other, &runs)),
        }
    }
}

/// A call that says that its namespace is gone says the truth.
fn expect_gone(arena: &Arena, what: &str, error: &Error, weak: &WeakNetns, runs: &AtomicU32) {
    let right = weak.upgrade().is_none() && runs.load(Ordering::Relaxed) == 0;
    (arena.tally).check(right, || {
        format!("{what} says that {weak} is gone, and it is there: {error}")
    });
}

pub(super) fn thread(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    if oldest_is_due(dice, &held.threads) {
        held.end_thread(arena, 0);
    }
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    let thread = arena.any_executor(dice).thread(&target, move |stop| {
        token.begin();
        stop.wait();
        token.look();
    });
    if let Some(thread) = arena.expect("a thread beside the pool", since, thread) {
        count(&arena.tally.counts.threads);
        held.threads.push((thread, since, runs));
    }
}

pub(super) fn stock(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    const KINDS: [SocketKind; 2] = [SocketKind::Tcp4, SocketKind::Udp4];
    if oldest_is_due(dice, &held.stocks) {
        drop(held.stocks.remove(0));
    }
    if let Some(target) = arena.target(dice) {
        let since = arena.faults.since();
        let builder = SocketStock::builder().kinds(KINDS).marks(2, 6);
        let stock = builder.build(&arena.sealed, &target);
        if let Some(stock) = arena.expect("a stock of sockets", since, stock) {
            held.stocks.push((stock, target.downgrade()));
        }
    }
    for (stock, weak) in &held.stocks {
        let since = arena.faults.since();
        let taken = stock.take(*dice.pick(&KINDS));
        if let Err(error) = &taken
            && error.is_not_found()
        {
            expect_gone(arena, "a stock", error, weak, &AtomicU32::new(0));
            continue;
        }
        let Some(socket) = arena.expect("a socket from a stock", since, taken) else {
            continue;
        };
        let Some(id) = arena.expect("of_socket", since, NetnsId::of_socket(&socket)) else {
            continue;
        };
        count(&arena.tally.counts.sockets);
        (arena.tally).check(id == stock.id(), || {
            format!("a socket of {weak} is another's")
        });
    }
}

pub(super) fn lease(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    if oldest_is_due(dice, &held.leases) {
        drop(held.leases.remove(0));
    }
    let (Some(target), Some(other)) = (arena.target(dice), arena.target(dice)) else {
        return;
    };
    let protocol = *dice.pick(&[Protocol::Tcp, Protocol::Udp]);
    let any = Ipv4Addr::UNSPECIFIED.into();
    // To drop packets in the namespace that the process came from may take more than it has.
    let at_home = dice.roll(2) == 0;
    let request = |allocator: &Allocator, target: &Target, ports| {
        let request = allocator.request(protocol).gate(Gate::Queue);
        request.on(target, [any]).ports(ports)
    };
    let mut asked = request(&arena.ports, &target, Ports::Range(PORTS));
    if other.inode != target.inode {
        asked = asked.on(&other, [any]);
    }
    if at_home {
        asked = asked.on(&arena.home, [Ipv4Addr::LOCALHOST.into()]);
    }
    let since = arena.faults.since();
    let lease = match asked.acquire() {
        Ok(lease) => lease,
        Err(error) => {
            arena.explain("a lease", since, error.raw_os_error(), &error);
            return;
        }
    };
    count(&arena.tally.counts.leases);
    if let Err(error) = lease.activate() {
        arena.explain("activate", since, error.raw_os_error(), &error);
    }
    let exact = Ports::Exact(lease.port());
    for allocator in [&arena.ports, &arena.rival] {
        let since = arena.faults.since();
        match request(allocator, &target, exact.clone()).acquire() {
            Err(error) if error.is_in_use() => {}
            Err(error) => {
                arena.explain("a second lease", since, error.raw_os_error(), &error);
            }
            Ok(second) => (arena.tally).violation(format_args!(
                "port {} was leased twice in {}",
                second.port(),
                target.netns
            )),
        }
    }
    held.leases.push(lease);
}
