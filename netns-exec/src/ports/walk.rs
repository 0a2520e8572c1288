//! From a request to a lease: the walk over the ports.
//!
//! Unbound sockets come out of the namespaces in one round trip each, and the
//! walk itself happens on the calling thread: it claims a port in the table,
//! and attempts it. When that finds the port in use, the claim is dropped, and
//! the next port is tried. When many fail in a row, the kernel is asked to
//! choose.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Attempts, Given};
use super::cancel::{GivenUp, Patience};
use super::error::{Counts, Error};
use super::holds::Hold;
use super::lease::Lease;
use super::opener::{OpenRequest, Opener};
use super::plan::{Budget, Choice, Plan};
use super::range::{Span, random};
use super::table::{Binding, ClaimOutcome};

/// After so many ports in use, one after the other, the kernel is asked. It
/// takes about as long to ask as to try this many.
const STREAK: u32 = 32;
/// How often a lap asks the kernel. Its choice may be in use elsewhere.
const QUESTIONS: u32 = 4;
/// How long to wait at a time for another request to decide about a port; a
/// bound, so that a deadline or a cancellation is seen.
const DECISION: Duration = Duration::from_millis(10);

pub(super) struct Walk {
    plan: Plan,
    /// For waits: `retry_for` counts from the beginning of the walk.
    patience: Patience,
    /// The deadline had passed before the walk began.
    is_late: bool,
    attempts: Attempts,
    counts: Counts,
    /// How many ports were in use, one after the other.
    streak: u32,
    /// The port that was looked at last: where the next walk goes on, however
    /// this one ends. Were it kept on success only, a budget smaller than a
    /// stretch of ports in use would never let a request past them.
    reached: Option<u16>,
}

/// What became of one port.
enum PortOutcome {
    Leased(Lease),
    /// Another lease of this allocator has it, here.
    Taken(Binding),
    /// Another request is trying it.
    Pending,
    /// Another program has it, or this one of its block; the failure is the last
    /// one.
    InUse(u16),
    /// It needs a privilege; the failure is the last one.
    Denied,
    /// A member's address cannot be bound yet; the failure is the last one.
    Tentative,
}

/// What came of asking the kernel for a port.
enum KernelChoice {
    Leased(Lease),
    /// It chose a port that cannot be had elsewhere.
    Lost,
    /// There is no point in asking again.
    Useless,
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
    /// Prepares a plan that [`Plan::check`] has passed.
    pub(super) fn new(plan: Plan) -> Walk {
        let retry_until = (plan.retry_for).and_then(|time| Instant::now().checked_add(time));
        let patience = Patience {
            cancel: plan.cancel.clone(),
            deadline: match plan.budget {
                Budget::Deadline(end) => Some(end),
                _ => retry_until,
            },
        };
        Walk {
            attempts: Attempts::new(&plan, patience.clone()),
            is_late: patience.check() == Err(GivenUp::Deadline),
            patience,
            plan,
            counts: Counts::default(),
            streak: 0,
            reached: None,
        }
    }

    pub(super) fn run(mut self) -> Result<Lease, Error> {
        let prepared = self.attempts.leave_out_missing_families();
        let outcome = prepared.and_then(|()| match self.plan.choice.take() {
            Some(Choice::Exact(port)) => self.exact(port),
            Some(Choice::Range(range)) => self.range(&Span::new(range)),
            Some(Choice::Dynamic { of }) => self.dynamic(&*of).and_then(|span| self.range(&span)),
            None => unreachable!("a request without ports is refused"),
        });
        outcome.map_err(|error| error.counted(self.counts))
    }

