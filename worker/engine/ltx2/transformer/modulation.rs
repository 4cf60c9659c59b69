//! Modulation (AdaLN): turns noise levels into the shifts, scales and gates of every block.
//!
//! Follows `LTX2AdaLayerNormSingle` in `models/transformers/transformer_ltx2.py` and `get_timestep_embedding` in
//! `models/embeddings.py` of diffusers 0.42.1. There, a modulation is computed for every token when tokens differ; here for
//! every distinct level, since kept frames and sound are a prefix at level 0.

use tch::{Device, Kind, Tensor};

use super::Config;
use crate::nn::Linear;
use crate::ops::Runs;
use crate::weights::Weights;

/// The width of the sinusoidal embedding of a noise level.
const SINUSOID: i64 = 256;
const LONGEST_PERIOD: f64 = 10_000.0;

/// The noise level σ in [0, 1] of every token of a stream, by runs of tokens.
#[derive(Debug)]
pub struct NoiseLevels {
    runs: Runs,
    /// The levels, `[B or 1, runs]`, float32.
    sigmas: Tensor,
}

/// A stream's modulation in one pass, before each block adds its own table. Rows come first, so that each is contiguous.
#[derive(Debug)]
pub struct Modulation {
    pub runs: Runs,
    /// Shift, scale and gate of self-attention, then of the feed-forward layer, `[6, B, runs, D]`.
    pub temb: Tensor,
    /// The embedding for the output, `[B, runs, D]`.
    pub embedded: Tensor,
    /// Scale and shift of audio-to-video attention, then of video-to-audio attention, `[4, B, runs, D]`.
    pub cross_scale_shift: Tensor,
    /// The gate of the attention between the streams, `[1, B, runs, D]`.
    pub cross_gate: Tensor,
}

/// The embeddings of one stream's noise levels.
#[derive(Debug)]
pub struct Embeddings {
    time_embed: AdaLayerNormSingle,
    cross_scale_shift: AdaLayerNormSingle,
    cross_gate: AdaLayerNormSingle,
    multiplier: f64,
    gate_ratio: f64,
}

impl NoiseLevels {
    /// Creates levels with one level for all tokens.
    pub fn uniform(tokens: i64, sigma: f64) -> Self {
        Self::runs(&[(tokens, sigma)])
    }

    /// Creates levels from runs, each with its number of tokens and its level; runs of no tokens are left out.
    pub fn runs(runs: &[(i64, f64)]) -> Self {
        let (lengths, sigmas): (Vec<i64>, Vec<f64>) = runs
            .iter()
            .copied()
            .filter(|&(tokens, _)| tokens > 0)
            .unzip();
        Self {
            runs: Runs::new(lengths),
            sigmas: Tensor::from_slice(&sigmas)
                .to_kind(Kind::Float)
                .unsqueeze(0),
        }
    }

    /// Creates levels with one level for each sample of a batch.
    pub fn of_samples(tokens: i64, sigmas: &[f64]) -> Self {
        Self {
            runs: Runs::new(vec![tokens]),
            sigmas: Tensor::from_slice(sigmas).to_kind(Kind::Float).unsqueeze(1),
        }
    }

    /// Creates levels with one level for every token, `[B or 1, N]` in float32. This costs a modulation per token.
    pub fn per_token(sigmas: &Tensor) -> Self {
        let tokens = sigmas.size().last().copied().unwrap_or_default();
        Self {
            runs: Runs::new((0..tokens).map(|_| 1).collect()),
            sigmas: sigmas.shallow_clone(),
        }
    }

    pub fn tokens(&self) -> i64 {
        self.runs.tokens()
    }
}

impl Embeddings {
    pub fn video(config: &Config, weights: &Weights) -> Self {
        let names = [
            "time_embed",
            "av_cross_attn_video_scale_shift",
            "av_cross_attn_video_a2v_gate",
        ];
        Self::new(config, weights, names, config.width())
    }

    pub fn audio(config: &Config, weights: &Weights) -> Self {
        let names = [
            "audio_time_embed",
            "av_cross_attn_audio_scale_shift",
            "av_cross_attn_audio_v2a_gate",
        ];
        Self::new(config, weights, names, config.audio_width())
    }

    fn new(config: &Config, weights: &Weights, names: [&str; 3], width: i64) -> Self {
        let [time_embed, cross_scale_shift, cross_gate] = names.map(|name| weights.sub(name));
        let multiplier = config.timestep_scale_multiplier;
        Self {
            time_embed: AdaLayerNormSingle::new(&time_embed, width, 6),
            cross_scale_shift: AdaLayerNormSingle::new(&cross_scale_shift, width, 4),
            cross_gate: AdaLayerNormSingle::new(&cross_gate, width, 1),
            multiplier,
            gate_ratio: config.cross_attn_timestep_scale_multiplier / multiplier,
        }
    }

    pub fn forward(&self, levels: &NoiseLevels, device: Device) -> Modulation {
        let timestep = levels.sigmas.to_device(device) * self.multiplier;
        let (temb, embedded) = self.time_embed.forward(&timestep);
        let (cross_scale_shift, _) = self.cross_scale_shift.forward(&timestep);
        let (cross_gate, _) = self.cross_gate.forward(&(timestep * self.gate_ratio));
        Modulation {
            runs: levels.runs.clone(),
            temb,
            embedded,
            cross_scale_shift,
            cross_gate,
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
