//! From a request to a lease: the walk over the ports.
//!
//! Unbound sockets come out of the namespaces in one round trip each, and the
//! walk itself happens on the calling thread: it claims a port in the table,
//! binds a socket in each namespace, and then listens on all of them. The first
//! member that finds the port in use ends the attempt: what the others got is
//! closed, the claim is dropped, and the next port is tried.
//!
//! The member that failed last goes first: while its binds fail, one socket
//! serves for all of them, and no socket of another member is spent. When many
//! fail in a row, the kernel is asked to choose.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lease::{Hold, Lease, Member};
use super::opener::Opener;
use super::range::{Span, random};
use super::request::{Budget, Choice, Request};
use super::socket::{Bound, Fault, Fresh, Order, Owned, Spec, Supply};
use super::table::{Claim, Place};
use super::{Counts, Endpoint, Error};

/// After so many ports in use, one after the other, the kernel is asked. It
/// takes about as long to ask as to try this many.
const STREAK: u32 = 32;
/// How often a lap asks the kernel. Its choice may be in use elsewhere.
const QUESTIONS: u32 = 4;
/// Most sockets that are kept ready for one member.
const STOCK: usize = 16;
/// How long to wait at a time for another request to decide about a port; a
/// bound, so that a deadline or a cancellation is seen.
const DECISION: Duration = Duration::from_millis(10);

pub(super) struct Walk {
    request: Request,
    /// One for each namespace.
    openers: Vec<Arc<dyn Opener>>,
    /// In the order asked for.
    seats: Vec<Seat>,
    /// The same as `seats`, for the table.
    places: Arc<[Place]>,
    /// The seats in the order to try them.
    order: Vec<usize>,
    /// How many sockets to fetch for a member that has none left.
    batch: usize,
    counts: Counts,
    /// The last failure of a port, in case there is no other port.
    last: Option<Failure>,
    /// How many ports were in use, one after the other.
    streak: u32,
}

/// A member of the lease to be.
struct Seat {
    /// Index of the opener.
    opener: usize,
    endpoint: Endpoint,
    spec: Spec,
    /// Unbound sockets; they own nothing.
    stock: Vec<Fresh>,
}

/// A member that failed.
struct Failure {
    seat: usize,
    port: Option<u16>,
    fault: Fault,
}

/// What became of one port.
enum Step {
    Leased(Lease),
    /// Another lease of this allocator has it, here.
    Taken(Place),
    /// Another request is trying it.
    Pending,
    /// Somebody has it; the failure is the last one.
    InUse,
    /// It needs a privilege; the failure is the last one.
    Denied,
}

/// What became of one port in the kernel.
enum Attempt {
    Owned(Vec<Owned>),
    InUse,
    Denied,
}

/// Why a walk stops before its end.
enum Stop {
    Tries,
    Deadline,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

impl Walk {
    /// Prepares a request that [`Request::check`] has passed.
    pub(super) fn new(request: Request) -> Walk {
        let mut openers: Vec<Arc<dyn Opener>> = Vec::new();
        let mut seats: Vec<Seat> = Vec::with_capacity(request.wanted.len());
        for wanted in &request.wanted {
            let netns = wanted.opener.netns();
            let known = openers.iter().position(|opener| opener.netns() == netns);
            let opener = known.unwrap_or_else(|| {
                openers.push(wanted.opener.clone());
                openers.len() - 1
            });
            // One label for all members of a namespace.
            let sibling = seats.iter().find(|seat| seat.opener == opener);
            let label = sibling.map_or_else(
                || Arc::from(wanted.opener.label()),
                |seat| seat.endpoint.label.clone(),
            );
            seats.push(Seat {
                opener,
                endpoint: Endpoint {
                    netns,
                    label,
                    protocol: request.protocol,
                    addr: wanted.addr,
                },
                spec: Spec {
                    protocol: request.protocol,
                    addr: wanted.addr,
                    gate: request.gate,
                },
                stock: Vec::new(),
            });
        }
        let place = |seat: &Seat| Place {
            netns: seat.endpoint.netns,
            addr: seat.endpoint.addr,
        };
        Walk {
            places: seats.iter().map(place).collect(),
            order: (0..seats.len()).collect(),
            openers,
            seats,
            request,
            batch: 1,
            counts: Counts::default(),
            last: None,
            streak: 0,
        }
    }

