//! The transformer's configuration, read from either form of file.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{self, ConfigError, Switch, check_tensor};
use crate::generation::{Generation, LATER};
use crate::weights::Weights;

const PART: &str = "transformer";

/// The switches by which the library tells the generations apart, for video and audio.
const LIBRARY_SWITCHES: &[Switch] = &[
    off("gated_attn"),
    off("audio_gated_attn"),
    off("cross_attn_mod"),
    off("audio_cross_attn_mod"),
    Switch {
        key: "use_prompt_embeddings",
        in_v2_0: true,
    },
];
/// The switches of the original names. Files of LTX-2.0 lack them, and so may those of LTX-2.3.
const ORIGINAL_SWITCHES: &[Switch] = &[
    off("apply_gated_attention"),
    off("cross_attention_adaln"),
    off("caption_proj_before_connector"),
];
/// Further switches of LTX-2.3's text path. Its authors accept only all of them, and off.
const CAPTION_SWITCHES: [&str; 3] = [
    "caption_projection_first_linear",
    "caption_projection_second_linear",
    "caption_proj_input_norm",
];

const fn off(key: &'static str) -> Switch {
    Switch {
        key,
        in_v2_0: false,
    }
}

/// The sizes and constants of a transformer, under the library's names.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Config {
    #[serde(skip, default = "v2_0")]
    pub generation: Generation,
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
    /// The width of the contexts that the transformer projects, for LTX-2.0; in LTX-2.3 the connectors project them.
    pub caption_channels: Option<i64>,
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

fn v2_0() -> Generation {
    Generation::V2_0
}

/// The keys of the original names. The keys that are missing here are fixed in that model's code.
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
    caption_channels: Option<i64>,
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
    /// Returns an error when a key is missing, when the file describes another generation of the model, when its
    /// switches are of two generations, or when sizes contradict each other.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        required(json, "_class_name", &json!("LTX2VideoTransformer3DModel"))?;
        refuse_later(json)?;
        let generation = config::generation(PART, json, LIBRARY_SWITCHES)?;
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
        let mut config: Self = config::read(PART, json)?;
        // Files of LTX-2.0 from before there was another generation lack the switches.
        config.generation = generation.unwrap_or(Generation::V2_0);
        if config.generation == Generation::V2_3 {
            // The library writes its default, which nothing uses.
            config.caption_channels = None;
        }
        config.checked()
    }

    /// Reads a configuration under the original names: `transformer/config.json` of FastVideo's converter, or the
    /// metadata of Lightricks' single file. Where its switches are absent, `weights` tell the generations apart.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        match json.get("_class_name").and_then(Value::as_str) {
            Some("LTX2Transformer3DModel" | "AVTransformer3DModel") => {}
            _ => required(json, "_class_name", &json!("LTX2Transformer3DModel"))?,
        }
        refuse_later(json)?;
        let generation = config::generation(PART, json, ORIGINAL_SWITCHES)?;
        if CAPTION_SWITCHES.iter().any(|key| json.get(key).is_some()) {
            required(json, "caption_proj_before_connector", &json!(true))?;
            for key in CAPTION_SWITCHES {
                required(json, key, &json!(false))?;
            }
        }
        required(json, "rope_type", &json!("split"))?;
        let only = [
            ("double_precision_rope", json!(true)),
            ("frequencies_precision", json!("float64")),
            ("use_middle_indices_grid", json!(true)),
            ("attention_type", json!("default")),
            ("activation_fn", json!("gelu-approximate")),
            ("qk_norm", json!("rms_norm")),
            ("norm_elementwise_affine", json!(false)),
            ("attention_bias", json!(true)),
            ("positional_embedding_type", json!("rope")),
        ];
        for (key, implemented) in &only {
            config::only(PART, json, key, implemented)?;
        }
        let o: Original = config::read(PART, json)?;
        let [pos_embed_max_pos, base_height, base_width] = o.positional_embedding_max_pos;
        let [audio_pos_embed_max_pos] = o.audio_positional_embedding_max_pos;
        let by_tensors = match weights.shape(&gate("attn1")) {
            Some(_) => Generation::V2_3,
            None => Generation::V2_0,
        };
        let generation = generation.unwrap_or(by_tensors);
        let captions = (generation == Generation::V2_0).then_some(o.caption_channels);
        Self {
            generation,
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
            caption_channels: captions.flatten(),
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

    /// Checks that the tensors are those of the configuration's generation. A wrong switch would otherwise be told as
    /// thousands of missing and unexpected tensors.
    ///
    /// # Errors
    /// Returns an error that names the first tensor that contradicts the configuration.
    pub fn fits(self, weights: &Weights) -> Result<Self, ConfigError> {
        if let Some(shape) = weights.shape(&gate("attn1"))
            && shape == [self.width(), self.width()]
        {
            return Err(ConfigError::Value {
                part: PART,
                key: gate("attn1"),
                expected: format!(
                    "the gate of {} heads, [{}, {}]",
                    self.num_attention_heads,
                    self.num_attention_heads,
                    self.width()
                ),
                given: format!("{shape:?}, which belongs to sparse attention"),
            });
        }
        let check = |name: &str, only| check_tensor(PART, self.generation, weights, name, only);
        for attention in ["attn1", "audio_attn1", "attn2", "audio_attn2"] {
            check(&gate(attention), Generation::V2_3)?;
        }
        check("prompt_adaln.linear.weight", Generation::V2_3)?;
        check("caption_projection.linear_1.weight", Generation::V2_0)?;
        Ok(self)
    }

    /// Returns the number of modulation rows of a stream: shift, scale and gate of each part of a block that has them.
    pub(super) fn modulation_rows(&self) -> i64 {
        match self.generation {
            Generation::V2_0 => 6,
            Generation::V2_3 => 9,
        }
    }

    /// Returns the width of the contexts that the connectors pass in, for video and audio.
    pub fn context_widths(&self) -> [i64; 2] {
        match self.caption_channels {
            Some(width) => [width; 2],
            None => [self.cross_attention_dim, self.audio_cross_attention_dim],
        }
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
        if self.generation == Generation::V2_0 && self.caption_channels.is_none() {
            return Err(ConfigError::Value {
                part: PART,
                key: "caption_channels".to_owned(),
                expected: "the width of the texts, as this is LTX-2.0".to_owned(),
                given: "no value".to_owned(),
            });
        }
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

/// The name of the gate of the first block's attention.
fn gate(attention: &str) -> String {
    format!("transformer_blocks.0.{attention}.to_gate_logits.weight")
}

/// Refuses what only later generations have.
fn refuse_later(json: &Value) -> Result<(), ConfigError> {
    for (key, ours) in [
        ("ff_bias", true),
        ("audio_ff_bias", true),
        ("connector_ff_bias", true),
        ("use_prompt_adaln_single", true),
        ("use_keyframes_abs_pos_embedding", false),
    ] {
        match json.get(key) {
            Some(given) if *given != json!(ours) => {
                return Err(ConfigError::Generation {
                    part: PART,
                    generation: LATER,
                    key: key.to_owned(),
                    given: given.to_string(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

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

fn contradiction(key: &str, expected: String, given: i64) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected,
        given: given.to_string(),
    }
}
