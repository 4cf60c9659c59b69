//! Measures the cost of encoding on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::job::VideoFormat;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::encoder::Encoder;
use super::error::EncodeError;
use super::media::Media;
use super::params::EncodeParams;

/// The input of a measurement: the frames of a segment, each with its sound.
#[derive(Debug, Default)]
pub(crate) struct Footage {
    pub(crate) frames: Vec<(Arc<Vec<u8>>, Vec<f32>)>,
}

/// The results of a measurement. Times are medians over all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BenchReport {
    pub(crate) video_codec: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) num_frames: u32,
    pub(crate) fps: u32,
    pub(crate) runs: u32,
    pub(crate) open_ms: f64,
    /// Time from the first frame handed in to the first fragment.
    pub(crate) first_fragment_ms: f64,
    /// Time from the first frame handed in to the last fragment.
    pub(crate) total_ms: f64,
    /// Processor time of the whole process, including the time to open the encoder.
    pub(crate) cpu_s: f64,
    /// Size of the segment's media, including its init segment; the same in every run.
    pub(crate) bytes: usize,
    pub(crate) fragments: u32,
}

/// Encodes the same segment `runs` times, at least once, each time with a new encoder.
///
/// # Errors
/// Returns an error when a segment cannot be encoded.
pub(crate) fn bench(
    params: &EncodeParams,
    footage: &Footage,
    runs: u32,
) -> Result<BenchReport, EncodeError> {
    let mut measured = vec![footage.encode(params)?];
    for _ in 1..runs {
        measured.push(footage.encode(params)?);
    }
    let median = |value: fn(&EncodeRun) -> f64| {
        let mut values: Vec<f64> = measured.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let VideoFormat {
        width,
        height,
        num_frames,
        fps,
    } = params.format;
    Ok(BenchReport {
        video_codec: params.spec.video_codec.clone(),
        width,
        height,
        num_frames,
        fps,
        runs: runs.max(1),
        open_ms: median(|run| milliseconds(run.open)),
        first_fragment_ms: median(|run| milliseconds(run.first_fragment)),
        total_ms: median(|run| milliseconds(run.total)),
        cpu_s: median(|run| run.cpu.as_secs_f64()),
        bytes: measured[0].bytes,
        fragments: measured[0].fragments,
    })
}

/// The measurements of one run.
struct EncodeRun {
    open: Duration,
    first_fragment: Duration,
    total: Duration,
    cpu: Duration,
    bytes: usize,
    fragments: u32,
}

impl Footage {
    fn encode(&self, params: &EncodeParams) -> Result<EncodeRun, EncodeError> {
        let cpu_before = cpu_time();
        let before = Instant::now();
        let mut encoder = Encoder::open(params)?;
        let open = before.elapsed();

        let mut bytes = 0;
        let mut fragments = 0;
        let mut first_fragment = Duration::ZERO;
        encoder.begin(0, &[], &mut |media| bytes += size(&media))?;
        let before = Instant::now();
        let mut out = |media: Media| {
            if fragments == 0 {
                first_fragment = before.elapsed();
            }
            bytes += size(&media);
            fragments += 1;
        };
        for (frame, sound) in &self.frames {
            encoder.frame(frame, sound, &mut out)?;
        }
        encoder.finish(&mut out)?;
        Ok(EncodeRun {
            open,
            first_fragment,
            total: before.elapsed(),
            cpu: cpu_time().saturating_sub(cpu_before),
            bytes,
            fragments,
        })
    }
}

fn size(media: &Media) -> usize {
    match media {
        Media::Init { bytes, .. } | Media::Fragment { bytes } => bytes.len(),
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map(|time| time.num_nanoseconds())
        .unwrap_or(0);
    Duration::from_nanos(time.unsigned_abs())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tests::params;

    #[test]
    fn report_counts_what_came_out() {
        let params = params(64, 64, 25);
        let frame = Arc::new(vec![90; params.format.frame_bytes()]);
        let second_of_stereo = 2 * 24_000;
        let footage = Footage {
            frames: vec![(frame, vec![0.1; second_of_stereo / 24]); 25],
        };
        let report = bench(&params, &footage, 1).unwrap();
        assert_eq!(report.fragments, 5);
        assert!(report.bytes > 1000);
        assert!(report.total_ms >= report.first_fragment_ms);
    }
}
