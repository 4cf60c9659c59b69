//! How long a running job may go without a step or a frame before its worker counts as stuck.

use std::time::Duration;

use super::config::Config;
use super::rolling_median::RollingMedian;

/// The number of step times that the median is computed from.
const STEP_SAMPLES: usize = 63;
/// The limit in median steps.
const MEDIAN_STEPS: u32 = 10;

/// The limit on the time between two signs of progress of a running job.
#[derive(Debug)]
pub(super) struct ProgressLimit {
    /// The lower bound of the limit.
    min: Duration,
    steps: RollingMedian,
    limit: Duration,
}

impl ProgressLimit {
    pub(super) fn new(config: &Config) -> Self {
        let min = config.min_step_timeout;
        Self {
            min,
            steps: RollingMedian::new(STEP_SAMPLES),
            limit: min,
        }
    }

    /// Takes the time of a step into account.
    pub(super) fn add_step(&mut self, time: Duration) {
        self.steps.add(time);
        let median = self.steps.median().unwrap_or_default();
        self.limit = (median * MEDIAN_STEPS).max(self.min);
    }

    /// The limit: ten times the median step, and never less than the lower bound.
    pub(super) fn get(&self) -> Duration {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::fixtures;

    #[test]
    fn the_limit_is_ten_times_the_median_of_the_latest_steps() {
        let ms = Duration::from_millis;
        let limit = |min: u64, steps: &[u64]| {
            let mut config = fixtures::config();
            config.min_step_timeout = ms(min);
            let mut limit = ProgressLimit::new(&config);
            for &step in steps {
                limit.add_step(ms(step));
            }
            limit.get()
        };
        assert_eq!(limit(50, &[]), ms(50));
        assert_eq!(limit(50, &[10, 1000, 10]), ms(100));
        assert_eq!(limit(200, &[10, 1000, 10]), ms(200));
    }
}
