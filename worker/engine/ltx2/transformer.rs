//! The denoiser: computes velocities from the noised latents of both streams, their noise levels and the text.
//!
//! Follows `LTX2VideoTransformer3DModel` in `models/transformers/transformer_ltx2.py` of diffusers 0.42.1. The sampler
//! calls [`Transformer::forward`] once a step; inputs that do not change between steps are [`RotaryTables`] and
//! [`TextContext`].
//!
//! - `config`: sizes, from either layout's file;
//! - `rope`: positions and rotary tables;
//! - `modulation`: noise levels and their effect on the tokens;
//! - `attention`, `block`: the layers.

pub mod attention;
pub mod block;
mod config;
pub mod modulation;
pub mod rope;

use tch::{Kind, Tensor};

use self::block::{Block, BlockText, Surroundings, Text};
use self::modulation::{Embeddings, Modulation};
use crate::nn::Linear;
use crate::ops::Kernels;
use crate::weights::Weights;

pub use self::config::Config;
pub use self::modulation::{CrossModalLevels, NoiseLevels};
pub use self::rope::{Geometry, Positions, RotaryTables};

/// The epsilon of the output norm, which is fixed in the reference's code; the other norms have theirs in the
/// configuration.
const OUTPUT_EPS: f64 = 1e-6;

#[derive(Debug)]
pub struct Transformer {
    proj_in: Linear,
    audio_proj_in: Linear,
    /// The projections of the contexts, video and audio, in LTX-2.0.
    caption_projections: Option<[TextProjection; 2]>,
    pub(crate) video: Embeddings,
    pub(crate) audio: Embeddings,
    pub(crate) blocks: Vec<Block>,
    output: Output,
    audio_output: Output,
    kind: Kind,
    kernels: Kernels,
}

/// The tokens of one step.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The normalized video latents `[B, N, C]`, frame-major, then by row; float32.
    pub video: &'a Tensor,
    /// The normalized audio latents `[B, L, C']`, float32.
    pub audio: &'a Tensor,
    pub video_levels: &'a NoiseLevels,
    pub audio_levels: &'a NoiseLevels,
    pub tables: &'a RotaryTables,
    pub text: &'a TextContext,
    pub cross_modal_levels: CrossModalLevels,
    /// Whether the streams do not attend to each other, for modality guidance.
    pub isolate_modalities: bool,
    /// The blocks in whose self-attention each token sees itself alone, for perturbed guidance.
    pub perturbed_blocks: &'a [usize],
}

/// The velocities: noise minus clean latents, in the shapes of [`Inputs`], float32.
#[derive(Debug)]
pub struct Velocities {
    pub video: Tensor,
    pub audio: Tensor,
}

/// What the blocks attend to of a prompt, in all steps.
#[derive(Debug)]
pub enum TextContext {
    /// The keys and values in every block, which do not depend on the noise level in LTX-2.0.
    KeyValues(Vec<BlockText>),
    /// The contexts, `[B, S, D]`; the keys and values depend on the noise level in LTX-2.3.
    Contexts { video: Tensor, audio: Tensor },
}

impl TextContext {
    /// Returns what the block number `index` attends to: for video, then for audio.
    pub fn of_block(&self, index: usize) -> [Text<'_>; 2] {
        match self {
            Self::KeyValues(blocks) => {
                let BlockText { video, audio } = &blocks[index];
                [Text::KeyValue(video), Text::KeyValue(audio)]
            }
            Self::Contexts { video, audio } => [Text::Context(video), Text::Context(audio)],
        }
    }
}

