//! One port, tried in every namespace: bound everywhere, then listened on
//! everywhere. The first member that finds it in use ends the attempt, and what
//! the others got is closed.
//!
//! The member that failed last goes first: while its binds fail, one socket
//! serves for all of them, and no socket of another member is spent.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::dynamic::LocalPorts;
use super::error::{Endpoint, Error};
use super::lease::Member;
use super::opener::{OpenReply, OpenRequest, Opener};
use super::plan::Plan;
use super::socket::{Bound, Fault, Fresh, Owned, Spec};
use super::table::Binding;
use crate::netns::NetnsId;

/// Most sockets that are kept ready for one member.
const STOCK: usize = 16;

/// The members of a lease to be.
pub(super) struct Attempts {
    /// One for each namespace.
    openers: Vec<Arc<dyn Opener>>,
    /// In the order asked for.
    members: Vec<EndpointAttempt>,
    /// The same as `members`, for the table.
    bindings: Arc<[Binding]>,
    /// Indices of `members`, in the order to try them.
    turns: Vec<usize>,
    /// How many sockets to fetch for a member that has none left.
    batch: usize,
    /// The last failure, in case that no other port is tried.
    last: Option<Failure>,
}

/// What one member of the lease to be is to get, and its unbound sockets.
struct EndpointAttempt {
    /// Index of the opener.
    opener: usize,
    endpoint: Endpoint,
    spec: Spec,
    /// They own nothing.
    stock: Vec<Fresh>,
}

/// A member that failed.
struct Failure {
    member: usize,
    port: Option<u16>,
    fault: Fault,
}

/// A member that is bound already, to the port that is to be tried.
pub(super) struct Given {
    member: usize,
    bound: Bound,
}

/// What became of one port in the kernel.
pub(super) enum Attempt {
    Owned(Vec<Member>),
    InUse,
    Denied,
}

impl Attempts {
    /// Prepares the members of a plan that was checked.
    pub(super) fn new(plan: &Plan) -> Attempts {
        let mut openers: Vec<Arc<dyn Opener>> = Vec::new();
        let mut members: Vec<EndpointAttempt> = Vec::with_capacity(plan.wanted.len());
        for wanted in &plan.wanted {
            let netns = wanted.opener.netns();
            let known = openers.iter().position(|opener| opener.netns() == netns);
            let opener = known.unwrap_or_else(|| {
                openers.push(wanted.opener.clone());
                openers.len() - 1
            });
            // One label for all members of a namespace.
            let sibling = members.iter().find(|member| member.opener == opener);
            let label = sibling.map_or_else(
                || Arc::from(wanted.opener.label()),
                |member| member.endpoint.label.clone(),
            );
            members.push(EndpointAttempt {
                opener,
                endpoint: Endpoint {
                    netns,
                    label,
                    protocol: plan.protocol,
                    addr: wanted.addr,
                },
                spec: Spec {
                    protocol: plan.protocol,
                    addr: wanted.addr,
                    gate: plan.gate,
                },
                stock: Vec::new(),
            });
        }
        let binding = |member: &EndpointAttempt| Binding {
            netns: member.endpoint.netns,
            addr: member.endpoint.addr,
        };
        Attempts {
            bindings: members.iter().map(binding).collect(),
            turns: (0..members.len()).collect(),
            openers,
            members,
            batch: 1,
            last: None,
        }
    }

    pub(super) fn bindings(&self) -> &Arc<[Binding]> {
        &self.bindings
    }

    /// The endpoint that a binding in the table stands for.
    pub(super) fn endpoint(&self, binding: Binding) -> Endpoint {
        let is_there = |member: &&EndpointAttempt| member.endpoint.netns == binding.netns;
        let member = self.members.iter().find(is_there);
        let member = member.expect("the table answers about namespaces it was asked for");
        Endpoint {
            addr: binding.addr,
            ..member.endpoint.clone()
        }
    }

    /// Tries the members of `netns` before the others.
    pub(super) fn begin_with(&mut self, netns: NetnsId) {
        // Stable, so that the rest stays in the order asked for.
        let members = &self.members;
        (self.turns).sort_by_key(|&member| members[member].endpoint.netns != netns);
    }

    /// The namespace of the member that failed last.
    pub(super) fn contended(&self) -> Option<NetnsId> {
        (self.last.as_ref()).map(|last| self.members[last.member].endpoint.netns)
    }

    /// The last failure of a member, as an error of its own.
    pub(super) fn last_error(&mut self) -> Option<Error> {
        let last = self.last.take()?;
        let endpoint = self.members[last.member].endpoint.clone();
        let Fault { stage, cause } = last.fault;
        Some(Error::socket(endpoint, last.port, stage, cause))
    }

    fn fail(&mut self, failure: Failure) -> Error {
        self.last = Some(failure);
        self.last_error().expect("just set")
    }

