//! What a call into a namespace costs, beside what people use today.
//!
//! `cargo bench -p benches --bench compare` is the way in; this library is what
//! it is made of, each part using only those above it:
//!
//! - [`conditions`]: the namespace, the CPUs and the machine under a measurement;
//! - [`peers`]: all that is measured, a file each;
//! - [`sections`]: when which peer is measured, and how;
//! - [`report`]: what came of it, for people and for machines.
//!
//! Every figure is a ratio within one run: see [`netns_exec_measure`], the
//! statistics that `netns-exec bench` uses too.
#![cfg(target_os = "linux")]

pub mod alloc;
pub mod conditions;
pub mod peers;
pub mod report;
pub mod sections;
pub mod work;

/// What the harness returns: its errors are for the person at the terminal.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
