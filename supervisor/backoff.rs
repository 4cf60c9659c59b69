//! Exponential backoff: the pauses between attempts at something that keeps failing.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// The pauses after failures in a row: each is twice the one before, up to a maximum.
///
/// [`Self::with_jitter`] spreads the pauses of many holders, so that those that failed together do not all try again
/// together.
#[derive(Debug)]
pub struct Backoff {
    policy: ExponentialBuilder,
    max: Duration,
    pauses: <ExponentialBuilder as BackoffBuilder>::Backoff,
}

impl Backoff {
    /// The first pause is `min`; no pause is longer than `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let policy = ExponentialBuilder::new()
            .with_min_delay(min)
            .with_max_delay(max)
            .without_max_times();
        Self::of(policy, max)
    }

    /// Lengthens each pause by a random part of it, up to its double and never beyond the maximum.
    #[must_use]
    pub fn with_jitter(self) -> Self {
        Self::of(self.policy.with_jitter(), self.max)
    }

    fn of(policy: ExponentialBuilder, max: Duration) -> Self {
        Self {
            policy,
            max,
            pauses: policy.build(),
        }
    }

    /// The pause after another failure.
    pub fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.max).min(self.max)
    }

    /// Starts again from the shortest pause, after a success.
    pub fn reset(&mut self) {
        self.pauses = self.policy.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_start_again_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(500), ms(3000));
        let pauses: Vec<_> = (0..5).map(|_| backoff.next_pause()).collect();
        assert_eq!(pauses, [ms(500), ms(1000), ms(2000), ms(3000), ms(3000)]);
        backoff.reset();
        assert_eq!(backoff.next_pause(), ms(500));
    }

    #[test]
    fn jitter_lengthens_a_pause_by_at_most_its_length_and_never_beyond_the_maximum() {
        let ms = Duration::from_millis;
        for _ in 0..100 {
            let mut backoff = Backoff::new(ms(100), ms(250)).with_jitter();
            assert!((ms(100)..=ms(200)).contains(&backoff.next_pause()));
            assert!((ms(200)..=ms(250)).contains(&backoff.next_pause()));
        }
    }
}
