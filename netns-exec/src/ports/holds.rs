//! The hold on a port in the logical table: taken before any socket has the
//! port, and given up after all of them are closed.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::protocol::Protocols;
use super::range::{Cursor, Cursors, Start};
use super::table::{Binding, ClaimOutcome, Generation, Table};
use crate::netns::NetnsId;

/// What all clones of an [`Allocator`](super::Allocator) share.
pub(crate) struct Holds {
    inner: Mutex<Inner>,
    /// Signalled when a claim is confirmed or given up.
    decided: Condvar,
}

struct Inner {
    table: Table,
    cursors: Cursors,
}

impl Holds {
    pub(crate) fn new(start: Start) -> Arc<Holds> {
        Arc::new(Holds {
            inner: Mutex::new(Inner {
                table: Table::default(),
                cursors: Cursors::new(start),
            }),
            decided: Condvar::new(),
        })
    }

    /// Where the next walk over a range begins.
    pub(crate) fn cursor(&self, protocols: &Protocols, range: &RangeInclusive<u16>) -> Cursor {
        self.inner.lock().cursors.get(protocols, range)
    }

    /// Has the next walk over a range begin after `port`, which was looked at.
    pub(crate) fn move_cursor(
        &self,
        protocols: &Protocols,
        range: &RangeInclusive<u16>,
        port: u16,
        contended: Option<NetnsId>,
    ) {
        let mut inner = self.inner.lock();
        inner.cursors.pass(protocols, range, port, contended);
    }

    /// All that is leased, in order.
    pub(crate) fn leased(&self) -> Vec<(u16, Binding)> {
        self.inner.lock().table.leased().collect()
    }

    /// Takes the port in the table, for as long as the returned [`Hold`] lives.
    /// Waits up to `patience` for a pending claim that is in the way.
    pub(crate) fn claim(
        self: &Arc<Holds>,
        port: u16,
        bindings: &Arc<[Binding]>,
        patience: Duration,
    ) -> Result<Hold, ClaimOutcome> {
        let mut inner = self.inner.lock();
        let mut answer = inner.table.claim(port, bindings);
        if answer == ClaimOutcome::Pending && !patience.is_zero() {
            self.decided.wait_for(&mut inner, patience);
            answer = inner.table.claim(port, bindings);
        }
        match answer {
            ClaimOutcome::Granted(generation) => Ok(Hold {
                holds: self.clone(),
                generation,
                port,
                bindings: bindings.clone(),
            }),
            refused => Err(refused),
        }
    }
}

/// Keeps a port taken in the logical table of the [`Allocator`] that leased
/// it, so that no other request is given it; dropping it frees the port.
///
/// [`Allocator`]: super::Allocator
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::Lease;
/// # fn f(lease: Lease) {
/// // The sockets go to the container's process; the number is its own until that ends.
/// let (sockets, hold) = lease.split();
/// drop(sockets);
/// // ... much later
/// drop(hold);
/// # }
/// ```
pub struct Hold {
    holds: Arc<Holds>,
    generation: Generation,
    port: u16,
    bindings: Arc<[Binding]>,
}

impl Hold {
    /// Returns the port; of a block, the first one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: Lease) {
    /// let (sockets, hold) = lease.split();
    /// println!("port {} stays reserved while {} sockets are handed on", hold.port(), sockets.len());
    /// # }
    /// ```
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Frees what is held on one address, for every protocol, and keeps the rest.
    /// Returns `false` if that was done before or there is no such member; a newer
    /// hold on it is not disturbed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::Hold};
    /// # fn f(hold: &mut Hold, blue: &Netns) {
    /// // The container is gone, and with it its socket; the host's stays.
    /// assert!(hold.release(blue.id(), [0, 0, 0, 0].into()));
    /// # }
    /// ```
    pub fn release(&mut self, netns: NetnsId, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let mut inner = self.holds.inner.lock();
        let mut released = false;
        for &binding in &*self.bindings {
            if (binding.netns, binding.addr) == (netns, addr) {
                released |= (inner.table).release(self.generation, self.port, binding);
            }
        }
        drop(inner);
        self.holds.decided.notify_all();
        released
    }

    /// Turns a claim into a lease.
    pub(crate) fn confirm(&self) {
        let mut inner = self.holds.inner.lock();
        (inner.table).confirm(self.generation, self.port, &self.bindings);
        drop(inner);
        self.holds.decided.notify_all();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.holds.inner.lock();
        for &binding in &*self.bindings {
            (inner.table).release(self.generation, self.port, binding);
        }
        drop(inner);
        self.holds.decided.notify_all();
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({})", self.port)
    }
}
