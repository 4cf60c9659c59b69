//! The random numbers that a request starts from.
//!
//! All of them are drawn at once on the CPU in float32. They depend on the seed alone, not on the device, and no other
//! code can draw from the process-wide generator in between.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use super::latents::{self, AudioGrid, VideoGrid};

/// The order in which the random numbers of a stage that starts from noise are laid out. The noise that a second stage
/// adds is in the order of tokens in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawOrder {
    /// The channels come first, as in diffusers' `LTX2Pipeline`.
    Channels,
    /// The tokens come one by one, as in diffusers' `LTX2ConditionPipeline` and in FastVideo.
    Tokens,
}

/// The noise of one stage as tokens, float32 on the CPU.
#[derive(Debug)]
pub struct Noise {
    /// The noise of the video tokens, `[1, N, C]`.
    pub video: Tensor,
    /// The noise of the audio tokens, `[1, L, D]`.
    pub audio: Tensor,
}

/// Draws the noise of all stages from one seed: for each stage the video's, then the audio's.
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

/// Locks libtorch's process-wide generator. All code that draws from it must hold this lock.
pub fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

fn normal(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}
