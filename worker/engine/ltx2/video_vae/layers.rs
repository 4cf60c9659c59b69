//! The layers of encoder and decoder.
//!
//! Follows diffusers 0.42.1, `models/autoencoders/autoencoder_kl_ltx2.py`.

use tch::Tensor;

use super::config;
use super::flow::Flow;
use crate::nn::sizes;
use crate::ops::{Kernels, Padding};
use crate::weights::Weights;

/// The kernel size in frames, rows and columns.
const KERNEL: i64 = 3;
const EPS: f64 = 1e-8;

/// The settings that all convolutions of the encoder or the decoder share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'a> {
    /// Whether a frame sees only itself and those before it.
    pub(super) causal: bool,
    /// The padding around the picture.
    pub(super) padding: config::Padding,
    pub(super) kernels: &'a Kernels,
}

/// A 3×3×3 convolution that keeps the number of frames, rows and columns.
///
/// The padding in time consists of copies of the first frame in front and, unless causal, of copies of the last frame
/// behind.
#[derive(Debug)]
pub(super) struct CausalConv3d {
    weight: Tensor,
    bias: Tensor,
    causal: bool,
    reflect: bool,
    kernels: Kernels,
}

impl CausalConv3d {
    pub(super) fn new(
        weights: &Weights,
        in_channels: i64,
        out_channels: i64,
        common: Common<'_>,
    ) -> Self {
        let weights = weights.sub("conv");
        let shape = [out_channels, in_channels, KERNEL, KERNEL, KERNEL];
        Self {
            weight: weights.tensor("weight", &shape),
            bias: weights.tensor("bias", &[out_channels]),
            causal: common.causal,
            reflect: common.padding == config::Padding::Reflect,
            kernels: common.kernels.clone(),
        }
    }

    /// Applies the convolution: `[B, in, F, H, W]` to `[B, out, F, H, W]`. For a group of frames, it returns those that
    /// can be computed so far.
    pub(super) fn forward(&self, x: &Tensor, flow: &mut Flow) -> Tensor {
        let padded = self.padded(x, flow, |padding| self.kernels.pad(x, padding));
        self.convolve(padded)
    }

    /// Applies the convolution to `silu(pixel_norm(x))`.
    pub(super) fn forward_normed(&self, x: &Tensor, flow: &mut Flow) -> Tensor {
        self.convolve(self.normed(x, flow))
    }

    /// Applies the convolution to `silu(pixel_norm(x))` and consumes `x`: at full size each tensor here is several GiB.
    pub(super) fn forward_normed_of(&self, x: Tensor, flow: &mut Flow) -> Tensor {
        let padded = self.normed(&x, flow);
        drop(x);
        self.convolve(padded)
    }

    fn normed(&self, x: &Tensor, flow: &mut Flow) -> Tensor {
        let kernels = &self.kernels;
        self.padded(x, flow, |padding| {
            kernels.pixel_norm_silu_pad(x, EPS, padding)
        })
    }

    /// Returns the input of the convolution: frames kept from earlier groups or copies of the first frame, the frames
    /// of `x` as padded by `pad`, and at the clip's end copies of the last frame.
    fn padded(&self, x: &Tensor, flow: &mut Flow, pad: impl FnOnce(Padding) -> Tensor) -> Tensor {
        let [b, c, frames, h, w] = sizes(x);
        let is_last = flow.is_last();
        let place = flow.place();
        if frames == 0 {
            return Tensor::empty([b, c, 0, h, w], (x.kind(), x.device()));
        }
        let kept = place.kept.take();
        let (copies_before, copies_after) = match self.causal {
            true => (KERNEL - 1, 0),
            false => (KERNEL / 2, KERNEL / 2),
        };
        let padding = Padding {
            before: kept.as_ref().map_or(copies_before, |kept| kept.size()[2]),
            after: if is_last { copies_after } else { 0 },
            border: KERNEL / 2,
            reflect: self.reflect,
        };
        let padded = pad(padding);
        if let Some(kept) = kept {
            padded.narrow(2, 0, padding.before).copy_(&kept);
        }
        if !is_last {
            let seen = padding.before + frames;
            let keep = seen.min(KERNEL - 1);
            place.kept = Some(padded.narrow(2, seen - keep, keep).copy());
        }
        padded
    }