    /// Takes the port in every namespace: binds everywhere, then listens
    /// everywhere. Every member has a socket. Whatever fails, all sockets with a
    /// port are closed when this returns.
    pub(super) fn attempt(
        &mut self,
        port: u16,
        mut given: Option<Given>,
    ) -> Result<Attempt, Error> {
        let mut bound: Vec<(usize, Bound)> = Vec::with_capacity(self.members.len());
        for turn in 0..self.turns.len() {
            let index = self.turns[turn];
            if let Some(given) = given.take_if(|given| given.member == index) {
                bound.push((index, given.bound));
                continue;
            }
            let fresh = self.members[index].stock.pop();
            match fresh.expect("restocked before the claim").bind(port) {
                Ok(socket) => bound.push((index, socket)),
                Err(unbound) => {
                    self.members[index].stock.extend(unbound.fresh);
                    return self.failed(turn, port, unbound.fault);
                }
            }
        }
        let mut owned: Vec<Option<Owned>> = Vec::new();
        owned.resize_with(self.members.len(), || None);
        for (turn, (index, socket)) in bound.into_iter().enumerate() {
            match socket.own() {
                Ok(socket) => owned[index] = Some(socket),
                Err(fault) => return self.failed(turn, port, fault),
            }
        }
        let members = owned.into_iter().flatten().zip(&self.members);
        let members = members
            .map(|(socket, member)| Member::new(member.endpoint.clone(), port, socket))
            .collect();
        Ok(Attempt::Owned(members))
    }

    /// Sorts a failure of the member whose turn it was.
    fn failed(&mut self, turn: usize, port: u16, fault: Fault) -> Result<Attempt, Error> {
        let in_use = fault.is_in_use();
        let denied = fault.is_denied();
        let failure = Failure {
            member: self.turns[turn],
            port: Some(port),
            fault,
        };
        if in_use {
            self.turns[..=turn].rotate_right(1);
        } else if !denied {
            return Err(self.fail(failure));
        }
        self.last = Some(failure);
        Ok(if in_use {
            Attempt::InUse
        } else {
            Attempt::Denied
        })
    }

    /// Has the kernel choose a port for the most contended member. `None` where
    /// it cannot, or sees no free port.
    pub(super) fn bind_any_of(&mut self, ports: &RangeInclusive<u16>) -> Option<(Given, u16)> {
        let member = self.turns[0];
        let fresh = self.members[member].stock.pop();
        match fresh.expect("restocked").bind_any_of(ports) {
            Ok((bound, port)) => Some((Given { member, bound }, port)),
            Err(unbound) => {
                self.members[member].stock.extend(unbound.fresh);
                None
            }
        }
    }

    /// Makes sure that every member has a socket.
    pub(super) fn restock_all(&mut self) -> Result<(), Error> {
        if self.members.iter().all(|member| !member.stock.is_empty()) {
            return Ok(());
        }
        for opener in 0..self.openers.len() {
            let mut members = self.members.iter().filter(|member| member.opener == opener);
            if members.any(|member| member.stock.is_empty()) {
                self.restock(opener, false)?;
            }
        }
        // A walk that spends many sockets makes few round trips.
        self.batch = (self.batch * 2).min(STOCK);
        Ok(())
    }

    /// Fetches the first sockets and along with them the port settings of each
    /// namespace.
    pub(super) fn restock_with_settings(&mut self) -> Result<Vec<(NetnsId, LocalPorts)>, Error> {
        let mut settings = Vec::with_capacity(self.openers.len());
        for opener in 0..self.openers.len() {
            let ports = self.restock(opener, true)?;
            let ports = ports.expect("the settings were asked for");
            settings.push((self.openers[opener].netns(), ports));
        }
        Ok(settings)
    }

    /// Fetches sockets for the members of one namespace that have none.
    fn restock(&mut self, opener: usize, local_ports: bool) -> Result<Option<LocalPorts>, Error> {
        let empty: Vec<usize> = (0..self.members.len())
            .filter(|&index| {
                let member = &self.members[index];
                member.opener == opener && member.stock.is_empty()
            })
            .collect();
        // One for each first, so that a limit on open files is hit only by
        // those that can be done without.
        let round = || empty.iter().copied();
        let wanted: Vec<usize> = (0..self.batch).flat_map(|_| round()).collect();
        let request = OpenRequest {
            specs: (wanted.iter())
                .map(|&index| self.members[index].spec)
                .collect(),
            local_ports,
        };
        let OpenReply {
            sockets,
            fault,
            local_ports,
        } = self.openers[opener].open(&request)?;
        let got = sockets.len();
        for (&index, fresh) in wanted.iter().zip(sockets) {
            self.members[index].stock.push(fresh);
        }
        if let Some(fault) = fault
            && got < empty.len()
        {
            return Err(self.fail(Failure {
                member: wanted[got],
                port: None,
                fault,
            }));
        }
        Ok(local_ports)
    }
}
