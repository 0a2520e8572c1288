//! One port, tried in every namespace: bound everywhere, then listened on
//! everywhere. The first member that finds it in use ends the attempt, and what
//! the others got is closed.
//!
//! The member that failed last goes first: while its binds fail, one socket
//! serves for all of them, and no socket of another member is spent.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use super::cancel::Patience;
use super::dynamic::LocalPorts;
use super::endpoint::Endpoint;
use super::error::{Error, Stage};
use super::lease::Member;
use super::opener::{OpenReply, OpenRequest, Opener};
use super::plan::Plan;
use super::socket::{Bound, Fault, Fresh, Options, Owned, Spec};
use super::table::Binding;
use crate::netns::NetnsId;
use crate::sys;

/// Most sockets that are kept ready for one member.
const STOCK: usize = 16;
/// Of the free descriptors, sockets that could be done without take up no more
/// than one in so many.
const HEADROOM: usize = 4;
/// So many members get a batch before it is known how many descriptors are free.
const MODEST: usize = 8;

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
    /// How long a broker may be waited for.
    patience: Patience,
    /// How many sockets to fetch for a member that has none left.
    batch: usize,
    /// There was no room for more than one each: descriptors are short, and what
    /// is left is for the rest of the process.
    is_short: bool,
    /// The last failure, in case that no other port is tried.
    last: Option<Failure>,
}

/// What one member of the lease to be is to get, and its unbound sockets.
struct EndpointAttempt {
    /// Index of the opener.
    opener: usize,
    endpoint: Endpoint,
    /// How far its port is from the first one.
    offset: u16,
    spec: Spec,
    /// It is left out where the namespace lacks the family.
    if_family: bool,
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
    /// Another program has it: the port itself, or this one of a block.
    InUse(u16),
    Denied,
    /// A member's namespace has no such address, or not yet.
    NoAddress,
}

/// Why there is no socket for each member.
enum StockFailure {
    Member(Failure),
    /// Its opener failed as a whole.
    Opener(Error),
}

impl From<Error> for StockFailure {
    fn from(error: Error) -> StockFailure {
        StockFailure::Opener(error)
    }
}

