//! The logical table: which port is held where, and by which claim.
//!
//! It knows no socket and makes no system call. A claim covers one port, or
//! several in a row, in any number of bindings, all or nothing. It is *pending* while its
//! sockets are tried, and *confirmed* from the moment the lease exists: what is
//! pending is decided soon, and worth waiting for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::protocol::Protocol;
use crate::netns::NetnsId;

/// What is held of a port: an address of a namespace, for one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Binding {
    pub(crate) netns: NetnsId,
    pub(crate) protocol: Protocol,
    pub(crate) addr: IpAddr,
    /// How far its port is from the first one of the claim, with which it is no
    /// higher than 65535.
    pub(crate) offset: u16,
}

/// Which claim an entry belongs to. Never given out twice, so that a release
/// that comes late finds nothing of its own, and harms no other claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// Ordered so that all addresses of one port of one namespace are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    netns: NetnsId,
    protocol: Protocol,
    port: u16,
    addr: IpAddr,
}

#[derive(Clone, Copy)]
struct Entry {
    generation: Generation,
    confirmed: bool,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimOutcome {
    Granted(Generation),
    /// A lease is in the way, and this is its binding.
    Leased(Binding),
    /// A claim that is not decided yet is in the way.
    Pending,
}

#[derive(Default)]
pub(crate) struct Table {
    entries: BTreeMap<Key, Entry>,
    generations: u64,
}

impl Table {
    /// Takes `port` at all `bindings`, or at none.
    pub(crate) fn claim(&mut self, port: u16, bindings: &[Binding]) -> ClaimOutcome {
        let mut pending = false;
        for &binding in bindings {
            match self.in_the_way(port, binding) {
                Some((
                    addr,
                    Entry {
                        confirmed: true, ..
                    },
                )) => {
                    return ClaimOutcome::Leased(Binding { addr, ..binding });
                }
                Some(_) => pending = true,
                None => {}
            }
        }
        if pending {
            return ClaimOutcome::Pending;
        }
        self.generations += 1;
        let generation = Generation(self.generations);
        for &binding in bindings {
            let entry = Entry {
                generation,
                confirmed: false,
            };
            self.entries.insert(key(port, binding), entry);
        }
        ClaimOutcome::Granted(generation)
    }

    /// Marks a granted claim as a lease.
    pub(crate) fn confirm(&mut self, generation: Generation, port: u16, bindings: &[Binding]) {
        for &binding in bindings {
            if let Some(entry) = self.entries.get_mut(&key(port, binding))
                && entry.generation == generation
            {
                entry.confirmed = true;
            }
        }
    }

    /// Frees one binding of a claim; `false` when that was done before, even if
    /// another claim holds the binding now.
    pub(crate) fn release(&mut self, generation: Generation, port: u16, binding: Binding) -> bool {
        let key = key(port, binding);
        match self.entries.get(&key) {
            Some(entry) if entry.generation == generation => {
                self.entries.remove(&key);
                true
            }
            _ => false,
        }
    }

    /// All that is leased, in order, with the ports; what is pending is left out.
    pub(crate) fn leased(&self) -> impl Iterator<Item = (u16, Binding)> + '_ {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.confirmed)
            .map(|(key, _)| {
                let binding = Binding {
                    netns: key.netns,
                    protocol: key.protocol,
                    addr: key.addr,
                    offset: 0,
                };
                (key.port, binding)
            })
    }

    /// An entry that conflicts with `binding`, and its address; a confirmed one if
    /// there is any.
    fn in_the_way(&self, port: u16, binding: Binding) -> Option<(IpAddr, Entry)> {
        let at = |addr| key(port, Binding { addr, ..binding });
        let confirmed = |(_, entry): &(IpAddr, Entry)| entry.confirmed;
        if !binding.addr.is_unspecified() {
            let get = |addr| Some((addr, *self.entries.get(&at(addr))?));
            let candidates = [get(binding.addr), get(wildcard(binding.addr))];
            return candidates.into_iter().flatten().max_by_key(confirmed);
        }
        // The wildcard is the lowest address of its family, so the family runs
        // from it to the highest.
        let high = match binding.addr {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        };
        self.entries
            .range(at(binding.addr)..=at(high))
            .map(|(key, entry)| (key.addr, *entry))
            .max_by_key(confirmed)
    }
}

