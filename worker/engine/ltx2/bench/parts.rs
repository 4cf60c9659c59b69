//! The measurements of each part.

use tch::{Device, Kind, Tensor};

use super::arithmetic::{self, Block, Tokens};
use super::{Bench, BenchError, Model, Request};
use crate::audio_vae::{self, AudioVae};
use crate::checkpoint::Component;
use crate::generation::Generation;
use crate::ops::{Rotation, Runs};
use crate::sampling::noise::generator;
use crate::text::connectors::{self, Connectors};
use crate::text::gemma::{self, Gemma};
use crate::transformer::block::{Rows, Surroundings};
use crate::transformer::{
    self, CrossModalLevels, Geometry, Inputs, NoiseLevels, Positions, RotaryTables, TextContext,
    Transformer,
};
use crate::upsampler::{self, Upsampler};
use crate::video_vae::{self, TilingError, VideoVae};
use crate::vocoder::{self, Vocoder};

/// The side of a latent in pixels, which every model of the family has.
const CELL: i64 = 32;
const FRAMES: i64 = 8;
/// The noise level of measured steps. It does not influence the time.
const SIGMA: f64 = 0.725;

impl Bench<'_> {
    pub(super) fn text(&mut self) -> Result<(), BenchError> {
        let Request {
            prompt_tokens,
            text_length,
            ..
        } = self.spec.request;
        let (config, gemma) = self.load(
            Component::TextEncoder,
            gemma::Config::library,
            // The same file in both layouts.
            |json, _| gemma::Config::library(json),
            Gemma::new,
        )?;
        let tokens = prompt_tokens.min(text_length);
        let ids: Vec<i64> = (0..tokens).map(|i| i % gemma.vocabulary()).collect();
        let flop = arithmetic::gemma(&config, tokens);
        self.measure("gemma", 1, Some(flop), || gemma.forward(&ids, text_length))?;
        let states = gemma.forward(&ids, text_length);
        drop(gemma);
        let (config, connectors) = self.load(
            Component::Connectors,
            connectors::Config::library,
            connectors::Config::original,
            Connectors::new,
        )?;
        let flop = arithmetic::connectors(&config, tokens, text_length);
        self.measure("connectors", 1, Some(flop), || {
            connectors.forward(&states, text_length)
        })
    }

    pub(super) fn transformer(&mut self) -> Result<(), BenchError> {
        let blocks = match self.spec.model {
            Model::Released { blocks, .. } => blocks,
            Model::Checkpoint(_) => None,
        };
        let kernels = self.spec.kernels.clone();
        let (config, model) = self.load(
            Component::Transformer,
            |json| {
                let mut config = transformer::Config::library(json)?;
                config.num_layers = blocks.unwrap_or(config.num_layers).min(config.num_layers);
                Ok(config)
            },
            transformer::Config::original,
            |config, weights| Transformer::new(config, weights, &kernels),
        )?;
        let text_length = self.spec.request.text_length;
        let [video, audio] = config
            .context_widths()
            .map(|width| self.noise(&[1, text_length, width], Kind::Float));
        // In LTX-2.3 they are a part of each step.
        if config.generation == Generation::V2_0 {
            let flop = arithmetic::text_context(&config, text_length);
            self.measure("text keys and values", 1, Some(flop), || {
                model.text(&video, &audio)
            })?;
        }
        let text = model.text(&video, &audio);
        for stage in [Stage::First, Stage::Second] {
            self.step(&config, &model, &text, stage)?;
            self.block(&config, &model, &text, stage)?;
        }
        Ok(())
    }

    /// Measures one denoise step.
    fn step(
        &mut self,
        config: &transformer::Config,
        model: &Transformer,
        text: &TextContext,
        stage: Stage,
    ) -> Result<(), BenchError> {
        let shape = self.shape(config, stage)?;
        let (device, name) = (self.compute.device, stage.name());
        self.measure(&format!("{name}: rotary tables"), 1, None, || {
            RotaryTables::new(config, &shape.geometry, device, model.kernels())
        })?;
        let tables = RotaryTables::new(config, &shape.geometry, device, model.kernels());
        let tokens = self.tokens(&shape);
        let video = self.noise(&[1, tokens.video, config.in_channels], Kind::Float);
        let audio = self.noise(&[1, tokens.audio, config.audio_in_channels], Kind::Float);
        let inputs = Inputs {
            video: &video,
            audio: &audio,
            video_levels: &shape.video_levels,
            audio_levels: &shape.audio_levels,
            tables: &tables,
            text,
            cross_modal_levels: CrossModalLevels::Lightricks,
            isolate_modalities: false,
            perturbed_blocks: &[],
        };
        let steps = self.spec.request.steps[stage.index()];
        let flop = arithmetic::step(config, tokens);
        self.measure(&format!("{name}: step"), steps, Some(flop), || {
            model.forward(&inputs)
        })
    }

    /// Measures the parts of one block, as a breakdown of a step.
    fn block(
        &mut self,
        config: &transformer::Config,
        model: &Transformer,
        text: &TextContext,
        stage: Stage,
    ) -> Result<(), BenchError> {
        let shape = self.shape(config, stage)?;
        let (device, kind) = (self.compute.device, self.spec.precision.kind());
        let tables = RotaryTables::new(config, &shape.geometry, device, model.kernels());
        let tokens = self.tokens(&shape);
        let (levels, audio_levels) = (&shape.video_levels, &shape.audio_levels);
        let cross = CrossModalLevels::Lightricks;
        let video = model.video.forward(levels, audio_levels, cross, device);
        let audio = model.audio.forward(audio_levels, levels, cross, device);
        let around = Surroundings {
            video: &video,
            audio: &audio,
            tables: &tables,
            isolate_modalities: false,
            perturbed: false,
        };
        let (block, [text, audio_text]) = (&model.blocks[0], text.of_block(0));
        let (rows, audio_rows) = (block.video.rows(&video), block.audio.rows(&audio));
        let mut x = self.noise(&[1, tokens.video, config.width()], kind);
        let mut a = self.noise(&[1, tokens.audio, config.audio_width()], kind);
        let flop = Block::of(config, tokens);
        let named = |what: &str| format!("{}, one block: {what}", stage.name());
        self.measure(&named("video to itself"), 0, Some(flop.video_self), || {
            block
                .video
                .attend_self(&mut x, &rows, &video, &tables.video);
        })?;
        self.measure(&named("video to text"), 0, Some(flop.video_text), || {
            block.video.attend_text(&mut x, &rows, &video, text);
        })?;
        self.measure(&named("between the streams"), 0, Some(flop.across), || {
            block.attend_across(&mut x, &mut a, &around);
        })?;
        self.measure(&named("video feed-forward"), 0, Some(flop.video_ff), || {
            block.video.feed_forward(&mut x, &rows, &video);
        })?;
        self.measure(&named("all of audio"), 0, Some(flop.audio), || {
            block
                .audio
                .attend_self(&mut a, &audio_rows, &audio, &tables.audio);
            block
                .audio
                .attend_text(&mut a, &audio_rows, &audio, audio_text);
            block.audio.feed_forward(&mut a, &audio_rows, &audio);
        })?;
        self.elementwise(config, &x, &tables.video, &rows.attn1, &video.runs, &named)?;
        let heads = [
            1,
            tokens.video,
            config.num_attention_heads,
            config.attention_head_dim,
        ];
        let [q, k, v] = std::array::from_fn(|_| self.noise(&heads, kind).transpose(1, 2));
        drop(x);
        let flop = arithmetic::attention(tokens.video, tokens.video, config.width());
        self.measure(&named("attention alone"), 0, Some(flop), || {
            let none = None::<&Tensor>;
            Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, None, false)
        })
    }

    /// Measures the element-wise operations between the matrices, for which the package has kernels of its own.
    fn elementwise(
        &mut self,
        config: &transformer::Config,
        x: &Tensor,
        rotation: &Rotation,
        Rows { shift, scale, gate }: &Rows,
        runs: &Runs,
        named: &dyn Fn(&str) -> String,
    ) -> Result<(), BenchError> {
        let kernels = self.spec.kernels.clone();
        let eps = config.norm_eps;
        self.measure(&named("norm and modulate"), 0, None, || {
            kernels.rms_norm_modulate(x, eps, scale, shift, runs)
        })?;
        let gain = Tensor::ones([config.width()], (x.kind(), x.device()));
        let heads = config.num_attention_heads;
        // Both functions consume their input, so a copy is part of the measurement.
        self.measure(&named("copy, norm and rotate"), 0, None, || {
            kernels.norm_rotate(x.copy(), &gain, eps, heads, Some(rotation))
        })?;
        let mut sum = x.copy();
        self.measure(&named("copy, gate and add"), 0, None, || {
            kernels.add_gated(&mut sum, x.copy(), gate, runs);
        })?;
        self.measure(&named("copy"), 0, None, || x.copy())
    }

    pub(super) fn video_vae(&mut self) -> Result<(), BenchError> {
        let kernels = self.spec.kernels.clone();
        let (config, vae) = self.load(
            Component::VideoVae,
            video_vae::Config::library,
            video_vae::Config::original,
            |config, weights| VideoVae::new(config, weights, &kernels),
        )?;
        let request = self.spec.request.clone();
        let tiling = self.spec.tiling.clone();
        for stage in [Stage::First, Stage::Second] {
            if request.kept_frames == 0 {
                continue;
            }
            let [height, width] = stage.pixels(&request);
            let size = [1, config.channels, request.kept_frames, height, width];
            let pixels = self.noise(&size, Kind::Float);
            let flop = arithmetic::encode(&config, [request.kept_frames, height, width]);
            let name = format!("{}: encode the kept frames", stage.name());
            self.measure(&name, 1, Some(flop), || vae.encode(&pixels))?;
        }
        let grid = [
            (request.num_frames - 1) / config.temporal_ratio() + 1,
            request.height / config.spatial_ratio(),
            request.width / config.spatial_ratio(),
        ];
        let [f, h, w] = grid;
        let latents = self.noise(&[1, config.latent_channels, f, h, w], Kind::Float);
        // This reports an impossible tiling before anything is measured.
        vae.decode_streaming::<BenchError>(&latents, &tiling, &mut |_| Ok(()))?;
        let flop = arithmetic::decode(&config, grid);
        self.measure("decode to rgb8", 1, Some(flop), || {
            vae.decode_streaming::<BenchError>(&latents, &tiling, &mut |_| Ok(()))
        })?;
        // A viewer waits only for the first frames.
        self.measure("first frames of decoding", 0, None, || {
            vae.decode_streaming::<Stop>(&latents, &tiling, &mut |_| Err(Stop))
        })
    }

    pub(super) fn upsampler(&mut self) -> Result<(), BenchError> {
        let (config, upsampler) = self.load(
            Component::Upsampler,
            upsampler::Config::library,
            upsampler::Config::original,
            Upsampler::new,
        )?;
        let [height, width] = Stage::First
            .pixels(&self.spec.request)
            .map(|size| size / CELL);
        let frames = (self.spec.request.num_frames - 1) / FRAMES + 1;
        let latents = self.noise(&[1, config.in_channels, frames, height, width], Kind::Float);
        let flop = arithmetic::upsample(&config, [frames, height, width]);
        self.measure("upsample", 1, Some(flop), || upsampler.forward(&latents))
    }

    pub(super) fn sound(&mut self) -> Result<(), BenchError> {
        let (config, audio_vae) = self.load(
            Component::AudioVae,
            audio_vae::Config::library,
            audio_vae::Config::original,
            AudioVae::new,
        )?;
        let latents_per_second =
            config.sample_rate as f64 / (config.mel_hop_length * config.compression_ratio()) as f64;
        let (length, _) = audio_latents(&self.spec.request, latents_per_second);
        let size = [1, config.latent_channels, length, config.latent_mel_bins()];
        let latents = self.noise(&size, Kind::Float);
        self.measure("decode the sound to mel frames", 1, None, || {
            audio_vae.decode(&latents)
        })?;
        let mel = audio_vae.decode(&latents);
        drop(audio_vae);
        let (_, vocoder) = self.load(
            Component::Vocoder,
            vocoder::Config::library,
            vocoder::Config::original,
            Vocoder::new,
        )?;
        self.measure("vocoder", 1, None, || vocoder.forward(&mel))
    }

    fn shape(&self, config: &transformer::Config, stage: Stage) -> Result<Shape, BenchError> {
        Shape::of(config, &self.spec.request, stage)
    }

    fn tokens(&self, shape: &Shape) -> Tokens {
        Tokens {
            video: shape.video_levels.tokens(),
            audio: shape.audio_levels.tokens(),
            text: self.spec.request.text_length,
        }
    }

    fn noise(&self, shape: &[i64], kind: Kind) -> Tensor {
        let _alone = generator();
        let device: Device = self.compute.device;
        Tensor::randn(shape, (kind, device))
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    First,
    Second,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::First => "stage 1",
            Self::Second => "stage 2",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    fn pixels(self, request: &Request) -> [i64; 2] {
        let by = match self {
            Self::First => 2,
            Self::Second => 1,
        };
        [request.height / by, request.width / by]
    }
}

