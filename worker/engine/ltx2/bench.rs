//! Measures the time and the memory that each part needs at the sizes of a request, for a checkpoint or for the
//! released model with random weights, which needs no checkpoint.
//!
//! Parts are loaded, measured and dropped one after the other, so that a device needs room only for the largest one.
//!
//! - `arithmetic`: counts the operations of a part from its sizes;
//! - `parts`: the measurements of each part;
//! - `segments`: whole segments at several sizes.

mod arithmetic;
mod parts;
mod segments;

use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

pub use self::segments::{Phases, SegmentsSpec, Size, SizeReport, segments, table};
use crate::adapters::Adapters;
use crate::audio_vae::{self, AudioVae};
use crate::checkpoint::{Checkpoint, Component, Layout};
use crate::config::ConfigError;
use crate::device::{Compute, DeviceError};
use crate::generation::Generation;
use crate::load;
use crate::nn::Precision;
use crate::ops::Kernels;
use crate::pipeline::Parts;
use crate::sampling::schedule::Scheduler;
use crate::text::TextEncoder;
use crate::text::connectors::{self, Connectors};
use crate::text::gemma::{self, Gemma};
use crate::text::tokens::{MAX_LENGTH, Tokenizer};
use crate::transformer::{self, Transformer};
use crate::upsampler::{self, Upsampler};
use crate::video_vae::{self, Tiling, TilingError, VideoVae};
use crate::vocoder::{self, Vocoder};
use crate::weights::{Reading, Store, Weights, WeightsError};

/// The configurations of LTX-2.0 as it was released, in the library's layout.
const RELEASED: &str = include_str!("bench/released.json");
/// The keys that LTX-2.3 has besides those, or in other values.
const RELEASED_2_3: &str = include_str!("bench/released_2_3.json");

/// The parts to measure.
#[derive(Debug)]
pub struct BenchSpec {
    pub model: Model,
    pub precision: Precision,
    pub kernels: Kernels,
    pub parts: Vec<Part>,
    pub request: Request,
    pub tiling: Tiling,
    /// The number of timed runs whose median is reported, after one untimed run.
    pub repeats: usize,
}

/// The model whose sizes and weights are used.
#[derive(Debug)]
pub enum Model {
    /// Random weights in the sizes of a released model, or with a given number of blocks of the transformer.
    Released {
        generation: Generation,
        blocks: Option<i64>,
    },
    Checkpoint(Checkpoint),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Text,
    Transformer,
    VideoVae,
    Upsampler,
    Sound,
}

impl Part {
    pub const ALL: [Self; 5] = [
        Self::Text,
        Self::Transformer,
        Self::VideoVae,
        Self::Upsampler,
        Self::Sound,
    ];
}

/// One segment that continues another.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// The height of the picture in the second stage; the first stage has half of it. A multiple of twice a latent
    /// cell.
    pub height: i64,
    pub width: i64,
    /// The number of frames, 8k + 1.
    pub num_frames: i64,
    pub fps: f64,
    /// The number of frames kept from the segment before; 0 for a first segment.
    pub kept_frames: i64,
    /// The length of the kept sound in frames.
    pub kept_audio_frames: i64,
    /// The number of denoise steps of both stages, for the sum.
    pub steps: [usize; 2],
    /// The number of tokens of the prompt, and of the context that it is padded to.
    pub prompt_tokens: i64,
    pub text_length: i64,
}

impl Request {
    /// Returns the length in frames of the sound before the first frame of the picture.
    fn extra_audio_frames(&self) -> i64 {
        match self.kept_frames {
            0 => 0,
            kept => (self.kept_audio_frames - kept).max(0),
        }
    }
}

