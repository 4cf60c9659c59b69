//! Rotary position embeddings (RoPE): the tokens' positions in time and space as tables of rotations for queries and keys.
//!
//! The tables depend only on a request's shape, frame rate and clock offset, so they are built once per request.
//!
//! Follows `LTX2AudioVideoRotaryPosEmbed` in `models/transformers/transformer_ltx2.py` of diffusers 0.42.1.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use super::Config;
use crate::ops::{GridAxis, Kernels, PositionTable, Rotation};

/// The regions of the clip that a request's tokens stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The number of latent frames, rows and columns.
    pub grid: [i64; 3],
    pub audio_latents: i64,
    /// Frames per second.
    pub fps: f64,
    /// The time in seconds by which the video's clock is ahead of the sound's.
    pub video_offset: f64,
    pub positions: Positions,
}

/// The precision of video positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Positions as the library computes them.
    #[default]
    Float32,
    /// Positions as FastVideo computes them: token boundaries rounded to bfloat16, a grid of 1/64 s at three seconds.
    Bfloat16,
}

/// The four tables of one request, for any batch size. The package's own kernels take small ones, of positions.
#[derive(Debug)]
pub struct RotaryTables {
    pub video: Rotation,
    pub audio: Rotation,
    /// The tables of time alone, for attention between the streams.
    pub cross_video: Rotation,
    pub cross_audio: Rotation,
}

impl RotaryTables {
    pub fn new(config: &Config, geometry: &Geometry, device: Device, kernels: &Kernels) -> Self {
        let axes = [
            config.pos_embed_max_pos,
            config.base_height,
            config.base_width,
        ];
        let audio_axes = [config.audio_pos_embed_max_pos];
        let longest = [config.pos_embed_max_pos.max(config.audio_pos_embed_max_pos)];
        let (width, audio_width) = (config.width(), config.audio_width());
        let (heads, audio_heads) = (config.num_attention_heads, config.audio_num_attention_heads);
        let cross = config.audio_cross_attention_dim;
        let theta = config.rope_theta;
        let audio = audio_coords(config, geometry.audio_latents, device);
        match kernels {
            Kernels::Plain => {
                let video = video_coords(config, geometry, device);
                let time = video.narrow(1, 0, 1);
                Self {
                    video: of_tokens(&video, &axes, width, heads, theta),
                    audio: of_tokens(&audio, &audio_axes, audio_width, audio_heads, theta),
                    cross_video: of_tokens(&time, &longest, cross, audio_heads, theta),
                    cross_audio: of_tokens(&audio, &longest, cross, audio_heads, theta),
                }
            }
            Kernels::Cuda(_) => {
                let [_, rows, columns] = geometry.grid;
                let strides = [rows * columns, columns, 1];
                let video = video_bounds(config, geometry, device);
                let audio = [audio.view([-1, 2])];
                Self {
                    video: of_positions(&video, &strides, &axes, width, theta),
                    audio: of_positions(&audio, &[1], &audio_axes, audio_width, theta),
                    cross_video: of_positions(&video[..1], &strides, &longest, cross, theta),
                    cross_audio: of_positions(&audio, &[1], &longest, cross, theta),
                }
            }
        }
    }
}

/// Returns start and end of each video token in seconds, pixel rows and pixel columns: `[1, 3, N, 2]`.
pub fn video_coords(config: &Config, geometry: &Geometry, device: Device) -> Tensor {
    let [frames, height, width] = geometry.grid;
    let coords: Vec<Tensor> = video_bounds(config, geometry, device)
        .iter()
        .zip([[frames, 1, 1, 2], [1, height, 1, 2], [1, 1, width, 2]])
        .map(|(bounds, shape)| {
            let whole = [frames, height, width, 2];
            bounds.view(shape).expand(whole, false).reshape([-1, 2])
        })
        .collect();
    Tensor::stack(&coords, 0).unsqueeze(0)
}

/// Returns start and end of each latent frame in seconds, and of each row and each column in pixels: `[size, 2]` each.
fn video_bounds(config: &Config, geometry: &Geometry, device: Device) -> [Tensor; 3] {
    let axes = geometry
        .grid
        .map(|size| Tensor::arange(size, (Kind::Float, device)));
    let [time, rows, columns] = config.vae_scale_factors;
    // The first latent frame holds one frame, every other one `time` frames.
    let pictures = |index: &Tensor| (index * time + config.causal_offset - time).clamp_min(0);
    let seconds = |index: &Tensor| pictures(index) / geometry.fps + geometry.video_offset;
    let bounds =
        |index: &Tensor, scale: i64| Tensor::stack(&[index * scale, (index + 1) * scale], -1);
    let along = [
        Tensor::stack(&[seconds(&axes[0]), seconds(&(&axes[0] + 1))], -1),
        bounds(&axes[1], rows),
        bounds(&axes[2], columns),
    ];
    match geometry.positions {
        Positions::Float32 => along,
        Positions::Bfloat16 => {
            along.map(|bounds| bounds.to_kind(Kind::BFloat16).to_kind(Kind::Float))
        }
    }
}

