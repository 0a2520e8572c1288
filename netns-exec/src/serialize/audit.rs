//! The findings of an audit.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::audit::{
    Hold, Holder, Holders, Namespace, Namespaces, Process, Thread, Unreadable, Verdict,
};

/// As it displays: `"home"`, `"worker"`, `"stray"` or `"unknown"`.
impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

structs! {
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