    pub(super) fn run(mut self) -> Result<Lease, Error> {
        let outcome = match self.request.choice.take() {
            Some(Choice::Exact(port)) => self.exact(port),
            Some(Choice::Range(range)) => self.range(&Span::new(range)),
            Some(Choice::Dynamic { of }) => self.dynamic(&*of).and_then(|span| self.range(&span)),
            None => unreachable!("a request without ports is refused"),
        };
        outcome.map_err(|error| error.counted(self.counts))
    }

    /// Tries one port, once or for a while.
    fn exact(&mut self, port: u16) -> Result<Lease, Error> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            self.check_cancelled()?;
            let error = match self.step(port, DECISION)? {
                Step::Leased(lease) => return Ok(lease),
                Step::Pending => continue,
                Step::Denied => return Err(self.last_error()),
                Step::InUse => self.last_error(),
                Step::Taken(place) => {
                    let is_there = |seat: &&Seat| seat.endpoint.netns == place.netns;
                    let seat = self.seats.iter().find(is_there);
                    let seat = seat.expect("the table answers about namespaces it was asked for");
                    let leased = Endpoint {
                        addr: place.addr,
                        ..seat.endpoint.clone()
                    };
                    Error::already_leased(leased, port)
                }
            };
            let left = (self.request.retry_for).map(|time| time.saturating_sub(started.elapsed()));
            match left {
                Some(left) if !left.is_zero() => {
                    self.request.cancel.sleep(about(pause).min(left));
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                _ => return Err(error),
            }
        }
    }

    /// Reads the range to walk over, and along with it fetches the first
    /// sockets.
    fn dynamic(&mut self, of: &dyn Opener) -> Result<Span, Error> {
        let mut range = None;
        let mut reserved = Vec::new();
        for opener in 0..self.openers.len() {
            let ports = self.restock(opener, true)?;
            let ports = ports.expect("the settings were ordered");
            if self.openers[opener].netns() == of.netns() {
                range = Some(ports.range);
            }
            reserved.extend(ports.reserved);
        }
        let range = match range {
            Some(range) => range,
            None => {
                let order = Order {
                    specs: Vec::new(),
                    local_ports: true,
                };
                let ports = of.open(&order)?.local_ports;
                ports.expect("the settings were ordered").range
            }
        };
        Ok(Span { range, reserved })
    }

    /// Walks over a range as often as the budget allows.
    fn range(&mut self, span: &Span) -> Result<Lease, Error> {
        let protocol = self.request.protocol;
        let cursor = {
            let inner = self.request.book.inner.lock();
            inner.cursors.get(protocol, &span.range)
        };
        if let Some(netns) = cursor.contended {
            // Stable, so that the rest stays in the order asked for.
            let seats = &self.seats;
            (self.order).sort_by_key(|&seat| seats[seat].endpoint.netns != netns);
        }
        let mut laps = match self.request.budget {
            Budget::WalkOnce | Budget::Tries(_) => 1,
            Budget::Laps { laps, .. } => laps,
            Budget::Deadline(_) => u32::MAX,
        };
        let mut rest = Duration::from_millis(1);
        let stop = loop {
            match self.lap(span, cursor.next) {
                Ok(Some(lease)) => {
                    let contended = (self.last.as_ref())
                        .map(|last| self.seats[last.seat].endpoint.netns)
                        .or(cursor.contended);
                    let mut inner = self.request.book.inner.lock();
                    inner
                        .cursors
                        .leased(protocol, &span.range, lease.port(), contended);
                    return Ok(lease);
                }
                Ok(None) => {}
                Err(stop) => break stop,
            }
            laps -= 1;
            if laps == 0 {
                break Stop::Tries;
            }
            match self.request.budget {
                Budget::Laps { pause, .. } => self.request.cancel.sleep(about(pause)),
                Budget::Deadline(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    self.request.cancel.sleep(about(rest).min(left));
                    rest = (rest * 2).min(Duration::from_millis(50));
                }
                Budget::WalkOnce | Budget::Tries(_) => {}
            }
        };
        let last = self.last.is_some().then(|| self.last_error());
        Err(match stop {
            Stop::Tries => Error::exhausted(protocol, &span.range, last),
            Stop::Deadline => Error::deadline(protocol, &span.range, last),
            Stop::Failed(error) => error,
        })
    }

