//! A range to walk over, and where its walks begin.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::OnceLock;

use super::protocol::Protocols;
use crate::netns::NetnsId;

/// Where the first walk over a range begins; later ones go on after the port that
/// the last one looked at, whether it got that or not.
///
/// # Examples
///
/// ```
/// use std::net::Ipv4Addr;
/// use netns_exec::ports::{Allocator, Gate, Ports, Protocol, Start};
/// use netns_exec::{Executor, Netns};
///
/// let ports = Allocator::starting_at(&Executor::new()?, Start::Beginning);
/// let lease = ports
///     .request(Protocol::Udp)
///     .on(&Netns::current()?, [Ipv4Addr::LOCALHOST.into()])
///     .ports(Ports::Range(33100..=33199))
///     .gate(Gate::Queue)
///     .acquire()?;
/// println!("{}", lease.port()); // 33100, unless another program has it
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At a place chosen once per process.
    #[default]
    Random,
    /// At the lowest port.
    Beginning,
}

/// The ports of one walk: a range without its holes.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) range: RangeInclusive<u16>,
    /// In no order, and they may overlap: there are few.
    pub(crate) reserved: Vec<RangeInclusive<u16>>,
}

impl Span {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Span {
            range,
            reserved: Vec::new(),
        }
    }

    pub(crate) fn is_reserved(&self, port: u16) -> bool {
        self.reserved.iter().any(|hole| hole.contains(&port))
    }

    /// Every port of the range with which a block of so many can begin, once, from
    /// `first` on and around the end.
    pub(crate) fn around(&self, first: u16, block: u16) -> impl Iterator<Item = u16> + use<> {
        let (low, high) = (*self.range.start(), *self.range.end());
        let fits = move |port: &u16| high - port >= block - 1;
        (first..=high).chain(low..first).filter(fits)
    }
}

/// Where walks go on. Kept per range and protocol; a release moves nothing.
#[derive(Default)]
pub(crate) struct Cursors {
    start: Start,
    cursors: HashMap<(Protocols, RangeInclusive<u16>), Cursor>,
}

#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    pub(crate) next: u16,
    /// Where a port was last found in use: the member to try first.
    pub(crate) contended: Option<NetnsId>,
}

impl Cursors {
    pub(crate) fn new(start: Start) -> Self {
        Cursors {
            start,
            cursors: HashMap::new(),
        }
    }

    pub(crate) fn get(&self, protocols: &Protocols, range: &RangeInclusive<u16>) -> Cursor {
        let known = self.cursors.get(&(protocols.clone(), range.clone()));
        known.copied().unwrap_or_else(|| Cursor {
            next: match self.start {
                Start::Beginning => *range.start(),
                Start::Random => {
                    let len = u64::from(range.end() - range.start()) + 1;
                    let offset = process_seed() % len;
                    range.start() + u16::try_from(offset).expect("less than the range is long")
                }
            },
            contended: None,
        })
    }

    /// Moves the cursor past a port that was looked at.
    pub(crate) fn pass(
        &mut self,
        protocols: &Protocols,
        range: &RangeInclusive<u16>,
        port: u16,
        contended: Option<NetnsId>,
    ) {
        let next = if port == *range.end() {
            *range.start()
        } else {
            port + 1
        };
        let cursor = Cursor { next, contended };
        self.cursors
            .insert((protocols.clone(), range.clone()), cursor);
    }
}

/// The same for the life of the process.
fn process_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(random)
}

/// A random number that need not be secret: std seeds its hash maps with one.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::protocol::Protocol;

    fn tcp() -> Protocols {
        Protocols::new([Protocol::Tcp])
    }

    #[test]
    fn walk_meets_every_port_once_from_anywhere() {
        let span = Span::new(65530..=65535);
        for first in 65530..=65535 {
            let mut ports: Vec<u16> = span.around(first, 1).collect();
            assert_eq!(ports[0], first);
            ports.sort_unstable();
            assert_eq!(ports, (65530..=65535).collect::<Vec<_>>());
        }
    }

    #[test]
    fn cursor_goes_on_after_the_port_and_around_the_end() {
        let mut cursors = Cursors::new(Start::Beginning);
        let range = 100..=102;
        assert_eq!(cursors.get(&tcp(), &range).next, 100);
        cursors.pass(&tcp(), &range, 100, None);
        assert_eq!(cursors.get(&tcp(), &range).next, 101);
        assert_eq!(
            cursors.get(&Protocols::new([Protocol::Udp]), &range).next,
            100
        );
        cursors.pass(&tcp(), &range, 102, None);
        assert_eq!(cursors.get(&tcp(), &range).next, 100);
        assert_eq!(cursors.get(&tcp(), &(100..=103)).next, 100);
    }

    #[test]
    fn random_start_is_one_place_per_process_within_the_range() {
        let range = 1..=65535;
        let first = Cursors::new(Start::Random).get(&tcp(), &range).next;
        let second = Cursors::new(Start::Random).get(&tcp(), &range).next;
        assert_eq!(first, second);
        let one = Cursors::new(Start::Random).get(&tcp(), &(7..=7)).next;
        assert_eq!(one, 7);
    }
}
