//! Gemma 3: the parts of the language model that the text encoder uses.
//!
//! Follows transformers 5.23.0, `models/gemma3/modeling_gemma3.py`.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::config::{self, ConfigError};
use crate::nn::Linear;
use crate::weights::Weights;

const PART: &str = "text_encoder";

/// The sizes of a Gemma 3 language model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    /// The number by whose square root attention scores are divided.
    pub query_pre_attn_scalar: f64,
    pub rms_norm_eps: f64,
    /// The attention window of a local layer in tokens, the token itself included.
    pub sliding_window: i64,
    pub layers: Vec<LayerType>,
    /// The rotation of the local layers.
    pub local_rope: Rope,
    /// The rotation of the global layers.
    pub global_rope: Rope,
}

/// The attention span of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LayerType {
    #[serde(rename = "sliding_attention")]
    Local,
    #[serde(rename = "full_attention")]
    Global,
}

/// The parameters that turn positions into angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// The divisor of positions.
    pub factor: f64,
}

/// The content of a configuration file. A file has only the values that differ from the class's defaults, which are
/// written here.
#[derive(Deserialize)]
struct Raw {
    #[serde(default = "defaults::vocab_size")]
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    #[serde(default = "defaults::head_dim")]
    head_dim: i64,
    #[serde(default = "defaults::query_pre_attn_scalar")]
    query_pre_attn_scalar: f64,
    #[serde(default = "defaults::rms_norm_eps")]
    rms_norm_eps: f64,
    sliding_window: i64,
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "defaults::sliding_window_pattern")]
    sliding_window_pattern: usize,
    rope_parameters: Option<RawRopes>,
    rope_scaling: Option<RawRope>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
}

#[derive(Deserialize)]
struct RawRopes {
    sliding_attention: RawRope,
    full_attention: RawRope,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: String,
    factor: Option<f64>,
    rope_theta: Option<f64>,
}

/// The defaults of transformers' `Gemma3TextConfig`.
mod defaults {
    pub(super) const LOCAL_THETA: f64 = 1e4;
    pub(super) const GLOBAL_THETA: f64 = 1e6;

    pub(super) fn vocab_size() -> i64 {
        262_208
    }

    pub(super) fn head_dim() -> i64 {
        256
    }

    pub(super) fn query_pre_attn_scalar() -> f64 {
        256.0
    }

    pub(super) fn rms_norm_eps() -> f64 {
        1e-6
    }

    pub(super) fn sliding_window_pattern() -> usize {
        6
    }
}

impl Config {
    /// Reads transformers' `config.json`, in either of its two forms.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing, or has a value which this engine does not implement.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        let text = json.get("text_config").unwrap_or(json);
        config::only(PART, text, "model_type", &json!("gemma3_text"))?;
        config::only(PART, text, "attention_bias", &json!(false))?;
        config::only(PART, text, "attn_logit_softcapping", &Value::Null)?;
        config::only(PART, text, "use_bidirectional_attention", &json!(false))?;
        config::only(PART, text, "hidden_activation", &json!("gelu_pytorch_tanh"))?;
        let raw: Raw = config::read(PART, text)?;
        let (local_rope, global_rope) = raw.ropes()?;
        Ok(Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads,
            head_dim: raw.head_dim,
            query_pre_attn_scalar: raw.query_pre_attn_scalar,
            rms_norm_eps: raw.rms_norm_eps,
            sliding_window: raw.sliding_window,
            layers: raw.layers()?,
            local_rope,
            global_rope,
        })
    }

    /// Returns the number of states that [`Gemma::forward`] returns: the embedding and one for each layer.
    pub fn num_states(&self) -> usize {
        self.layers.len() + 1
    }
}

impl Raw {
    fn layers(&self) -> Result<Vec<LayerType>, ConfigError> {
        let count = self.num_hidden_layers;
        let Some(layers) = &self.layer_types else {
            let kind = |i: usize| match (i + 1) % self.sliding_window_pattern.max(1) {
                0 => LayerType::Global,
                _ => LayerType::Local,
            };
            return Ok((0..count).map(kind).collect());
        };
        if layers.len() != count {
            return Err(wrong(
                "layer_types",
                format!("{count} layers"),
                layers.len().to_string(),
            ));
        }
        Ok(layers.clone())
    }

    /// Returns the rotations of local and of global layers.
    fn ropes(&self) -> Result<(Rope, Rope), ConfigError> {
        if let Some(ropes) = &self.rope_parameters {
            let local = ropes.sliding_attention.read(defaults::LOCAL_THETA)?;
            let global = ropes.full_attention.read(defaults::GLOBAL_THETA)?;
            return Ok((local, global));
        }
        let local = Rope {
            theta: self.rope_local_base_freq.unwrap_or(defaults::LOCAL_THETA),
            factor: 1.0,
        };
        let theta = self.rope_theta.unwrap_or(defaults::GLOBAL_THETA);
        let global = match &self.rope_scaling {
            Some(scaling) => scaling.read(theta)?,
            None => Rope { theta, factor: 1.0 },
        };
        Ok((local, global))
    }
}