fn key(port: u16, binding: Binding) -> Key {
    Key {
        netns: binding.netns,
        protocol: binding.protocol,
        port: port + binding.offset,
        addr: binding.addr,
    }
}

/// The address that stands for all of `addr`'s family.
fn wildcard(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Tells whether two addresses of one namespace cannot both have one port.
pub(crate) fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    use Protocol::{Tcp, Udp};

    fn binding(netns: u64, addr: &str) -> Binding {
        binding_of(Tcp, netns, addr)
    }

    fn binding_of(protocol: Protocol, netns: u64, addr: &str) -> Binding {
        Binding {
            netns: NetnsId::from_raw(netns),
            protocol,
            addr: addr.parse().expect("an address"),
            offset: 0,
        }
    }

    /// Claims and confirms, and returns the generation.
    #[track_caller]
    fn lease(table: &mut Table, port: u16, bindings: &[Binding]) -> Generation {
        match table.claim(port, bindings) {
            ClaimOutcome::Granted(generation) => {
                table.confirm(generation, port, bindings);
                generation
            }
            other => panic!("claim of {port} at {bindings:?}: {other:?}"),
        }
    }

    #[test]
    fn wildcard_and_specific_exclude_each_other_in_both_orders() {
        for (first, second) in [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")] {
            let mut table = Table::default();
            lease(&mut table, 80, &[binding(1, first)]);
            assert_eq!(
                table.claim(80, &[binding(1, second)]),
                ClaimOutcome::Leased(binding(1, first))
            );
        }
        for (first, second) in [("::", "::1"), ("::1", "::"), ("ffff::1", "::")] {
            let mut table = Table::default();
            lease(&mut table, 80, &[binding(1, first)]);
            assert!(matches!(
                table.claim(80, &[binding(1, second)]),
                ClaimOutcome::Leased(_)
            ));
        }
    }

    #[test]
    fn families_protocols_ports_and_namespaces_are_independent() {
        let mut table = Table::default();
        lease(&mut table, 80, &[binding(1, "0.0.0.0")]);
        lease(&mut table, 80, &[binding(1, "::")]);
        lease(&mut table, 80, &[binding_of(Udp, 1, "0.0.0.0")]);
        lease(&mut table, 81, &[binding(1, "0.0.0.0")]);
        lease(&mut table, 80, &[binding(2, "0.0.0.0")]);
        assert_eq!(table.leased().count(), 5);
    }

    #[test]
    fn claim_takes_every_place_or_none() {
        let mut table = Table::default();
        lease(&mut table, 80, &[binding(2, "127.0.0.1")]);
        let both = [binding(1, "127.0.0.1"), binding(2, "127.0.0.1")];
        assert_eq!(
            table.claim(80, &both),
            ClaimOutcome::Leased(binding(2, "127.0.0.1"))
        );
        lease(&mut table, 80, &both[..1]);
    }

    #[test]
    fn pending_claim_is_told_from_a_lease() {
        let mut table = Table::default();
        let bindings = [binding(1, "127.0.0.1")];
        let ClaimOutcome::Granted(generation) = table.claim(80, &bindings) else {
            panic!("an empty table grants");
        };
        assert_eq!(table.claim(80, &bindings), ClaimOutcome::Pending);
        assert_eq!(table.leased().count(), 0);
        table.confirm(generation, 80, &bindings);
        assert_eq!(
            table.claim(80, &bindings),
            ClaimOutcome::Leased(bindings[0])
        );
    }

    #[test]
    fn ports_of_a_block_are_taken_together_and_met_by_others() {
        let mut table = Table::default();
        let block: Vec<Binding> = (0..3)
            .map(|offset| Binding {
                offset,
                ..binding(1, "0.0.0.0")
            })
            .collect();
        let generation = lease(&mut table, 80, &block);
        let single = [binding(1, "127.0.0.1")];
        for port in 80..83 {
            assert!(matches!(
                table.claim(port, &single),
                ClaimOutcome::Leased(_)
            ));
        }
        for port in [78, 79, 81, 82] {
            assert!(matches!(table.claim(port, &block), ClaimOutcome::Leased(_)));
        }
        assert!(table.release(generation, 80, block[1]));
        lease(&mut table, 81, &single);
        lease(&mut table, 83, &block);
    }

    #[test]
    fn lease_outweighs_a_pending_claim() {
        let mut table = Table::default();
        let pending = table.claim(80, &[binding(1, "127.0.0.1")]);
        assert!(matches!(pending, ClaimOutcome::Granted(_)));
        lease(&mut table, 80, &[binding(1, "127.0.0.2")]);
        assert!(matches!(
            table.claim(80, &[binding(1, "0.0.0.0")]),
            ClaimOutcome::Leased(_)
        ));
    }

    #[test]
    fn stale_release_leaves_the_newer_lease_alone() {
        let mut table = Table::default();
        let at = binding(1, "127.0.0.1");
        let old = lease(&mut table, 80, &[at]);
        assert!(table.release(old, 80, at));
        lease(&mut table, 80, &[at]);
        assert!(!table.release(old, 80, at));
        assert_eq!(table.leased().count(), 1);
    }

    #[test]
    fn releasing_one_of_two_addresses_leaves_the_other_leased() {
        let mut table = Table::default();
        let bindings = [binding(1, "127.0.0.1"), binding(1, "127.0.0.2")];
        let generation = lease(&mut table, 80, &bindings);
        assert!(table.release(generation, 80, bindings[0]));
        lease(&mut table, 80, &bindings[..1]);
        assert_eq!(
            table.claim(80, &bindings[1..]),
            ClaimOutcome::Leased(bindings[1])
        );
    }

    fn any_binding() -> impl Strategy<Value = Binding> {
        let addr = prop::sample::select(vec!["0.0.0.0", "127.0.0.1", "10.0.0.1", "::", "::1"]);
        (1..=2u64, addr).prop_map(|(netns, addr)| binding(netns, addr))
    }

    proptest! {
        /// Against a plain list of who holds what, compared entry by entry.
        #[test]
        fn table_agrees_with_a_list(steps in prop::collection::vec(
            (any::<bool>(), 1..4u16, prop::collection::vec(any_binding(), 1..4), any::<usize>()),
            1..200,
        )) {
            let mut table = Table::default();
            let mut list: Vec<(Generation, u16, Binding)> = Vec::new();
            let mut old: Vec<(Generation, u16, Binding)> = Vec::new();
            for (claim, port, mut bindings, pick) in steps {
                if claim {
                    bindings.sort();
                    bindings.dedup();
                    let free = bindings.iter().all(|new| list.iter().all(|(_, held, binding)| {
                        *held != port
                            || binding.netns != new.netns
                            || !overlap(binding.addr, new.addr)
                    }));
                    match table.claim(port, &bindings) {
                        ClaimOutcome::Granted(generation) => {
                            prop_assert!(free);
                            table.confirm(generation, port, &bindings);
                            list.extend(bindings.iter().map(|binding| (generation, port, *binding)));
                        }
                        answer => prop_assert!(!free, "{answer:?}"),
                    }
                } else if !list.is_empty() {
                    let gone = list.swap_remove(pick % list.len());
                    prop_assert!(table.release(gone.0, gone.1, gone.2));
                    old.push(gone);
                }
                for stale in &old {
                    prop_assert!(!table.release(stale.0, stale.1, stale.2));
                }
                let mut held: Vec<_> = list.iter().map(|(_, port, binding)| (*port, *binding)).collect();
                let mut told: Vec<_> = table.leased().collect();
                held.sort();
                told.sort();
                prop_assert_eq!(held, told);
            }
        }
    }
}
