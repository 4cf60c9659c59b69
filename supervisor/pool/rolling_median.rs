//! The median of the latest times of something.

use std::time::Duration;

/// The latest times, at most so many.
#[derive(Debug)]
pub(super) struct RollingMedian {
    limit: usize,
    times: Vec<Duration>,
    next: usize,
}

impl RollingMedian {
    /// Keeps at most `limit` times, at least 1.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            times: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn add(&mut self, time: Duration) {
        if self.times.len() < self.limit {
            self.times.push(time);
        } else {
            self.times[self.next] = time;
            self.next = (self.next + 1) % self.limit;
        }
    }

    /// None before the first time was added.
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
