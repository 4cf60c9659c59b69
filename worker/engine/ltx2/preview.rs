//! The preview decoder: a tiny network that makes pictures of the transformer's latents, less sharp than the video VAE's and
//! at a small part of its cost.
//!
//! It is the decoder of TAEHV as released for LTX-2.0 (`taeltx_2`) and LTX-2.3 (`taeltx2_3`), which are of one design. It is
//! causal and applied frame by frame; a block sees, besides its frame, the one before. So a few frames of a clip cost little:
//! only what they depend on is computed.
//!
//! Follows TAEHV at 1f14a568, `taehv.py`. That takes latents as the transformer has them, normalized: the VAE's mean and
//! deviation are not applied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::checkpoint::tensors::{Shard, TensorFileError};
use crate::nn::sizes;
use crate::weights::{Store, Weights, WeightsError};

/// Rows and columns of pixels in a latent: three times doubled, and patches of 4 pixels.
pub const SPATIAL_RATIO: i64 = 8 * PATCH;
/// Frames in a latent, except for the first latent, which has one.
pub const TEMPORAL_RATIO: i64 = 8;
/// Rows and columns of pixels in one value of the last layer.
const PATCH: i64 = 4;
const COLOURS: i64 = 3;
/// The number of blocks before each upsampling.
const BLOCKS: usize = 3;
/// Latents are softly limited to this many standard deviations.
const LIMIT: f64 = 3.0;
/// The first frames that come out belong to the time before the clip.
const TRIMMED_FRAMES: i64 = TEMPORAL_RATIO - 1;
/// The position of each stage's first block among the layers, by which tensors are named.
const STAGES: [usize; 3] = [3, 9, 15];
/// The position of the layer that makes patches of pixels.
const LAST: usize = 22;

/// The reason why a preview decoder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    #[error("preview decoder {}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("preview decoder {}: {problem}", path.display())]
    Weights {
        path: PathBuf,
        problem: WeightsError,
    },
}

/// The tiny decoder.
#[derive(Debug)]
pub struct PreviewDecoder {
    /// From latents to the first stage's width.
    first: Conv,
    stages: [Stage; 3],
    /// To patches of pixels.
    last: Conv,
    latent_channels: i64,
    kind: Kind,
    device: Device,
}

/// Blocks at one size, and the layers that double rows, columns and frames behind them.
#[derive(Debug)]
struct Stage {
    blocks: [Block; BLOCKS],
    /// A 1×1 convolution, which makes two frames of each: `[2 * width, width, 1, 1]`.
    grow: Tensor,
    /// To the next stage's width.
    narrow: Conv,
}

/// Three convolutions over a frame and the one before, with a residual connection around them.
#[derive(Debug)]
struct Block([Conv; 3]);

/// A 3×3 convolution with zero padding.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// The frames of a clip that are computed, by their positions in ascending order.
type Frames = Vec<i64>;