    /// Tries one port, once or for a while.
    fn exact(&mut self, port: u16) -> Result<Lease, Error> {
        let mut pause = Duration::from_millis(1);
        loop {
            self.check_cancelled()?;
            let error = match self.try_port(port, DECISION)? {
                PortOutcome::Leased(lease) => return Ok(lease),
                PortOutcome::Pending => continue,
                PortOutcome::Denied => return Err(self.last_error()),
                PortOutcome::InUse(_) | PortOutcome::Tentative => self.last_error(),
                PortOutcome::Taken(binding) => {
                    let leased = self.attempts.endpoint(binding);
                    Error::already_leased(leased, port + binding.offset)
                }
            };
            let left = match self.plan.retry_for {
                Some(_) => self.patience.bound(Duration::MAX),
                None => Duration::ZERO,
            };
            if left.is_zero() {
                return Err(error);
            }
            self.notice(&error);
            self.plan.cancel.sleep(about(pause).min(left));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Tells the caller that the request waits, and what for.
    fn notice(&self, error: &Error) {
        tracing::debug!(%error, "a request for a port waits");
        if let Some(on_wait) = &self.plan.on_wait {
            on_wait(error);
        }
    }

    /// Reads the range to walk over, and along with it fetches the first
    /// sockets.
    fn dynamic(&mut self, of: &dyn Opener) -> Result<Span, Error> {
        let mut range = None;
        let mut reserved = Vec::new();
        for (netns, ports) in self.attempts.restock_with_settings()? {
            if netns == of.netns() {
                range = Some(ports.range);
            }
            reserved.extend(ports.reserved);
        }
        let range = match range {
            Some(range) => range,
            None => {
                let request = OpenRequest {
                    specs: Vec::new(),
                    local_ports: true,
                };
                let ports = of.open(&request, &self.patience)?.local_ports;
                ports.expect("the settings were asked for").range
            }
        };
        Ok(Span { range, reserved })
    }

    /// Walks over a range as often as the budget allows.
    fn range(&mut self, span: &Span) -> Result<Lease, Error> {
        let cursor = self.plan.holds.cursor(&self.plan.protocols, &span.range);
        if let Some(netns) = cursor.contended {
            self.attempts.begin_with(netns);
        }
        let outcome = self.laps(span, cursor.next);
        if let Some(port) = self.reached {
            let contended = self.attempts.contended().or(cursor.contended);
            let protocols = &self.plan.protocols;
            (self.plan.holds).move_cursor(protocols, &span.range, port, contended);
        }
        let stop = match outcome {
            Ok(lease) => return Ok(lease),
            Err(stop) => stop,
        };
        let last = self.attempts.last_error();
        let last = last.map(|error| error.counted(self.counts));
        let protocols = &self.plan.protocols;
        Err(match stop {
            Stop::Tries => Error::exhausted(protocols, &span.range, last),
            Stop::Deadline => Error::deadline(protocols, &span.range, last),
            Stop::Failed(error) => error,
        })
    }

    /// Goes over the range from `first` on, as often as the budget allows.
    fn laps(&mut self, span: &Span, first: u16) -> Result<Lease, Stop> {
        let mut laps = match self.plan.budget {
            Budget::WalkOnce | Budget::Tries(_) => 1,
            Budget::Laps { laps, .. } => laps,
            Budget::Deadline(_) => u32::MAX,
        };
        let mut rest = Duration::from_millis(1);
        loop {
            if let Some(lease) = self.lap(span, first)? {
                self.reached = Some(lease.port());
                return Ok(lease);
            }
            laps -= 1;
            if laps == 0 {
                return Err(Stop::Tries);
            }
            if self.plan.on_wait.is_some() || tracing::enabled!(tracing::Level::DEBUG) {
                let protocols = &self.plan.protocols;
                let last = self.attempts.last_error();
                self.notice(&Error::exhausted(protocols, &span.range, last).counted(self.counts));
            }
            match self.plan.budget {
                Budget::Laps { pause, .. } => self.plan.cancel.sleep(about(pause)),
                Budget::Deadline(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    self.plan.cancel.sleep(about(rest).min(left));
                    rest = (rest * 2).min(Duration::from_millis(50));
                }
                Budget::WalkOnce | Budget::Tries(_) => {}
            }
        }
    }

    /// Tries every port of the range once.
    fn lap(&mut self, span: &Span, first: u16) -> Result<Option<Lease>, Stop> {
        let mut undecided = Vec::new();
        let mut chosen_by_kernel = Vec::new();
        let block = self.plan.block;
        let mut questions = match self.plan.budget {
            // Each try is one of the caller's.
            Budget::Tries(_) => 0,
            // The kernel knows of no blocks.
            _ if block > 1 => 0,
            _ => QUESTIONS,
        };
        self.streak = 0;
        // What a block must not contain: it is known to be in use.
        let mut known = None;
        for port in span.around(first, block) {
            self.check_budget()?;
            self.reached = Some(port);
            if (0..block).any(|offset| span.is_reserved(port + offset)) {
                self.counts.reserved += 1;
                continue;
            }
            if known.is_some_and(|known| (port..=port + (block - 1)).contains(&known)) {
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
                        KernelChoice::Leased(lease) => return Ok(Some(lease)),
                        KernelChoice::Lost => {}
                        KernelChoice::Useless => questions = 0,
                    }
                }
            }
            if chosen_by_kernel.contains(&port) {
                continue;
            }
            match self.try_port(port, Duration::ZERO)? {
                PortOutcome::Leased(lease) => return Ok(Some(lease)),
                PortOutcome::Taken(_) => self.counts.leased += 1,
                PortOutcome::Pending => undecided.push(port),
                PortOutcome::InUse(port) => known = Some(port),
                PortOutcome::Denied => {}
                PortOutcome::Tentative => return self.lap_is_in_vain(),
            }
        }
        self.lap_of_undecided(undecided)
    }

