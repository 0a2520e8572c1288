//! What the floors hand over: a word in cache lines of its own.

use std::sync::atomic::AtomicU32;

pub(super) const IDLE: u32 = 0;
pub(super) const REQUEST: u32 = 1;
pub(super) const PARK: u32 = 2;
pub(super) const STOP: u32 = 3;

/// The word that bounces, alone in its pair of cache lines: x86-64 fetches
/// lines in pairs.
#[repr(align(128))]
pub(super) struct Line(pub(super) AtomicU32);
