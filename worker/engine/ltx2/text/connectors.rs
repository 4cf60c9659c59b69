//! The connectors: they turn the language model's states into one context for the picture and one for the sound.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/connectors.py`.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::Contexts;
use crate::config::{self, ConfigError};
use crate::nn::{Linear, rms_norm};
use crate::ops::{Kernels, Rotation};
use crate::transformer::attention::{Attention, FeedForward, Shape};
use crate::weights::Weights;

const PART: &str = "connectors";
const EPS: f64 = 1e-6;
/// The range, from minimum to maximum, that states are scaled to approximately.
const SPREAD: f64 = 8.0;

/// The sizes of both connectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The width of the language model's states.
    pub caption_channels: i64,
    /// The number of states that the language model has for each token.
    pub text_proj_in_factor: i64,
    pub video: Stream,
    pub audio: Stream,
    /// The divisor of positions.
    pub rope_base_seq_len: i64,
    pub rope_theta: f64,
    pub rope_double_precision: bool,
}

/// The sizes of one connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub num_layers: usize,
    pub num_learnable_registers: i64,
}

#[derive(Deserialize)]
struct Library {
    caption_channels: i64,
    text_proj_in_factor: i64,
    video_connector_num_attention_heads: i64,
    video_connector_attention_head_dim: i64,
    video_connector_num_layers: usize,
    video_connector_num_learnable_registers: i64,
    audio_connector_num_attention_heads: i64,
    audio_connector_attention_head_dim: i64,
    audio_connector_num_layers: usize,
    audio_connector_num_learnable_registers: i64,
    connector_rope_base_seq_len: i64,
    rope_theta: f64,
    rope_double_precision: bool,
}

#[derive(Deserialize)]
struct Original {
    hidden_size: i64,
    feature_extractor_in_features: i64,
    feature_extractor_out_features: i64,
    connector_num_attention_heads: i64,
    connector_attention_head_dim: i64,
    connector_num_layers: usize,
    connector_num_learnable_registers: i64,
    connector_positional_embedding_max_pos: [i64; 1],
    connector_positional_embedding_theta: f64,
    connector_double_precision_rope: bool,
}

impl Config {
    /// Reads diffusers' `config.json`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing, or has a value which this engine does not implement.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        for switch in [
            "per_modality_projections",
            "proj_bias",
            "video_gated_attn",
            "audio_gated_attn",
            "causal_temporal_positioning",
        ] {
            config::only(PART, json, switch, &json!(false))?;
        }
        config::only(PART, json, "rope_type", &json!("split"))?;
        let raw: Library = config::read(PART, json)?;
        Self {
            caption_channels: raw.caption_channels,
            text_proj_in_factor: raw.text_proj_in_factor,
            video: Stream {
                num_attention_heads: raw.video_connector_num_attention_heads,
                attention_head_dim: raw.video_connector_attention_head_dim,
                num_layers: raw.video_connector_num_layers,
                num_learnable_registers: raw.video_connector_num_learnable_registers,
            },
            audio: Stream {
                num_attention_heads: raw.audio_connector_num_attention_heads,
                attention_head_dim: raw.audio_connector_attention_head_dim,
                num_layers: raw.audio_connector_num_layers,
                num_learnable_registers: raw.audio_connector_num_learnable_registers,
            },
            rope_base_seq_len: raw.connector_rope_base_seq_len,
            rope_theta: raw.rope_theta,
            rope_double_precision: raw.rope_double_precision,
        }
        .checked()
    }

    /// Reads the `config.json` of FastVideo's text encoder.
    ///
    /// # Errors
    /// Returns the errors of [`Self::library`].
    pub fn original(json: &Value, _weights: &Weights) -> Result<Self, ConfigError> {
        config::only(PART, json, "connector_rope_type", &json!("split"))?;
        config::only(PART, json, "padding_side", &json!("left"))?;
        let raw: Original = config::read(PART, json)?;
        config::only(
            PART,
            json,
            "feature_extractor_out_features",
            &json!(raw.hidden_size),
        )?;
        let stream = Stream {
            num_attention_heads: raw.connector_num_attention_heads,
            attention_head_dim: raw.connector_attention_head_dim,
            num_layers: raw.connector_num_layers,
            num_learnable_registers: raw.connector_num_learnable_registers,
        };
        Self {
            caption_channels: raw.feature_extractor_out_features,
            text_proj_in_factor: raw.feature_extractor_in_features / raw.hidden_size.max(1),
            video: stream,
            audio: stream,
            rope_base_seq_len: raw.connector_positional_embedding_max_pos[0],
            rope_theta: raw.connector_positional_embedding_theta,
            rope_double_precision: raw.connector_double_precision_rope,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        for (name, stream) in [("video", self.video), ("audio", self.audio)] {
            let width = stream.num_attention_heads * stream.attention_head_dim;
            if width != self.caption_channels {
                return Err(ConfigError::Value {
                    part: PART,
                    key: format!("{name}_connector_num_attention_heads"),
                    expected: format!("heads of {} channels together", self.caption_channels),
                    given: format!("{width} channels"),
                });
            }
            if stream.num_learnable_registers < 1 {
                return Err(ConfigError::Value {
                    part: PART,
                    key: format!("{name}_connector_num_learnable_registers"),
                    expected: "at least 1".to_owned(),
                    given: stream.num_learnable_registers.to_string(),
                });
            }
        }
        Ok(self)
    }
}

/// The shared projection and the two connectors.
#[derive(Debug)]
pub struct Connectors {
    text_proj_in: Linear,
    video_connector: Connector,
    audio_connector: Connector,
    registers: i64,
}