    /// No port will do as long as an address is tentative: with time left, the
    /// next lap may have more luck.
    fn lap_is_in_vain(&self) -> Result<Option<Lease>, Stop> {
        match self.plan.budget {
            Budget::Laps { .. } | Budget::Deadline(_) => Ok(None),
            Budget::WalkOnce | Budget::Tries(_) => Err(self.last_error().into()),
        }
    }

    /// Tries the ports that other requests were trying. We hold nothing while
    /// we wait for those, and no request waits while it holds a claim.
    fn lap_of_undecided(&mut self, ports: Vec<u16>) -> Result<Option<Lease>, Stop> {
        for port in ports {
            loop {
                self.check_budget()?;
                match self.try_port(port, DECISION)? {
                    PortOutcome::Leased(lease) => return Ok(Some(lease)),
                    PortOutcome::Taken(_) => self.counts.leased += 1,
                    PortOutcome::Pending => continue,
                    PortOutcome::InUse(_) | PortOutcome::Denied => {}
                    PortOutcome::Tentative => return self.lap_is_in_vain(),
                }
                break;
            }
        }
        Ok(None)
    }

    /// Tries one port; waits up to `patience` for another request to decide
    /// about it.
    fn try_port(&mut self, port: u16, patience: Duration) -> Result<PortOutcome, Error> {
        // Before the claim: see `Opener::open`.
        self.attempts.restock_all()?;
        let bindings = self.attempts.bindings();
        let claim = (self.plan.holds).claim(port, bindings, patience);
        match claim {
            Ok(hold) => self.with_claim(hold, None),
            Err(ClaimOutcome::Leased(binding)) => Ok(PortOutcome::Taken(binding)),
            Err(_) => Ok(PortOutcome::Pending),
        }
    }

    fn with_claim(&mut self, hold: Hold, given: Option<Given>) -> Result<PortOutcome, Error> {
        self.counts.tried += 1;
        let attempt = self.attempts.attempt(hold.port(), given)?;
        if let Attempt::Owned(members) = attempt {
            let (protocols, block) = (self.plan.protocols.clone(), self.plan.block);
            let lease = Lease::new(protocols, block, members, hold);
            return Ok(PortOutcome::Leased(lease));
        }
        drop(hold);
        Ok(match attempt {
            Attempt::InUse(port) => {
                self.streak += 1;
                PortOutcome::InUse(port)
            }
            Attempt::Denied => {
                self.counts.denied += 1;
                // So that a broker whose policy allows few of many ports is asked
                // for one of a range.
                self.streak += 1;
                PortOutcome::Denied
            }
            Attempt::NoAddress if self.attempts.is_tentative()? => PortOutcome::Tentative,
            _ => return Err(self.last_error()),
        })
    }

