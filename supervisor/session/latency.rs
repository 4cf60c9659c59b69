//! Measures the latency that the supervisor adds: how long fragments take from a worker's link to the client's socket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastvideo_proto::job::MediaMode;
use nix::time::{ClockId, clock_gettime};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::metrics::{FAST, create, seconds};

/// The length of an interval. The quantiles cover the running interval and the one before it.
const INTERVAL: Duration = Duration::from_secs(60);
/// Longer latencies are counted as this one, in microseconds.
const MAX_US: u64 = 60_000_000;
/// The precision of the buckets: each is at most 1 % wide.
const SIGNIFICANT_DIGITS: u8 = 2;

/// A histogram of the last one to two minutes that all connections record into, and the metrics of all media since the
/// start. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RelayLatency {
    window: Arc<Mutex<Window>>,
    metrics: MediaMetrics,
}

/// The metrics of the media that were handed to clients' sockets.
#[derive(Clone, Debug)]
struct MediaMetrics {
    relay: Histogram,
    bytes: Family<ModeLabel, Counter>,
    messages: Family<ModeLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: &'static str,
}

/// Quantiles of the latencies recorded in the last one to two minutes, each the upper bound of its bucket. All are zero
/// when none was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyQuantiles {
    pub count: u64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Two histograms in turn: one is recorded into, the other holds the interval before.
#[derive(Debug)]
struct Window {
    current: hdrhistogram::Histogram<u32>,
    previous: hdrhistogram::Histogram<u32>,
    /// When the current interval began.
    began: Instant,
}

impl Default for RelayLatency {
    fn default() -> Self {
        Self {
            window: Arc::new(Mutex::new(Window::new(Instant::now()))),
            metrics: MediaMetrics {
                relay: Histogram::new(FAST),
                bytes: Family::default(),
                messages: Family::default(),
            },
        }
    }
}

impl RelayLatency {
    /// Registers the metrics, with all their series.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let MediaMetrics {
            relay,
            bytes,
            messages,
        } = &self.metrics;
        registry.register(
            "media_bytes",
            "Bytes of media that were handed to clients' sockets, those of attempts that became void too",
            bytes.clone(),
        );
        registry.register(
            "media_messages",
            "Binary messages that were handed to clients' sockets",
            messages.clone(),
        );
        registry.register(
            "relay_seconds",
            "Time from a worker's link to the client's socket, for each binary message",
            relay.clone(),
        );
        for mode in [MediaMode::AvFmp4, MediaMode::LegacyJpeg] {
            let mode = mode_name(mode);
            create(bytes, &ModeLabel { mode });
            create(messages, &ModeLabel { mode });
        }
    }

    /// Records that a binary message was given to the socket. The worker gave it to its link at `sent_at_us`
    /// (`CLOCK_MONOTONIC`, microseconds); one that was stored comes from no link.
    pub fn record(&self, mode: MediaMode, bytes: usize, sent_at_us: Option<u64>) {
        let labels = ModeLabel {
            mode: mode_name(mode),
        };
        (self.metrics.bytes.get_or_create(&labels)).inc_by(bytes as u64);
        self.metrics.messages.get_or_create(&labels).inc();
        if let Some(sent_at_us) = sent_at_us {
            let took_us = monotonic_us().saturating_sub(sent_at_us);
            (self.metrics.relay).observe(seconds(Duration::from_micros(took_us)));
            self.lock().record(took_us, Instant::now());
        }
    }

    /// Returns the quantiles of the last one to two minutes.
    pub fn quantiles(&self) -> LatencyQuantiles {
        self.lock().quantiles(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        // A histogram stays usable when a thread panics while it records.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, MAX_US, SIGNIFICANT_DIGITS)
            .expect("the bounds are in order and the digits at most 5");
        Self {
            current: histogram.clone(),
            previous: histogram,
            began: now,
        }
    }

    fn record(&mut self, took_us: u64, now: Instant) {
        self.rotate(now);
        self.current.saturating_record(took_us);
    }

    fn quantiles(&mut self, now: Instant) -> LatencyQuantiles {
        self.rotate(now);
        let mut both = self.previous.clone();
        both.add(&self.current)
            .expect("both histograms have the same bounds");
        let quantile = |q| Duration::from_micros(both.value_at_quantile(q));
        LatencyQuantiles {
            count: both.len(),
            p50: quantile(0.50),
            p99: quantile(0.99),
        }
    }

    /// Begins the next interval when the current one is over, and drops everything older than the one before.
    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < INTERVAL {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        self.began += INTERVAL;
        if age >= 2 * INTERVAL {
            self.previous.reset();
            self.began = now;
        }
    }
}

fn mode_name(mode: MediaMode) -> &'static str {
    match mode {
        MediaMode::AvFmp4 => "av_fmp4",
        MediaMode::LegacyJpeg => "legacy_jpeg",
    }
}

/// Returns `CLOCK_MONOTONIC` in microseconds, which is the same for all processes of a machine.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    let (seconds, nanos) = (now.tv_sec(), now.tv_nsec());
    (seconds * 1_000_000 + nanos / 1000).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(duration: Duration) -> f64 {
        duration.as_secs_f64() * 1000.0
    }

    /// Within the width of a bucket above.
    fn assert_close(given: Duration, expected_ms: f64) {
        let range = expected_ms..expected_ms * 1.01;
        assert!(range.contains(&ms(given)), "{given:?}, {expected_ms} ms");
    }

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        let now = Instant::now();
        let mut window = Window::new(now);
        assert_eq!(window.quantiles(now), LatencyQuantiles::default());
        for _ in 0..98 {
            window.record(100, now);
        }
        window.record(50_000, now);
        window.record(50_000, now);
        let quantiles = window.quantiles(now);
        assert_eq!(quantiles.count, 100);
        assert_close(quantiles.p50, 0.1);
        assert_close(quantiles.p99, 50.0);
    }

    #[test]
    fn latencies_out_of_bounds_are_counted_at_the_bounds() {
        let now = Instant::now();
        let mut window = Window::new(now);
        window.record(0, now);
        window.record(u64::MAX, now);
        let quantiles = window.quantiles(now);
        assert_eq!(quantiles.count, 2);
        assert!(ms(quantiles.p50) <= 0.001, "{quantiles:?}");
        assert_close(quantiles.p99, 60_000.0);
    }

    #[test]
    fn a_slow_minute_is_forgotten_two_minutes_later() {
        let start = Instant::now();
        let mut window = Window::new(start);
        window.record(50_000, start);
        let next = start + INTERVAL;
        window.record(100, next);
        assert_eq!(window.quantiles(next).count, 2);
        assert_close(window.quantiles(next).p99, 50.0);
        let after = start + 2 * INTERVAL;
        assert_eq!(window.quantiles(after).count, 1);
        assert_close(window.quantiles(after).p99, 0.1);
    }

    #[test]
    fn a_window_in_which_nothing_was_recorded_is_empty() {
        let start = Instant::now();
        let mut window = Window::new(start);
        window.record(100, start);
        let later = start + 10 * INTERVAL;
        assert_eq!(window.quantiles(later), LatencyQuantiles::default());
        window.record(200, later);
        assert_eq!(window.quantiles(later + INTERVAL).count, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_moves_with_time() {
        let latency = RelayLatency::default();
        latency.record(MediaMode::AvFmp4, 1, Some(monotonic_us()));
        assert_eq!(latency.quantiles().count, 1);
        tokio::time::advance(2 * INTERVAL).await;
        assert_eq!(latency.quantiles().count, 0);
    }
}