impl Connectors {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let width = config.caption_channels;
        let inner = width * config.text_proj_in_factor;
        let connector = |name, stream| Connector::new(config, stream, &weights.sub(name));
        let registers = [config.video, config.audio].map(|s| s.num_learnable_registers);
        Self {
            text_proj_in: Linear::without_bias(&weights.sub("text_proj_in"), inner, width),
            video_connector: connector("video_connector", config.video),
            audio_connector: connector("audio_connector", config.audio),
            registers: registers[0] * registers[1] / gcd(registers[0], registers[1]),
        }
    }

    /// Returns the number of registers. A text's length must be a multiple of it.
    pub fn registers(&self) -> i64 {
        self.registers
    }

    /// Turns the states of a prompt's `n` tokens, `[1, n, channels, states]`, into contexts of `length` tokens.
    pub fn forward(&self, states: &Tensor, length: i64) -> Contexts {
        let features = self.text_proj_in.forward(&normalize(states));
        Contexts {
            video: self.video_connector.forward(&features, length),
            audio: self.audio_connector.forward(&features, length),
        }
    }
}

/// Centres and scales each state over all tokens and channels, `[1, n, channels, states]`, and puts the states of a
/// channel side by side: `[1, n, channels * states]`.
pub fn normalize(states: &Tensor) -> Tensor {
    let count = states.size()[1] * states.size()[2];
    let x = states.to_kind(Kind::Float);
    let mean = x.sum_dim_intlist([1, 2].as_slice(), true, Kind::Float) / (count as f64 + EPS);
    let range = x.amax([1, 2].as_slice(), true) - x.amin([1, 2].as_slice(), true);
    let spread = (x - mean) / (range + EPS) * SPREAD;
    spread.flatten(2, 3).to_kind(states.kind())
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A small transformer over a text whose end is filled with registers.
#[derive(Debug)]
struct Connector {
    learnable_registers: Tensor,
    transformer_blocks: Vec<Block>,
    rope: Rope,
}

impl Connector {
    fn new(config: &Config, stream: Stream, weights: &Weights) -> Self {
        let width = config.caption_channels;
        let blocks = weights.sub("transformer_blocks");
        let block = |i| Block::new(width, stream, &blocks.sub(i));
        Self {
            learnable_registers: weights.tensor(
                "learnable_registers",
                &[stream.num_learnable_registers, width],
            ),
            transformer_blocks: (0..stream.num_layers).map(block).collect(),
            rope: Rope {
                width,
                heads: stream.num_attention_heads,
                base_seq_len: config.rope_base_seq_len,
                theta: config.rope_theta,
                kind: if config.rope_double_precision {
                    Kind::Double
                } else {
                    Kind::Float
                },
            },
        }
    }

    /// Applies the connector: `[1, n, width]` to `[1, length, width]`.
    fn forward(&self, features: &Tensor, length: i64) -> Tensor {
        let (_, n, _) = features.size3().unwrap_or_default();
        let repeats = length / self.learnable_registers.size()[0];
        // The position of a register is counted from the start of the text.
        let registers = self.learnable_registers.repeat([repeats, 1]);
        let rest = registers.narrow(0, n, length - n).unsqueeze(0);
        let mut x = Tensor::cat(&[features, &rest], 1);
        let rotation = self.rope.rotation(length, x.device());
        for block in &self.transformer_blocks {
            x = block.forward(&x, &rotation);
        }
        rms_norm(&x, EPS)
    }
}

#[derive(Debug)]
struct Block {
    attn1: Attention,
    ff: FeedForward,
}

impl Block {
    fn new(width: i64, stream: Stream, weights: &Weights) -> Self {
        let shape = Shape {
            query_dim: width,
            context_dim: width,
            heads: stream.num_attention_heads,
            head_dim: stream.attention_head_dim,
            eps: EPS,
        };
        Self {
            attn1: Attention::new(&weights.sub("attn1"), shape, &Kernels::Plain),
            ff: FeedForward::new(&weights.sub("ff"), width),
        }
    }

    fn forward(&self, x: &Tensor, rotation: &Rotation) -> Tensor {
        let x = x + self.attn1.forward_self(&rms_norm(x, EPS), rotation);
        let ff = self.ff.forward(&rms_norm(&x, EPS));
        x + ff
    }
}

/// The parameters that turn positions in a text into angles.
#[derive(Debug)]
struct Rope {
    width: i64,
    heads: i64,
    base_seq_len: i64,
    theta: f64,
    /// The type that the powers are computed in.
    kind: Kind,
}

impl Rope {
    fn rotation(&self, length: i64, device: Device) -> Rotation {
        let place = Tensor::arange(length, (Kind::Float, device)) / self.base_seq_len as f64;
        let count = self.width / 2;
        let exponents = Tensor::linspace(0.0, 1.0, count, (self.kind, device));
        let powers = Tensor::pow_scalar(self.theta, &exponents);
        let frequencies = (powers * std::f64::consts::PI / 2.0).to_kind(Kind::Float);
        let angles = (place.unsqueeze(-1) * 2.0 - 1.0) * frequencies; // [length, width / 2]
        // Each head has frequencies of its own: `[1, heads, length, width / heads / 2]`.
        let split = |x: Tensor| {
            x.unflatten(-1, [self.heads, -1])
                .transpose(0, 1)
                .unsqueeze(0)
        };
        Rotation {
            cos: split(angles.cos()),
            sin: split(angles.sin()),
        }
    }
}
