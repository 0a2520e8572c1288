//! The network wing: sockets of a namespace, ahead of use and one at a time, its tables
//! and its names.

mod awaited;
mod proc_net;
mod resolve;
mod sockets;
mod stock;

netns_exec::rootless::test_harness!(own_net);
