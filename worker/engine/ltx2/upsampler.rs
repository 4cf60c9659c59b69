//! The upsampler: enlarges video latents, in rows and columns or in time.
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
/// The size of the kernel that blurs rows and columns before some of them are dropped.
const BLUR: i64 = 5;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The number of channels of the latents.
    pub in_channels: i64,
    pub mid_channels: i64,
    pub num_blocks_per_stage: i64,
    pub growth: Growth,
}

/// What an upsampler enlarges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Rows and columns, by a whole factor and then down by another one.
    Space {
        up: i64,
        down: i64,
        /// Whether the weights are named as those of the resampler that could also shrink.
        rational: bool,
    },
    /// Frames, by 2 for each after the first.
    Time,
}

#[derive(Deserialize)]
struct Sizes {
    in_channels: i64,
    mid_channels: i64,
    num_blocks_per_stage: i64,
    spatial_upsample: bool,
    temporal_upsample: bool,
}

impl Config {
    /// Reads `config.json` of the library's `LTX2LatentUpsamplerModel`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        Self::common(json, "rational_spatial_scale", "use_rational_resampler")
    }

    /// Reads the converter's `config.json`, or the metadata of the authors' single file.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, _weights: &Weights) -> Result<Self, ConfigError> {
        Self::common(json, "spatial_scale", "rational_resampler")
    }

    fn common(json: &Value, scale: &str, rational: &str) -> Result<Self, ConfigError> {
        only(PART, json, "dims", &json!(3))?;
        let sizes: Sizes = read(PART, json)?;
        let is_rational = json.get(rational).and_then(Value::as_bool).unwrap_or(false);
        let growth = match (sizes.spatial_upsample, sizes.temporal_upsample) {
            (true, false) if is_rational => {
                let factor = json.get(scale).and_then(Value::as_f64).unwrap_or(2.0);
                let Some((up, down)) = fraction(factor) else {
                    return Err(wrong(scale, "0.75, 1.5, 2 or 4", factor));
                };
                Growth::Space {
                    up,
                    down,
                    rational: true,
                }
            }
            (true, false) => Growth::Space {
                up: 2,
                down: 1,
                rational: false,
            },
            (false, true) => Growth::Time,
            given => {
                let expected = "either this or `temporal_upsample`";
                return Err(wrong("spatial_upsample", expected, format!("{given:?}")));
            }
        };
        if sizes.mid_channels % GROUPS != 0 {
            let expected = format!("a multiple of {GROUPS}");
            return Err(wrong("mid_channels", &expected, sizes.mid_channels));
        }
        Ok(Self {
            in_channels: sizes.in_channels,
            mid_channels: sizes.mid_channels,
            num_blocks_per_stage: sizes.num_blocks_per_stage,
            growth,
        })
    }

    /// Returns whether this doubles rows and columns, as the second stage needs.
    pub fn doubles_pictures(&self) -> bool {
        matches!(self.growth, Growth::Space { up: 2, down: 1, .. })
    }
}

/// Returns the numerator and the denominator of the scales that the reference knows.
fn fraction(scale: f64) -> Option<(i64, i64)> {
    [(3, 4), (3, 2), (2, 1), (4, 1)]
        .into_iter()
        .find(|(up, down)| f64::from(*up) / f64::from(*down) == scale)
        .map(|(up, down)| (i64::from(up), i64::from(down)))
}

fn wrong(key: &str, expected: &str, given: impl ToString) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected: expected.to_owned(),
        given: given.to_string(),
    }
}

#[derive(Debug)]
pub struct Upsampler {
    initial_conv: Conv,
    initial_norm: GroupNorm,
    res_blocks: Vec<ResBlock>,
    /// The convolution that computes the new places, as channels.
    upsampler_conv: Conv,
    /// `[1, 1, 5, 5]`, where some rows and columns are dropped.
    blur: Option<Tensor>,
    config: Config,
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
        let (name, factor, axes) = match config.growth {
            Growth::Space { up, rational, .. } => (
                if rational {
                    "upsampler.conv"
                } else {
                    "upsampler.0"
                },
                up * up,
                2,
            ),
            Growth::Time => ("upsampler.0", 2, 3),
        };
        // The kernel is stored at every scale.
        let blur = "upsampler.blur_down.kernel";
        let blur = match config.growth {
            Growth::Space { down: 2.., .. } => Some(weights.tensor(blur, &[1, 1, BLUR, BLUR])),
            _ => {
                if let Some(shape) = weights.shape(blur) {
                    let _ = weights.tensor(blur, &shape);
                }
                None
            }
        };
        Self {
            initial_conv: Conv::new(&weights.sub("initial_conv"), channels, mid, 3),
            initial_norm: GroupNorm::new(&weights.sub("initial_norm"), mid),
            res_blocks: blocks("res_blocks"),
            upsampler_conv: Conv::new(&weights.sub(name), mid, factor * mid, axes),
            blur,
            config: config.clone(),
            post_upsample_res_blocks: blocks("post_upsample_res_blocks"),
            final_conv: Conv::new(&weights.sub("final_conv"), mid, channels, 3),
            kind: weights.kind(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Enlarges latents on the scale of the VAE's encoder (not normalized), `[B, C, F, H, W]`, in float32.
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let mut hidden_states = self.initial_conv.forward(&latents.to_kind(self.kind));
        hidden_states = self.initial_norm.forward(&hidden_states).silu();
        for block in &self.res_blocks {
            hidden_states = block.forward(&hidden_states);
        }
        hidden_states = match self.config.growth {
            Growth::Space { up, down, .. } => self.enlarge_frames(&hidden_states, up, down),
            Growth::Time => self.add_frames(&hidden_states),
        };
        for block in &self.post_upsample_res_blocks {
            hidden_states = block.forward(&hidden_states);
        }
        self.final_conv.forward(&hidden_states).to_kind(Kind::Float)
    }

    /// Enlarges each frame by itself.
    fn enlarge_frames(&self, x: &Tensor, up: i64, down: i64) -> Tensor {
        let [b, c, f, h, w] = sizes(x);
        let frames = x.permute([0, 2, 1, 3, 4]).reshape([b * f, c, h, w]);
        let mut frames = self.upsampler_conv.forward(&frames).pixel_shuffle(up);
        if let Some(blur) = &self.blur {
            let kernel = blur.expand([c, 1, BLUR, BLUR], false);
            let padding = BLUR / 2;
            frames = frames.conv2d(
                &kernel,
                None::<&Tensor>,
                [down, down],
                [padding, padding],
                [1, 1],
                c,
            );
        }
        let [_, _, h, w] = sizes(&frames);
        frames.view([b, f, c, h, w]).permute([0, 2, 1, 3, 4])
    }

    /// Makes two frames of each, and drops the first one.
    fn add_frames(&self, x: &Tensor) -> Tensor {
        let [b, c, f, h, w] = sizes(x);
        let doubled = self.upsampler_conv.forward(x).view([b, c, 2, f, h, w]);
        let doubled = doubled.permute([0, 1, 3, 2, 4, 5]);
        doubled.reshape([b, c, 2 * f, h, w]).narrow(2, 1, 2 * f - 1)
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