    /// Tries every port of the range once.
    fn lap(&mut self, span: &Span, first: u16) -> Result<Option<Lease>, Stop> {
        let mut undecided = Vec::new();
        let mut chosen_by_kernel = Vec::new();
        let mut questions = match self.request.budget {
            // Each try is one of the caller's.
            Budget::Tries(_) => 0,
            _ => QUESTIONS,
        };
        self.streak = 0;
        for port in span.around(first) {
            self.check_budget()?;
            if span.is_reserved(port) {
                self.counts.reserved += 1;
                continue;
            }
            if self.streak >= STREAK && questions > 0 {
                self.streak = 0;
                // Only what this lap has not seen yet.
                let end = if port >= first {
                    *span.range.end()
                } else {
                    first - 1
                };
                questions -= 1;
                if end - port >= STREAK as u16 {
                    match self.ask_kernel(port..=end, span, &mut chosen_by_kernel)? {
                        Answer::Leased(lease) => return Ok(Some(lease)),
                        Answer::Lost => {}
                        Answer::Useless => questions = 0,
                    }
                }
            }
            if chosen_by_kernel.contains(&port) {
                continue;
            }
            match self.step(port, Duration::ZERO)? {
                Step::Leased(lease) => return Ok(Some(lease)),
                Step::Taken(_) => self.counts.leased += 1,
                Step::Pending => undecided.push(port),
                Step::InUse | Step::Denied => {}
            }
        }
        // Other requests were trying these. We hold nothing while we wait for
        // them, and they wait for nobody while they hold a claim.
        for port in undecided {
            loop {
                self.check_budget()?;
                match self.step(port, DECISION)? {
                    Step::Leased(lease) => return Ok(Some(lease)),
                    Step::Taken(_) => self.counts.leased += 1,
                    Step::Pending => continue,
                    Step::InUse | Step::Denied => {}
                }
                break;
            }
        }
        Ok(None)
    }

    /// Tries one port; waits up to `patience` for another request to decide
    /// about it.
    fn step(&mut self, port: u16, patience: Duration) -> Result<Step, Error> {
        // Before the claim: see `Opener::open`.
        self.restock_all()?;
        let protocol = self.request.protocol;
        let claim = (self.request.book).claim(protocol, port, &self.places, patience);
        match claim {
            Ok(hold) => self.with_claim(hold, None),
            Err(Claim::Leased(place)) => Ok(Step::Taken(place)),
            Err(_) => Ok(Step::Pending),
        }
    }

    fn with_claim(&mut self, hold: Hold, given: Option<(usize, Bound)>) -> Result<Step, Error> {
        let port = hold.port();
        Ok(match self.attempt(port, given)? {
            Attempt::Owned(sockets) => {
                let members = sockets.into_iter().zip(&self.seats);
                let members = members
                    .map(|(socket, seat)| Member::new(seat.endpoint.clone(), port, socket))
                    .collect();
                Step::Leased(Lease::new(self.request.protocol, members, hold))
            }
            Attempt::InUse => Step::InUse,
            Attempt::Denied => Step::Denied,
        })
    }

    /// Takes the port in every namespace: binds everywhere, then listens
    /// everywhere. `given` is a seat that is bound already. Whatever fails, all
    /// sockets with a port are closed when this returns.
    fn attempt(&mut self, port: u16, mut given: Option<(usize, Bound)>) -> Result<Attempt, Error> {
        self.counts.tried += 1;
        let mut bound: Vec<(usize, Bound)> = Vec::with_capacity(self.seats.len());
        for place in 0..self.order.len() {
            let seat = self.order[place];
            if let Some(given) = given.take_if(|(index, _)| *index == seat) {
                bound.push(given);
                continue;
            }
            let fresh = self.seats[seat].stock.pop();
            match fresh.expect("restocked before the claim").bind(port) {
                Ok(socket) => bound.push((seat, socket)),
                Err(unbound) => {
                    self.seats[seat].stock.extend(unbound.fresh);
                    return self.failed(place, port, unbound.fault);
                }
            }
        }
        let mut owned: Vec<Option<Owned>> = Vec::new();
        owned.resize_with(self.seats.len(), || None);
        for (place, (seat, socket)) in bound.into_iter().enumerate() {
            match socket.own() {
                Ok(socket) => owned[seat] = Some(socket),
                Err(fault) => return self.failed(place, port, fault),
            }
        }
        Ok(Attempt::Owned(owned.into_iter().flatten().collect()))
    }

    /// Sorts a failure of the `place`th seat to try.
    fn failed(&mut self, place: usize, port: u16, fault: Fault) -> Result<Attempt, Error> {
        let seat = self.order[place];
        let in_use = fault.is_in_use();
        let denied = fault.is_denied();
        self.last = Some(Failure {
            seat,
            port: Some(port),
            fault,
        });
        if in_use {
            self.streak += 1;
            self.order[..=place].rotate_right(1);
            Ok(Attempt::InUse)
        } else if denied {
            self.counts.denied += 1;
            Ok(Attempt::Denied)
        } else {
            Err(self.last_error())
        }
    }

