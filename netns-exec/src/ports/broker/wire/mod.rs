//! The messages between a broker and its client: to bytes, and back.
//!
//! A request is a head (magic, sequence number, what is wanted) and a body of
//! fixed layout, all in the machine's own byte order, for both ends are on it.
//! The first request is `Hello`, and may come again when the socket has been
//! handed on; it sets the sequence number, which every later request increases
//! by one. Each request has exactly one answer, with the same number. What does
//! not follow these rules is answered with the reason, [`Malformed`], and
//! nothing is done.
//!
//! There is no message to give a port back: a process owns it that has its
//! socket, and free when all copies are closed.

mod frame;
#[cfg(any(test, fuzzing))]
pub(in crate::ports) mod fuzz;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub(super) use frame::{Malformed, seq_of};
pub(super) use reply::{
    Bitmap, BrokerReply, Hello, LIMITED, MAX_REPLY, NOTHING_RESERVED, WITHOUT_V6, decode_reply,
    put_bound, put_failed, put_hello_reply, put_malformed, put_unbound, put_vended, reserve,
};
pub(super) use request::{
    BrokerRequest, MAX_REQUEST, MAX_SPECS, decode_request, put_bind, put_hello, put_vend,
};