impl PreviewDecoder {
    /// Reads the decoder for latents with so many channels from a safetensors file. An encoder in the same file is left
    /// out. With `dry`, values are not read, and what is returned may not run.
    ///
    /// # Errors
    /// Returns an error when the file is of another kind, when the decoder is that of another model or of another design,
    /// which the message names, or when a value is not a finite number.
    pub fn load(
        path: &Path,
        latent_channels: i64,
        kind: Kind,
        device: Device,
        dry: bool,
    ) -> Result<Self, PreviewError> {
        let error = |problem: String| PreviewError::File {
            path: path.to_owned(),
            problem,
        };
        let end = path.extension().unwrap_or_default().to_string_lossy();
        if matches!(&*end, "pth" | "pt" | "ckpt" | "bin") {
            let problem = format!("a pickle (.{end}) is not read; convert it to safetensors");
            return Err(error(problem));
        }
        if end != "safetensors" {
            return Err(error("expected a safetensors file".to_owned()));
        }
        let damaged = |problem: TensorFileError| error(problem.to_string());
        let shard = Shard::open(path.to_owned()).map_err(damaged)?;
        let (_, header) = shard.metadata().map_err(damaged)?;
        let mut shapes = BTreeMap::new();
        for (name, info) in header.tensors() {
            let size = |&size: &usize| i64::try_from(size).unwrap_or(i64::MAX);
            let shape: Vec<i64> = info.shape.iter().map(size).collect();
            if !name.starts_with("encoder.") {
                shapes.insert(name, shape);
            }
        }
        check_design(&shapes, latent_channels).map_err(error)?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in shapes {
            let tensor = match dry {
                true => Tensor::zeros([1], (kind, Device::Cpu)).expand(shape, false),
                false => {
                    let tensor = shard.load(&name, Kind::Float, Device::Cpu);
                    tensor.map_err(|problem| error(format!("`{name}`: {problem}")))?
                }
            };
            if tensor.isfinite().all().int64_value(&[]) == 0 {
                let problem = format!("`{name}`: has values that are no finite numbers");
                return Err(error(problem));
            }
            tensors.insert(name, tensor);
        }
        let store = Store::new("preview decoder", tensors, kind, device);
        let decoder = Self::new(&store.root().sub("decoder"), latent_channels);
        store.finish().map_err(|problem| PreviewError::Weights {
            path: path.to_owned(),
            problem,
        })?;
        Ok(decoder)
    }

    /// Reads the decoder's tensors, whose widths are those of the stored ones.
    fn new(weights: &Weights, latent_channels: i64) -> Self {
        let width = |layer: usize| {
            let shape = weights.shape(&format!("{layer}.weight"));
            shape.and_then(|shape| shape.first().copied()).unwrap_or(1)
        };
        let [first, second, third] = STAGES;
        let behind = |stage: usize| stage + BLOCKS + 2;
        let widths = [
            width(1),
            width(behind(first)),
            width(behind(second)),
            width(behind(third)),
        ];
        let stage = |n: usize| {
            let (blocks, [from, to]) = (STAGES[n], [widths[n], widths[n + 1]]);
            Stage {
                blocks: std::array::from_fn(|i| Block::new(&weights.sub(blocks + i), from)),
                grow: weights
                    .sub(blocks + BLOCKS + 1)
                    .tensor("conv.weight", &[2 * from, from, 1, 1]),
                narrow: Conv::without_bias(&weights.sub(behind(blocks)), from, to),
            }
        };
        Self {
            first: Conv::new(&weights.sub(1), latent_channels, widths[0]),
            stages: std::array::from_fn(stage),
            last: Conv::new(&weights.sub(LAST), widths[3], COLOURS * PATCH * PATCH),
            latent_channels,
            kind: weights.kind(),
            device: weights.device(),
        }
    }

    pub fn latent_channels(&self) -> i64 {
        self.latent_channels
    }

    /// Returns frames of the clip of normalized latents `[1, C, F, h, w]`, by their positions in ascending order, each less
    /// than 8(F − 1) + 1: `[n, 3, 32h, 32w]`, 0 to 1, in float32.
    pub fn decode(&self, latents: &Tensor, frames: &[i64]) -> Tensor {
        let [_, channels, _, height, width] = sizes(latents);
        let needs = Needs::of(frames);
        let x = latents.to_device(self.device).to_kind(self.kind);
        let x = x.squeeze_dim(0).transpose(0, 1).contiguous(); // f c h w
        let x = select(&x, &needs.latents);
        debug_assert_eq!(x.size()[1..], [channels, height, width]);
        let x = (x / LIMIT).tanh() * LIMIT;
        let mut x = self.first.forward(&x).relu_();
        let mut have = &needs.latents;
        for (stage, need) in self.stages.iter().zip(&needs.stages) {
            x = stage.forward(&x, have, need);
            have = &need.grown;
        }
        let x = self.last.forward(&x.relu_());
        x.pixel_shuffle(PATCH).to_kind(Kind::Float).clamp_(0, 1)
    }