    /// Lets the kernel choose a port for the most contended member.
    fn ask_kernel(
        &mut self,
        stretch: RangeInclusive<u16>,
        span: &Span,
        chosen: &mut Vec<u16>,
    ) -> Result<Answer, Stop> {
        self.restock_all()?;
        let seat = self.order[0];
        let fresh = self.seats[seat].stock.pop();
        let asked = fresh.expect("restocked").bind_any_of(&stretch);
        let (bound, port) = match asked {
            Ok(found) => found,
            // The kernel cannot, or sees no free port. It looks at fewer ports
            // than there are, so this proves nothing: go on walking.
            Err(unbound) => {
                self.seats[seat].stock.extend(unbound.fresh);
                return Ok(Answer::Useless);
            }
        };
        if span.is_reserved(port) || chosen.contains(&port) {
            return Ok(Answer::Lost);
        }
        self.restock_all()?;
        let protocol = self.request.protocol;
        let claim = (self.request.book).claim(protocol, port, &self.places, Duration::ZERO);
        let Ok(hold) = claim else {
            return Ok(Answer::Lost);
        };
        chosen.push(port);
        match self.with_claim(hold, Some((seat, bound)))? {
            Step::Leased(lease) => Ok(Answer::Leased(lease)),
            _ => Ok(Answer::Lost),
        }
    }

    /// Makes sure that every seat has a socket.
    fn restock_all(&mut self) -> Result<(), Error> {
        if self.seats.iter().all(|seat| !seat.stock.is_empty()) {
            return Ok(());
        }
        for opener in 0..self.openers.len() {
            let mut seats = self.seats.iter().filter(|seat| seat.opener == opener);
            if seats.any(|seat| seat.stock.is_empty()) {
                self.restock(opener, false)?;
            }
        }
        // A walk that spends many sockets makes few round trips.
        self.batch = (self.batch * 2).min(STOCK);
        Ok(())
    }

    /// Fetches sockets for the seats of one namespace that have none.
    fn restock(
        &mut self,
        opener: usize,
        local_ports: bool,
    ) -> Result<Option<super::dynamic::LocalPorts>, Error> {
        let empty: Vec<usize> = (0..self.seats.len())
            .filter(|&seat| self.seats[seat].opener == opener && self.seats[seat].stock.is_empty())
            .collect();
        // One for each first, so that a limit on open files is hit only by
        // those that can be done without.
        let round = || empty.iter().copied();
        let wanted: Vec<usize> = (0..self.batch).flat_map(|_| round()).collect();
        let order = Order {
            specs: wanted.iter().map(|&seat| self.seats[seat].spec).collect(),
            local_ports,
        };
        let Supply {
            sockets,
            fault,
            local_ports,
        } = self.openers[opener].open(&order)?;
        let got = sockets.len();
        for (&seat, fresh) in wanted.iter().zip(sockets) {
            self.seats[seat].stock.push(fresh);
        }
        if let Some(fault) = fault
            && got < empty.len()
        {
            self.last = Some(Failure {
                seat: wanted[got],
                port: None,
                fault,
            });
            return Err(self.last_error());
        }
        Ok(local_ports)
    }

    fn check_budget(&self) -> Result<(), Stop> {
        self.check_cancelled()?;
        match self.request.budget {
            Budget::Tries(tries) if self.counts.tried >= tries => Err(Stop::Tries),
            Budget::Deadline(end) if Instant::now() >= end => Err(Stop::Deadline),
            _ => Ok(()),
        }
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.request.cancel.is_cancelled() {
            return Err(Error::cancelled(self.request.protocol));
        }
        Ok(())
    }

    /// The last failure of a member, as an error of its own.
    fn last_error(&mut self) -> Error {
        let last = self.last.take().expect("called after a failure");
        let endpoint = self.seats[last.seat].endpoint.clone();
        Error::socket(endpoint, last.port, last.fault.stage, last.fault.cause).counted(self.counts)
    }
}

/// What came of asking the kernel.
enum Answer {
    Leased(Lease),
    /// It chose a port that cannot be had elsewhere.
    Lost,
    /// There is no point in asking again.
    Useless,
}

