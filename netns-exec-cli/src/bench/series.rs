//! The times that one way of calling took, and what they come to.

/// Nanoseconds a call, round by round: a machine drifts by more than the
/// differences that matter, so what is compared comes from the same round.
#[derive(Default)]
pub(super) struct Series {
    /// The median of each round.
    rounds: Vec<f64>,
    /// All samples: one round alone has too few for a 99th percentile.
    samples: Vec<f64>,
}

impl Series {
    /// Adds the samples of one round, of which there is at least one.
    pub(super) fn push_round(&mut self, samples: &[f64]) {
        self.rounds.push(median(samples.to_vec()));
        self.samples.extend_from_slice(samples);
    }

    pub(super) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// The median of the rounds' medians.
    pub(super) fn p50(&self) -> f64 {
        median(self.rounds.clone())
    }

    /// What all samples but one in a hundred did not exceed.
    pub(super) fn p99(&self) -> f64 {
        quantile(self.samples.clone(), 0.99)
    }

    /// How many times as long as `base` this took: the median of the ratios
    /// taken within each round.
    pub(super) fn ratio_to(&self, base: &Series) -> f64 {
        let pairs = self.rounds.iter().zip(&base.rounds);
        median(pairs.map(|(own, base)| own / base).collect())
    }
}

/// The middle; of two middles, their mean.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    f64::midpoint(values[low], values[high])
}

/// The smallest value that the fraction `part` of them does not exceed.
fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rounds: &[&[f64]]) -> Series {
        let mut series = Series::default();
        rounds.iter().for_each(|round| series.push_round(round));
        series
    }

    #[test]
    fn median_of_an_even_number_lies_between_the_middles() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![7.0]), 7.0);
    }

    #[test]
    fn quantile_is_one_of_the_values() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(hundred.clone(), 0.99), 99.0);
        assert_eq!(quantile(hundred.clone(), 0.5), 50.0);
        assert_eq!(quantile(hundred, 1.0), 100.0);
        assert_eq!(quantile(vec![7.0], 0.99), 7.0);
    }

    #[test]
    fn slow_round_moves_the_p99_and_not_the_p50() {
        let usual: &[f64] = &[10.0, 11.0, 12.0];
        let slow: &[f64] = &[5000.0];
        let series = series(&[usual, usual, slow, usual]);
        assert_eq!((series.p50(), series.p99()), (11.0, 5000.0));
        assert_eq!(series.samples(), 10);
    }

    #[test]
    fn drift_of_the_machine_cancels_in_the_ratio() {
        let own = series(&[&[30.0], &[3000.0], &[60.0]]);
        let base = series(&[&[10.0], &[1000.0], &[20.0]]);
        assert_eq!(own.ratio_to(&base), 3.0);
        assert_eq!(own.ratio_to(&own), 1.0);
    }
}
