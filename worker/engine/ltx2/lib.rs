//! LTX-2.0 on libtorch: text to video and sound, and on from the segment before.
//!
//! The names are those of the reference implementation (diffusers 0.42.1), so that the two can be read side by side and
//! weight keys line up. Nothing here knows jobs, links or media: the worker's engine calls it.
//!
//! - `weights`: named tensors, where they come from and whether they fit;
//! - `checkpoint`: a model's files, in both layouts, and where they come from;
//! - `device`: the CPU or a GPU, opened when it is asked for;
//! - `load`: from a checkpoint to the parts of a model;
//! - `nn`: the few layers that every part uses;
//! - `ops`: the element-wise hot spots, with the choice of what computes them;
//! - `kernels`: CUDA kernels of our own for those;
//! - `text`: tokenizer, Gemma 3 and the connectors: from a prompt to the two contexts;
//! - `transformer`: the denoiser;
//! - `sampling`: schedules, noise, guidance, Euler steps;
//! - `pixels`: between rgb8 frames and what the video VAE works with;
//! - `pipeline`: one request, end to end;
//! - `video_vae`, `upsampler`, `audio_vae`, `vocoder`: between latents and pictures or sound;
//! - `mel`: what the audio VAE hears of a waveform.
#![cfg(feature = "torch")]

pub mod audio_vae;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod kernels;
pub mod load;
pub mod mel;
pub mod nn;
pub mod ops;
pub mod pipeline;
pub mod pixels;
pub mod sampling;
pub mod text;
pub mod transformer;
pub mod upsampler;
pub mod video_vae;
pub mod vocoder;
pub mod weights;

/// An error's message, followed by those of its sources that it does not contain already.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
