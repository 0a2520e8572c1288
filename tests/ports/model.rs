//! Random histories of requests, releases, rivals and deletions, against a
//! model of what is whose.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netns_exec::ports::{Allocator, ErrorKind, Lease, Ports, Protocol, Start};
use netns_exec::{Executor, Netns};
use netns_exec_tests::TempNetns;
use netns_exec_tests::ports::{Rival, V4, V4_ANY, V6, V6_ANY, taken};
use proptest::prelude::*;
use proptest::sample::Index;

const LOW: u16 = 33000;
const HIGH: u16 = 33003;

/// A namespace by its index, and an address.
type At = (usize, IpAddr);

#[derive(Clone, Debug)]
enum Step {
    /// A request for a port of the range, or for one of its ports.
    Lease {
        protocol: Protocol,
        at: Vec<At>,
        exact: Option<u16>,
    },
    /// A lease ends.
    Drop(Index),
    /// One member of a lease ends.
    Release(Index, Index),
    /// Another program takes a port.
    Rival {
        protocol: Protocol,
        at: At,
        port: u16,
    },
    /// It ends.
    RivalEnds(Index),
    /// A namespace loses its name, and the next requests mean another one. The
    /// old one lives as long as sockets are in it.
    Renew(usize),
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn at() -> impl Strategy<Value = At> {
    let addr = prop::sample::select(vec![V4, V4_ANY, V6, V6_ANY]);
    (0..2usize, addr)
}

fn step() -> impl Strategy<Value = Step> {
    let port = LOW..=HIGH;
    prop_oneof![
        6 => (protocol(), prop::collection::vec(at(), 1..4), prop::option::of(port.clone()))
            .prop_map(|(protocol, at, exact)| Step::Lease { protocol, at, exact }),
        3 => any::<Index>().prop_map(Step::Drop),
        1 => any::<(Index, Index)>().prop_map(|(lease, member)| Step::Release(lease, member)),
        3 => (protocol(), at(), port)
            .prop_map(|(protocol, at, port)| Step::Rival { protocol, at, port }),
        2 => any::<Index>().prop_map(Step::RivalEnds),
        1 => (0..2usize).prop_map(Step::Renew),
    ]
}

/// The owner of a place: a lease or a rival, by the number it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Lease(usize),
    Rival(usize),
}

/// Namespace id, protocol, port, address.
type Place = (u64, Protocol, u16, IpAddr);

#[derive(Default)]
struct Model {
    owners: BTreeMap<Place, Owner>,
}

impl Model {
    fn owner(&self, (netns, protocol, port, addr): Place) -> Option<Owner> {
        let in_the_way = |place: &Place| {
            (place.0, place.1, place.2) == (netns, protocol, port)
                && place.3.is_ipv4() == addr.is_ipv4()
                && (place.3 == addr || place.3.is_unspecified() || addr.is_unspecified())
        };
        let mut owners = self.owners.iter().filter(|(place, _)| in_the_way(place));
        // A lease is found in the table, before the kernel is asked.
        let leased = owners
            .clone()
            .find(|(_, owner)| matches!(owner, Owner::Lease(_)));
        leased.or_else(|| owners.next()).map(|(_, owner)| *owner)
    }

    fn forget(&mut self, gone: Owner) {
        self.owners.retain(|_, owner| *owner != gone);
    }
}

struct Run {
    executor: Executor,
    ports: Allocator,
    netns: [TempNetns; 2],
    /// Deleted ones, while the model still knows of sockets in them.
    deleted: Vec<Netns>,
    leases: Vec<(usize, Lease)>,
    rivals: Vec<(usize, OwnedFd)>,
    model: Model,
    count: usize,
}

impl Run {
    fn new() -> Run {
        let executor = Executor::new().expect("an executor");
        Run {
            ports: Allocator::starting_at(&executor, Start::Beginning),
            executor,
            netns: [TempNetns::with_loopback(), TempNetns::with_loopback()],
            deleted: Vec::new(),
            leases: Vec::new(),
            rivals: Vec::new(),
            model: Model::default(),
            count: 0,
        }
    }

    fn place(&self, protocol: Protocol, port: u16, (netns, addr): At) -> Place {
        (self.netns[netns].id().as_u64(), protocol, port, addr)
    }