/// `pause`, give or take a half.
fn about(pause: Duration) -> Duration {
    let percent = 50 + u32::try_from(random() % 101).expect("at most 100");
    pause.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{IpAddr, TcpListener};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::executor::Executor;
    use crate::netns::{Netns, NetnsId};
    use crate::ports::{Allocator, ErrorKind, Gate, Ports, Protocol, Stage, Start};

    /// Opens sockets right here, and counts how often it is asked.
    struct Here {
        netns: Netns,
        trips: AtomicUsize,
    }

    impl Here {
        fn new() -> Arc<Here> {
            Arc::new(Here {
                netns: Netns::current().expect("this thread is somewhere"),
                trips: AtomicUsize::new(0),
            })
        }

        fn trips(&self) -> usize {
            self.trips.load(Ordering::Relaxed)
        }
    }

    impl Opener for Here {
        fn netns(&self) -> NetnsId {
            self.netns.id()
        }

        fn label(&self) -> &str {
            self.netns.label()
        }

        fn open(&self, order: &Order) -> Result<Supply, Error> {
            self.trips.fetch_add(1, Ordering::Relaxed);
            Ok(order.fill())
        }
    }

    /// An address of loopback that no other test uses.
    fn addr(n: u8) -> IpAddr {
        IpAddr::from([127, 86, 120, n])
    }

    fn allocator() -> Allocator {
        let executor = Executor::new().expect("an executor needs no privilege");
        Allocator::starting_at(&executor, Start::Beginning)
    }

    fn request(
        here: &Arc<Here>,
        protocol: Protocol,
        addrs: &[IpAddr],
        range: RangeInclusive<u16>,
    ) -> Request {
        allocator()
            .request(protocol)
            .on_opener(here.clone(), addrs.iter().copied())
            .ports(Ports::Range(range))
            .gate(Gate::Queue)
    }

    #[test]
    fn walk_over_busy_ports_takes_one_round_trip() {
        let here = Here::new();
        let _busy: Vec<_> = (20000..20050)
            .map(|port| TcpListener::bind((addr(1), port)).expect("nobody is here"))
            .collect();
        // The second member is the contended one, and is soon tried first.
        let addrs = [addr(2), addr(1)];
        let lease = request(&here, Protocol::Tcp, &addrs, 20000..=20050)
            .budget(Budget::Tries(51))
            .acquire()
            .expect("the last port is free");
        assert_eq!(lease.port(), 20050);
        // One, and another for the socket that the first port cost.
        assert_eq!(here.trips(), 2);
    }

    #[test]
    fn kernel_finds_the_port_that_a_walk_would_find_late() {
        let here = Here::new();
        let range = super::super::dynamic::LocalPorts::read().range;
        let (low, high) = (*range.start(), range.start() + 300);
        assert!(
            high <= *range.end(),
            "this machine has a narrow range: {range:?}"
        );
        let busy: Vec<_> = (low..high)
            .map(|port| TcpListener::bind((addr(3), port)).expect("nobody is here"))
            .collect();
        let mut walk = Walk::new(request(&here, Protocol::Tcp, &[addr(3)], low..=high));
        let lease = walk.range(&Span::new(low..=high)).expect("one is free");
        assert_eq!(lease.port(), high);
        let tried = walk.counts.tried;
        assert!(tried < 100, "{tried} of {} were tried", busy.len());
    }

    #[test]
    fn missing_protocol_is_asked_for_once() {
        let here = Here::new();
        let request = request(&here, Protocol::Sctp, &[addr(4)], 20000..=20050);
        match request.acquire() {
            Ok(lease) => assert_eq!(lease.port(), 20000),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Socket);
                assert_eq!(error.stage(), Some(Stage::Socket));
                assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
                assert_eq!(error.counts().tried, 0);
            }
        }
        assert_eq!(here.trips(), 1);
    }

    #[test]
    fn undecided_port_is_waited_for_and_not_passed_over() {
        let here = Here::new();
        let allocator = allocator();
        let request = || {
            allocator
                .request(Protocol::Tcp)
                .on_opener(here.clone(), [addr(5)])
                .ports(Ports::Range(20000..=20000))
                .gate(Gate::Queue)
        };
        let other = Walk::new(request());
        let book = &other.request.book;
        let claim = book.claim(Protocol::Tcp, 20000, &other.places, Duration::ZERO);
        let claim = claim.expect("an empty table");
        let waiting = std::thread::spawn({
            let request = request();
            move || request.acquire()
        });
        // It has fetched its socket, so the next thing it meets is the claim.
        while here.trips() == 0 {
            std::thread::yield_now();
        }
        drop(claim);
        let lease = waiting
            .join()
            .expect("no panic")
            .expect("the claim was given up");
        assert_eq!(lease.port(), 20000);
    }
}