impl Transformer {
    pub fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        let (width, audio_width) = (config.width(), config.audio_width());
        let projection = |name: &str, captions: i64, width: i64| {
            TextProjection::new(&weights.sub(name), captions, width)
        };
        Self {
            proj_in: Linear::new(&weights.sub("proj_in"), config.in_channels, width),
            audio_proj_in: Linear::new(
                &weights.sub("audio_proj_in"),
                config.audio_in_channels,
                audio_width,
            ),
            caption_projections: config.caption_channels.map(|captions| {
                [
                    projection("caption_projection", captions, width),
                    projection("audio_caption_projection", captions, audio_width),
                ]
            }),
            video: Embeddings::video(config, weights),
            audio: Embeddings::audio(config, weights),
            blocks: (0..config.num_layers)
                .map(|i| Block::new(config, &weights.sub("transformer_blocks").sub(i), kernels))
                .collect(),
            output: Output::new(weights, "", width, config.out_channels, kernels),
            audio_output: Output::new(
                weights,
                "audio_",
                audio_width,
                config.audio_out_channels,
                kernels,
            ),
            kind: weights.kind(),
            kernels: kernels.clone(),
        }
    }

    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Prepares the contexts of the connectors, `[B, S, context width]` each, for all steps. They must not contain
    /// padding: the connectors put registers in its place.
    pub fn text(&self, video: &Tensor, audio: &Tensor) -> TextContext {
        let (video, audio) = (video.to_kind(self.kind), audio.to_kind(self.kind));
        let Some([projection, audio_projection]) = &self.caption_projections else {
            return TextContext::Contexts { video, audio };
        };
        let (video, audio) = (projection.forward(&video), audio_projection.forward(&audio));
        let blocks = self.blocks.iter().map(|block| block.text(&video, &audio));
        TextContext::KeyValues(blocks.collect())
    }

    /// # Panics
    /// Panics where libtorch does: when shapes do not fit together or the device runs out of memory.
    pub fn forward(&self, inputs: &Inputs<'_>) -> Velocities {
        let device = inputs.video.device();
        let (levels, audio_levels) = (inputs.video_levels, inputs.audio_levels);
        let cross = inputs.cross_modal_levels;
        let video = self.video.forward(levels, audio_levels, cross, device);
        let audio = self.audio.forward(audio_levels, levels, cross, device);
        let mut x = self.proj_in.forward(&inputs.video.to_kind(self.kind));
        let mut a = self.audio_proj_in.forward(&inputs.audio.to_kind(self.kind));
        for (i, block) in self.blocks.iter().enumerate() {
            let around = Surroundings {
                video: &video,
                audio: &audio,
                tables: inputs.tables,
                isolate_modalities: inputs.isolate_modalities,
                perturbed: inputs.perturbed_blocks.contains(&i),
            };
            block.forward(&mut x, &mut a, &around, inputs.text.of_block(i));
        }
        Velocities {
            video: self.output.forward(&x, &video),
            audio: self.audio_output.forward(&a, &audio),
        }
    }
}

/// `PixArtAlphaTextProjection` in `models/embeddings.py`.
#[derive(Debug)]
struct TextProjection {
    linear_1: Linear,
    linear_2: Linear,
}

impl TextProjection {
    fn new(weights: &Weights, in_features: i64, width: i64) -> Self {
        Self {
            linear_1: Linear::new(&weights.sub("linear_1"), in_features, width),
            linear_2: Linear::new(&weights.sub("linear_2"), width, width),
        }
    }

    fn forward(&self, captions: &Tensor) -> Tensor {
        self.linear_2
            .forward(&self.linear_1.forward(captions).gelu("tanh"))
    }
}

/// The output head: computes a stream's velocity from its last tokens.
#[derive(Debug)]
struct Output {
    /// `[2, D]`.
    scale_shift_table: Tensor,
    proj_out: Linear,
    kernels: Kernels,
}

impl Output {
    fn new(weights: &Weights, prefix: &str, width: i64, channels: i64, kernels: &Kernels) -> Self {
        Self {
            scale_shift_table: weights.tensor(&format!("{prefix}scale_shift_table"), &[2, width]),
            proj_out: Linear::new(&weights.sub(format!("{prefix}proj_out")), width, channels),
            kernels: kernels.clone(),
        }
    }

    /// Computes the velocity: `[B, N, D]` to `[B, N, C]`, float32.
    fn forward(&self, x: &Tensor, modulation: &Modulation) -> Tensor {
        let row = |i: i64| self.scale_shift_table.get(i) + &modulation.embedded; // [B, runs, D]
        let (shift, scale) = (row(0), row(1));
        let normed =
            self.kernels
                .layer_norm_modulate(x, OUTPUT_EPS, &scale, &shift, &modulation.runs);
        self.proj_out.forward(&normed).to_kind(Kind::Float)
    }
}
