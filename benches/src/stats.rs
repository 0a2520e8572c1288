//! Robust figures: medians of rounds, and ratios taken within a round.
//!
//! A shared machine drifts by more than the differences that matter, so no
//! figure is compared with one from another minute. Every contestant has a turn
//! in every round; a ratio is taken between two turns of the same round, and the
//! median of those ratios is what is reported, with the smallest and the largest
//! beside it.

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

/// What one contestant measured: one median per round, and all samples together.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// By round, so that two series of one contest can be paired.
    rounds: Vec<f64>,
    pooled: Vec<f64>,
}

impl Series {
    /// Adds the samples of one turn as a round of its own.
    ///
    /// # Panics
    ///
    /// When a turn brings no sample: the pairing of rounds would slip.
    pub fn push_round(&mut self, samples: &[f64]) {
        self.rounds.push(median(samples));
        self.pooled.extend_from_slice(samples);
    }

    /// The median of the rounds' medians, and their extremes.
    pub fn typical(&self) -> Option<Spread> {
        Spread::of(&self.rounds)
    }

    /// The 99th percentile of all samples; a turn alone has too few for it.
    pub fn p99(&self) -> Option<f64> {
        if self.pooled.is_empty() {
            return None;
        }
        let mut sorted = self.pooled.clone();
        sorted.sort_by(f64::total_cmp);
        Some(quantile(&sorted, 0.99))
    }

    /// How many times `base` this is, round by round.
    pub fn ratio_to(&self, base: &Series) -> Option<Spread> {
        Spread::of(&self.pair(base, |own, base| own / base))
    }

    /// How much more than `base` this is, round by round.
    pub fn difference_to(&self, base: &Series) -> Option<Spread> {
        Spread::of(&self.pair(base, |own, base| own - base))
    }

    fn pair(&self, base: &Series, by: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        (self.rounds.iter().zip(&base.rounds))
            .map(|(own, base)| by(*own, *base))
            .collect()
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

    #[test]
    fn ratio_pairs_rounds_so_that_a_drift_of_the_machine_cancels() {
        let (mut own, mut base) = (Series::default(), Series::default());
        for drift in [1.0, 5.0, 2.0] {
            own.push_round(&[300.0 * drift]);
            base.push_round(&[100.0 * drift]);
        }
        let ratio = own.ratio_to(&base).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (3.0, 3.0, 3.0));
        // The medians of the two series taken apart would have drifted.
        assert_eq!(own.typical().unwrap().max, 1500.0);
    }

    #[test]
    fn one_slow_round_moves_the_tail_and_not_the_median() {
        let mut series = Series::default();
        for _ in 0..10 {
            series.push_round(&[10.0, 11.0, 12.0]);
        }
        series.push_round(&[5000.0, 5000.0, 5000.0]);
        assert_eq!(series.typical().unwrap().median, 11.0);
        assert_eq!(series.p99(), Some(5000.0));
    }

    #[test]
    fn difference_is_taken_round_by_round() {
        let (mut own, mut base) = (Series::default(), Series::default());
        own.push_round(&[105.0]);
        base.push_round(&[100.0]);
        own.push_round(&[209.0]);
        base.push_round(&[200.0]);
        assert_eq!(own.difference_to(&base).unwrap().median, 7.0);
    }
}
