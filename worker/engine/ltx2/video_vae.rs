//! The video VAE: encodes frames as video latents, and decodes them.
//!
//! Follows diffusers 0.42.1, `models/autoencoders/autoencoder_kl_ltx2.py`.
//!
//! - `config`: the network's shape, from either layout;
//! - `layers`, `flow`: the layers that encoder and decoder share, and the state for processing a clip in groups of
//!   frames;
//! - `encoder`, `decoder`: the two halves;
//! - `tiling`: decoding in pieces.

mod config;
mod decoder;
mod encoder;
mod flow;
mod layers;
mod tiling;

use std::convert::Infallible;

use tch::{Device, Kind, Tensor};

pub use self::config::{Config, Padding, Side, Stage};
use self::decoder::Decoder;
use self::encoder::Encoder;
pub use self::tiling::{Tile, Tiling, TilingError};
use crate::nn::LatentStatistics;
use crate::ops::Kernels;
use crate::weights::Weights;

/// The video autoencoder. Its interface takes and returns normalized latents in float32, whatever type it computes in.
#[derive(Debug)]
pub struct VideoVae {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
    statistics: LatentStatistics,
    kind: Kind,
    device: Device,
    kernels: Kernels,
}

impl VideoVae {
    pub fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        Self {
            encoder: Encoder::new(config, &weights.sub("encoder"), kernels),
            decoder: Decoder::new(config, &weights.sub("decoder"), kernels),
            statistics: LatentStatistics::new(weights, config.latent_channels, &[1, -1, 1, 1, 1]),
            kind: weights.kind(),
            device: weights.device(),
            kernels: kernels.clone(),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Encodes pixels `[B, 3, F, H, W]` in −1…1, F = 8k + 1, H and W multiples of a cell, as normalized latents
    /// `[B, C, f, h, w]`.
    pub fn encode(&self, pixels: &Tensor) -> Tensor {
        let pixels = pixels.to_device(self.device).to_kind(self.kind);
        self.normalize(&self.encoder.forward(&pixels))
    }

    /// Converts latents `[B, C, f, h, w]` from the encoder's scale to the normalized scale of the transformer, in
    /// float32.
    pub fn normalize(&self, latents: &Tensor) -> Tensor {
        self.statistics.normalize(latents)
    }

    /// The inverse of [`Self::normalize`].
    pub fn unnormalize(&self, latents: &Tensor) -> Tensor {
        self.statistics.unnormalize(latents)
    }

    /// Decodes normalized latents `[B, C, f, h, w]` to pixels `[B, 3, F, H, W]`, about −1…1.
    ///
    /// # Errors
    /// Returns an error when the latents cannot be cut into such tiles.
    pub fn decode(&self, latents: &Tensor, tiling: &Tiling) -> Result<Tensor, TilingError> {
        let plan = self.plan(latents, tiling)?;
        let mut pieces = Vec::new();
        let finished: Result<(), Infallible> =
            plan.run(&self.decoder, &self.latents(latents), &mut |piece| {
                pieces.push(piece);
                Ok(())
            });
        let Ok(()) = finished;
        Ok(match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(&pieces, 2),
        })
    }

    /// Decodes one clip, `[1, C, f, h, w]`, to rgb8 frames `[n, H, W, 3]` on the model's device, and passes them to
    /// `on_frames` in order as soon as they are decoded.
    ///
    /// # Errors
    /// Returns an error when the latents cannot be cut into such tiles, and the errors of `on_frames`, after which
    /// decoding stops.
    pub fn decode_streaming<E: From<TilingError>>(
        &self,
        latents: &Tensor,
        tiling: &Tiling,
        on_frames: &mut dyn FnMut(&Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        let plan = self.plan(latents, tiling)?;
        plan.run(&self.decoder, &self.latents(latents), &mut |piece| {
            let frames = self.kernels.rgb8(&piece);
            drop(piece);
            on_frames(&frames)
        })
    }

    fn plan(&self, latents: &Tensor, tiling: &Tiling) -> Result<tiling::Plan, TilingError> {
        tiling::Plan::new(tiling, &self.config, latents)
    }

    /// Returns the latents in the form that the decoder takes.
    fn latents(&self, normalized: &Tensor) -> Tensor {
        self.unnormalize(&normalized.to_device(self.device))
            .to_kind(self.kind)
    }
}
