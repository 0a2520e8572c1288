//! Robust figures for the benchmarks of netns-exec: turns that are timed, medians
//! of rounds, and ratios taken within a round.
//!
//! A shared machine drifts by more than the differences that matter, so no
//! figure is compared with one from another minute. Every contestant has a turn
//! in every round; a ratio is taken between two turns of the same round, and the
//! median of those ratios is what is reported, with the smallest and the largest
//! beside it.
//!
//! `netns-exec bench` and the comparison in `benches` both measure with this, so
//! that their figures mean the same. It knows nothing of namespaces.
//!
//! ```
//! use netns_exec_measure::Rounds;
//!
//! let (mut own, mut base) = (Rounds::default(), Rounds::default());
//! // The machine becomes three times slower; the ratio stays.
//! for drift in [1.0, 3.0] {
//!     own.push_round(&[20.0 * drift, 22.0 * drift, 24.0 * drift]);
//!     base.push_round(&[11.0 * drift]);
//! }
//! assert_eq!(own.ratio_to(&base).map(|ratio| ratio.median), Some(2.0));
//! ```

mod rounds;
mod spread;
mod turn;

pub use rounds::Rounds;
pub use spread::{Spread, median, quantile};
pub use turn::{Extent, apart, back_to_back};
