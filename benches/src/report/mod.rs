//! What was found: as JSON for machines, as Markdown and plots for people.

pub mod combine;
mod figures;
pub mod goals;
mod markdown;
pub mod plot;

pub use figures::{Bound, Goal, Report};