impl Default for Request {
    /// The sizes that the service runs with.
    fn default() -> Self {
        Self {
            height: 1088,
            width: 1920,
            num_frames: 121,
            fps: 24.0,
            kept_frames: 9,
            kept_audio_frames: 49,
            steps: [5, 2],
            prompt_tokens: 256,
            text_length: 1024,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct BenchReport {
    pub device: String,
    pub precision: &'static str,
    pub kernels: &'static str,
    pub request: Request,
    pub measured: Vec<Measured>,
    /// The sum over everything that one segment needs, if all of it was measured.
    pub segment_seconds: Option<f64>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: String,
    /// How often a segment does this; 0 for a measurement that is part of another one.
    pub per_segment: usize,
    /// The median time of a run.
    pub seconds: f64,
    pub fastest_seconds: f64,
    /// The number of multiplications and additions in matrices, attention and convolutions.
    pub tflop: Option<f64>,
    pub tflop_per_second: Option<f64>,
    /// The peak of memory in tensors, including weights; `None` on the CPU.
    pub peak_gib: Option<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Tiling(#[from] TilingError),
    #[error("the checkpoint has no {0}")]
    NoPart(&'static str),
    #[error("{0}")]
    Request(String),
}

/// Measures everything in `spec`, and passes each measurement to `watch` as soon as it is made.
///
/// # Errors
/// Returns an error when the checkpoint does not fit its configuration, the request does not fit the model, or the
/// device fails.
///
/// # Panics
/// Panics where libtorch does, for example when the device runs out of memory.
pub fn run(
    compute: &Compute,
    spec: &BenchSpec,
    watch: &mut dyn FnMut(&Measured),
) -> Result<BenchReport, BenchError> {
    let mut bench = Bench {
        compute,
        spec,
        watch,
        measured: Vec::new(),
    };
    tch::no_grad(|| {
        for part in &spec.parts {
            match part {
                Part::Text => bench.text()?,
                Part::Transformer => bench.transformer()?,
                Part::VideoVae => bench.video_vae()?,
                Part::Upsampler => bench.upsampler()?,
                Part::Sound => bench.sound()?,
            }
            bench.empty_cache()?;
        }
        Ok(bench.report())
    })
}

/// Creates all parts of a released model with random weights, which are the same in every process.
///
/// # Errors
/// Returns an error when this engine does not implement the configuration.
pub fn random_parts(generation: Generation, options: &load::Options) -> Result<Parts, BenchError> {
    let (kind, device) = (options.precision.kind(), options.device);
    let kernels = &options.kernels;
    let config = |component| released(generation, component);
    let store = |component: Component| Store::random(component.name(), kind, device);
    tch::manual_seed(0);
    let float8 = load::float8(options).map_err(|error| BenchError::Request(error.to_string()))?;
    tch::no_grad(|| {
        let transformer_config = transformer::Config::library(&config(Component::Transformer))?;
        let transformer = Store::random_with(Component::Transformer.name(), kind, device, float8);
        let gemma = gemma::Config::library(&config(Component::TextEncoder))?;
        let gemma = Gemma::new(&gemma, &store(Component::TextEncoder).root());
        let text = connectors::Config::library(&config(Component::Connectors))?;
        let text = Connectors::new(&text, &store(Component::Connectors).root());
        let tokenizer = Tokenizer::of_words(MAX_LENGTH);
        let text = TextEncoder::new(tokenizer, gemma, text, NonZeroUsize::MIN)
            .map_err(|error| BenchError::Request(error.to_string()))?;
        let vae = video_vae::Config::library(&config(Component::VideoVae))?;
        let upsampler = upsampler::Config::library(&config(Component::Upsampler))?;
        let audio_vae = audio_vae::Config::library(&config(Component::AudioVae))?;
        let vocoder = vocoder::Config::library(&config(Component::Vocoder))?;
        Ok(Parts {
            adapters: Adapters::new([], options.adapter_limits, kind, device),
            text,
            transformer: Transformer::new(&transformer_config, &transformer.root(), kernels),
            transformer_config,
            video_vae: VideoVae::new(&vae, &store(Component::VideoVae).root(), kernels),
            upsampler: Some(Upsampler::new(
                &upsampler,
                &store(Component::Upsampler).root(),
            )),
            preview_decoder: None,
            audio_vae: AudioVae::new(&audio_vae, &store(Component::AudioVae).root()),
            vocoder: Vocoder::new(&vocoder, &store(Component::Vocoder).root()),
            scheduler: Scheduler::Distilled,
            device,
        })
    })
}

/// Returns the configuration of a part as it was released.
pub fn released(generation: Generation, component: Component) -> Value {
    let read = |text| serde_json::from_str::<Value>(text).expect("a file of this program");
    let mut config = read(RELEASED)[component.name()].take();
    if generation == Generation::V2_3 {
        let other = read(RELEASED_2_3)[component.name()].take();
        for (key, value) in other.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
    }
    config
}

struct Bench<'a> {
    compute: &'a Compute,
    spec: &'a BenchSpec,
    watch: &'a mut dyn FnMut(&Measured),
    measured: Vec<Measured>,
}

impl Bench<'_> {
    /// Loads a component and returns its configuration, its weights on the device, and the time that this took.
    fn load<C, M>(
        &mut self,
        component: Component,
        library: impl FnOnce(&Value) -> Result<C, ConfigError>,
        original: impl FnOnce(&Value, &Weights) -> Result<C, ConfigError>,
        new: impl FnOnce(&C, &Weights) -> M,
    ) -> Result<(C, M), BenchError> {
        let (store, layout, json) = self.source(component)?;
        let config = match layout {
            Layout::Library => library(&json)?,
            Layout::Original | Layout::SingleFile => original(&json, &store.root())?,
        };
        self.reset_peak()?;
        let start = Instant::now();
        let model = new(&config, &store.root());
        store.finish()?;
        self.compute.synchronize();
        let times = [start.elapsed()];
        self.note(&format!("load {}", component.name()), 0, &times, None)?;
        Ok((config, model))
    }

    fn source(&self, component: Component) -> Result<(Rc<Store>, Layout, Value), BenchError> {
        let (precision, device) = (self.spec.precision, self.compute.device);
        match &self.spec.model {
            Model::Released { generation, .. } => {
                let store = Store::random(component.name(), precision.kind(), device);
                Ok((store, Layout::Library, released(*generation, component)))
            }
            Model::Checkpoint(checkpoint) => {
                let part = checkpoint
                    .part(component)
                    .ok_or(BenchError::NoPart(component.name()))?;
                let store = part.store(precision, device, Reading::default());
                Ok((store, part.layout, part.config.clone()))
            }
        }
    }

    /// Runs `f` once untimed, then as often as requested. `flop` is the number of operations of one run, if it is
    /// counted.
    fn measure<T>(
        &mut self,
        name: &str,
        per_segment: usize,
        flop: Option<f64>,
        mut f: impl FnMut() -> T,
    ) -> Result<(), BenchError> {
        self.reset_peak()?;
        drop(f());
        self.compute.synchronize();
        let mut times = Vec::with_capacity(self.spec.repeats);
        for _ in 0..self.spec.repeats.max(1) {
            let start = Instant::now();
            let result = f();
            self.compute.synchronize();
            times.push(start.elapsed());
            drop(result);
        }
        self.note(name, per_segment, &times, flop)
    }

    fn note(
        &mut self,
        name: &str,
        per_segment: usize,
        times: &[Duration],
        flop: Option<f64>,
    ) -> Result<(), BenchError> {
        let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let peak_gib = match &self.compute.gpu {
            None => None,
            Some(gpu) => Some(gpu.memory()?.allocated.peak as f64 / f64::from(1 << 30)),
        };
        let tflop = flop.map(|flop| flop / 1e12);
        let measured = Measured {
            name: name.to_owned(),
            per_segment,
            seconds: median,
            fastest_seconds: seconds[0],
            tflop,
            tflop_per_second: tflop.map(|tflop| tflop / median),
            peak_gib,
        };
        (self.watch)(&measured);
        self.measured.push(measured);
        Ok(())
    }

    fn reset_peak(&self) -> Result<(), BenchError> {
        if let Some(gpu) = &self.compute.gpu {
            gpu.reset_peak_memory()?;
        }
        Ok(())
    }

    fn empty_cache(&self) -> Result<(), BenchError> {
        if let Some(gpu) = &self.compute.gpu {
            gpu.empty_cache()?;
        }
        Ok(())
    }

    fn report(self) -> BenchReport {
        let complete = Part::ALL.iter().all(|part| self.spec.parts.contains(part));
        let seconds = |m: &Measured| m.seconds * m.per_segment as f64;
        BenchReport {
            device: match &self.compute.gpu {
                None => "CPU".to_owned(),
                Some(gpu) => gpu.name().to_owned(),
            },
            precision: match self.spec.precision {
                Precision::Bfloat16 => "bfloat16",
                Precision::Float32 => "float32",
            },
            kernels: match self.spec.kernels {
                Kernels::Plain => "plain",
                Kernels::Cuda(_) => "cuda",
            },
            request: self.spec.request.clone(),
            segment_seconds: complete.then(|| self.measured.iter().map(seconds).sum()),
            measured: self.measured,
        }
    }
}
