//! Modulation (AdaLN): turns noise levels into the shifts, scales and gates of every block.
//!
//! Follows `LTX2AdaLayerNormSingle` in `models/transformers/transformer_ltx2.py` and `get_timestep_embedding` in
//! `models/embeddings.py` of diffusers 0.42.1. There, a modulation is computed for every token when tokens differ; here for
//! every distinct level, since kept frames and sound are a prefix at level 0.

use tch::{Device, Kind, Tensor};

use super::Config;
use crate::generation::Generation;
use crate::nn::Linear;
use crate::ops::Runs;
use crate::weights::Weights;

/// The width of the sinusoidal embedding of a noise level.
const SINUSOID: i64 = 256;
const LONGEST_PERIOD: f64 = 10_000.0;

/// The noise level σ in [0, 1] of every token of a stream, by runs of tokens, and the stream's own level.
#[derive(Debug)]
pub struct NoiseLevels {
    runs: Runs,
    /// The levels, `[B or 1, runs]`, float32.
    sigmas: Tensor,
    /// The level of the step, which tokens that are not kept have, `[B or 1, 1]`, float32.
    plain: Tensor,
}

/// The noise level that the attention between the streams is modulated by. They differ where tokens are kept, whose own
/// level is 0, and where the streams have different levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrossModalLevels {
    /// Scale, shift and gate by the other stream's level, as diffusers does for LTX-2.3.
    Library,
    /// Scale and shift by each token's own level, the gate by the other stream's, as the model's authors do since May 2026.
    Lightricks,
    /// Scale, shift and gate by each token's own level, as FastVideo does, and diffusers for LTX-2.0.
    FastVideo,
}

/// A stream's modulation in one pass, before each block adds its own table. Rows come first, so that each is contiguous.
#[derive(Debug)]
pub struct Modulation {
    pub runs: Runs,
    /// Shift, scale and gate of self-attention, then of the feed-forward layer, and in LTX-2.3 of the attention to the
    /// text: `[6 or 9, B, runs, D]`.
    pub temb: Tensor,
    /// The embedding for the output, `[B, runs, D]`.
    pub embedded: Tensor,
    /// Shift and scale of the text in LTX-2.3, `[2, B, 1, D]`.
    pub prompt: Option<Tensor>,
    /// Scale and shift of audio-to-video attention, then of video-to-audio attention, `[4, B, cross runs, D]`.
    pub cross_scale_shift: Tensor,
    pub cross_runs: Runs,
    /// The gate of the attention between the streams, `[1, B, gate runs, D]`.
    pub cross_gate: Tensor,
    pub gate_runs: Runs,
}

/// The embeddings of one stream's noise levels.
#[derive(Debug)]
pub struct Embeddings {
    time_embed: AdaLayerNormSingle,
    prompt_adaln: Option<AdaLayerNormSingle>,
    cross_scale_shift: AdaLayerNormSingle,
    cross_gate: AdaLayerNormSingle,
    multiplier: f64,
    gate_ratio: f64,
}

impl NoiseLevels {
    /// Creates levels with one level for all tokens.
    pub fn uniform(tokens: i64, sigma: f64) -> Self {
        Self::kept(0, tokens, sigma)
    }

    /// Creates the levels of `tokens` tokens of which the first `kept` ones are clean.
    pub fn kept(kept: i64, tokens: i64, sigma: f64) -> Self {
        Self::runs(&[(kept, 0.0), (tokens - kept, sigma)], sigma)
    }

    /// Creates levels from runs, each with its number of tokens and its level; runs of no tokens are left out. `plain` is
    /// the level of the step.
    pub fn runs(runs: &[(i64, f64)], plain: f64) -> Self {
        let (lengths, sigmas): (Vec<i64>, Vec<f64>) = runs
            .iter()
            .copied()
            .filter(|&(tokens, _)| tokens > 0)
            .unzip();
        Self {
            runs: Runs::new(lengths),
            sigmas: levels(&sigmas).unsqueeze(0),
            plain: levels(&[plain]).unsqueeze(0),
        }
    }

    /// Creates levels with one level for each sample of a batch.
    pub fn of_samples(tokens: i64, sigmas: &[f64]) -> Self {
        let sigmas = levels(sigmas).unsqueeze(1);
        Self {
            runs: Runs::new(vec![tokens]),
            plain: sigmas.shallow_clone(),
            sigmas,
        }
    }

    /// Creates levels with one level for every token, `[B or 1, N]` in float32. This costs a modulation per token.
    pub fn per_token(sigmas: &Tensor, plain: f64) -> Self {
        let tokens = sigmas.size().last().copied().unwrap_or_default();
        Self {
            runs: Runs::new((0..tokens).map(|_| 1).collect()),
            sigmas: sigmas.shallow_clone(),
            plain: levels(&[plain]).unsqueeze(0),
        }
    }

    pub fn tokens(&self) -> i64 {
        self.runs.tokens()
    }
}

fn levels(sigmas: &[f64]) -> Tensor {
    Tensor::from_slice(sigmas).to_kind(Kind::Float)
}

