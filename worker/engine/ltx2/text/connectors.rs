//! The connectors: they turn the language model's states into one context for the picture and one for the sound.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/connectors.py`.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::Contexts;
use crate::activations::{Activations, Form};
use crate::config::{self, ConfigError, Switch, check_tensor};
use crate::generation::{Generation, LATER};
use crate::nn::{Linear, rms_norm};
use crate::ops::{Kernels, Rotation};
use crate::transformer::attention::{Attention, FeedForward, Shape};
use crate::weights::Weights;

const PART: &str = "connectors";
const EPS: f64 = 1e-6;
/// The range, from minimum to maximum, that states are scaled to approximately.
const SPREAD: f64 = 8.0;

/// The switches by which the library tells the generations apart.
const LIBRARY_SWITCHES: &[Switch] = &[
    off("per_modality_projections"),
    off("proj_bias"),
    off("video_gated_attn"),
    off("audio_gated_attn"),
];
/// The switches of the original names. Files of LTX-2.0 lack them, and so may those of LTX-2.3.
const ORIGINAL_SWITCHES: &[Switch] = &[
    off("caption_proj_before_connector"),
    off("connector_apply_gated_attention"),
];
/// The divisor of positions, which the original's code has instead of a default.
const ORIGINAL_MAX_POS: &str = "connector_positional_embedding_max_pos";

const fn off(key: &'static str) -> Switch {
    Switch {
        key,
        in_v2_0: false,
    }
}

/// The sizes of both connectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub generation: Generation,
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

impl Stream {
    /// Returns the width of the context.
    pub fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
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
    video_hidden_dim: Option<i64>,
    audio_hidden_dim: Option<i64>,
}

#[derive(Deserialize)]
struct Original {
    #[serde(default = "defaults::heads")]
    connector_num_attention_heads: i64,
    #[serde(default = "defaults::head_dim")]
    connector_attention_head_dim: i64,
    #[serde(default = "defaults::layers")]
    connector_num_layers: usize,
    #[serde(default = "defaults::registers")]
    connector_num_learnable_registers: i64,
    audio_connector_num_attention_heads: Option<i64>,
    audio_connector_attention_head_dim: Option<i64>,
    audio_connector_num_layers: Option<usize>,
    connector_positional_embedding_max_pos: [i64; 1],
    #[serde(default = "defaults::theta")]
    connector_positional_embedding_theta: f64,
}

/// What a file under the original names may leave to the reference's code.
mod defaults {
    pub(super) fn heads() -> i64 {
        30
    }

    pub(super) fn head_dim() -> i64 {
        128
    }

    pub(super) fn layers() -> usize {
        2
    }

    pub(super) fn registers() -> i64 {
        128
    }

    pub(super) fn theta() -> f64 {
        10_000.0
    }
}

