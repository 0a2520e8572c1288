//! What one contestant measured, round by round.

use crate::spread::{Spread, median, quantile};

/// What one contestant measured: one median per round, and all samples together.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    /// By round, so that those of two contestants can be paired.
    rounds: Vec<f64>,
    pooled: Vec<f64>,
}

impl Rounds {
    /// Adds the samples of one turn as a round of its own.
    ///
    /// # Panics
    ///
    /// When a turn brings no sample: the pairing of rounds would slip.
    pub fn push_round(&mut self, samples: &[f64]) {
        self.rounds.push(median(samples));
        self.pooled.extend_from_slice(samples);
    }

    /// How many samples there are, over all rounds.
    pub fn samples(&self) -> usize {
        self.pooled.len()
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
    pub fn ratio_to(&self, base: &Rounds) -> Option<Spread> {
        Spread::of(&self.pair(base, |own, base| own / base))
    }

    /// How much more than `base` this is, round by round.
    pub fn difference_to(&self, base: &Rounds) -> Option<Spread> {
        Spread::of(&self.pair(base, |own, base| own - base))
    }

    fn pair(&self, base: &Rounds, by: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        (self.rounds.iter().zip(&base.rounds))
            .map(|(own, base)| by(*own, *base))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_pairs_rounds_so_that_a_drift_of_the_machine_cancels() {
        let (mut own, mut base) = (Rounds::default(), Rounds::default());
        for drift in [1.0, 5.0, 2.0] {
            own.push_round(&[300.0 * drift]);
            base.push_round(&[100.0 * drift]);
        }
        let ratio = own.ratio_to(&base).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (3.0, 3.0, 3.0));
        // The medians of the two contestants taken apart would have drifted.
        assert_eq!(own.typical().unwrap().max, 1500.0);
    }

    #[test]
    fn one_slow_round_moves_the_tail_and_not_the_median() {
        let mut rounds = Rounds::default();
        for _ in 0..10 {
            rounds.push_round(&[10.0, 11.0, 12.0]);
        }
        rounds.push_round(&[5000.0, 5000.0, 5000.0]);
        assert_eq!(rounds.typical().unwrap().median, 11.0);
        assert_eq!(rounds.p99(), Some(5000.0));
    }

    #[test]
    fn difference_is_taken_round_by_round() {
        let (mut own, mut base) = (Rounds::default(), Rounds::default());
        own.push_round(&[105.0]);
        base.push_round(&[100.0]);
        own.push_round(&[209.0]);
        base.push_round(&[200.0]);
        assert_eq!(own.difference_to(&base).unwrap().median, 7.0);
    }
}
