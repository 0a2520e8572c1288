//! What a call into a namespace costs, beside what people use today.
//!
//! `cargo bench -p benches --bench compare` is the way in; this library is what
//! it is made of. Every figure is a ratio within one run: see [`stats`].
#![cfg(target_os = "linux")]

pub mod alloc;
pub mod allocations;
pub mod combine;
pub mod contest;
pub mod cpus;
pub mod fleet;
pub mod footprint;
pub mod latency;
pub mod machine;
pub mod peers;
pub mod plot;
pub mod quiet;
pub mod regime;
pub mod report;
pub mod site;
pub mod stats;
pub mod targets;
pub mod throughput;
pub mod work;

/// What the harness returns: its errors are for the person at the terminal.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
