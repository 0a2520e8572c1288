//! What surrounds a measurement: the namespace, the CPUs, the machine, and what
//! happens between two calls.

pub mod cpus;
pub mod machine;
pub mod namespace;
pub mod quiet;
pub mod regime;