    fn convolve(&self, padded: Tensor) -> Tensor {
        let [b, _, frames, rows, columns] = sizes(&padded);
        if frames < KERNEL {
            let border = if frames == 0 { 0 } else { KERNEL / 2 };
            let size = [
                b,
                self.bias.size()[0],
                0,
                rows - 2 * border,
                columns - 2 * border,
            ];
            return Tensor::empty(size, (padded.kind(), padded.device()));
        }
        padded.conv3d(
            &self.weight,
            Some(&self.bias),
            [1, 1, 1],
            [0, 0, 0],
            [1, 1, 1],
            1,
        )
    }
}

/// A residual block: two convolutions, whose result is added to the input.
#[derive(Debug)]
pub(super) struct ResnetBlock3d {
    conv1: CausalConv3d,
    conv2: CausalConv3d,
}

impl ResnetBlock3d {
    pub(super) fn new(weights: &Weights, channels: i64, common: Common<'_>) -> Self {
        Self {
            conv1: CausalConv3d::new(&weights.sub("conv1"), channels, channels, common),
            conv2: CausalConv3d::new(&weights.sub("conv2"), channels, channels, common),
        }
    }

    /// Loads a block's resnets, whose names are below `weights`.
    pub(super) fn several(
        weights: &Weights,
        count: i64,
        channels: i64,
        common: Common<'_>,
    ) -> Vec<Self> {
        let weights = weights.sub("resnets");
        (0..count)
            .map(|i| Self::new(&weights.sub(i), channels, common))
            .collect()
    }

    /// Applies the block; the shape `[B, C, F, H, W]` stays the same.
    pub(super) fn forward(&self, x: Tensor, flow: &mut Flow) -> Tensor {
        let hidden_states = self.conv1.forward_normed(&x, flow);
        let hidden_states = self.conv2.forward_normed_of(hidden_states, flow);
        flow.add_delayed(&hidden_states, &x);
        hidden_states
    }
}

/// Rearranges `[B, C, F, H, W]` to `[B, C·t·h·w, F/t, H/h, W/w]`.
pub(super) fn space_to_depth(x: &Tensor, [st, sh, sw]: [i64; 3]) -> Tensor {
    let [b, c, f, h, w] = sizes(x);
    let (f, h, w) = (f / st, h / sh, w / sw);
    x.reshape([b, c, f, st, h, sh, w, sw])
        .permute([0, 1, 3, 5, 7, 2, 4, 6]) // b c st sh sw f h w
        .reshape([b, c * st * sh * sw, f, h, w])
}

/// Rearranges `[B, C·t·h·w, F, H, W]` to `[B, C, F·t, H·h, W·w]`; a channels-last memory format is kept.
pub(super) fn depth_to_space(x: &Tensor, [st, sh, sw]: [i64; 3]) -> Tensor {
    let [b, c, f, h, w] = sizes(x);
    let c = c / (st * sh * sw);
    let split = x.reshape([b, c, st, sh, sw, f, h, w]);
    let channels_last = c > 1 && x.stride()[1] == 1;
    if channels_last {
        return split
            .permute([0, 5, 2, 6, 3, 7, 4, 1]) // b f st h sh w sw c
            .reshape([b, f * st, h * sh, w * sw, c])
            .permute([0, 4, 1, 2, 3]);
    }
    split
        .permute([0, 1, 5, 2, 6, 3, 7, 4]) // b c f st h sh w sw
        .reshape([b, c, f * st, h * sh, w * sw])
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn channels_that_lie_last_stay_there() {
        let x = Tensor::arange(2 * 24 * 3 * 2 * 2, (Kind::Float, Device::Cpu));
        let x = x.view([2, 24, 3, 2, 2]);
        let last = x
            .permute([0, 2, 3, 4, 1])
            .contiguous()
            .permute([0, 4, 1, 2, 3]);
        let deep = depth_to_space(&last, [2, 2, 2]);
        assert!(deep.equal(&depth_to_space(&x, [2, 2, 2])));
        assert_eq!(deep.stride()[1], 1);
    }
}
