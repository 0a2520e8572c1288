//! Medians, quantiles, and a median with its extremes.

use serde::{Deserialize, Serialize};

/// The value below which the fraction `q` of `sorted` lies (nearest rank).
///
/// # Panics
///
/// When `sorted` is empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    assert!(!sorted.is_empty(), "a quantile of nothing");
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The middle of `values`; of two middles, their mean.
///
/// # Panics
///
/// When `values` is empty.
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

/// A median over rounds, with the extremes that it hides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle of the rounds.
    pub median: f64,
    /// The smallest round.
    pub min: f64,
    /// The largest round.
    pub max: f64,
}

impl Spread {
    /// A figure that was taken once.
    pub fn exactly(value: f64) -> Spread {
        Spread {
            median: value,
            min: value,
            max: value,
        }
    }

    /// The same in another unit.
    pub fn times(self, factor: f64) -> Spread {
        let (one, other) = (self.min * factor, self.max * factor);
        Spread {
            median: self.median * factor,
            min: one.min(other),
            max: one.max(other),
        }
    }

    /// Sums up one value per round; `None` when there was no round.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Spread {
            median: median(values),
            min,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_takes_the_nearest_rank() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.99), 99.0);
        assert_eq!(quantile(&sorted, 0.5), 50.0);
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 1.0), 100.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn median_of_an_even_number_lies_between_the_middles() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
    }

    #[test]
    fn spread_of_no_round_is_none() {
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn extremes_keep_their_order_when_the_sign_turns() {
        let spread = Spread::of(&[1.0, 2.0, 4.0]).unwrap().times(-2.0);
        let Spread { median, min, max } = spread;
        assert_eq!((median, min, max), (-4.0, -8.0, -2.0));
    }
}