/// Returns start and end of each audio token in seconds: `[1, 1, L, 2]`.
pub fn audio_coords(config: &Config, audio_latents: i64, device: Device) -> Tensor {
    let index = Tensor::arange(audio_latents, (Kind::Float, device));
    let scale = config.audio_scale_factor;
    let seconds = |index: &Tensor| {
        let mel_frames = (index * scale + config.causal_offset - scale).clamp_min(0);
        mel_frames * config.audio_hop_length / config.audio_sampling_rate
    };
    Tensor::stack(&[seconds(&index), seconds(&(&index + 1))], -1).view([1, 1, audio_latents, 2])
}

/// Returns the table of tokens with these bounds, `[1, axes, N, 2]`; `longest` is the length that each axis is divided
/// by. Every head has frequencies of its own.
fn of_tokens(coords: &Tensor, longest: &[i64], width: i64, heads: i64, theta: f64) -> Rotation {
    let (batch, axes, tokens, _) = coords.size4().expect("coordinates have four axes");
    let middle = coords.sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>) / 2.0; // [1, axes, N]
    let along: Vec<Tensor> = (0..axes)
        .zip(longest)
        .map(|(axis, &longest)| middle.select(1, axis) / longest)
        .collect();
    let position = Tensor::stack(&along, -1).unsqueeze(-1); // [1, N, axes, 1]
    let frequencies = frequencies(width / (2 * axes), theta).to_device(coords.device());
    let angle = (position * 2 - 1) * frequencies; // [1, N, axes, frequencies]
    let angle = angle.transpose(-1, -2).flatten(2, 3); // [1, N, frequencies · axes]
    let shape = [batch, tokens, heads, width / 2 / heads];
    // The rest of the width, at its front, stays unrotated.
    let still = [batch, tokens, width / 2 - angle.size()[2]];
    let table = |values: Tensor, still: Tensor| {
        let values = Tensor::cat(&[still, values], 2).view(shape); // [1, N, heads, width / 2 / heads]
        values.transpose(1, 2).contiguous()
    };
    let options = (Kind::Float, coords.device());
    Rotation::OfTokens {
        cos: table(angle.cos(), Tensor::ones(still, options)),
        sin: table(angle.sin(), Tensor::zeros(still, options)),
    }
}

/// Returns the table of the positions on axes with these bounds, `[size, 2]` each. It has the values of the tokens' table: those of
/// a token's axis depend on its position there alone.
fn of_positions(
    bounds: &[Tensor],
    strides: &[i64],
    longest: &[i64],
    width: i64,
    theta: f64,
) -> Rotation {
    let count = i64::try_from(bounds.len()).expect("a handful of axes");
    let per_axis = width / (2 * count);
    let frequencies = frequencies(per_axis, theta).to_device(bounds[0].device());
    let values: Vec<Tensor> = bounds
        .iter()
        .zip(longest)
        .map(|(bounds, &longest)| {
            let middle = bounds.sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>) / 2.0;
            let position = (middle / longest).unsqueeze(-1);
            let angle = (position * 2 - 1) * &frequencies; // [size, frequencies]
            Tensor::stack(&[angle.cos(), angle.sin()], -1)
        })
        .collect();
    let axes: Vec<GridAxis> = values
        .iter()
        .zip(strides)
        .map(|(values, &stride)| GridAxis {
            size: values.size()[0],
            stride,
        })
        .collect();
    Rotation::OfPositions(PositionTable {
        values: Tensor::cat(&values, 0),
        tokens: axes[0].size * axes[0].stride,
        axes,
        still: width / 2 - count * per_axis,
    })
}

/// Returns frequencies from π/2 to θ π/2 in equal ratios. They are computed on the CPU and in double precision until
/// the end, so that every device has the same ones.
fn frequencies(count: i64, theta: f64) -> Tensor {
    let exponents = Tensor::linspace(0.0, 1.0, count, (Kind::Double, Device::Cpu));
    (Tensor::pow_scalar(theta, &exponents) * PI / 2.0).to_kind(Kind::Float)
}