impl RawRope {
    fn read(&self, theta: f64) -> Result<Rope, ConfigError> {
        let factor = match (self.rope_type.as_str(), self.factor) {
            ("default", _) => 1.0,
            ("linear", Some(factor)) => factor,
            (given, _) => {
                let expected = "`default`, or `linear` with a `factor`".to_owned();
                return Err(wrong("rope_type", expected, given.to_owned()));
            }
        };
        Ok(Rope {
            theta: self.rope_theta.unwrap_or(theta),
            factor,
        })
    }
}

fn wrong(key: &str, expected: String, given: String) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected,
        given,
    }
}

/// The language model.
#[derive(Debug)]
pub struct Gemma {
    config: Config,
    embed_tokens: Tensor,
    /// The square root of the width, rounded to the type of the weights.
    embed_scale: Tensor,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
}

impl Gemma {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let layer = |(i, kind): (usize, &LayerType)| {
            DecoderLayer::new(config, *kind, &weights.sub("layers").sub(i))
        };
        let width = config.hidden_size;
        let embed_scale = Tensor::from((width as f64).sqrt());
        Self {
            embed_tokens: weights
                .sub("embed_tokens")
                .tensor("weight", &[config.vocab_size, width]),
            embed_scale: embed_scale
                .to_device(weights.device())
                .to_kind(weights.kind()),
            layers: config.layers.iter().enumerate().map(layer).collect(),
            norm: RmsNorm::new(&weights.sub("norm"), width, config.rms_norm_eps),
            config: config.clone(),
        }
    }

    /// Returns the size of the vocabulary: ids below it have an embedding.
    pub fn vocabulary(&self) -> i64 {
        self.config.vocab_size
    }

    /// Returns the states of a prompt's `n` tokens, `[1, n, hidden, states]`. The tokens are at the end of a text of
    /// `length`.
    pub fn forward(&self, ids: &[i64], length: i64) -> Tensor {
        let device = self.embed_tokens.device();
        let kind = self.embed_tokens.kind();
        let ids = Tensor::from_slice(ids).to_device(device);
        let n = ids.size1().unwrap_or(0);
        let positions = Tensor::arange_start(length - n, length, (Kind::Float, device));
        let table = |rope| Table::new(rope, self.config.head_dim, &positions, kind);
        let seen = Seen {
            local: (table(self.config.local_rope), self.window_mask(n, device)),
            global: (table(self.config.global_rope), None),
        };

        let embedded = Tensor::embedding(&self.embed_tokens, &ids, -1, false, false);
        let mut x = (embedded * &self.embed_scale).unsqueeze(0);
        let mut states = vec![x.shallow_clone()];
        for layer in &self.layers {
            x = layer.forward(&x, &seen);
            states.push(x.shallow_clone());
        }
        // The last layer's output is used after the final norm.
        states.pop();
        states.push(self.norm.forward(&x));
        Tensor::stack(&states, -1)
    }

    /// Returns the mask of keys (columns) that a token (row) of a local layer attends to; `None` where the window is
    /// not a limit.
    fn window_mask(&self, n: i64, device: Device) -> Option<Tensor> {
        if n <= self.config.sliding_window {
            return None;
        }
        let all = Tensor::ones([n, n], (Kind::Bool, device));
        Some(all.tril(0).triu(1 - self.config.sliding_window))
    }
}

/// The positions in the form that attention layers need: the rotation and the causal mask (without a mask, each token
/// attends to all tokens before it).
struct Seen {
    local: (Table, Option<Tensor>),
    global: (Table, Option<Tensor>),
}

#[derive(Debug)]
struct DecoderLayer {
    kind: LayerType,
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

impl DecoderLayer {
    fn new(config: &Config, kind: LayerType, weights: &Weights) -> Self {
        let norm =
            |name: &str| RmsNorm::new(&weights.sub(name), config.hidden_size, config.rms_norm_eps);
        Self {
            kind,
            input_layernorm: norm("input_layernorm"),
            self_attn: Attention::new(config, &weights.sub("self_attn")),
            post_attention_layernorm: norm("post_attention_layernorm"),
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm"),
            mlp: Mlp::new(config, &weights.sub("mlp")),
            post_feedforward_layernorm: norm("post_feedforward_layernorm"),
        }
    }

    fn forward(&self, x: &Tensor, seen: &Seen) -> Tensor {
        let (table, mask) = match self.kind {
            LayerType::Local => &seen.local,
            LayerType::Global => &seen.global,
        };
        let attention = self.input_layernorm.forward(x);
        let attention = self.self_attn.forward(&attention, table, mask.as_ref());
        let x = x + self.post_attention_layernorm.forward(&attention);
        let mlp = self
            .mlp
            .forward(&self.pre_feedforward_layernorm.forward(&x));
        x + self.post_feedforward_layernorm.forward(&mlp)
    }
}

#[derive(Debug)]
struct Attention {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    scale: f64,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
}

impl Attention {
    fn new(config: &Config, weights: &Weights) -> Self {
        let (width, head_dim) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let linear = |name: &str, from, to| Linear::without_bias(&weights.sub(name), from, to);
        let norm = |name: &str| RmsNorm::new(&weights.sub(name), head_dim, config.rms_norm_eps);
        Self {
            heads,
            kv_heads,
            head_dim,
            scale: config.query_pre_attn_scalar.powf(-0.5),
            q_proj: linear("q_proj", width, heads * head_dim),
            k_proj: linear("k_proj", width, kv_heads * head_dim),
            v_proj: linear("v_proj", width, kv_heads * head_dim),
            o_proj: linear("o_proj", heads * head_dim, width),
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
        }
    }

