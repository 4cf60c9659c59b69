//! What encoding costs on this machine, for a segment of moving frames and a tone.

use std::time::{Duration, Instant};

use fastvideo_proto::link::VideoFormat;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{EncodeError, EncodeParams, Encoder, Media};

/// Frames drawn beforehand; they are shown forwards and backwards in turns.
const DRAWN_FRAMES: u32 = 16;

/// Times are medians over all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BenchReport {
    pub(crate) video_codec: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) num_frames: u32,
    pub(crate) fps: u32,
    pub(crate) runs: u32,
    pub(crate) open_ms: f64,
    /// From the first frame handed in to the first fragment.
    pub(crate) first_fragment_ms: f64,
    /// From the first frame handed in to the last fragment.
    pub(crate) total_ms: f64,
    /// Processor time of the whole process, opening included.
    pub(crate) cpu_s: f64,
    /// Of the segment, its init segment included; the same in every run.
    pub(crate) bytes: usize,
    pub(crate) fragments: u32,
}

/// Encodes the same segment `runs` times, at least once, each time with a new encoder.
///
/// # Errors
/// When a segment cannot be encoded.
pub(crate) fn bench(params: &EncodeParams, runs: u32) -> Result<BenchReport, EncodeError> {
    let segment = Segment::draw(params);
    let mut measured = vec![segment.encode(params)?];
    for _ in 1..runs {
        measured.push(segment.encode(params)?);
    }
    let median = |value: fn(&Run) -> f64| {
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

struct Run {
    open: Duration,
    first_fragment: Duration,
    total: Duration,
    cpu: Duration,
    bytes: usize,
    fragments: u32,
}

struct Segment {
    frames: Vec<Vec<u8>>,
    /// The sound of each frame.
    sound: Vec<Vec<f32>>,
}

impl Segment {
    fn draw(params: &EncodeParams) -> Self {
        let VideoFormat {
            num_frames, fps, ..
        } = params.format;
        let frames = (0..DRAWN_FRAMES.min(num_frames))
            .map(|index| draw(params.format, index))
            .collect();
        let sound = (0..num_frames)
            .map(|index| {
                let Some(audio) = params.audio else {
                    return Vec::new();
                };
                let index = u64::from(index);
                let samples = audio.sample_at(index, fps)..audio.sample_at(index + 1, fps);
                samples
                    .flat_map(|sample| {
                        let turns = sample as f32 * 440.0 / audio.sample_rate as f32;
                        let value = 0.3 * (turns.fract() * std::f32::consts::TAU).sin();
                        std::iter::repeat_n(value, audio.channels as usize)
                    })
                    .collect()
            })
            .collect();
        Self { frames, sound }
    }

    fn encode(&self, params: &EncodeParams) -> Result<Run, EncodeError> {
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
        let drawn = self.frames.len();
        for (index, sound) in self.sound.iter().enumerate() {
            let place = index % (2 * drawn);
            let frame = place.min(2 * drawn - 1 - place);
            encoder.frame(&self.frames[frame], sound, &mut out)?;
        }
        encoder.finish(&mut out)?;
        Ok(Run {
            open,
            first_fragment,
            total: before.elapsed(),
            cpu: cpu_time().saturating_sub(cpu_before),
            bytes,
            fragments,
        })
    }
}

/// Soft stripes that move, with some grain: neither the easiest nor the hardest picture to encode.
fn draw(format: VideoFormat, index: u32) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(format.frame_bytes());
    let mut grain = index.wrapping_mul(2_654_435_761) | 1;
    for y in 0..format.height {
        for x in 0..format.width {
            grain ^= grain << 13;
            grain ^= grain >> 17;
            grain ^= grain << 5;
            let [noise, ..] = grain.to_le_bytes();
            let [red, ..] = triangle(x + 4 * index).to_le_bytes();
            let [green, ..] = triangle(y + 2 * index).to_le_bytes();
            let [blue, ..] = triangle((x + y) / 2 + index).to_le_bytes();
            rgb.extend([red, green, blue].map(|value| value.saturating_add(noise & 7)));
        }
    }
    rgb
}

/// Up from 0 to 255 and down again, once in 512.
fn triangle(place: u32) -> u32 {
    let place = place % 512;
    place.min(511 - place)
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
        let report = bench(&params(64, 64, 25), 1).unwrap();
        assert_eq!(report.fragments, 5);
        assert!(report.bytes > 1000);
        assert!(report.total_ms >= report.first_fragment_ms);
    }
}