    /// Returns such frames as rgb8, `[n, 32h, 32w, 3]`.
    pub fn decode_rgb8(&self, latents: &Tensor, frames: &[i64]) -> Tensor {
        let pixels = self.decode(latents, frames) * 255;
        pixels.round().permute([0, 2, 3, 1]).to_kind(Kind::Uint8)
    }
}

/// Checks that the tensors are those of a decoder of this design.
///
/// # Errors
/// Returns what else it is.
fn check_design(shapes: &BTreeMap<String, Vec<i64>>, latent_channels: i64) -> Result<(), String> {
    const EXPECTED: &str = "expected `taeltx_2` or `taeltx2_3`";
    if !shapes.keys().any(|name| name.starts_with("decoder.")) {
        return Err(format!("it has no decoder of TAEHV; {EXPECTED}"));
    }
    // Only the wide blocks have a fourth convolution, and only the large decoder begins without a limit.
    if shapes.contains_key("decoder.3.conv.6.weight") {
        return Err(format!("`taeltx2_3_wide` is of another design; {EXPECTED}"));
    }
    if shapes.contains_key("decoder.0.weight") {
        return Err(format!(
            "a decoder of the large design (`super`) is not run; {EXPECTED}"
        ));
    }
    let channels = match shapes.get("decoder.1.weight").map(Vec::as_slice) {
        Some(&[_, channels, _, _]) => channels,
        _ => return Ok(()),
    };
    if channels == latent_channels {
        return Ok(());
    }
    let made_for = match channels {
        16 => " (`taehv`, `taew2_1`, `taecvx` and `taeos1_3` are)",
        24 => " (`taeh3` is)",
        32 => " (`taehv1_5` is)",
        48 => " (`taew2_2` is)",
        _ => "",
    };
    Err(format!(
        "it is for latents of {channels} channels{made_for}, and the model's have {latent_channels}; {EXPECTED}"
    ))
}

impl Stage {
    fn new_frames(&self, x: &Tensor) -> Tensor {
        let grown = x.conv2d(&self.grow, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1);
        let [n, channels, height, width] = sizes(&grown);
        grown.view([2 * n, channels / 2, height, width])
    }

    /// Computes the frames that are needed behind the stage, from those that come in.
    fn forward(&self, x: &Tensor, have: &Frames, need: &StageNeeds) -> Tensor {
        let mut x = x.shallow_clone();
        let mut have = have;
        for (block, wanted) in self.blocks.iter().zip(&need.blocks) {
            x = block.forward(&x, have, wanted);
            have = wanted;
        }
        let doubled: Frames = have.iter().flat_map(|n| [2 * n, 2 * n + 1]).collect();
        // The reference enlarges first. A 1×1 convolution gives the same before, for a quarter of the work.
        let x = select(&self.new_frames(&x), &places(&doubled, &need.grown));
        let [_, _, height, width] = sizes(&x);
        let x = x.upsample_nearest2d([2 * height, 2 * width], None, None);
        self.narrow.forward(&x)
    }
}

impl Block {
    fn new(weights: &Weights, width: i64) -> Self {
        let conv = |name: &str, inputs| Conv::new(&weights.sub("conv").sub(name), inputs, width);
        Self([conv("0", 2 * width), conv("2", width), conv("4", width)])
    }

    /// Computes the wanted frames. `x` has each of them and the one before, where there is one.
    fn forward(&self, x: &Tensor, have: &Frames, wanted: &Frames) -> Tensor {
        let [_, channels, height, width] = sizes(x);
        let nothing = Tensor::zeros([1, channels, height, width], (x.kind(), x.device()));
        // The frame before the first one is empty; it stands in front.
        let with_nothing = Tensor::cat(&[&nothing, x], 0);
        let before: Vec<i64> = wanted
            .iter()
            .map(|n| match n {
                0 => 0,
                n => place(have, n - 1) + 1,
            })
            .collect();
        let before = select(&with_nothing, &before);
        let x = select(x, &places(have, wanted));
        let [first, second, third] = &self.0;
        let y = first.forward(&Tensor::cat(&[&x, &before], 1)).relu_();
        let y = second.forward(&y).relu_();
        (third.forward(&y) + x).relu_()
    }
}