impl Attempts {
    /// Prepares the members of a plan that was checked.
    pub(super) fn new(plan: &Plan, patience: Patience) -> Attempts {
        let mut openers: Vec<Arc<dyn Opener>> = Vec::new();
        let mut members: Vec<EndpointAttempt> = Vec::new();
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
            for &protocol in plan.protocols.as_slice() {
                members.extend((0..plan.block).map(|offset| EndpointAttempt {
                    opener,
                    endpoint: Endpoint {
                        netns,
                        label: label.clone(),
                        protocol,
                        addr: wanted.addr,
                    },
                    offset,
                    spec: Spec {
                        protocol,
                        addr: wanted.addr,
                        gate: plan.gate,
                        options: Options {
                            device: wanted.device,
                            ..plan.options
                        },
                    },
                    if_family: wanted.if_family,
                    stock: Vec::new(),
                }));
            }
        }
        let mut attempts = Attempts {
            openers,
            members,
            bindings: Arc::default(),
            turns: Vec::new(),
            patience,
            batch: 1,
            is_short: false,
            last: None,
        };
        attempts.arrange();
        attempts
    }

    /// Lays the members out anew, in the order asked for.
    fn arrange(&mut self) {
        self.turns = (0..self.members.len()).collect();
        let binding = |member: &EndpointAttempt| Binding {
            netns: member.endpoint.netns,
            protocol: member.endpoint.protocol,
            addr: member.endpoint.addr,
            offset: member.offset,
        };
        self.bindings = self.members.iter().map(binding).collect();
    }

    /// Leaves out the members whose family their namespace lacks, as far as they
    /// were asked for on that condition.
    pub(super) fn leave_out_missing_families(&mut self) -> Result<(), Error> {
        if !self.members.iter().any(|member| member.if_family) {
            return Ok(());
        }
        while let Err(failure) = self.stock_up(false) {
            let StockFailure::Member(failure) = failure else {
                return Err(self.stock_error(failure));
            };
            let missing = &self.members[failure.member];
            let (opener, addr) = (missing.opener, missing.endpoint.addr);
            let is_alone = self
                .members
                .iter()
                .all(|member| member.endpoint.addr == addr);
            if !missing.if_family || !failure.fault.is_family_missing() || is_alone {
                return Err(self.fail(failure));
            }
            self.members
                .retain(|member| (member.opener, member.endpoint.addr) != (opener, addr));
            self.arrange();
        }
        Ok(())
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
            protocol: binding.protocol,
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
    pub(super) fn last_error(&self) -> Option<Error> {
        let last = self.last.as_ref()?;
        let endpoint = self.members[last.member].endpoint.clone();
        let Fault { stage, cause } = last.fault.duplicate();
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
            let port = port + self.members[index].offset;
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
                Err(fault) => {
                    return self.failed(turn, port + self.members[index].offset, fault);
                }
            }
        }
        let members = owned.into_iter().flatten().zip(&self.members);
        let members = members
            .map(|(socket, member)| {
                Member::new(member.endpoint.clone(), port + member.offset, socket)
            })
            .collect();
        Ok(Attempt::Owned(members))
    }

    /// Sorts a failure of the member whose turn it was.
    fn failed(&mut self, turn: usize, port: u16, fault: Fault) -> Result<Attempt, Error> {
        let in_use = fault.is_in_use();
        let denied = fault.is_denied();
        let absent = fault.is_no_such_address();
        let failure = Failure {
            member: self.turns[turn],
            port: Some(port),
            fault,
        };
        if in_use {
            self.turns[..=turn].rotate_right(1);
        } else if failure.fault.stage == Stage::Transfer
            && let Err(why) = self.patience.check()
        {
            let label = &self.members[failure.member].endpoint.label;
            return Err(Error::given_up(why, label));
        } else if !denied && !absent {
            return Err(self.fail(failure));
        }
        self.last = Some(failure);
        Ok(if in_use {
            Attempt::InUse(port)
        } else if denied {
            Attempt::Denied
        } else {
            Attempt::NoAddress
        })
    }

    /// Tells whether the member that failed last has an address that will do
    /// soon. May wait for a worker: not while a claim is pending.
    pub(super) fn is_tentative(&self) -> Result<bool, Error> {
        let Some(last) = &self.last else {
            return Ok(false);
        };
        let member = &self.members[last.member];
        match member.endpoint.addr {
            IpAddr::V6(addr) if !addr.is_unspecified() => {
                self.openers[member.opener].is_tentative(addr)
            }
            _ => Ok(false),
        }
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
        self.stock_up(true)
            .map_err(|failure| self.stock_error(failure))
    }

    /// Fetches the first sockets and along with them the port settings of each
    /// namespace.
    pub(super) fn restock_with_settings(&mut self) -> Result<Vec<(NetnsId, LocalPorts)>, Error> {
        let mut settings = Vec::with_capacity(self.openers.len());
        for opener in 0..self.openers.len() {
            let ports = self.restock(opener, true);
            let ports = ports.map_err(|failure| self.stock_error(failure))?;
            let ports = ports.expect("the settings were asked for");
            settings.push((self.openers[opener].netns(), ports));
        }
        Ok(settings)
    }

    fn stock_error(&mut self, failure: StockFailure) -> Error {
        match failure {
            StockFailure::Member(failure) => self.fail(failure),
            StockFailure::Opener(error) => error,
        }
    }

    /// See [`restock_all`](Self::restock_all); `grow` makes later trips bring
    /// more.
    fn stock_up(&mut self, grow: bool) -> Result<(), StockFailure> {
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
        if grow && !self.is_short {
            self.batch = (self.batch * 2).min(STOCK);
        }
        Ok(())
    }

    /// How many sockets to fetch for each of `members`: the batch, or what leaves
    /// most of the free descriptors to the rest of the process, and one at least.
    fn batch_for(&self, members: usize) -> usize {
        let stock = || self.members.iter().flat_map(|member| &member.stock);
        // A new descriptor is the lowest free one: there are as many in use as the
        // highest of ours says, or about that.
        let Some(highest) = stock()
            .filter_map(|fresh| Some(fresh.fd()?.as_raw_fd()))
            .max()
        else {
            return if members > MODEST { 1 } else { self.batch };
        };
        let limit = sys::process::descriptor_limit().unwrap_or(usize::MAX);
        let in_use = usize::try_from(highest).unwrap_or_default() + 1;
        let room = limit.saturating_sub(in_use) / HEADROOM;
        (room / members.max(1)).clamp(1, self.batch)
    }

    /// Fetches sockets for the members of one namespace that have none.
    fn restock(
        &mut self,
        opener: usize,
        local_ports: bool,
    ) -> Result<Option<LocalPorts>, StockFailure> {
        let empty: Vec<usize> = (0..self.members.len())
            .filter(|&index| {
                let member = &self.members[index];
                member.opener == opener && member.stock.is_empty()
            })
            .collect();
        // One for each first, so that a limit on open files is hit only by
        // those that can be done without.
        let round = || empty.iter().copied();
        let batch = self.batch_for(empty.len());
        let wanted: Vec<usize> = (0..batch).flat_map(|_| round()).collect();
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
        } = self.openers[opener].open(&request, &self.patience)?;
        let got = sockets.len();
        for (&index, fresh) in wanted.iter().zip(sockets) {
            self.members[index].stock.push(fresh);
        }
        if let Some(fault) = fault {
            if got < empty.len() {
                return Err(StockFailure::Member(Failure {
                    member: wanted[got],
                    port: None,
                    fault,
                }));
            }
            // The limit was met. It is not met again for sockets that can be done
            // without, and those that can go back at once.
            self.is_short = true;
            self.batch = 1;
            for &index in &empty {
                self.members[index].stock.truncate(1);
            }
        }
        Ok(local_ports)
    }
}
