//! How long fragments take from a worker's link to the client's socket: what the supervisor adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Buckets grow by a quarter each, from 1 µs to above a minute.
const BUCKETS: usize = 96;
const GROWTH: f64 = 1.25;

/// A histogram that many connections add to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RelayLatency {
    buckets: Arc<[AtomicU64; BUCKETS]>,
}

/// Upper bounds of the buckets in which the quantiles lie, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct LatencySummary {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Default for RelayLatency {
    fn default() -> Self {
        Self {
            buckets: Arc::new(std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

impl RelayLatency {
    /// A message that the worker handed to its link at `sent_at_us` has been handed to the socket.
    pub fn record(&self, sent_at_us: u64) {
        let took = monotonic_us().saturating_sub(sent_at_us);
        self.buckets[bucket(took)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn summary(&self) -> LatencySummary {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let count = counts.iter().sum();
        LatencySummary {
            count,
            p50_ms: quantile_ms(&counts, count, 0.50),
            p99_ms: quantile_ms(&counts, count, 0.99),
        }
    }
}

/// CLOCK_MONOTONIC in microseconds: the same for all processes of a machine.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    let (seconds, nanos) = (now.tv_sec(), now.tv_nsec());
    (seconds * 1_000_000 + nanos / 1000).cast_unsigned()
}

fn bucket(us: u64) -> usize {
    (0..BUCKETS)
        .find(|&i| us as f64 <= upper_us(i))
        .unwrap_or(BUCKETS - 1)
}

fn upper_us(bucket: usize) -> f64 {
    GROWTH.powi(i32::try_from(bucket).expect("few buckets"))
}

fn quantile_ms(counts: &[u64], count: u64, q: f64) -> f64 {
    if count == 0 {
        return 0.0;
    }
    let mut seen = 0;
    for (i, n) in counts.iter().enumerate() {
        seen += n;
        if seen as f64 >= q * count as f64 {
            return upper_us(i) / 1000.0;
        }
    }
    upper_us(BUCKETS - 1) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        let mut counts = vec![0; BUCKETS];
        counts[bucket(100)] = 99;
        counts[bucket(50_000)] = 1;
        let close = |ms: f64, us: f64| (us..us * GROWTH).contains(&(ms * 1000.0));
        assert!(close(quantile_ms(&counts, 100, 0.5), 100.0));
        assert!(close(quantile_ms(&counts, 100, 0.995), 50_000.0));
        assert_eq!(quantile_ms(&counts, 0, 0.5), 0.0);
    }
}
