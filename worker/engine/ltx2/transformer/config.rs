//! The transformer's configuration, read from either layout's file.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{self, ConfigError};
use crate::weights::Weights;

const PART: &str = "transformer";

/// The sizes and constants of a transformer of LTX-2.0, under the library's names.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Config {
    pub in_channels: i64,
    pub out_channels: i64,
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub cross_attention_dim: i64,
    pub audio_in_channels: i64,
    pub audio_out_channels: i64,
    pub audio_num_attention_heads: i64,
    pub audio_attention_head_dim: i64,
    pub audio_cross_attention_dim: i64,
    pub num_layers: i64,
    pub caption_channels: i64,
    pub norm_eps: f64,
    /// The number of frames, pixel rows and pixel columns of a latent.
    pub vae_scale_factors: [i64; 3],
    /// The number of seconds that time positions are divided by.
    pub pos_embed_max_pos: i64,
    pub base_height: i64,
    pub base_width: i64,
    /// The number of mel frames of an audio latent.
    pub audio_scale_factor: i64,
    pub audio_pos_embed_max_pos: i64,
    pub audio_sampling_rate: i64,
    pub audio_hop_length: i64,
    pub rope_theta: f64,
    pub causal_offset: i64,
    pub timestep_scale_multiplier: f64,
    pub cross_attn_timestep_scale_multiplier: f64,
}

/// The keys that FastVideo's converter writes. The keys that it omits are fixed in that model's code.
#[derive(Debug, Deserialize)]
struct Original {
    in_channels: i64,
    out_channels: i64,
    num_attention_heads: i64,
    attention_head_dim: i64,
    cross_attention_dim: i64,
    audio_in_channels: i64,
    audio_out_channels: i64,
    audio_num_attention_heads: i64,
    audio_attention_head_dim: i64,
    audio_cross_attention_dim: i64,
    num_layers: i64,
    caption_channels: i64,
    norm_eps: f64,
    positional_embedding_theta: f64,
    positional_embedding_max_pos: [i64; 3],
    audio_positional_embedding_max_pos: [i64; 1],
    timestep_scale_multiplier: f64,
    av_ca_timestep_scale_multiplier: f64,
}

