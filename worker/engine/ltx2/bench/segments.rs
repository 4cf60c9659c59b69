//! Measures whole segments at several sizes, as a session generates them: each continues the one before, and its prompt's
//! contexts are cached.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Device, Tensor};

use super::BenchError;
use crate::device::Compute;
use crate::pipeline::{Continuation, Output, OutputError, Pipeline, Request, Stage, Start, Step};

/// What is measured.
#[derive(Clone, Debug)]
pub struct SegmentsSpec {
    pub sizes: Vec<Size>,
    pub num_frames: i64,
    pub fps: f64,
    /// The number of denoise steps of the first stage.
    pub num_inference_steps: usize,
    /// The number of timed segments whose median is reported, after two untimed ones.
    pub repeats: usize,
}

/// The size of a picture in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    pub width: i64,
    pub height: i64,
}

/// The time and the memory that a segment of one size needs.
#[derive(Clone, Debug, Serialize)]
pub struct SizeReport {
    pub size: Size,
    pub num_frames: i64,
    /// The median time of a segment.
    pub seconds: f64,
    /// The time that the segment's new frames play.
    pub played_seconds: f64,
    /// `seconds / played_seconds`: at most 1 where viewers need not wait.
    pub factor: f64,
    /// Where the time of the median segment went.
    pub phases: Phases,
    /// The peak of memory in tensors, including weights; `None` on the CPU.
    pub peak_gib: Option<f64>,
    /// A hash of all frames and sound of all segments, untimed ones included: two processes of the same weights and devices
    /// should have the same.
    pub digest: String,
}

/// The parts of a segment's time in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// The time until the first step: the kept frames and the sound.
    pub prepare: f64,
    pub denoise: f64,
    /// The second stage, with the kept frames in its size; 0 for models of one stage.
    pub refine: f64,
    pub decode: f64,
}

const PROMPT: &str = "a red fox runs through fresh snow at the edge of a forest";

/// Measures the sizes, and passes each report to `watch` as soon as it is made.
///
/// # Errors
/// Returns an error when the model cannot make such segments, or the device fails.
///
/// # Panics
/// Panics where libtorch does, for example when the device runs out of memory.
pub fn segments(
    compute: &Compute,
    pipeline: &mut Pipeline,
    spec: &SegmentsSpec,
    watch: &mut dyn FnMut(&SizeReport),
) -> Result<Vec<SizeReport>, BenchError> {
    let mut reports = Vec::new();
    for &size in &spec.sizes {
        let report = measure(compute, pipeline, spec, size)?;
        watch(&report);
        reports.push(report);
        if let Some(gpu) = &compute.gpu {
            gpu.empty_cache()?;
        }
    }
    Ok(reports)
}

fn measure(
    compute: &Compute,
    pipeline: &mut Pipeline,
    spec: &SegmentsSpec,
    size: Size,
) -> Result<SizeReport, BenchError> {
    let request = Request {
        prompt: PROMPT,
        negative_prompt: None,
        seed: 10,
        num_inference_steps: spec.num_inference_steps,
        guidance_scale: 1.0,
        height: size.height,
        width: size.width,
        num_frames: spec.num_frames,
        cut_frames: 0,
        fps: spec.fps,
        start: Start::Noise,
        adapters: &[],
        resume: None,
    };
    let mut hasher = DefaultHasher::new();
    // The first continued segment compiles and plans what depends on the size.
    let mut segment = |start: Start<'_>| {
        let request = Request { start, ..request };
        generate(compute, pipeline, &request, &mut hasher)
    };
    let (first, _) = segment(Start::Noise)?;
    let (mut before, warm) = segment(Start::Segment(&first))?;
    if let Some(gpu) = &compute.gpu {
        gpu.reset_peak_memory()?;
    }
    let mut clocks = Vec::new();
    for _ in 0..spec.repeats.max(1) {
        let (next, times) = segment(Start::Segment(&before))?;
        before = next;
        clocks.push(times);
    }
    clocks.sort_by_key(|times| times.end);
    let median = &clocks[clocks.len() / 2];
    let peak_gib = match &compute.gpu {
        None => None,
        Some(gpu) => Some(gpu.memory()?.allocated.peak as f64 / f64::from(1 << 30)),
    };
    let played_seconds = warm.frames as f64 / spec.fps;
    let seconds = median.end.as_secs_f64();
    Ok(SizeReport {
        size,
        num_frames: spec.num_frames,
        seconds,
        played_seconds,
        factor: seconds / played_seconds,
        phases: median.phases(),
        peak_gib,
        digest: format!("{:016x}", hasher.finish()),
    })
}