impl Conv {
    fn new(weights: &Weights, inputs: i64, outputs: i64) -> Self {
        Self {
            bias: Some(weights.tensor("bias", &[outputs])),
            ..Self::without_bias(weights, inputs, outputs)
        }
    }

    fn without_bias(weights: &Weights, inputs: i64, outputs: i64) -> Self {
        Self {
            weight: weights.tensor("weight", &[outputs, inputs, 3, 3]),
            bias: None,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), [1, 1], [1, 1], [1, 1], 1)
    }
}

/// The frames that have to be computed at each place in the network for some frames at its end.
#[derive(Debug)]
struct Needs {
    latents: Frames,
    stages: [StageNeeds; 3],
}

#[derive(Debug, Default)]
struct StageNeeds {
    /// The frames behind each block.
    blocks: [Frames; BLOCKS],
    /// The frames behind the stage, of twice the rate.
    grown: Frames,
}

impl Needs {
    /// Follows the network backwards.
    fn of(frames: &[i64]) -> Self {
        let mut wanted: Frames = frames.iter().map(|n| n + TRIMMED_FRAMES).collect();
        let mut stages: [StageNeeds; 3] = Default::default();
        for stage in stages.iter_mut().rev() {
            let halved: BTreeSet<i64> = wanted.iter().map(|n| n / 2).collect();
            stage.grown = std::mem::replace(&mut wanted, halved.into_iter().collect());
            for block in stage.blocks.iter_mut().rev() {
                let with_before: BTreeSet<i64> = wanted
                    .iter()
                    .flat_map(|n| [n - 1, *n])
                    .filter(|n| *n >= 0)
                    .collect();
                *block = std::mem::replace(&mut wanted, with_before.into_iter().collect());
            }
        }
        Self {
            latents: wanted,
            stages,
        }
    }
}

/// Returns where the wanted frames are among those that there are.
fn places(have: &Frames, wanted: &Frames) -> Vec<i64> {
    wanted.iter().map(|n| place(have, *n)).collect()
}

fn place(have: &Frames, frame: i64) -> i64 {
    let place = have.binary_search(&frame);
    let place = place.expect("what a frame depends on was computed before");
    i64::try_from(place).expect("a clip has few frames")
}

fn select(x: &Tensor, places: &[i64]) -> Tensor {
    x.index_select(0, &Tensor::from_slice(places).to_device(x.device()))
}

/// Returns which of `count` frames are shown where `most` previews are wanted: evenly spread, and the last one.
pub fn spread(count: i64, most: i64) -> Vec<i64> {
    let shown = most.min(count);
    (1..=shown).map(|n| n * count / shown - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_spread_evenly_and_show_the_last_frame() {
        let check = |count, most, expected: &[i64]| {
            assert_eq!(spread(count, most), expected, "{most} of {count}");
        };
        check(112, 8, &[13, 27, 41, 55, 69, 83, 97, 111]);
        check(121, 1, &[120]);
        check(25, 4, &[5, 11, 17, 24]);
        check(3, 8, &[0, 1, 2]);
        check(1, 32, &[0]);
    }

    #[test]
    fn a_frame_needs_its_own_past_only() {
        let needs = Needs::of(&[0]);
        // The first frame stands behind seven that belong to no clip: all of one latent.
        assert_eq!(needs.latents, [0]);
        let needs = Needs::of(&[120]);
        assert_eq!(needs.latents, [10, 11, 12, 13, 14, 15]);
        assert_eq!(needs.stages[2].grown, [127]);
        assert_eq!(needs.stages[2].blocks[2], [63]);
        assert_eq!(needs.stages[2].blocks[0], [61, 62, 63]);
    }
}
