//! The random numbers that a request starts from.
//!
//! All of them are drawn at once on the CPU in float32: they depend on the seed alone, not on the device, and nothing else
//! can draw from the process-wide generator in between.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use super::latents::{self, AudioGrid, VideoGrid};

/// In which order the random numbers of a stage that starts from noise are laid out. What a second stage adds is in
/// tokens' order in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawOrder {
    /// Channels first, as diffusers' `LTX2Pipeline` draws.
    Channels,
    /// Token by token, as diffusers' `LTX2ConditionPipeline` and FastVideo draw.
    Tokens,
}

/// Noise of one stage as tokens, float32 on the CPU.
#[derive(Debug)]
pub struct Noise {
    /// `[1, N, C]`.
    pub video: Tensor,
    /// `[1, L, D]`.
    pub audio: Tensor,
}

/// Draws the noise of all stages from one seed: of each the video's, then the audio's.
pub fn draw(seed: u64, order: DrawOrder, stages: &[(VideoGrid, AudioGrid)]) -> Vec<Noise> {
    let _alone = generator();
    tch::manual_seed(seed.cast_signed());
    let stage = |(i, (video, audio)): (usize, &(VideoGrid, AudioGrid))| match order {
        DrawOrder::Channels if i == 0 => Noise {
            video: latents::pack_video(&normal(&video.shape())),
            audio: latents::pack_audio(&normal(&audio.shape())),
        },
        _ => Noise {
            video: normal(&video.packed_shape()),
            audio: normal(&audio.packed_shape()),
        },
    };
    stages.iter().enumerate().map(stage).collect()
}

/// Nobody else draws from libtorch's process-wide generator while this is held, as long as everybody asks for it first.
pub fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

fn normal(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}