    fn forward(&self, x: &Tensor, table: &Table, mask: Option<&Tensor>) -> Tensor {
        // `[1, n, heads * head_dim]` becomes `[1, heads, n, head_dim]`.
        let split = |x: Tensor, heads| x.unflatten(-1, [heads, self.head_dim]).transpose(1, 2);
        let q = self
            .q_norm
            .forward(&split(self.q_proj.forward(x), self.heads));
        let k = self
            .k_norm
            .forward(&split(self.k_proj.forward(x), self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        let (q, k) = (table.rotate(&q), table.rotate(&k));
        let causal = mask.is_none();
        let grouped = self.heads != self.kv_heads;
        let attended = Tensor::scaled_dot_product_attention(
            &q, &k, &v, mask, 0.0, causal, self.scale, grouped,
        );
        self.o_proj.forward(&attended.transpose(1, 2).flatten(2, 3))
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new(config: &Config, weights: &Weights) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, from, to| Linear::without_bias(&weights.sub(name), from, to);
        Self {
            gate_proj: linear("gate_proj", width, inner),
            up_proj: linear("up_proj", width, inner),
            down_proj: linear("down_proj", inner, width),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let gate = self.gate_proj.forward(x).gelu("tanh");
        self.down_proj.forward(&(gate * self.up_proj.forward(x)))
    }
}

/// An RMS norm whose gain is stored minus one; it computes in float32.
#[derive(Debug)]
struct RmsNorm {
    gain: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn new(weights: &Weights, width: i64, eps: f64) -> Self {
        Self {
            gain: weights.tensor_as("weight", &[width], Kind::Float) + 1.0,
            eps,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let single = x.to_kind(Kind::Float);
        let normed = single.rms_norm(self.gain.size(), Some(&self.gain), self.eps);
        normed.to_kind(x.kind())
    }
}

/// The cosines and sines of a text's positions, `[n, head_dim]`.
struct Table {
    cos: Tensor,
    sin: Tensor,
}

impl Table {
    fn new(rope: Rope, head_dim: i64, positions: &Tensor, kind: Kind) -> Self {
        let options = (Kind::Float, positions.device());
        let exponents = Tensor::arange_start_step(0, head_dim, 2, options) / head_dim as f64;
        let frequencies = Tensor::pow_scalar(rope.theta, &exponents).reciprocal() / rope.factor;
        let angles = positions.unsqueeze(-1) * frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1);
        Self {
            cos: angles.cos().to_kind(kind),
            sin: angles.sin().to_kind(kind),
        }
    }

    /// Rotates the first half of each head with the second half, `[1, heads, n, head_dim]`.
    fn rotate(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        x * &self.cos + turned * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration of the published 12B model, which leaves out what equals the class's default.
    #[test]
    fn old_spelling_is_read() {
        let config = Config::library(&json!({
            "text_config": {
                "hidden_size": 3840, "intermediate_size": 15360, "model_type": "gemma3_text",
                "num_attention_heads": 16, "num_hidden_layers": 48, "num_key_value_heads": 8,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024
            }
        }))
        .unwrap();
        assert_eq!((config.vocab_size, config.head_dim), (262_208, 256));
        assert_eq!(
            (config.local_rope.theta, config.local_rope.factor),
            (1e4, 1.0)
        );
        assert_eq!(
            (config.global_rope.theta, config.global_rope.factor),
            (1e6, 8.0)
        );
        let global = config.layers.iter().enumerate();
        let global = global
            .filter(|(_, kind)| **kind == LayerType::Global)
            .map(|(i, _)| i);
        assert_eq!(global.collect::<Vec<_>>(), [5, 11, 17, 23, 29, 35, 41, 47]);
        assert_eq!(config.num_states(), 49);
    }

    #[test]
    fn values_that_are_not_implemented_are_refused_by_name() {
        let refused = |key: &str, value: Value| {
            let mut text = json!({
                "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
                "num_key_value_heads": 1, "sliding_window": 4
            });
            text[key] = value;
            Config::library(&json!({"text_config": text}))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused("attention_bias", json!(true)),
            "text_encoder: configuration key `attention_bias`: expected false, given true"
        );
        assert!(
            refused("layer_types", json!(["full_attention"]))
                .contains("`layer_types`: expected 2 layers")
        );
        assert!(refused("rope_scaling", json!({"rope_type": "yarn"})).contains("`rope_type`"));
        assert!(refused("hidden_size", Value::Null).contains("invalid type"));
    }
}