    fn lease(
        &mut self,
        protocol: Protocol,
        at: &[At],
        exact: Option<u16>,
    ) -> Result<(), TestCaseError> {
        let mut request = self.ports.request(protocol);
        for &(netns, addr) in at {
            request = request.on(&self.netns[netns], [addr]);
        }
        let range = LOW..=HIGH;
        request = request.ports(match exact {
            Some(port) => Ports::Exact(port),
            None => Ports::Range(range.clone()),
        });
        let outcome = request.acquire();

        let overlaps = |(i, new): (usize, &At)| {
            at[..i].iter().any(|old| {
                old.0 == new.0
                    && old.1.is_ipv4() == new.1.is_ipv4()
                    && (old.1 == new.1 || old.1.is_unspecified() || new.1.is_unspecified())
            })
        };
        if at.iter().enumerate().any(overlaps) {
            let kind = outcome.map(|lease| lease.port()).map_err(|e| e.kind());
            prop_assert_eq!(kind, Err(ErrorKind::Invalid));
            return Ok(());
        }
        let owners = |port| {
            let owner = |&at| self.model.owner(self.place(protocol, port, at));
            at.iter().filter_map(owner).collect::<Vec<_>>()
        };
        let leased = |port| owners(port).iter().any(|o| matches!(o, Owner::Lease(_)));
        match outcome {
            Ok(lease) => {
                prop_assert!(exact.is_none_or(|port| port == lease.port()));
                prop_assert!(range.contains(&lease.port()));
                prop_assert_eq!(owners(lease.port()), []);
                self.count += 1;
                for &at in at {
                    let place = self.place(protocol, lease.port(), at);
                    self.model.owners.insert(place, Owner::Lease(self.count));
                }
                self.leases.push((self.count, lease));
            }
            Err(error) => match exact {
                Some(port) => {
                    let kind = if leased(port) {
                        ErrorKind::AlreadyLeased
                    } else {
                        prop_assert!(!owners(port).is_empty(), "{}", error);
                        ErrorKind::Socket
                    };
                    prop_assert_eq!(error.kind(), kind, "{}", error);
                }
                None => {
                    prop_assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", error);
                    let held = range.clone().filter(|&port| leased(port)).count();
                    let busy = range.clone().filter(|&port| !owners(port).is_empty());
                    prop_assert_eq!(busy.count(), range.len());
                    let counts = error.counts();
                    prop_assert_eq!(counts.leased as usize, held);
                    prop_assert_eq!(counts.tried as usize, range.len() - held);
                }
            },
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Lease {
                protocol,
                at,
                exact,
            } => self.lease(protocol, &at, exact)?,
            Step::Drop(index) if !self.leases.is_empty() => {
                let (n, lease) = self.leases.swap_remove(index.index(self.leases.len()));
                drop(lease);
                self.model.forget(Owner::Lease(n));
            }
            Step::Release(index, member) if !self.leases.is_empty() => {
                let index = index.index(self.leases.len());
                let lease = &mut self.leases[index].1;
                if lease.members().is_empty() {
                    return Ok(());
                }
                let endpoint = lease.members()[member.index(lease.members().len())].endpoint();
                let (netns, addr, protocol) =
                    (endpoint.netns(), endpoint.addr(), endpoint.protocol());
                prop_assert!(lease.release(netns, addr));
                prop_assert!(!lease.release(netns, addr));
                let place = (netns.as_u64(), protocol, lease.port(), addr);
                prop_assert!(self.model.owners.remove(&place).is_some());
            }
            Step::Rival { protocol, at, port } => {
                let netns = &self.netns[at.0];
                let rival = Rival::default().take(&self.executor, netns, protocol, at.1, port);
                let place = self.place(protocol, port, at);
                prop_assert_eq!(rival.is_ok(), self.model.owner(place).is_none());
                if let Ok(rival) = rival {
                    self.count += 1;
                    self.model.owners.insert(place, Owner::Rival(self.count));
                    self.rivals.push((self.count, rival));
                }
            }
            Step::RivalEnds(index) if !self.rivals.is_empty() => {
                let (n, rival) = self.rivals.swap_remove(index.index(self.rivals.len()));
                drop(rival);
                self.model.forget(Owner::Rival(n));
            }
            Step::Renew(index) => {
                let old = std::mem::replace(&mut self.netns[index], TempNetns::with_loopback());
                self.deleted.push(old.netns().clone());
                old.delete();
            }
            Step::Drop(_) | Step::Release(..) | Step::RivalEnds(_) => {}
        }
        self.compare()
    }

    /// The model, the table and the kernel agree about all that was ever made.
    fn compare(&self) -> Result<(), TestCaseError> {
        let mut leased: Vec<Place> = (self.model.owners.iter())
            .filter(|(_, owner)| matches!(owner, Owner::Lease(_)))
            .map(|(place, _)| *place)
            .collect();
        let table = self.ports.leased().into_iter();
        let mut table: Vec<Place> = table
            .map(|entry| (entry.netns.as_u64(), entry.protocol, entry.port, entry.addr))
            .collect();
        leased.sort();
        table.sort();
        prop_assert_eq!(leased, table);

        for netns in self.netns.iter().map(TempNetns::netns).chain(&self.deleted) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let kernel = taken(&self.executor, netns, protocol);
                let model = (self.model.owners.keys())
                    .filter(|place| (place.0, place.1) == (netns.id().as_u64(), protocol))
                    .map(|place| std::net::SocketAddr::new(place.3, place.2))
                    .collect();
                prop_assert_eq!(kernel, model);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        // The failing history is printed; nothing is written to the tree.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn leases_are_what_a_simple_model_says(steps in prop::collection::vec(step(), 1..40)) {
        let mut run = Run::new();
        for step in steps {
            run.take(step)?;
        }
        let Run { leases, rivals, .. } = &mut run;
        leases.clear();
        rivals.clear();
        run.model = Model::default();
        run.compare()?;
    }
}
