//! Times on a command line.

use std::time::Duration;

/// A number of seconds, which may have a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The same, and some time at least.
pub(crate) fn seconds_above_zero(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("not above 0".to_owned()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_no_sign() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "NaN", "1e300", "5s"] {
            seconds(text).expect_err(text);
        }
    }

    #[test]
    fn zero_is_some_time_only_where_it_may_be() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        seconds_above_zero("0").expect_err("no time");
        assert_eq!(seconds_above_zero("2"), Ok(Duration::from_secs(2)));
    }
}