impl Config {
    /// Reads the library's `transformer/config.json`.
    ///
    /// # Errors
    /// Returns an error when a key is missing, when the file describes another generation of the model, or when sizes
    /// contradict each other.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        required(json, "_class_name", &json!("LTX2VideoTransformer3DModel"))?;
        let later = [
            ("gated_attn", json!(false), LTX_2_3),
            ("audio_gated_attn", json!(false), LTX_2_3),
            ("cross_attn_mod", json!(false), LTX_2_3),
            ("audio_cross_attn_mod", json!(false), LTX_2_3),
            ("perturbed_attn", json!(false), LTX_2_3),
            ("use_prompt_embeddings", json!(true), LTX_2_3),
            ("ff_bias", json!(true), LTX_2_5),
            ("audio_ff_bias", json!(true), LTX_2_5),
            ("use_prompt_adaln_single", json!(true), LTX_2_5),
            ("use_keyframes_abs_pos_embedding", json!(false), LTX_2_5),
        ];
        for (key, ours, generation) in &later {
            same_generation(json, key, ours, generation)?;
        }
        // The library's default is another layout, so a file without this key is refused.
        required(json, "rope_type", &json!("split"))?;
        let only = [
            ("rope_double_precision", json!(true)),
            ("patch_size", json!(1)),
            ("patch_size_t", json!(1)),
            ("audio_patch_size", json!(1)),
            ("audio_patch_size_t", json!(1)),
            ("activation_fn", json!("gelu-approximate")),
            ("qk_norm", json!("rms_norm_across_heads")),
            ("norm_elementwise_affine", json!(false)),
            ("attention_bias", json!(true)),
            ("attention_out_bias", json!(true)),
        ];
        for (key, implemented) in &only {
            config::only(PART, json, key, implemented)?;
        }
        config::read::<Self>(PART, json)?.checked()
    }

    /// Reads the `transformer/config.json` of FastVideo's converter. `weights` distinguish the generations, since not
    /// every such file does.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        required(json, "_class_name", &json!("LTX2Transformer3DModel"))?;
        let later = [
            ("apply_gated_attention", json!(false)),
            ("cross_attention_adaln", json!(false)),
            ("caption_proj_before_connector", json!(false)),
        ];
        for (key, ours) in &later {
            same_generation(json, key, ours, LTX_2_3)?;
        }
        let tensors = [
            "transformer_blocks.0.attn1.to_gate_logits.weight",
            "prompt_adaln.linear.weight",
        ];
        for name in tensors {
            if weights.shape(name).is_some() {
                return Err(other_generation(
                    name,
                    "among the tensors".to_owned(),
                    LTX_2_3,
                ));
            }
        }
        required(json, "rope_type", &json!("split"))?;
        let only = [
            ("double_precision_rope", json!(true)),
            ("use_middle_indices_grid", json!(true)),
            ("attention_type", json!("default")),
        ];
        for (key, implemented) in &only {
            config::only(PART, json, key, implemented)?;
        }
        let o: Original = config::read(PART, json)?;
        let [pos_embed_max_pos, base_height, base_width] = o.positional_embedding_max_pos;
        let [audio_pos_embed_max_pos] = o.audio_positional_embedding_max_pos;
        Self {
            in_channels: o.in_channels,
            out_channels: o.out_channels,
            num_attention_heads: o.num_attention_heads,
            attention_head_dim: o.attention_head_dim,
            cross_attention_dim: o.cross_attention_dim,
            audio_in_channels: o.audio_in_channels,
            audio_out_channels: o.audio_out_channels,
            audio_num_attention_heads: o.audio_num_attention_heads,
            audio_attention_head_dim: o.audio_attention_head_dim,
            audio_cross_attention_dim: o.audio_cross_attention_dim,
            num_layers: o.num_layers,
            caption_channels: o.caption_channels,
            norm_eps: o.norm_eps,
            vae_scale_factors: [8, 32, 32],
            pos_embed_max_pos,
            base_height,
            base_width,
            audio_scale_factor: 4,
            audio_pos_embed_max_pos,
            audio_sampling_rate: 16_000,
            audio_hop_length: 160,
            rope_theta: o.positional_embedding_theta,
            causal_offset: 1,
            timestep_scale_multiplier: o.timestep_scale_multiplier,
            cross_attn_timestep_scale_multiplier: o.av_ca_timestep_scale_multiplier,
        }
        .checked()
    }

    /// Returns the width of the video stream.
    pub fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Returns the width of the audio stream, and of attention between the streams.
    pub fn audio_width(&self) -> i64 {
        self.audio_num_attention_heads * self.audio_attention_head_dim
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let sizes = [
            ("num_layers", self.num_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("audio_attention_head_dim", self.audio_attention_head_dim),
        ];
        for (key, given) in sizes {
            if given < 1 {
                return Err(contradiction(key, "at least 1".to_owned(), given));
            }
        }
        let equal = [
            (
                "cross_attention_dim",
                self.cross_attention_dim,
                self.width(),
            ),
            (
                "audio_cross_attention_dim",
                self.audio_cross_attention_dim,
                self.audio_width(),
            ),
            // The tables of attention between the streams are split into heads once for both.
            (
                "audio_num_attention_heads",
                self.audio_num_attention_heads,
                self.num_attention_heads,
            ),
        ];
        for (key, given, expected) in equal {
            if given != expected {
                return Err(contradiction(
                    key,
                    format!("{expected}, as the other sizes say"),
                    given,
                ));
            }
        }
        Ok(self)
    }
}

const LTX_2_3: &str = "LTX-2.3 or later";
const LTX_2_5: &str = "LTX-2.5 or later";

/// Like [`config::only`], but refuses a missing key too.
fn required(json: &Value, key: &str, implemented: &Value) -> Result<(), ConfigError> {
    if json.get(key).is_none() {
        return Err(ConfigError::Value {
            part: PART,
            key: key.to_owned(),
            expected: implemented.to_string(),
            given: "no value".to_owned(),
        });
    }
    config::only(PART, json, key, implemented)
}

fn same_generation(
    json: &Value,
    key: &str,
    ours: &Value,
    generation: &'static str,
) -> Result<(), ConfigError> {
    match json.get(key) {
        Some(given) if given != ours => Err(other_generation(key, given.to_string(), generation)),
        _ => Ok(()),
    }
}

fn other_generation(key: &str, given: String, generation: &'static str) -> ConfigError {
    ConfigError::Generation {
        part: PART,
        generation,
        key: key.to_owned(),
        given,
    }
}

fn contradiction(key: &str, expected: String, given: i64) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected,
        given: given.to_string(),
    }
}
