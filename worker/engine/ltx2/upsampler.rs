//! The upsampler: doubles the height and width of video latents.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/latent_upsampler.py`.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::config::{ConfigError, only, read};
use crate::nn::sizes;
use crate::weights::Weights;

const PART: &str = "latent upsampler";
const GROUPS: i64 = 32;
const EPS: f64 = 1e-5;
/// The factor by which rows and columns grow.
const SCALE: i64 = 2;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// The number of channels of the latents.
    pub in_channels: i64,
    pub mid_channels: i64,
    pub num_blocks_per_stage: i64,
}

impl Config {
    /// Reads `config.json` of the library's `LTX2LatentUpsamplerModel`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        only(PART, json, "rational_spatial_scale", &json!(2.0))?;
        only(PART, json, "use_rational_resampler", &json!(true))?;
        Self::common(json)
    }

    /// Reads the converter's `config.json`.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, _weights: &Weights) -> Result<Self, ConfigError> {
        only(PART, json, "spatial_scale", &json!(2.0))?;
        only(PART, json, "rational_resampler", &json!(true))?;
        Self::common(json)
    }

    fn common(json: &Value) -> Result<Self, ConfigError> {
        only(PART, json, "dims", &json!(3))?;
        only(PART, json, "spatial_upsample", &json!(true))?;
        only(PART, json, "temporal_upsample", &json!(false))?;
        let config: Self = read(PART, json)?;
        if config.mid_channels % GROUPS != 0 {
            return Err(ConfigError::Value {
                part: PART,
                key: "mid_channels".to_owned(),
                expected: format!("a multiple of {GROUPS}"),
                given: config.mid_channels.to_string(),
            });
        }
        Ok(config)
    }
}

#[derive(Debug)]
pub struct Upsampler {
    initial_conv: Conv,
    initial_norm: GroupNorm,
    res_blocks: Vec<ResBlock>,
    /// The convolution that upsamples each frame by itself.
    upsampler_conv: Conv,
    post_upsample_res_blocks: Vec<ResBlock>,
    final_conv: Conv,
    kind: Kind,
}

impl Upsampler {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let (channels, mid) = (config.in_channels, config.mid_channels);
        let blocks = |name: &str| {
            let weights = weights.sub(name);
            (0..config.num_blocks_per_stage)
                .map(|i| ResBlock::new(&weights.sub(i), mid))
                .collect()
        };
        // The kernel is stored, but it only blurs at scales that are not whole numbers.
        if let Some(shape) = weights.shape("upsampler.blur_down.kernel") {
            let _ = weights.tensor("upsampler.blur_down.kernel", &shape);
        }
        Self {
            initial_conv: Conv::new(&weights.sub("initial_conv"), channels, mid, 3),
            initial_norm: GroupNorm::new(&weights.sub("initial_norm"), mid),
            res_blocks: blocks("res_blocks"),
            upsampler_conv: Conv::new(&weights.sub("upsampler.conv"), mid, SCALE * SCALE * mid, 2),
            post_upsample_res_blocks: blocks("post_upsample_res_blocks"),
            final_conv: Conv::new(&weights.sub("final_conv"), mid, channels, 3),
            kind: weights.kind(),
        }
    }

    /// Upsamples latents on the scale of the VAE's encoder (not normalized), `[B, C, F, H, W]` to `[B, C, F, 2H, 2W]`,
    /// in float32.
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let mut hidden_states = self.initial_conv.forward(&latents.to_kind(self.kind));
        hidden_states = self.initial_norm.forward(&hidden_states).silu();
        for block in &self.res_blocks {
            hidden_states = block.forward(&hidden_states);
        }
        hidden_states = self.upsample(&hidden_states);
        for block in &self.post_upsample_res_blocks {
            hidden_states = block.forward(&hidden_states);
        }
        self.final_conv.forward(&hidden_states).to_kind(Kind::Float)
    }

    fn upsample(&self, x: &Tensor) -> Tensor {
        let [b, c, f, h, w] = sizes(x);
        let frames = x.permute([0, 2, 1, 3, 4]).reshape([b * f, c, h, w]);
        let frames = self.upsampler_conv.forward(&frames).pixel_shuffle(SCALE);
        frames
            .view([b, f, c, SCALE * h, SCALE * w])
            .permute([0, 2, 1, 3, 4])
    }
}

/// A convolution over 2 or 3 axes with a kernel size of 3 and zero padding.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    fn new(weights: &Weights, in_channels: i64, out_channels: i64, axes: usize) -> Self {
        let mut shape = vec![out_channels, in_channels];
        shape.resize(2 + axes, 3);
        Self {
            weight: weights.tensor("weight", &shape),
            bias: weights.tensor("bias", &[out_channels]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        if self.weight.dim() == 4 {
            return x.conv2d(&self.weight, Some(&self.bias), [1, 1], [1, 1], [1, 1], 1);
        }
        x.conv3d(
            &self.weight,
            Some(&self.bias),
            [1, 1, 1],
            [1, 1, 1],
            [1, 1, 1],
            1,
        )
    }
}

#[derive(Debug)]
struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    fn new(weights: &Weights, channels: i64) -> Self {
        Self {
            weight: weights.tensor("weight", &[channels]),
            bias: weights.tensor("bias", &[channels]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(GROUPS, Some(&self.weight), Some(&self.bias), EPS, true)
    }
}

#[derive(Debug)]
struct ResBlock {
    conv1: Conv,
    norm1: GroupNorm,
    conv2: Conv,
    norm2: GroupNorm,
}

impl ResBlock {
    fn new(weights: &Weights, channels: i64) -> Self {
        Self {
            conv1: Conv::new(&weights.sub("conv1"), channels, channels, 3),
            norm1: GroupNorm::new(&weights.sub("norm1"), channels),
            conv2: Conv::new(&weights.sub("conv2"), channels, channels, 3),
            norm2: GroupNorm::new(&weights.sub("norm2"), channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut hidden_states = self.norm1.forward(&self.conv1.forward(x)).silu();
        hidden_states = self.norm2.forward(&self.conv2.forward(&hidden_states));
        (hidden_states + x).silu()
    }
}