impl Embeddings {
    pub fn video(config: &Config, weights: &Weights) -> Self {
        let names = [
            "time_embed",
            "prompt_adaln",
            "av_cross_attn_video_scale_shift",
            "av_cross_attn_video_a2v_gate",
        ];
        Self::new(config, weights, names, config.width())
    }

    pub fn audio(config: &Config, weights: &Weights) -> Self {
        let names = [
            "audio_time_embed",
            "audio_prompt_adaln",
            "av_cross_attn_audio_scale_shift",
            "av_cross_attn_audio_v2a_gate",
        ];
        Self::new(config, weights, names, config.audio_width())
    }

    fn new(config: &Config, weights: &Weights, names: [&str; 4], width: i64) -> Self {
        let [time_embed, prompt_adaln, scale_shift, gate] = names.map(|name| weights.sub(name));
        let multiplier = config.timestep_scale_multiplier;
        let rows = config.modulation_rows();
        Self {
            time_embed: AdaLayerNormSingle::new(&time_embed, width, rows),
            prompt_adaln: match config.generation {
                Generation::V2_0 => None,
                Generation::V2_3 => Some(AdaLayerNormSingle::new(&prompt_adaln, width, 2)),
            },
            cross_scale_shift: AdaLayerNormSingle::new(&scale_shift, width, 4),
            cross_gate: AdaLayerNormSingle::new(&gate, width, 1),
            multiplier,
            gate_ratio: config.cross_attn_timestep_scale_multiplier / multiplier,
        }
    }

    /// Computes the modulation of a stream at `levels`; `other` are the levels of the other stream.
    pub fn forward(
        &self,
        levels: &NoiseLevels,
        other: &NoiseLevels,
        cross: CrossModalLevels,
        device: Device,
    ) -> Modulation {
        let timestep = |sigmas: &Tensor| sigmas.to_device(device) * self.multiplier;
        let own = (&levels.runs, timestep(&levels.sigmas));
        let others = (&Runs::new(vec![levels.tokens()]), timestep(&other.plain));
        let (temb, embedded) = self.time_embed.forward(&own.1);
        let prompt = self.prompt_adaln.as_ref();
        let prompt = prompt.map(|adaln| adaln.forward(&timestep(&levels.plain)).0);
        let ((cross_runs, scale_shift), (gate_runs, gate)) = match cross {
            CrossModalLevels::Library => (&others, &others),
            CrossModalLevels::Lightricks => (&own, &others),
            CrossModalLevels::FastVideo => (&own, &own),
        };
        let (cross_scale_shift, _) = self.cross_scale_shift.forward(scale_shift);
        let (cross_gate, _) = self.cross_gate.forward(&(gate * self.gate_ratio));
        Modulation {
            runs: levels.runs.clone(),
            temb,
            embedded,
            prompt,
            cross_scale_shift,
            cross_runs: (*cross_runs).clone(),
            cross_gate,
            gate_runs: (*gate_runs).clone(),
        }
    }
}

#[derive(Debug)]
struct AdaLayerNormSingle {
    linear_1: Linear,
    linear_2: Linear,
    linear: Linear,
    rows: i64,
    width: i64,
    kind: Kind,
}

impl AdaLayerNormSingle {
    fn new(weights: &Weights, width: i64, rows: i64) -> Self {
        let embedder = weights.sub("emb.timestep_embedder");
        Self {
            linear_1: Linear::new(&embedder.sub("linear_1"), SINUSOID, width),
            linear_2: Linear::new(&embedder.sub("linear_2"), width, width),
            linear: Linear::new(&weights.sub("linear"), width, rows * width),
            rows,
            width,
            kind: weights.kind(),
        }
    }

    /// Computes the modulation `[rows, B, runs, D]` and the embedding `[B, runs, D]` of timesteps `[B, runs]`.
    fn forward(&self, timestep: &Tensor) -> (Tensor, Tensor) {
        let (batch, runs) = timestep.size2().expect("timesteps have two axes");
        let hidden = sinusoid(&timestep.flatten(0, 1)).to_kind(self.kind);
        let hidden = self.linear_1.forward(&hidden).silu();
        let embedded = self.linear_2.forward(&hidden); // [B · runs, D]
        let modulation = self.linear.forward(&embedded.silu());
        let modulation = modulation.view([batch, runs, self.rows, self.width]);
        (
            modulation.permute([2, 0, 1, 3]).contiguous(),
            embedded.view([batch, runs, self.width]),
        )
    }
}

/// Computes the sinusoidal embedding: `[T]` to `[T, 256]`, cosines, then sines, of periods from 2π to 10 000 times
/// that.
pub fn sinusoid(timestep: &Tensor) -> Tensor {
    let half = SINUSOID / 2;
    let index = Tensor::arange(half, (Kind::Float, timestep.device()));
    let frequencies = (index * -LONGEST_PERIOD.ln() / half).exp();
    let angle = timestep.unsqueeze(1) * frequencies.unsqueeze(0);
    Tensor::cat(&[angle.cos(), angle.sin()], -1)
}