impl Config {
    /// Reads diffusers' `config.json`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing, or has a value which this engine does not implement.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        config::only(PART, json, "causal_temporal_positioning", &json!(false))?;
        config::only(PART, json, "rope_type", &json!("split"))?;
        refuse_later(json)?;
        let generation = config::generation(PART, json, LIBRARY_SWITCHES)?;
        let raw: Library = config::read(PART, json)?;
        let config = Self {
            generation: generation.unwrap_or(Generation::V2_0),
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
        };
        if config.generation == Generation::V2_3 {
            for (key, given, stream) in [
                ("video_hidden_dim", raw.video_hidden_dim, config.video),
                ("audio_hidden_dim", raw.audio_hidden_dim, config.audio),
            ] {
                same(key, stream.width(), given.unwrap_or_default())?;
            }
        }
        config.checked()
    }

    /// Reads the `config.json` of FastVideo's text encoder, or the keys of the connectors in the metadata of Lightricks'
    /// single file. Sizes that only one of them has come from the tensors.
    ///
    /// # Errors
    /// Returns the errors of [`Self::library`].
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        config::only(PART, json, "connector_rope_type", &json!("split"))?;
        config::only(PART, json, "connector_double_precision_rope", &json!(true))?;
        config::only(PART, json, "padding_side", &json!("left"))?;
        config::only(
            PART,
            json,
            "text_encoder_norm_type",
            &json!("per_token_rms"),
        )?;
        refuse_later(json)?;
        let projection = "video_text_proj_in.weight";
        let by_tensors = match weights.shape(projection) {
            Some(_) => Generation::V2_3,
            None => Generation::V2_0,
        };
        let generation = config::generation(PART, json, ORIGINAL_SWITCHES)?.unwrap_or(by_tensors);
        if json.get(ORIGINAL_MAX_POS).is_none() {
            return Err(ConfigError::Value {
                part: PART,
                key: ORIGINAL_MAX_POS.to_owned(),
                expected: "a length, usually [4096]".to_owned(),
                given: "no value".to_owned(),
            });
        }
        let raw: Original = config::read(PART, json)?;
        let video = Stream {
            num_attention_heads: raw.connector_num_attention_heads,
            attention_head_dim: raw.connector_attention_head_dim,
            num_layers: raw.connector_num_layers,
            num_learnable_registers: raw.connector_num_learnable_registers,
        };
        let audio = Stream {
            num_attention_heads: raw
                .audio_connector_num_attention_heads
                .unwrap_or(video.num_attention_heads),
            attention_head_dim: raw
                .audio_connector_attention_head_dim
                .unwrap_or(video.attention_head_dim),
            num_layers: raw.audio_connector_num_layers.unwrap_or(video.num_layers),
            ..video
        };
        let projection = match generation {
            Generation::V2_0 => "text_proj_in.weight",
            Generation::V2_3 => projection,
        };
        let config = Self {
            generation,
            caption_channels: 0,
            text_proj_in_factor: 0,
            video,
            audio,
            rope_base_seq_len: raw.connector_positional_embedding_max_pos[0],
            rope_theta: raw.connector_positional_embedding_theta,
            rope_double_precision: true,
        };
        config
            .with_states(json, weights.shape(projection))?
            .checked()
    }

    /// Returns the configuration with the language model's width and number of states: FastVideo's file has them, and
    /// the single file has only their product, in the projection's shape.
    fn with_states(self, json: &Value, projection: Option<Vec<i64>>) -> Result<Self, ConfigError> {
        let key = |key: &str| json.get(key).and_then(Value::as_i64);
        let inputs = key("feature_extractor_in_features").or_else(|| Some(*projection?.get(1)?));
        let width = key("hidden_size").unwrap_or_default();
        let Some(inputs) = inputs.filter(|inputs| width > 0 && inputs % width == 0) else {
            return Err(ConfigError::Value {
                part: PART,
                key: "feature_extractor_in_features".to_owned(),
                expected: format!("a multiple of the language model's width, {width}"),
                given: inputs.map_or_else(|| "no value".to_owned(), |inputs| inputs.to_string()),
            });
        };
        if self.generation == Generation::V2_0
            && let Some(given) = key("feature_extractor_out_features")
        {
            same("feature_extractor_out_features", width, given)?;
        }
        Ok(Self {
            caption_channels: width,
            text_proj_in_factor: inputs / width,
            ..self
        })
    }

    /// Checks that the tensors are those of the configuration's generation.
    ///
    /// # Errors
    /// Returns an error that names the tensor that contradicts the configuration.
    pub fn fits(self, weights: &Weights) -> Result<Self, ConfigError> {
        let check = |name, only| check_tensor(PART, self.generation, weights, name, only);
        check("text_proj_in.weight", Generation::V2_0)?;
        check("video_text_proj_in.weight", Generation::V2_3)?;
        Ok(self)
    }

    fn checked(self) -> Result<Self, ConfigError> {
        for (name, stream) in [("video", self.video), ("audio", self.audio)] {
            if self.generation == Generation::V2_0 && stream.width() != self.caption_channels {
                return Err(ConfigError::Value {
                    part: PART,
                    key: format!("{name}_connector_num_attention_heads"),
                    expected: format!("heads of {} channels together", self.caption_channels),
                    given: format!("{} channels", stream.width()),
                });
            }
            for (key, given) in [
                ("num_learnable_registers", stream.num_learnable_registers),
                ("attention_head_dim", stream.attention_head_dim),
                ("num_attention_heads", stream.num_attention_heads),
            ] {
                if given < 1 {
                    return Err(ConfigError::Value {
                        part: PART,
                        key: format!("{name}_connector_{key}"),
                        expected: "at least 1".to_owned(),
                        given: given.to_string(),
                    });
                }
            }
        }
        Ok(self)
    }
}

fn refuse_later(json: &Value) -> Result<(), ConfigError> {
    let key = "connector_ff_bias";
    match json.get(key) {
        Some(given) if *given != json!(true) => Err(ConfigError::Generation {
            part: PART,
            generation: LATER,
            key: key.to_owned(),
            given: given.to_string(),
        }),
        _ => Ok(()),
    }
}

fn same(key: &str, expected: i64, given: i64) -> Result<(), ConfigError> {
    if given == expected {
        return Ok(());
    }
    Err(ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected: expected.to_string(),
        given: given.to_string(),
    })
}

