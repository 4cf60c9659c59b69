//! The encoder: computes latents from frames.
//!
//! Follows diffusers 0.42.1, `models/autoencoders/autoencoder_kl_ltx2.py`, `LTX2VideoEncoder3d`.

use tch::{Kind, Tensor};

use super::config::{Config, Stage};
use super::flow::Flow;
use super::layers::{CausalConv3d, Common, ResnetBlock3d, space_to_depth};
use crate::nn::sizes;
use crate::ops::Kernels;
use crate::weights::Weights;

#[derive(Debug)]
pub(super) struct Encoder {
    patch_size: i64,
    latent_channels: i64,
    conv_in: CausalConv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: Vec<ResnetBlock3d>,
    conv_out: CausalConv3d,
}

impl Encoder {
    pub(super) fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        let side = &config.encoder;
        let common = Common {
            causal: side.causal,
            padding: side.padding,
            kernels,
        };
        let pixels = config.channels * config.patch_size * config.patch_size;
        let mut width = side.width;
        let mut down_blocks = Vec::new();
        for (i, stage) in side.stages.iter().enumerate() {
            let weights = weights.sub("down_blocks").sub(i);
            down_blocks.push(DownBlock::new(&weights, width, stage, common));
            width = stage.width;
        }
        // The encoder also returns one log-variance for all latents, which is not used.
        let moments = config.latent_channels + 1;
        Self {
            patch_size: config.patch_size,
            latent_channels: config.latent_channels,
            conv_in: CausalConv3d::new(&weights.sub("conv_in"), pixels, side.width, common),
            down_blocks,
            mid_block: ResnetBlock3d::several(
                &weights.sub("mid_block"),
                side.mid_layers,
                width,
                common,
            ),
            conv_out: CausalConv3d::new(&weights.sub("conv_out"), width, moments, common),
        }
    }

    /// Encodes `[B, 3, F, H, W]` in −1…1 as the means of the latents, `[B, C, f, h, w]`.
    pub(super) fn forward(&self, sample: &Tensor) -> Tensor {
        let mut flow = Flow::whole();
        let mut hidden_states = self.conv_in.forward(&self.patches(sample), &mut flow);
        for block in &self.down_blocks {
            hidden_states = block.forward(hidden_states, &mut flow);
        }
        for resnet in &self.mid_block {
            hidden_states = resnet.forward(hidden_states, &mut flow);
        }
        let moments = self.conv_out.forward_normed_of(hidden_states, &mut flow);
        moments.narrow(1, 0, self.latent_channels)
    }

    /// Turns the pixels of a patch into channels: by colour, then column, then row.
    fn patches(&self, sample: &Tensor) -> Tensor {
        let [b, c, f, h, w] = sizes(sample);
        let p = self.patch_size;
        sample
            .reshape([b, c, f, h / p, p, w / p, p])
            .permute([0, 1, 6, 4, 2, 3, 5]) // b c dx dy f h w
            .reshape([b, c * p * p, f, h / p, w / p])
    }
}

/// Resnets, followed by the step to fewer frames, rows and columns.
#[derive(Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock3d>,
    downsampler: Downsampler,
}

impl DownBlock {
    fn new(weights: &Weights, width: i64, stage: &Stage, common: Common<'_>) -> Self {
        Self {
            resnets: ResnetBlock3d::several(weights, stage.layers, width, common),
            downsampler: Downsampler::new(&weights.sub("downsamplers.0"), width, stage, common),
        }
    }

    fn forward(&self, mut hidden_states: Tensor, flow: &mut Flow) -> Tensor {
        for resnet in &self.resnets {
            hidden_states = resnet.forward(hidden_states, flow);
        }
        self.downsampler.forward(hidden_states, flow)
    }
}

#[derive(Debug)]
struct Downsampler {
    conv: CausalConv3d,
    stride: [i64; 3],
    /// The number of channels of the rearranged input that are averaged into one.
    group_size: i64,
}

impl Downsampler {
    fn new(weights: &Weights, width: i64, stage: &Stage, common: Common<'_>) -> Self {
        let cells: i64 = stage.stride.iter().product();
        Self {
            conv: CausalConv3d::new(&weights.sub("conv"), width, stage.width / cells, common),
            stride: stage.stride,
            group_size: width * cells / stage.width,
        }
    }

    fn forward(&self, x: Tensor, flow: &mut Flow) -> Tensor {
        let first = x.narrow(2, 0, self.stride[0] - 1);
        let x = Tensor::cat(&[first, x], 2);
        let residual = space_to_depth(&x, self.stride);
        let [b, c, f, h, w] = sizes(&residual);
        let groups = [b, c / self.group_size, self.group_size, f, h, w];
        let residual = residual
            .reshape(groups)
            .mean_dim([2i64].as_slice(), false, None::<Kind>);
        space_to_depth(&self.conv.forward(&x, flow), self.stride) + residual
    }
}
