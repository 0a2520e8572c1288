//! How a closure gets to a worker, and how its outcome gets back.

mod at;
pub(crate) mod batch;
pub(crate) mod broadcast;
pub(crate) mod counted;
pub(crate) mod first_look;
pub(crate) mod future;
pub(crate) mod handle;
pub(crate) mod job;
pub(crate) mod lane;
pub(crate) mod latch;
pub(crate) mod outcome;
pub(crate) mod pace;
pub(crate) mod scope;
pub(crate) mod task;
pub(crate) mod turns;
