//! The command `netns-exec`, as a user meets it.

mod audit;
mod bench;
mod lease;
mod libnetwork_1113;
mod run;
