//! What may leave the program: ids, figures and the findings of an audit, for serde.
//!
//! In one list, and `audit.rs` for what that feature has, by the same names as the command
//! prints with `--json`. A finding is told and not read back, since it is true of one moment
//! of one machine; an id can be, for what was written down with it.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeStruct, Serializer};

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

// After the macro, which it uses.
#[cfg(feature = "audit")]
mod audit;

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
}
