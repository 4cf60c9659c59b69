//! The vocoder: computes a waveform from a mel spectrogram.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/vocoder.py`, `LTX2Vocoder` and `LTX2VocoderWithBWE`. It computes in float32
//! whatever the checkpoint's type is, because it is small and rounding errors are audible.
//!
//! - `config`: sizes, from either form of file;
//! - `generator`, `activation`: the network from a spectrogram to a waveform;
//! - `bandwidth`: from a waveform of LTX-2.3's generator to one of three times its sample rate.

mod activation;
mod bandwidth;
mod config;
mod generator;

use tch::{Device, Kind, Tensor};

pub use self::bandwidth::BandwidthExtension;
pub use self::config::{Activation, Config, Extension, Generator as GeneratorConfig};
use self::generator::Generator;
use crate::weights::Weights;

#[derive(Debug)]
pub struct Vocoder {
    config: Config,
    generator: Generator,
    extension: Option<BandwidthExtension>,
    device: Device,
}

impl Vocoder {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let generator = match config.extension {
            None => weights.clone(),
            Some(_) => weights.sub("vocoder"),
        };
        let extension = config.extension.as_ref();
        Self {
            generator: Generator::new(&config.generator, &generator),
            extension: extension.map(|e| BandwidthExtension::new(config, e, weights)),
            device: weights.device(),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn extension(&self) -> Option<&BandwidthExtension> {
        self.extension.as_ref()
    }

    /// Computes the generator's own waveform, `[B, 2, N]`, from a mel spectrogram `[B, 2, T, mel]` in natural logarithms.
    pub fn generated(&self, mel: &Tensor) -> Tensor {
        let mel = mel.to_device(self.device).to_kind(Kind::Float);
        self.generator.forward(&mel)
    }

    /// Computes samples `[B, 2, N]` in −1…1, float32, from a mel spectrogram `[B, 2, T, mel]` in natural logarithms. LTX-2.0
    /// makes 240 samples of a row, LTX-2.3 480.
    pub fn forward(&self, mel: &Tensor) -> Tensor {
        let waveform = self.generated(mel);
        match &self.extension {
            None => waveform,
            // The authors' own code clamps here; the library does not.
            Some(extension) => extension.forward(&waveform.clamp(-1.0, 1.0)),
        }
    }
}
