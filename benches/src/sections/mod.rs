//! The sections of the comparison, and the contests that most are made of.

pub mod allocations;
mod at_once;
pub mod contest;
pub mod fleet;
pub mod footprint;
pub mod latency;
pub mod throughput;
pub mod trips;
