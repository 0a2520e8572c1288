//! Leases of ports.
//!
//! No test here starts a process: between fork and exec a child has a copy of
//! every socket, and so owns for a moment what a test beside it has just given
//! back. Those that do are in `ports_alone.rs` and in `ports_broker/`.

mod budgets;
mod choice;
mod leases;
mod model;
mod options;
mod races;
mod requests;
mod sockets;

netns_exec::rootless::test_harness!(own_net);