/// The projections and the two connectors.
#[derive(Debug)]
pub struct Connectors {
    projections: Projections,
    video_connector: Connector,
    audio_connector: Connector,
    registers: i64,
    widths: [i64; 2],
    generation: Generation,
}

/// What turns the states of a token into one vector.
#[derive(Debug)]
enum Projections {
    /// One matrix for both streams, of states that are normalized over the whole text: LTX-2.0.
    Shared(Linear),
    /// A matrix for each stream, of states that are normalized token by token: LTX-2.3.
    OfStreams { video: Linear, audio: Linear },
}

impl Connectors {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let inner = config.caption_channels * config.text_proj_in_factor;
        let widths = [config.video.width(), config.audio.width()];
        let connector = |name, stream| Connector::new(config, stream, &weights.sub(name));
        let registers = [config.video, config.audio].map(|s| s.num_learnable_registers);
        let projection = |name, width| Linear::new(&weights.sub(name), inner, width);
        Self {
            projections: match config.generation {
                Generation::V2_0 => Projections::Shared(Linear::without_bias(
                    &weights.sub("text_proj_in"),
                    inner,
                    config.caption_channels,
                )),
                Generation::V2_3 => Projections::OfStreams {
                    video: projection("video_text_proj_in", widths[0]),
                    audio: projection("audio_text_proj_in", widths[1]),
                },
            },
            video_connector: connector("video_connector", config.video),
            audio_connector: connector("audio_connector", config.audio),
            registers: registers[0] * registers[1] / gcd(registers[0], registers[1]),
            widths,
            generation: config.generation,
        }
    }

    /// Returns the number of registers. A text's length must be a multiple of it.
    pub fn registers(&self) -> i64 {
        self.registers
    }

    /// Returns the widths of the contexts, for video and audio.
    pub fn widths(&self) -> [i64; 2] {
        self.widths
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Turns the states of a prompt's `n` tokens, `[1, n, channels, states]`, into contexts of `length` tokens.
    pub fn forward(&self, states: &Tensor, length: i64) -> Contexts {
        let [video, audio] = match &self.projections {
            Projections::Shared(projection) => {
                let features = projection.forward(&normalize(states));
                [features.shallow_clone(), features]
            }
            Projections::OfStreams { video, audio } => {
                let normed = normalize_tokens(states);
                let channels = states.size()[2] as f64;
                let scaled = |width: i64| {
                    let scaled = &normed * (width as f64 / channels).sqrt();
                    scaled.to_kind(states.kind())
                };
                let [width, audio_width] = self.widths;
                [
                    video.forward(&scaled(width)),
                    audio.forward(&scaled(audio_width)),
                ]
            }
        };
        Contexts {
            video: self.video_connector.forward(&video, length),
            audio: self.audio_connector.forward(&audio, length),
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

/// Scales each state of each token over its channels to a root mean square of 1, `[1, n, channels, states]`, and puts
/// the states of a channel side by side: `[1, n, channels * states]`, in float32.
pub fn normalize_tokens(states: &Tensor) -> Tensor {
    let x = states.to_kind(Kind::Float);
    let square = x.square().mean_dim([2i64].as_slice(), true, Kind::Float);
    (x * (square + EPS).rsqrt()).flatten(2, 3)
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
        let width = stream.width();
        let blocks = weights.sub("transformer_blocks");
        let block = |i| Block::new(config, stream, &blocks.sub(i));
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
    fn new(config: &Config, stream: Stream, weights: &Weights) -> Self {
        let width = stream.width();
        let shape = Shape {
            query_dim: width,
            context_dim: width,
            heads: stream.num_attention_heads,
            head_dim: stream.attention_head_dim,
            eps: EPS,
            gated: config.generation == Generation::V2_3,
            wide_query: false,
            wide_context: false,
        };
        Self {
            attn1: Attention::new(&weights.sub("attn1"), shape, &Kernels::Plain),
            ff: FeedForward::new(&weights.sub("ff"), width, &Kernels::Plain),
        }
    }

    fn forward(&self, x: &Tensor, rotation: &Rotation) -> Tensor {
        let normed = |x: &Tensor| Activations::new(rms_norm(x, EPS), Form::DENSE);
        let x = x + self.attn1.forward_self(&normed(x), rotation);
        let ff = self.ff.forward(&normed(&x));
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
        Rotation::OfTokens {
            cos: split(angles.cos()),
            sin: split(angles.sin()),
        }
    }
}
