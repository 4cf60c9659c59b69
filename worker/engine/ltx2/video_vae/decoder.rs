//! The decoder: computes frames from latents.
//!
//! Follows diffusers 0.42.1, `models/autoencoders/autoencoder_kl_ltx2.py`, `LTX2VideoDecoder3d`; decoding in groups of
//! frames is an addition of this package.

use tch::Tensor;

use super::config::{Config, Stage};
use super::flow::Flow;
use super::layers::{CausalConv3d, Common, ResnetBlock3d, depth_to_space};
use crate::nn::sizes;
use crate::ops::Kernels;
use crate::weights::Weights;

#[derive(Debug)]
pub(super) struct Decoder {
    patch_size: i64,
    conv_in: CausalConv3d,
    mid_block: Vec<ResnetBlock3d>,
    up_blocks: Vec<UpBlock>,
    conv_out: CausalConv3d,
}

/// A callback for pieces of the picture, `[B, 3, F, H, W]`, as soon as they are decoded.
pub(super) type Sink<'a, E> = &'a mut dyn FnMut(Tensor) -> Result<(), E>;

impl Decoder {
    pub(super) fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        let side = &config.decoder;
        let common = Common {
            causal: side.causal,
            padding: side.padding,
            kernels,
        };
        let pixels = config.channels * config.patch_size * config.patch_size;
        let mut width = side.width;
        let mut up_blocks = Vec::new();
        for (i, stage) in side.stages.iter().enumerate() {
            let weights = weights.sub("up_blocks").sub(i);
            up_blocks.push(UpBlock::new(&weights, width, stage, common));
            width = stage.width;
        }
        Self {
            patch_size: config.patch_size,
            conv_in: CausalConv3d::new(
                &weights.sub("conv_in"),
                config.latent_channels,
                side.width,
                common,
            ),
            mid_block: ResnetBlock3d::several(
                &weights.sub("mid_block"),
                side.mid_layers,
                side.width,
                common,
            ),
            up_blocks,
            conv_out: CausalConv3d::new(&weights.sub("conv_out"), width, pixels, common),
        }
    }

    /// Decodes `[B, C, f, h, w]` to `[B, 3, F, H, W]`, about −1…1.
    pub(super) fn forward(&self, latents: &Tensor) -> Tensor {
        let mut flow = Flow::whole();
        let mut hidden_states = self.begin(latents);
        for block in &self.up_blocks {
            hidden_states = block.forward(hidden_states, &mut flow);
        }
        self.finish(hidden_states, &mut flow)
    }

    /// Decodes in groups: no block processes more than `group` of its input frames at once. Pieces are passed out in
    /// order as soon as they are decoded, and together equal the result of [`Self::forward`].
    pub(super) fn forward_in_groups<E>(
        &self,
        latents: &Tensor,
        group: i64,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let mut flows: Vec<Flow> = self.up_blocks.iter().map(|_| Flow::new()).collect();
        self.flow_on(self.begin(latents), 0, &mut flows, group, true, sink)
    }

    /// Runs a piece through the blocks from `stage` on. `flows` are the states of those blocks; `last` means that no
    /// other piece follows.
    fn flow_on<E>(
        &self,
        piece: Tensor,
        stage: usize,
        flows: &mut [Flow],
        group: i64,
        last: bool,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let Some((flow, later)) = flows.split_first_mut() else {
            return sink(piece);
        };
        let frames = piece.size()[2];
        let mut start = 0;
        while start < frames {
            let taken = group.min(frames - start);
            let last = last && start + taken == frames;
            flow.begin(last);
            let mut x = self.up_blocks[stage].forward(piece.narrow(2, start, taken), flow);
            if later.is_empty() {
                x = self.finish(x, flow);
            }
            start += taken;
            if x.size()[2] > 0 {
                self.flow_on(x, stage + 1, later, group, last, sink)?;
            }
        }
        Ok(())
    }

    /// Applies the layers that work at the latents' resolution.
    fn begin(&self, latents: &Tensor) -> Tensor {
        let mut flow = Flow::whole();
        let mut hidden_states = self.conv_in.forward(latents, &mut flow);
        for resnet in &self.mid_block {
            hidden_states = resnet.forward(hidden_states, &mut flow);
        }
        hidden_states
    }

    /// Turns channels into the pixels of a patch: by colour, then column, then row.
    fn finish(&self, hidden_states: Tensor, flow: &mut Flow) -> Tensor {
        let hidden_states = self.conv_out.forward_normed_of(hidden_states, flow);
        let [b, c, f, h, w] = sizes(&hidden_states);
        let p = self.patch_size;
        hidden_states
            .reshape([b, c / (p * p), p, p, f, h, w]) // b c dx dy f h w
            .permute([0, 1, 4, 5, 3, 6, 2]) // b c f h dy w dx
            .reshape([b, c / (p * p), f, h * p, w * p])
    }
}

/// A step to more frames, rows and columns, followed by resnets.
#[derive(Debug)]
struct UpBlock {
    upsampler: Upsampler,
    resnets: Vec<ResnetBlock3d>,
}

impl UpBlock {
    fn new(weights: &Weights, width: i64, stage: &Stage, common: Common<'_>) -> Self {
        Self {
            upsampler: Upsampler::new(&weights.sub("upsamplers.0"), width, stage, common),
            resnets: ResnetBlock3d::several(weights, stage.layers, stage.width, common),
        }
    }

    fn forward(&self, hidden_states: Tensor, flow: &mut Flow) -> Tensor {
        let mut hidden_states = self.upsampler.forward(hidden_states, flow);
        for resnet in &self.resnets {
            hidden_states = resnet.forward(hidden_states, flow);
        }
        hidden_states
    }
}

#[derive(Debug)]
struct Upsampler {
    conv: CausalConv3d,
    stride: [i64; 3],
    residual: bool,
}

impl Upsampler {
    fn new(weights: &Weights, width: i64, stage: &Stage, common: Common<'_>) -> Self {
        let cells: i64 = stage.stride.iter().product();
        Self {
            conv: CausalConv3d::new(&weights.sub("conv"), width, stage.width * cells, common),
            stride: stage.stride,
            residual: stage.residual,
        }
    }

    fn forward(&self, x: Tensor, flow: &mut Flow) -> Tensor {
        let hidden_states = depth_to_space(&self.conv.forward(&x, flow), self.stride);
        if self.residual {
            // Consecutive channels of the residual form several channels of the result.
            let residual = depth_to_space(&x, self.stride);
            drop(x);
            let [b, channels, f, h, w] = sizes(&hidden_states);
            let c = residual.size()[1];
            let runs = hidden_states.view([b, channels / c, c, f, h, w]);
            flow.add_delayed(&runs, &residual.unsqueeze(1));
        }
        let frames = hidden_states.size()[2];
        // The extra frames before the first frame are dropped, since they belong to no frame.
        let place = flow.place();
        if place.begun || frames == 0 {
            return hidden_states;
        }
        place.begun = true;
        let extra = self.stride[0] - 1;
        hidden_states.narrow(2, extra, frames - extra)
    }
}
