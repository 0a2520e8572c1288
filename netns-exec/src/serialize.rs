//! What may leave the program: ids, figures and the findings of an audit, for serde.
//!
//! In one list, by the same names as the command prints with `--json`. A finding is told and
//! not read back, since it is true of one moment of one machine; an id can be, for what was
//! written down with it.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::audit::{
    Hold, Holder, Holders, Namespace, Namespaces, Process, Thread, Unreadable, Verdict,
};
use crate::executor::{NetnsStats, Stats};
use crate::netns::NetnsId;

/// As [`as_u64`](NetnsId::as_u64): a number.
impl Serialize for NetnsId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.as_u64())
    }
}

/// From a number. It means something until the next boot; whether there is (still) such a
/// namespace is not asked.
impl<'de> Deserialize<'de> for NetnsId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NetnsId, D::Error> {
        u64::deserialize(deserializer).map(NetnsId::from_raw)
    }
}

/// As it displays: `"home"`, `"worker"`, `"stray"` or `"unknown"`.
impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Writes out what serde derives from fields, for types that have none to the outside, or
/// that are to have no new one without a name here.
macro_rules! structs {
    ($($(#[$about:meta])* $type:ty as $this:pat => { $($key:ident: $value:expr,)+ })+) => {$(
        $(#[$about])*
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                const FIELDS: usize = [$(stringify!($key)),+].len();
                let $this = self;
                let mut fields = serializer.serialize_struct(stringify!($type), FIELDS)?;
                $(fields.serialize_field(stringify!($key), &$value)?;)+
                fields.end()
            }
        }
    )+};
}

structs! {
    Stats as Stats { workers, threads, queued, running, futures, done, panicked, refused, per_netns } => {
        workers: workers,
        threads: threads,
        queued: queued,
        running: running,
        futures: futures,
        done: done,
        panicked: panicked,
        refused: refused,
        per_netns: per_netns,
    }
    NetnsStats as NetnsStats { id, label, workers, rung, queued, running, futures, done, panicked } => {
        id: id,
        label: label,
        workers: workers,
        rung: rung,
        queued: queued,
        running: running,
        futures: futures,
        done: done,
        panicked: panicked,
    }
    Process as process => {
        pid: process.pid(),
        name: process.name(),
        home: process.home_id(),
        threads: process.threads(),
    }
    Thread as thread => {
        tid: thread.tid(),
        name: thread.name(),
        netns_id: thread.netns_id(),
        label: thread.label(),
        verdict: thread.verdict(),
        seems_child_of: thread.seems_child_of(),
        origin: thread.origin(),
    }
    Namespaces as found => {
        namespaces: found.namespaces(),
        unreadable: found.unreadable(),
    }
    Namespace as namespace => {
        id: namespace.id(),
        inode: namespace.inode(),
        names: namespace.names(),
        holders: namespace.holders(),
    }
    Holders as found => {
        holders: found.holders(),
        unreadable: found.unreadable(),
    }
    Unreadable as process => {
        pid: process.pid(),
        process: process.process(),
        what: process.what(),
    }
}

/// With the fields of its [`Hold`] among its own.
impl Serialize for Holder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Holder", 4)?;
        fields.serialize_field("pid", &self.pid())?;
        fields.serialize_field("process", self.process())?;
        add_hold(&mut fields, self.hold())?;
        fields.end()
    }
}

/// As `kind`, and beside it what that has: `tid`, `fd` or `path`.
impl Serialize for Hold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Hold", 2)?;
        add_hold(&mut fields, self)?;
        fields.end()
    }
}

fn add_hold<F: SerializeStruct>(fields: &mut F, hold: &Hold) -> Result<(), F::Error> {
    match hold {
        Hold::Thread { tid } => {
            fields.serialize_field("kind", "thread")?;
            fields.serialize_field("tid", tid)
        }
        Hold::Fd { fd } => {
            fields.serialize_field("kind", "fd")?;
            fields.serialize_field("fd", fd)
        }
        Hold::Socket { fd } => {
            fields.serialize_field("kind", "socket")?;
            fields.serialize_field("fd", fd)
        }
        Hold::Mount { path } => {
            fields.serialize_field("kind", "mount")?;
            // A path need not be UTF-8, which is no reason to tell nothing.
            fields.serialize_field("path", &path.to_string_lossy())
        }
    }
}
