//! The median over a sliding window of durations.

use std::time::Duration;

/// The latest durations, and their median.
#[derive(Debug)]
pub(super) struct RollingMedian {
    /// The size of the window.
    limit: usize,
    times: Vec<Duration>,
    /// The index of the oldest duration once the window is full.
    next: usize,
}

impl RollingMedian {
    /// Creates a window of the latest `limit` durations, at least 1.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            times: Vec::new(),
            next: 0,
        }
    }

    /// Adds a duration in place of the oldest one.
    pub(super) fn add(&mut self, time: Duration) {
        if self.times.len() < self.limit {
            self.times.push(time);
        } else {
            self.times[self.next] = time;
            self.next = (self.next + 1) % self.limit;
        }
    }

    /// Returns the median; `None` before the first duration was added.
    pub(super) fn median(&self) -> Option<Duration> {
        let mut times = self.times.clone();
        let middle = times.len() / 2;
        (!times.is_empty()).then(|| *times.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_latest_times() {
        let ms = Duration::from_millis;
        let mut times = RollingMedian::new(5);
        assert_eq!(times.median(), None);
        for time in [10, 1000, 10] {
            times.add(ms(time));
        }
        assert_eq!(times.median(), Some(ms(10)));
        for _ in 0..5 {
            times.add(ms(20));
        }
        assert_eq!(times.median(), Some(ms(20)));
    }
}