fn generate(
    compute: &Compute,
    pipeline: &mut Pipeline,
    request: &Request<'_>,
    hasher: &mut DefaultHasher,
) -> Result<(Continuation, Times), BenchError> {
    let mut clock = Clock::start(hasher);
    let made = pipeline.generate(request, &mut clock);
    let made = made.map_err(|error| BenchError::Request(error.to_string()))?;
    compute.synchronize();
    clock.times.end = clock.began.elapsed();
    Ok((made, clock.times))
}

/// When the parts of a segment began, and how many frames it had.
#[derive(Default)]
struct Times {
    denoise: Option<Duration>,
    refine: Option<Duration>,
    decode: Option<Duration>,
    end: Duration,
    frames: i64,
}

impl Times {
    fn phases(&self) -> Phases {
        let end = self.end;
        let decode = self.decode.unwrap_or(end);
        let refine = self.refine.unwrap_or(decode);
        let denoise = self.denoise.unwrap_or(refine);
        let between = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
        Phases {
            prepare: denoise.as_secs_f64(),
            denoise: between(denoise, refine),
            refine: between(refine, decode),
            decode: between(decode, end),
        }
    }
}

/// Notes the times of a segment, and hashes what comes of it.
struct Clock<'a> {
    began: Instant,
    times: Times,
    hasher: &'a mut DefaultHasher,
}

impl<'a> Clock<'a> {
    fn start(hasher: &'a mut DefaultHasher) -> Self {
        Self {
            began: Instant::now(),
            times: Times::default(),
            hasher,
        }
    }
}

impl Output for Clock<'_> {
    fn cancelled(&self) -> bool {
        false
    }

    fn begin(&mut self, stage: Stage) {
        let now = self.began.elapsed();
        match stage {
            Stage::Denoise => self.times.denoise = Some(now),
            Stage::Refine => self.times.refine = Some(now),
        }
    }

    fn begin_decoding(&mut self) {
        self.times.decode = Some(self.began.elapsed());
    }

    fn step(&mut self, _step: &Step<'_>) {}

    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError> {
        samples
            .iter()
            .for_each(|sample| sample.to_bits().hash(self.hasher));
        Ok(())
    }

    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError> {
        self.times.frames += rgb8.size()[0];
        let length = rgb8.numel();
        let mut bytes = vec![0; length];
        let rgb8 = rgb8.contiguous().to_device(Device::Cpu);
        rgb8.copy_data_u8(&mut bytes, length);
        self.hasher.write(&bytes);
        Ok(())
    }
}

/// Formats reports as a table in Markdown.
pub fn table(device: &str, reports: &[SizeReport]) -> String {
    let mut table = format!(
        "| {device}: size | seconds a segment | plays | factor | stage 1 | stage 2 | decode | peak GiB |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for report in reports {
        let SizeReport {
            size: Size { width, height },
            num_frames,
            seconds,
            played_seconds,
            factor,
            phases,
            peak_gib,
            digest: _,
        } = report;
        let peak = peak_gib.map_or_else(|| "-".to_owned(), |peak| format!("{peak:.1}"));
        table += &format!(
            "| {width}x{height}, {num_frames} frames | {seconds:.2} | {played_seconds:.2} | {factor:.2} | {:.2} | {:.2} | {:.2} | {peak} |\n",
            phases.denoise, phases.refine, phases.decode
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_size() {
        let report = SizeReport {
            size: Size {
                width: 1920,
                height: 1088,
            },
            num_frames: 121,
            seconds: 9.333,
            played_seconds: 4.6667,
            factor: 2.0,
            phases: Phases::default(),
            peak_gib: Some(80.04),
            digest: String::new(),
        };
        let table = table("H200", &[report]);
        assert_eq!(table.lines().count(), 3);
        assert!(
            table.ends_with(
                "| 1920x1088, 121 frames | 9.33 | 4.67 | 2.00 | 0.00 | 0.00 | 0.00 | 80.0 |\n"
            ),
            "{table}"
        );
    }
}