    /// Lets the kernel choose a port for the most contended member.
    fn ask_kernel(
        &mut self,
        stretch: RangeInclusive<u16>,
        span: &Span,
        chosen: &mut Vec<u16>,
    ) -> Result<KernelChoice, Stop> {
        self.attempts.restock_all()?;
        // It looks at fewer ports than there are, so that it finds none proves
        // nothing: go on walking.
        let Some((given, port)) = self.attempts.bind_any_of(&stretch) else {
            return Ok(KernelChoice::Useless);
        };
        if span.is_reserved(port) || chosen.contains(&port) {
            return Ok(KernelChoice::Lost);
        }
        self.attempts.restock_all()?;
        let bindings = self.attempts.bindings();
        let claim = (self.plan.holds).claim(port, bindings, Duration::ZERO);
        let Ok(hold) = claim else {
            return Ok(KernelChoice::Lost);
        };
        chosen.push(port);
        match self.with_claim(hold, Some(given))? {
            PortOutcome::Leased(lease) => Ok(KernelChoice::Leased(lease)),
            _ => Ok(KernelChoice::Lost),
        }
    }

    fn check_budget(&self) -> Result<(), Stop> {
        self.check_cancelled()?;
        match self.plan.budget {
            Budget::Tries(tries) if self.counts.tried >= tries => Err(Stop::Tries),
            // With a deadline that was in time a port is looked at, however long it
            // took to get there: or short ones would never get past the first.
            Budget::Deadline(end) if Instant::now() >= end => {
                match self.is_late || self.reached.is_some() {
                    true => Err(Stop::Deadline),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.plan.cancel.is_cancelled() {
            return Err(Error::cancelled(&self.plan.protocols));
        }
        Ok(())
    }

    fn last_error(&self) -> Error {
        let last = self.attempts.last_error();
        last.expect("called after a failure").counted(self.counts)
    }
}

/// `pause`, give or take a half.
fn about(pause: Duration) -> Duration {
    let percent = 50 + u32::try_from(random() % 101).expect("at most 100");
    pause.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::RefCell;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::executor::Executor;
    use crate::netns::{Netns, NetnsId};
    use crate::ports::lease::Member;
    use crate::ports::opener::OpenReply;
    use crate::ports::request::Request;
    use crate::ports::socket::{Fault, hook};
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

        fn open(&self, request: &OpenRequest, _: &Patience) -> Result<OpenReply, Error> {
            self.trips.fetch_add(1, Ordering::Relaxed);
            Ok(request.fill())
        }

        fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
            Ok(false)
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
            .map(|port| TcpListener::bind((addr(1), port)).expect("a free port"))
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
        let range = crate::ports::dynamic::LocalPorts::read().range;
        let (low, high) = (*range.start(), range.start() + 300);
        assert!(
            high <= *range.end(),
            "this machine has a narrow range: {range:?}"
        );
        let busy: Vec<_> = (low..high)
            .map(|port| TcpListener::bind((addr(3), port)).expect("a free port"))
            .collect();
        let mut walk = Walk::new(request(&here, Protocol::Tcp, &[addr(3)], low..=high).into_plan());
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
        let other = Walk::new(request().into_plan());
        let holds = &other.plan.holds;
        let bindings = other.attempts.bindings();
        let claim = holds.claim(20000, bindings, Duration::ZERO);
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

    #[test]
    fn port_that_binds_and_cannot_listen_is_passed_over_and_leaves_nothing() {
        let here = Here::new();
        let rivals = Rc::new(RefCell::new(Vec::new()));
        hook::after_bind({
            let rivals = rivals.clone();
            // As fast as can be, and with SO_REUSEADDR, as std sets it.
            move |at| {
                if at.port() < 20003 {
                    rivals.borrow_mut().extend(TcpListener::bind(at));
                }
            }
        });
        let addrs = [addr(6), addr(7)];
        let request = || request(&here, Protocol::Tcp, &addrs, 20000..=20003);
        let lease = request().acquire().expect("the last one is free");
        assert_eq!(lease.port(), 20003);
        assert_eq!(rivals.borrow().len(), 6);
        drop(lease);
        let error = request().ports(Ports::Range(20000..=20002)).acquire();
        let error = error.expect_err("the rivals listen");
        assert_eq!(error.stage(), Some(Stage::Bind));

        rivals.borrow_mut().clear();
        let error = request().ports(Ports::Exact(20000)).acquire();
        let error = error.expect_err("a rival comes between");
        assert_eq!(error.stage(), Some(Stage::Listen));
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        // No socket of ours is left in the way of either address.
        rivals.borrow_mut().clear();
        for addr in addrs {
            TcpListener::bind((addr, 20000)).expect("nothing is left");
        }
    }

    #[test]
    fn datagram_that_comes_right_after_the_bind_meets_the_filter() {
        let here = Here::new();
        let client = Rc::new(UdpSocket::bind((addr(8), 0)).expect("a free port"));
        hook::after_bind({
            let client = client.clone();
            move |at| {
                client.send_to(b"early", at).expect("loopback");
            }
        });
        let request = request(&here, Protocol::Udp, &[addr(8)], 20000..=20000);
        let lease = request
            .gate(Gate::default())
            .acquire()
            .expect("a free port");
        lease.activate().expect("the filter goes");
        let at = lease.members()[0].local_addr();
        client.send_to(b"late", at).expect("loopback");
        let (mut members, _hold) = lease.split();
        let socket = UdpSocket::from(OwnedFd::from(members.remove(0)));
        let mut text = [0; 8];
        let len = socket.recv(&mut text).expect("a datagram");
        assert_eq!(&text[..len], b"late");
    }

    /// A kernel without IPv6.
    struct OnlyV4(Arc<Here>);

    impl Opener for OnlyV4 {
        fn netns(&self) -> NetnsId {
            self.0.netns()
        }

        fn label(&self) -> &str {
            self.0.label()
        }

        fn open(&self, request: &OpenRequest, patience: &Patience) -> Result<OpenReply, Error> {
            let mut request = request.clone();
            let missing = request.specs.iter().position(|spec| spec.addr.is_ipv6());
            request.specs.truncate(missing.unwrap_or(usize::MAX));
            let mut reply = self.0.open(&request, patience)?;
            if missing.is_some() {
                let cause = std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
                reply.fault = Some(Fault {
                    stage: Stage::Socket,
                    cause,
                });
            }
            Ok(reply)
        }

        fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
            Ok(false)
        }
    }

    #[test]
    fn family_that_is_missing_is_left_out_where_it_was_not_named() {
        let opener = Arc::new(OnlyV4(Here::new()));
        let request = |protocols: &[Protocol]| {
            let request = allocator().request(Protocol::Tcp);
            request
                .protocols(protocols.iter().copied())
                .ports(Ports::Range(20000..=20050))
                .gate(Gate::Queue)
        };
        let both = [Protocol::Tcp, Protocol::Udp];
        for protocols in [&both[..1], &both] {
            let lease = request(protocols).on_families_of(opener.clone()).acquire();
            let lease = lease.expect("there is IPv4");
            let addrs = lease.members().iter().map(Member::local_addr);
            assert!(addrs.clone().all(|addr| addr.is_ipv4()));
            assert_eq!(addrs.count(), protocols.len());
        }
        let named = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let error = request(&both).on_opener(opener, named).acquire();
        let error = error.expect_err("it was named");
        assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
    }
}
