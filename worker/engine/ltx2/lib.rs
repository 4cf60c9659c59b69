//! LTX-2.0 and LTX-2.3 on libtorch: generates video and sound from text, and continues from the segment before.
//!
//! The names are those of the reference implementation (diffusers 0.42.1), so that the two can be read side by side and
//! weight keys match. This package does not know about jobs, links or media: the worker's engine calls it.
//!
//! - `generation`: the generations of the model;
//! - `config`: reads configuration values, and tells the generations apart;
//! - `weights`: named tensors, and the checks that a model has exactly those that it needs;
//! - `checkpoint`: a model's files in both layouts, and their download;
//! - `device`: the CPU or a GPU, opened on request;
//! - `load`: loads the parts of a model from a checkpoint;
//! - `memory`: estimates the memory that a model needs;
//! - `nn`: the few layers that every part uses; `activations`: their inputs;
//! - `adapters`: changes of linear layers that are loaded beside the weights (LoRA); `low_rank`: their place in a layer;
//! - `float8`: matrix products in 8-bit floats;
//! - `ops`: the element-wise hot spots, with the choice of their implementation;
//! - `kernels`: the package's own CUDA kernels for those;
//! - `text`: tokenizer, Gemma 3 and the connectors, which turn a prompt into the two contexts;
//! - `transformer`: the denoiser;
//! - `sampling`: schedules, noise, guidance, Euler steps;
//! - `pixels`: converts between rgb8 frames and the pixels of the video VAE;
//! - `pipeline`: one request from start to end;
//! - `preview`: a tiny decoder, for pictures of a segment that is not ready;
//! - `video_vae`, `upsampler`, `audio_vae`, `vocoder`: convert between latents and pictures or sound;
//! - `mel`: the mel spectrogram of a waveform, for the audio VAE; `resample`: other sample rates.
#![cfg(feature = "torch")]

pub mod activations;
pub mod adapters;
pub mod audio_vae;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod float8;
pub mod generation;
pub mod kernels;
pub mod load;
pub mod low_rank;
pub mod mel;
pub mod memory;
pub mod nn;
pub mod ops;
pub mod pipeline;
pub mod pixels;
pub mod preview;
pub mod resample;
pub mod sampling;
pub mod text;
pub mod transformer;
pub mod upsampler;
pub mod video_vae;
pub mod vocoder;
pub mod weights;

/// Formats an error's message, followed by those of its sources that it does not contain already.
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
