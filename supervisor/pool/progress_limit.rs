//! The progress timeout: how long a running job may go without a step or a frame before its worker counts as stuck.

use std::time::Duration;

use fastvideo_proto::job::VideoFormat;

use super::config::Config;
use super::rolling_median::RollingMedian;

/// The number of step times that the median is computed from.
const STEP_SAMPLES: usize = 63;
/// The limit in median steps.
const MEDIAN_STEPS: u32 = 10;
/// The lower bound of the limit in warm-up segments: jobs may use guidance, which doubles a step, and run on a busier
/// machine.
const WARMUP_SEGMENTS: f64 = 4.0;

/// The limit on the time between two signs of progress of a running job.
#[derive(Debug)]
pub(super) struct ProgressLimit {
    /// A lower bound of the limit. No part of a segment, such as the time to its first step or from its last step to its
    /// first frame, takes longer than a whole warm-up segment did, so it is a multiple of that.
    floor: Duration,
    /// The median of the step times, each divided by the scale of its job.
    steps: RollingMedian,
    /// The number of pixels of a segment of the configured size.
    pixels: f64,
}

impl ProgressLimit {
    /// Creates the limit for a process whose warm-up segments took the times `warmup`.
    pub(super) fn new(config: &Config, warmup: &[Duration]) -> Self {
        let scale = (config.warmup.as_ref())
            .map_or(1.0, |warmup| pixels(config.format) / pixels(warmup.format));
        // The second segment counts, because the first one includes one-time initialisation. The boot timeout bounds
        // it.
        let segment = warmup.last().copied().unwrap_or_default();
        let segment = segment.min(config.boot_timeout);
        Self {
            floor: segment.mul_f64(WARMUP_SEGMENTS * scale.max(1.0)),
            steps: RollingMedian::new(STEP_SAMPLES),
            pixels: pixels(config.format),
        }
    }

    /// Adds the time of a step of a job of this format to the median.
    pub(super) fn add_step(&mut self, time: Duration, format: VideoFormat) {
        self.steps.add(time.div_f64(self.scale(format)));
    }

    /// Returns the limit for a job of this format: ten times the median step, but at least four warm-up segments, and at least
    /// `min`; in proportion more for a segment of a video job that is larger than the configured size.
    pub(super) fn get(&self, min: Duration, format: VideoFormat) -> Duration {
        let median = self.steps.median().unwrap_or_default();
        let limit = (median * MEDIAN_STEPS).max(self.floor).max(min);
        limit.mul_f64(self.scale(format))
    }

    /// Returns how much larger than a segment of the configured size those of a format are, at least 1.
    fn scale(&self, format: VideoFormat) -> f64 {
        (pixels(format) / self.pixels).max(1.0)
    }
}

fn pixels(format: VideoFormat) -> f64 {
    f64::from(format.width) * f64::from(format.height) * f64::from(format.num_frames)
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::link::WarmupSpec;

    use super::*;
    use crate::pool::fixtures;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_limit_is_ten_times_the_median_of_the_latest_steps() {
        let limit = |min: u64, steps: &[u64]| {
            let mut limit = ProgressLimit::new(&fixtures::config(), &[]);
            for &step in steps {
                limit.add_step(ms(step), fixtures::FORMAT);
            }
            limit.get(ms(min), fixtures::FORMAT)
        };
        assert_eq!(limit(50, &[]), ms(50));
        assert_eq!(limit(50, &[10, 1000, 10]), ms(100));
        assert_eq!(limit(200, &[10, 1000, 10]), ms(200));
    }

    #[test]
    fn the_limit_grows_with_the_size_of_the_segment_and_steps_count_by_that() {
        let config = fixtures::config();
        let larger = VideoFormat {
            width: 2 * fixtures::FORMAT.width,
            ..fixtures::FORMAT
        };
        let smaller = VideoFormat {
            num_frames: 1,
            ..fixtures::FORMAT
        };
        let mut limit = ProgressLimit::new(&config, &[]);
        limit.add_step(ms(20), larger);
        let get =
            |min: u64| [larger, fixtures::FORMAT, smaller].map(|format| limit.get(ms(min), format));
        assert_eq!(get(0), [ms(200), ms(100), ms(100)]);
        assert_eq!(get(1000), [ms(2000), ms(1000), ms(1000)]);
    }

    #[test]
    fn the_limit_is_never_less_than_four_warm_up_segments_of_the_configured_size() {
        let mut config = fixtures::config();
        let limit = |config: &Config, warmup: &[u64]| {
            let warmup: Vec<_> = warmup.iter().copied().map(ms).collect();
            let mut limit = ProgressLimit::new(config, &warmup);
            limit.add_step(ms(1), fixtures::FORMAT);
            limit.get(ms(1000), fixtures::FORMAT)
        };
        assert_eq!(limit(&config, &[10, 5]), ms(1000));
        assert_eq!(limit(&config, &[1540, 1500]), ms(6000));
        let format = VideoFormat {
            num_frames: fixtures::FORMAT.num_frames / 2,
            ..fixtures::FORMAT
        };
        config.warmup = Some(WarmupSpec {
            prompt: String::new(),
            format,
            num_inference_steps: 1,
        });
        assert_eq!(limit(&config, &[1540, 1500]), ms(12_000));
    }
}