/// The token counts of a request in one stage.
struct Shape {
    geometry: Geometry,
    video_levels: NoiseLevels,
    audio_levels: NoiseLevels,
}

impl Shape {
    fn of(
        config: &transformer::Config,
        request: &Request,
        stage: Stage,
    ) -> Result<Self, BenchError> {
        let [time, rows, columns] = config.vae_scale_factors;
        if request.height % (2 * rows) != 0 || request.width % (2 * columns) != 0 {
            return Err(BenchError::Request(format!(
                "picture: expected multiples of {} × {} pixels, given {} × {}",
                2 * columns,
                2 * rows,
                request.width,
                request.height
            )));
        }
        if request.num_frames < 1 || request.num_frames % time != 1 % time {
            return Err(BenchError::Request(format!(
                "num_frames: expected a multiple of {time} and 1, given {}",
                request.num_frames
            )));
        }
        let [height, width] = stage.pixels(request);
        let grid = [
            (request.num_frames - 1) / time + 1,
            height / rows,
            width / columns,
        ];
        let [frames, height, width] = grid;
        let kept = match request.kept_frames {
            0 => 0,
            kept => (kept - 1) / time + 1,
        };
        let latents_per_second = config.audio_sampling_rate as f64
            / (config.audio_hop_length * config.audio_scale_factor) as f64;
        let (audio, audio_kept) = audio_latents(request, latents_per_second);
        let (video_kept, tokens) = (kept.min(frames) * height * width, frames * height * width);
        let levels = |kept, all| NoiseLevels::kept(kept, all, SIGMA);
        Ok(Self {
            geometry: Geometry {
                grid,
                audio_latents: audio,
                fps: request.fps,
                video_offset: request.extra_audio_frames() as f64 / request.fps,
                positions: Positions::default(),
            },
            video_levels: levels(video_kept, tokens),
            audio_levels: levels(audio_kept, audio),
        })
    }
}

/// Returns the number of audio latents of a segment, and how many of them are kept from the one before.
fn audio_latents(request: &Request, per_second: f64) -> (i64, i64) {
    let latents = |frames: i64| {
        let latents = (frames as f64 / request.fps * per_second).round_ties_even();
        #[expect(clippy::cast_possible_truncation, reason = "a few hundred")]
        let latents = latents as i64;
        latents
    };
    let all = latents(request.num_frames + request.extra_audio_frames());
    match request.kept_frames {
        0 => (all, 0),
        _ => (all, latents(request.kept_audio_frames).min(all)),
    }
}

/// An output that ends decoding after the first frames.
struct Stop;

impl From<TilingError> for Stop {
    fn from(_: TilingError) -> Self {
        Self
    }
}
